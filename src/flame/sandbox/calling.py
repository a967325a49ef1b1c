"""Who carries out the steps of sandboxes: calls are tasks of the sandbox's session."""

from __future__ import annotations

import asyncio
import inspect
from typing import TYPE_CHECKING, Any, TypeVar

from flame.model.errors import (
    FlameError,
    InvalidArgumentError,
    InvalidStateError,
    NotFoundError,
    TaskCancelledError,
    TaskFailedError,
)
from flame.model.states import EventCode, SessionState
from flame.sandbox import wire
from flame.sandbox.errors import SandboxLostError
from flame.sandbox.steps import Ask, AskAll, Step, Steps, Tell, Wait

if TYPE_CHECKING:
    from flame.client.async_session import AsyncSession
    from flame.client.futures import TaskFuture
    from flame.client.snapshot import SessionSnapshot
    from flame.client.synchronous_session import Session

T = TypeVar("T")
_LOST = "lost its instance: "


class AsyncCaller:
    """Carries out steps in an event loop."""

    def __init__(self, session: AsyncSession) -> None:
        self.session = session
        self.closed = False
        self.lost: SandboxLostError | None = None
        self._closing: asyncio.Task[FlameError] | None = None

    async def run(self, steps: Steps[T]) -> T:
        """Carry them out. Raises what they raise, and FlameError."""
        answer: Any = None
        error: BaseException | None = None
        try:
            while True:
                try:
                    step = steps.send(answer) if error is None else steps.throw(error)
                except StopIteration as end:
                    return end.value
                answer, error = None, None
                try:
                    answer = await self._do(step)
                except BaseException as raised:
                    error = raised
        finally:
            steps.close()

    async def _do(self, step: Step) -> Any:
        if isinstance(step, Ask):
            return await self._answer(self._submit(step.call), step.kind)
        if isinstance(step, AskAll):
            futures = [self._submit(each.call) for each in step.asks]
            try:
                return [await self._answer(future, each.kind) for future, each in zip(futures, step.asks, strict=True)]
            finally:
                for future in futures:
                    future.cancel()
        if isinstance(step, Wait):
            return await step.made
        self._submit(step.call)
        return None

    def _submit(self, call: wire.Call) -> TaskFuture:
        self.check_open()
        self.session.stream.on_lost[self] = self.on_lost
        return self.session.submit(wire.encode_call(call))

    def check_open(self) -> None:
        """Raises InvalidStateError."""
        if self.closed:
            raise InvalidStateError(f"sandbox {self.session.id} was closed", remedy="create another one")
        if self.lost is not None:
            raise self.lost

    def on_lost(self, event: str) -> FlameError:
        """Its instance has ended, and with it the sandbox: nothing is to be started in its place."""
        self.lost = lost_error(self.session.id, event.partition(_LOST)[2] or event)
        self._closing = asyncio.get_running_loop().create_task(self._lost())
        return self.lost

    async def _answer(self, future: TaskFuture, kind: type[T]) -> T:
        try:
            answer = wire.decode_answer(await future, kind)
        except SandboxLostError:
            raise
        except TaskFailedError as error:
            if error.traceback:
                raise  # a fault of the service
            # Calls never fail by themselves: the node has ended the instance, since its wall time is over for one.
            self.lost = self.lost or lost_error(self.session.id, error.message)
            raise await self._lost() from None
        except (TaskCancelledError, InvalidStateError, NotFoundError) as error:
            raise await self._why(error) from None
        if not isinstance(answer, wire.Fault):
            return answer
        if answer.code != wire.LOST:
            raise answer.error()
        raise await self._lost()

    async def _why(self, error: FlameError) -> FlameError:
        """The error of a task that could not run, as an error of the sandbox."""
        if self.lost is not None:
            return self.lost
        if self.closed:
            return closed_error(self.session)
        try:
            await self.session.refresh()
        except FlameError:
            return error
        return error if self.session.state is SessionState.OPEN else closed_error(self.session)

    async def _lost(self) -> FlameError:
        """Another instance answered: what was in the sandbox is gone."""
        try:
            await self.session.refresh()
            if self.session.state is SessionState.OPEN:
                await self.session.close(force=True)
        except FlameError:
            pass  # somebody else has done it
        return self.lost or lost_error(self.session.id, lost_reason(self.session))


class Caller:
    """Carries out steps in the thread of whoever calls."""

    def __init__(self, session: Session, asynchronous: AsyncCaller) -> None:
        self.session = session
        self.asynchronous = asynchronous

    def run(self, steps: Steps[T]) -> T:
        """As AsyncCaller.run."""
        answer: Any = None
        error: BaseException | None = None
        try:
            while True:
                try:
                    step = steps.send(answer) if error is None else steps.throw(error)
                except StopIteration as end:
                    return end.value
                answer, error = None, None
                try:
                    answer = self._do(step)
                except BaseException as raised:
                    error = raised
        finally:
            steps.close()

    def _do(self, step: Step) -> Any:
        if isinstance(step, Ask):
            return self._answer(self._submit(step.call), step.kind)
        if isinstance(step, AskAll):
            futures = [self._submit(each.call) for each in step.asks]
            try:
                return [self._answer(future, each.kind) for future, each in zip(futures, step.asks, strict=True)]
            finally:
                for future in futures:
                    future.cancel()
        if isinstance(step, Tell):
            self._submit(step.call)
            return None
        if inspect.iscoroutine(step.made):
            step.made.close()
        raise InvalidArgumentError(
            "a sandbox of the synchronous SDK can't wait for callbacks that are coroutines",
            remedy="give it an ordinary function, or use flame.aio.AsyncSandbox",
        )

    def _submit(self, call: wire.Call) -> TaskFuture:
        self.asynchronous.check_open()
        self.session.task_stream().on_lost[self.asynchronous] = self.asynchronous.on_lost
        return self.session.submit(wire.encode_call(call))

    def _answer(self, future: TaskFuture, kind: type[T]) -> T:
        try:
            answer = wire.decode_answer(future.result(), kind)
        except FlameError:
            pass
        else:
            if not isinstance(answer, wire.Fault):
                return answer
        finally:
            future.cancel()  # does nothing when it has ended
        # What went wrong is found out there.
        return self.session.connection.thread.run(self.asynchronous._answer(future, kind))  # pyright: ignore[reportPrivateUsage]


def closed_error(session: SessionSnapshot) -> FlameError:
    """Why a sandbox that is closed does nothing any more."""
    why = lost_reason(session)
    if why:
        return lost_error(session.id, why)
    idle = next((event.message for event in reversed(session.events) if event.code == EventCode.IDLE), "")
    text = f"sandbox {session.id} was closed"
    return InvalidStateError(f"{text}: {idle}" if idle else text, remedy="create another one")


def lost_error(sandbox_id: str, why: str) -> SandboxLostError:
    text = why or "its instance was taken away from it"
    return SandboxLostError(f"sandbox {sandbox_id} ended: {text}", remedy="create another one")


def lost_reason(session: SessionSnapshot) -> str:
    """What the session's events say of the end of its first instance, empty if they say nothing."""
    for event in session.events:
        if event.code == EventCode.INSTANCE_LOST:
            message = event.message or "its instance was lost"
            return message.partition(_LOST)[2] or message
    return ""
