"""One executor: one instance, one session. Starts it, feeds it, watches over it, ends it.

Its life is one coroutine, `_live`: bind, serve until something ends it, release. Whatever may end it is an `Ending`
and the first one counts. What the session manager hears goes through the `Uplink`; after Released nothing more does.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Protocol

import msgspec

from flame.link import Kind
from flame.model.errors import ProtocolError
from flame.model.isolation import isolated
from flame.model.states import BindCode, ExecutorState, TaskState
from flame.node.columns import failure, read_results, read_retracted, read_tasks, with_usage
from flame.node.overruns import Overruns
from flame.node.settings import NodeSettings
from flame.proto import link_pb2, types_pb2
from flame.shims.shim import BindError, Buffered, Dialect, Instance, Launch, Measured, Shim, Usage

logger = logging.getLogger("flame.node")

_COUNT_S = 0.005  # at least between two looks at what an instance used
_LEAST_UNREAD = 256 * 1024**2  # bytes of tasks that any instance may leave unread
_LONGEST_REASON = 16 * 1024  # characters; an instance may give its own, and it is kept by the session manager
_EXIT_S = 1.0  # between the end of an instance's connection and the end of the instance


class Ending(msgspec.Struct, frozen=True):
    """Why an executor ends. `grace`: seconds to leave the session; 0 kills. `crashed`: by the instance's own doing."""

    message: str
    code: BindCode = BindCode.OK
    crashed: bool = False
    grace: float = 0.0


class Uplink(Protocol):
    """The way to the session manager."""

    def send(self, kind: Kind, channel: int, body: bytes) -> None:
        """Send now, or when the link is up again."""
        ...

    def released(self, executor: Executor) -> None:
        """The executor has said its last word."""
        ...


class Executor:
    """An executor on a channel. `outstanding` maps the tasks that its instance holds to their attempt, in order."""

    def __init__(
        self,
        channel: int,
        start: link_pb2.Start,
        devices: str | None,
        shim: Shim,
        uplink: Uplink,
        settings: NodeSettings,
    ) -> None:
        self.channel = channel
        self.id = start.executor_id
        self.session_id = start.context.session_id
        # An instance that was started ahead learns these when it enters its session.
        start.context.executor_id, start.context.token = start.executor_id, start.token
        if start.HasField("gang"):
            start.context.gang.CopyFrom(start.gang)
        self.resreq = start.resreq
        self.state = ExecutorState.BINDING
        self.concurrency = 1
        self.outstanding: dict[int, int] = {}
        self._start = start
        self._devices = devices
        self._shim = shim
        self._uplink = uplink
        self._settings = settings
        self._loop = asyncio.get_running_loop()
        self._instance: Instance | None = None
        self._dialect: Dialect | None = None
        self._early: list[tuple[Kind, bytes]] = []  # frames for the instance that came before it was ready
        self._ending: asyncio.Future[Ending] = self._loop.create_future()
        self._deaf = False  # nothing that the instance says counts any more
        self._paused = False
        self._retracts = 0  # that the instance has not answered
        self._overruns = Overruns(settings.cancel_grace)
        self._counter: Measured | None = None
        self._next_count = 0.0
        self._alarm: asyncio.TimerHandle | None = None
        self._curfew: asyncio.TimerHandle | None = None
        self.life = self._loop.create_task(self._live(), name=f"executor {self.id}")

    # --- the session manager says ----------------------------------------------------------------------------------

    def tasks(self, body: bytes) -> None:
        """Run these. Raises ProtocolError for a body that is no Tasks."""
        given, timeout_ms = read_tasks(body)
        if self._ending.done():
            return  # they crossed our Released, which gives them back
        self.outstanding.update(given)
        self._overruns.given(given, timeout_ms)
        self._tell(Kind.TASKS, body)
        if self._overruns.watching:
            self._look()

    def cancel(self, body: bytes) -> None:
        """Stop these."""
        cancel = link_pb2.Cancel.FromString(body)
        wanted = [
            task_id
            for task_id in self.outstanding
            if any(limits.first <= task_id <= limits.last for limits in cancel.task_ids)
        ]
        if wanted:
            self._overruns.cancelled(wanted, cancel.reason, self._loop.time())
            self._tell(Kind.CANCEL, body)
            self._look()

    def retract(self, body: bytes) -> None:
        """Give back what is not started."""
        self._retracts += 1
        self._tell(Kind.RETRACT, body)

    def stop(self, reason: str, grace: float) -> None:
        """End within `grace` seconds, at once with 0."""
        self._end(Ending(reason or "stopped", grace=grace))
        if not grace and self._instance is not None:
            self._instance.kill()  # also when it is leaving at leisure already

    def pause(self) -> None:
        """Take no results from the instance for now: the session manager does not keep up."""
        self._paused = True
        if self._dialect is not None:
            self._dialect.pause()

    def resume(self) -> None:
        """Undo pause."""
        self._paused = False
        if self._dialect is not None:
            self._dialect.resume()

    def held(self, unsent: Mapping[int, int]) -> link_pb2.HeldExecutor:
        """What to report of it after a reconnection; `unsent` are tasks, with attempts, whose answers still wait."""
        tasks = {**self.outstanding, **unsent}
        return link_pb2.HeldExecutor(
            executor_id=self.id,
            channel=self.channel,
            session_id=self.session_id,
            resreq=self.resreq,
            state=types_pb2.ExecutorState.Name(self.state),
            concurrency=self.concurrency,
            task_ids=tasks,
            attempts=tasks.values() if any(attempt != 1 for attempt in tasks.values()) else (),
            pid=self._instance.pid if self._instance is not None else 0,
            gpus=self._start.gpus,
            gang=self._start.gang if self._start.HasField("gang") else None,
        )

    # --- the instance says (shims.shim.Owner) ----------------------------------------------------------------------

    def results(self, body: bytes) -> None:
        if not self._deaf:
            results = read_results(body)
            if not results.task_ids:
                raise ProtocolError("the instance sent results of no task")
            self._settle(results.task_ids)
            self._uplink.send(Kind.RESULTS, self.channel, with_usage(body, results, self._used()))

    def retracted(self, body: bytes) -> None:
        if not self._deaf:
            if not self._retracts:
                raise ProtocolError("the instance gave back tasks that nobody asked for")
            self._retracts -= 1
            self._settle(read_retracted(body))
            self._uplink.send(Kind.RETRACTED, self.channel, body)

    def broken(self, why: str) -> None:
        if self._deaf:
            return
        # It counts before the start is through as well: a program may talk nonsense at once, and says it only once.
        # Most often it just died, and its exit status, which is on its way, says more than a closed connection.
        ending = Ending(f"the instance broke its contract: {why}", crashed=True)
        self._loop.call_later(_EXIT_S, self._end, ending)

    def _used(self) -> Usage | None:
        """What the instance used since it was last asked; None when nobody counts, or it was asked just now."""
        if self._counter is None or self._loop.time() < self._next_count:
            return None
        self._next_count = self._loop.time() + _COUNT_S
        return self._counter.lap()

    def _settle(self, task_ids: Sequence[int]) -> None:
        """These are off the instance's hands."""
        try:
            for task_id in task_ids:
                del self.outstanding[task_id]
        except KeyError as error:
            raise ProtocolError(f"the instance answered for task {error.args[0]}, which it does not hold") from None
        if self._overruns.watching:
            self._overruns.ended(task_ids)
            self._look()

    # --- its life --------------------------------------------------------------------------------------------------

    async def _live(self) -> None:
        binding = self._loop.create_task(self._bind())
        await asyncio.wait({binding, self._ending}, return_when=asyncio.FIRST_COMPLETED)
        if not binding.done():
            binding.cancel()
        try:
            await binding
        except BindError as error:
            self._end(Ending(error.message, code=error.code))
        except asyncio.CancelledError:
            if not self._ending.done():
                raise
        except Exception as error:
            logger.exception("binding executor %s failed", self.id)
            self._end(Ending(f"{type(error).__name__}: {error}", code=BindCode.OTHER))
        ending = await self._ending
        try:
            await self._release(ending)
        finally:
            self._report(ExecutorState.RELEASED, ending)
            self._uplink.released(self)
        if self._instance is not None:
            await self._instance.dispose()

    async def _bind(self) -> None:
        """Start the instance and enter the session. Raises BindError."""
        application = self._start.application
        allowed = application.start_timeout_ms / 1000 or self._settings.start_timeout
        start = self._start
        launch = Launch(self.id, start.token, application, start.context, self._devices, resreq=start.resreq)
        launch = await self._shim.prepare(launch)
        step, code = "start", BindCode.START
        try:
            async with asyncio.timeout(allowed):
                self._instance = instance = await self._shim.start(launch, self)
                self._report(ExecutorState.BINDING)
                step = "become ready (connect to its link, or listen on its socket)"
                dialect = await instance.ready()
                step, code = "enter its session (on_session_enter)", BindCode.ENTER
                await self._enter(instance, dialect)
        except TimeoutError:
            words = self._instance.last_words() if self._instance is not None else ""
            raise BindError(code, f"the instance did not {step} within {allowed:g} s{words}") from None
        instance.ended.add_done_callback(self._on_instance_ended)
        self._dialect = dialect
        self.concurrency = dialect.concurrency
        self.state = ExecutorState.BOUND
        self._report(ExecutorState.BOUND)
        instance.entered()
        if isinstance(instance, Measured) and (application.limits.ByteSize() or isolated(application.isolation)):
            self._counter = instance
            instance.lap()  # its start is no task's
        if self._paused:
            dialect.pause()
        early, self._early = self._early, []
        for kind, body in early:
            self._tell(kind, body)
        if self._overruns.watching:
            self._look()
        wall_ms = application.limits.wall_ms
        if wall_ms:
            self._curfew = self._loop.call_later(wall_ms / 1000, self._time_is_up, wall_ms)

    async def _enter(self, instance: Instance, dialect: Dialect) -> None:
        entering = self._loop.create_task(dialect.enter(self._start.context))
        try:
            await asyncio.wait({entering, instance.ended}, return_when=asyncio.FIRST_COMPLETED)
            if not entering.done():
                why = f"the instance {instance.ended.result()} in on_session_enter{instance.last_words()}"
                raise BindError(BindCode.ENTER, why)
            result = entering.result()
        finally:
            entering.cancel()
        if result.return_code:
            raise BindError(BindCode.ENTER, result.message or f"on_session_enter returned {result.return_code}")

    async def _release(self, ending: Ending) -> None:
        """End the instance, as gently as `ending` allows, until nothing of it runs."""
        instance, dialect = self._instance, self._dialect
        for timer in (self._alarm, self._curfew):
            if timer is not None:
                timer.cancel()
        if not ending.grace:
            self._deaf = True
        if instance is None:
            return
        if ending.grace and dialect is not None and not instance.ended.done():
            self.state = ExecutorState.UNBINDING
            self._report(ExecutorState.UNBINDING)
            await self._leave(instance, dialect, ending.grace)
        self._deaf = True
        self.state = ExecutorState.RELEASING
        if ending.grace and not instance.ended.done():
            instance.terminate()
            await asyncio.wait({instance.ended}, timeout=self._settings.terminate_grace)
        if not instance.ended.done():
            instance.kill()
            await instance.ended

    async def _leave(self, instance: Instance, dialect: Dialect, grace: float) -> None:
        """Let the instance leave its session and end by itself, as far as its dialect knows that."""
        leaving = self._loop.create_task(dialect.leave())
        try:
            async with asyncio.timeout(grace):
                await asyncio.wait({leaving, instance.ended}, return_when=asyncio.FIRST_COMPLETED)
                if dialect.ends_by_itself:
                    await asyncio.shield(instance.ended)
        except TimeoutError:
            pass
        finally:
            leaving.cancel()

    def _end(self, ending: Ending) -> None:
        if not self._ending.done():
            self._ending.set_result(ending)

    def _on_instance_ended(self, ended: asyncio.Future[str]) -> None:
        assert self._instance is not None
        if not self._ending.done():
            words = self._instance.last_words()
            self._end(Ending(f"the instance {ended.result()}{words}", crashed=True))

    def _report(self, state: ExecutorState, ending: Ending | None = None) -> None:
        report = link_pb2.Report(state=types_pb2.ExecutorState.Name(state), concurrency=self.concurrency)
        if self._instance is not None:
            report.pid = self._instance.pid
        if ending is not None:
            report.code, report.crashed = int(ending.code), ending.crashed
            report.message = ending.message[:_LONGEST_REASON]
            used = self._instance.usage() if isinstance(self._instance, Measured) else None
            if used is not None:
                report.cpu_ms, report.peak_memory = round(used.cpu * 1000), used.peak_memory
                report.written, report.sent, report.received = used.written, used.sent, used.received
        self._uplink.send(Kind.REPORT, self.channel, report.SerializeToString())

    def _watch_unread(self, dialect: Dialect) -> None:
        """An instance decides itself how many tasks it gets; what it does not take lies in our memory, not in its."""
        most = max(_LEAST_UNREAD, self.resreq.memory)
        if isinstance(dialect, Buffered) and dialect.unread > most and not self._ending.done():
            why = f"it asked for tasks and left more than {most} bytes of them unread"
            self._end(Ending(f"the instance broke its contract: {why}", crashed=True))

    def _tell(self, kind: Kind, body: bytes) -> None:
        """Say something to the instance, once it is ready."""
        if self._dialect is None:
            self._early.append((kind, body))
        elif kind is Kind.TASKS:
            self._dialect.tasks(body)
            self._watch_unread(self._dialect)
        elif kind is Kind.CANCEL:
            self._dialect.cancel(body)
        else:
            self._dialect.retract(body)

    # --- tasks that run too long -----------------------------------------------------------------------------------

    def _look(self) -> None:
        """Tell tasks whose time is over to stop; give up on an instance that does not obey."""
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None
        if self._dialect is None or self._ending.done():
            return  # _bind looks when the instance is ready
        running = list(islice(self.outstanding, self.concurrency))
        over, hopeless = self._overruns.look(running, self._loop.time())
        for task_id in over:
            reason = self._overruns.sentence(task_id).reason
            cancel = link_pb2.Cancel(
                task_ids=[link_pb2.Range(first=task_id, last=task_id)], reason=reason, timed_out=True
            )
            self._dialect.cancel(cancel.SerializeToString())
        if hopeless:
            self._give_up(hopeless)
            return
        due = self._overruns.next_look()
        if due is not None:
            self._alarm = self._loop.call_at(due, self._look)

    def _give_up(self, task_ids: list[int]) -> None:
        """These went on although they were told to stop. Answer for them and end the instance: its other tasks are not
        to blame, so it did not crash."""
        self._deaf = True
        for task_id in task_ids:
            sentence = self._overruns.sentence(task_id)
            state = TaskState.FAILED if sentence.timed_out else TaskState.CANCELLED
            body = failure(
                task_id, self.outstanding.pop(task_id), sentence.reason, state=state, retryable=sentence.timed_out
            )
            self._uplink.send(Kind.RESULTS, self.channel, body)
        names = ", ".join(map(str, task_ids))
        self._end(Ending(f"the instance was killed because task {names} did not stop when told to"))

    def _time_is_up(self, wall_ms: int) -> None:
        """It had its session for as long as its limits allow. What runs has failed; what waits goes elsewhere."""
        if self._ending.done():
            return
        self._deaf = True
        why = f"the instance's wall time of {wall_ms / 1000:g} s is over"
        for task_id in list(islice(self.outstanding, self.concurrency)):
            body = failure(task_id, self.outstanding.pop(task_id), why, state=TaskState.FAILED, retryable=True)
            self._uplink.send(Kind.RESULTS, self.channel, body)
        self._end(Ending(why, grace=self._settings.terminate_grace))
