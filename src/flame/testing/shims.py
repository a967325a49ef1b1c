"""What every shim must do. A shim's tests subclass `ShimConformance` and run under pytest with pytest-asyncio.

A real executor drives the shim, with a keeper, logs and folders as on a node; the session manager's part is the test's.
"""

from __future__ import annotations

import asyncio
import os
import re
import sys
import tempfile
import uuid
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from itertools import count
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from flame.link import Kind, unix
from flame.model.states import ExecutorState
from flame.node.executor import Executor
from flame.node.settings import NodeSettings
from flame.proto import link_pb2, shim_pb2, types_pb2
from flame.shims.environment import Surroundings
from flame.shims.isolation import Confinement
from flame.shims.levels import find_levels
from flame.shims.limits import Groups
from flame.shims.logs import LogStore
from flame.shims.processes import Keeper
from flame.shims.reception import Reception
from flame.shims.shim import Shim
from flame.shims.workplace import Workshop
from flame.testing.conduct import LAST_WORDS

PATIENCE_S = 30.0  # how long a test waits for something that must come
LIMIT = 1 << 20  # bytes of a payload
LOG_BYTES = 64 * 1024

T = TypeVar("T")


class Bench(msgspec.Struct, frozen=True):
    """The parts of a node that shims are made of."""

    folder: Path
    keeper: Keeper
    logs: LogStore
    reception: Reception
    surroundings: Surroundings
    workshop: Workshop


class _NoPackages:
    async def provide(self, name: str, application: types_pb2.ApplicationSpec) -> None:
        return None


@asynccontextmanager
async def a_bench(*levels: str) -> AsyncGenerator[Bench]:
    """A bench in a folder of its own, with a path that is short enough for sockets, and these levels of isolation."""
    with tempfile.TemporaryDirectory(prefix="fl", dir="/tmp") as name:
        folder = Path(name)
        sockets, executors = folder / "s", folder / "executors"
        sockets.mkdir()
        executors.mkdir()
        keeper, reception = Keeper(), Reception(sockets, LIMIT, doors=sockets)
        await reception.open()
        keeper.start()
        logs = LogStore(folder / "logs", LOG_BYTES, PATIENCE_S)
        surroundings = Surroundings(os.environ, Path(sys.executable).parent, LIMIT)
        found = await asyncio.to_thread(find_levels, folder / "isolation", names=levels)
        confinement = Confinement(found, await asyncio.to_thread(Groups.find), [executors, sockets])
        workshop = Workshop(keeper, logs, executors, sockets, surroundings, _NoPackages(), confinement)
        try:
            yield Bench(folder, keeper, logs, reception, surroundings, workshop)
        finally:
            await keeper.close()
            await reception.close()
            confinement.release()


class Desk:
    """The session manager's part for one executor: what it is told, and what it heard."""

    def __init__(self, bench: Bench, shim: Shim, application: types_pb2.ApplicationSpec, **context: Any) -> None:
        self.bench = bench
        self.reports: list[link_pb2.Report] = []
        self.answers: dict[int, bytes | link_pb2.Failure | None] = {}
        self.given_back: list[int] = []
        self._news = asyncio.Event()
        self._ids = count(1)
        executor_id = f"suite-{uuid.uuid4().hex[:12]}"
        session = shim_pb2.SessionContext(
            session_id="session-1", application=shim_pb2.ApplicationContext(name="app"), **context
        )
        start = link_pb2.Start(executor_id=executor_id, application=application, context=session, token="token")
        settings = NodeSettings(manager=unix("/none"), work_dir=bench.folder, cancel_grace=1.0, terminate_grace=1.0)
        self.executor = Executor(1, start, None, shim, self, settings)

    # --- flame.node.executor.Uplink --------------------------------------------------------------------------------

    def send(self, kind: Kind, channel: int, body: bytes) -> None:
        if kind is Kind.REPORT:
            self.reports.append(link_pb2.Report.FromString(body))
        elif kind is Kind.RESULTS:
            results = link_pb2.Results.FromString(body)
            failures = {failure.index: failure for failure in results.failures}
            for index, (task_id, output) in enumerate(zip(results.task_ids, results.outputs, strict=True)):
                assert task_id not in self.answers, "two results of one task"
                self.answers[task_id] = failures.get(index) or (None if index in results.absent else output)
        elif kind is Kind.RETRACTED:
            self.given_back += link_pb2.Retracted.FromString(body).task_ids
        self._news.set()

    def released(self, executor: Executor) -> None:
        executor.state = ExecutorState.RELEASED
        self._news.set()

    # --- what tests do ---------------------------------------------------------------------------------------------

    async def until(self, condition: Callable[[], T], what: str) -> T:
        """Wait until the condition gives something true."""
        try:
            async with asyncio.timeout(PATIENCE_S):
                while not (found := condition()):
                    self._news.clear()
                    await self._news.wait()
        except TimeoutError:
            raise AssertionError(f"waited in vain for {what}; reports: {self.reports}") from None
        return found

    async def bound(self) -> link_pb2.Report:
        report = await self._reported(ExecutorState.BOUND)
        assert report.state == ExecutorState.BOUND, report
        return report

    async def gone(self) -> link_pb2.Report:
        """The last report. Everything of the executor is cleaned up then."""
        report = await self._reported()
        await self.executor.life
        return report

    async def _reported(self, *states: ExecutorState) -> link_pb2.Report:
        wanted = (*states, ExecutorState.RELEASED)
        found = await self.until(
            lambda: [report for report in self.reports if report.state in wanted], "the executor's next state"
        )
        return found[0]

    def give(self, *inputs: bytes | None, timeout_ms: int = 0) -> list[int]:
        """Tasks; their ids."""
        ids = [next(self._ids) for _ in inputs]
        absent = [index for index, data in enumerate(inputs) if data is None]
        tasks = link_pb2.Tasks(
            task_ids=ids, inputs=[data or b"" for data in inputs], absent=absent, timeout_ms=timeout_ms
        )
        self.executor.tasks(tasks.SerializeToString())
        return ids

    async def answered(self, ids: Sequence[int]) -> list[Any]:
        def settled() -> bool:
            ended = any(report.state == ExecutorState.RELEASED for report in self.reports)
            return ended or set(ids) <= self.answers.keys()

        await self.until(settled, f"the results of tasks {ids}")
        assert set(ids) <= self.answers.keys(), f"the executor ended before its tasks did: {self.reports[-1]}"
        return [self.answers[task_id] for task_id in ids]

    async def run(self, *inputs: bytes | None, timeout_ms: int = 0) -> list[Any]:
        """Tasks, and what came of them."""
        return await self.answered(self.give(*inputs, timeout_ms=timeout_ms))

    async def stop(self) -> link_pb2.Report:
        self.executor.stop("the test is over", PATIENCE_S)
        return await self.gone()


class ShimConformance:
    """Subclass it, name the subclass `Test...`, define `make` and `service`.

    `levels`: those of isolation, beside none, that the service asks for. `greets`: an instance gives a sign of life
    before it is ready. `lasts`: one process runs all tasks of a session; where each has its own, what ends a process
    fails its task and nothing else.
    """

    levels: tuple[str, ...] = ()
    greets = True
    lasts = True

    def make(self, bench: Bench) -> Shim:
        """The shim."""
        raise TypeError(f"{type(self).__name__} defines no make()")

    def service(self, folder: Path) -> types_pb2.ApplicationSpec:
        """An application whose program calls `flame.testing.conduct.begin(sys.argv)`, then `act` for each task."""
        raise TypeError(f"{type(self).__name__} defines no service()")

    @asynccontextmanager
    async def desk(self, conduct: str = "serve", **spec: Any) -> AsyncGenerator[Desk]:
        """An executor that starts now."""
        async with a_bench(*self.levels) as bench:
            application = self.service(bench.folder)
            application.arguments.append(conduct)
            for name, value in spec.items():
                setattr(application, name, value)
            desk = Desk(bench, self.make(bench), application, common_data=b"shared")
            try:
                yield desk
            finally:
                desk.executor.stop("the test is over", 0)
                await desk.gone()
                assert not list((bench.folder / "executors").iterdir())

    async def test_tasks_are_run_and_their_outputs_come_back(self) -> None:
        async with self.desk() as desk:
            await desk.bound()
            every_byte = bytes(range(256)) * 100
            outputs = await desk.run(b"echo one", b"echo ", b"echo " + every_byte, b"size 1000000", b"echo \xc3\xa4\n")
            assert outputs == [b"one", b"", every_byte, bytes(1_000_000), b"\xc3\xa4\n"]

    async def test_tasks_that_came_before_it_was_ready_are_run(self) -> None:
        async with self.desk() as desk:
            assert await desk.run(b"echo early") == [b"early"]

    async def test_it_knows_its_session_and_its_executor(self) -> None:
        async with self.desk() as desk:
            found = await desk.run(b"env FLAME_SESSION_ID", b"env FLAME_EXECUTOR_ID", b"env FLAME_APPLICATION")
            assert found == [b"session-1", desk.executor.id.encode(), b"app"]

    async def test_an_error_fails_its_task_and_no_other(self) -> None:
        async with self.desk() as desk:
            before, failure, after = await desk.run(b"echo before", b"fail the value is wrong", b"echo after")
            assert (before, after) == (b"before", b"after")
            assert failure.state == types_pb2.Failed
            assert failure.code
            assert "the value is wrong" in failure.message

    async def test_a_program_that_ends_in_a_task(self) -> None:
        async with self.desk() as desk:
            await desk.bound()
            (task,) = desk.give(b"exit 3")
            if self.lasts:
                report = await desk.gone()
                assert report.crashed
                message = report.message
                assert not desk.answers
            else:
                (failure,) = await desk.answered([task])
                assert failure.code == 3
                message = failure.message
            assert "exited with status 3" in message
            assert LAST_WORDS in message

    async def test_a_task_that_hangs_ends_with_its_time(self) -> None:
        async with self.desk() as desk:
            await desk.bound()
            (failure,) = await desk.run(b"hang", timeout_ms=200)
            assert (failure.state, failure.message) == (types_pb2.Failed, "task timed out after 200 ms")
            assert failure.retryable

    async def test_tasks_that_are_not_begun_are_cancelled_and_given_back(self) -> None:
        async with self.desk() as desk:
            await desk.bound()
            running, cancelled, last = desk.give(b"hang", b"echo cancelled", b"echo given back")
            desk.executor.retract(link_pb2.Retract(keep=2).SerializeToString())
            await desk.until(lambda: desk.given_back == [last], "the task that is given back")
            only = [link_pb2.Range(first=cancelled, last=cancelled)]
            desk.executor.cancel(link_pb2.Cancel(task_ids=only, reason="not needed").SerializeToString())
            (failure,) = await desk.answered([cancelled])
            assert (failure.state, failure.message) == (types_pb2.Cancelled, "not needed")
            assert running not in desk.answers

    async def test_a_running_task_is_cancelled(self) -> None:
        async with self.desk() as desk:
            await desk.bound()
            (task,) = desk.give(b"hang")
            wanted = [link_pb2.Range(first=task, last=task)]
            desk.executor.cancel(link_pb2.Cancel(task_ids=wanted, reason="not needed").SerializeToString())
            (failure,) = await desk.answered([task])
            assert (failure.state, failure.message) == (types_pb2.Cancelled, "not needed")

    async def test_an_output_over_the_limit_fails_its_task_and_no_other(self) -> None:
        async with self.desk() as desk:
            failure, largest = await desk.run(b"size %d" % (LIMIT + 100_000), b"size %d" % LIMIT)
            assert "cluster.limits.max_payload" in failure.message, failure
            assert len(largest) == LIMIT

    async def test_a_flood_of_logs_is_kept_short_and_holds_nothing_up(self) -> None:
        async with self.desk() as desk:
            assert await desk.run(b"log 100000", b"echo after") == [b"logged", b"after"]
            await desk.stop()
            kept = sum(file.stat().st_size for file in (desk.bench.folder / "logs").rglob("stderr.*"))
            assert 0 < kept <= LOG_BYTES

    async def test_a_command_that_does_not_exist(self) -> None:
        async with self.desk(command="no-such-program") as desk:
            report = await desk.gone()
            assert report.code == 11
            assert "no-such-program" in report.message

    async def test_a_program_that_ends_before_it_is_ready(self) -> None:
        async with self.desk("die") as desk:
            (task,) = desk.give(b"echo never")
            if self.lasts:
                report = await desk.gone()
                assert report.code == 11 if self.greets else report.crashed
                message = report.message
            else:
                (failure,) = await desk.answered([task])
                message = failure.message
            assert "exited with status 5" in message
            assert LAST_WORDS in message

    async def test_a_program_that_is_never_ready(self) -> None:
        # One that need not greet only has to be started, which a busy machine may take its time for.
        async with self.desk("sleep", start_timeout_ms=300 if self.greets else 0) as desk:
            (task,) = desk.give(b"echo never", timeout_ms=300)
            if self.greets:
                report = await desk.gone()
                assert report.code == 11
                assert re.search("did not (become ready|start)", report.message)
            else:
                (failure,) = await desk.answered([task])
                assert failure.message == "task timed out after 300 ms"

    async def test_a_program_that_talks_nonsense(self) -> None:
        async with self.desk("nonsense", start_timeout_ms=3000) as desk:
            (task,) = desk.give(b"echo sense")
            if self.lasts:
                report = await desk.gone()
                assert report.code == 11 or report.crashed
                assert report.message
                assert not desk.answers
            else:
                assert await desk.answered([task]) == [b"nonsense"]

    async def test_nothing_is_left_when_it_is_stopped(self) -> None:
        async with self.desk() as desk:
            child = f"left-by-{desk.executor.id}"
            assert await desk.run(f"child {child}".encode()) == [child.encode()]
            report = await desk.stop()
            assert not report.crashed
            assert not report.code
            assert not _named(child)
            assert not _runs(report.pid)

    async def test_nothing_is_left_when_it_is_killed(self) -> None:
        async with self.desk() as desk:
            await desk.bound()
            desk.give(b"hang")
            desk.executor.stop("at once", 0)
            report = await desk.gone()
            assert not report.crashed
            assert not _runs(report.pid)

    async def test_nothing_is_left_when_its_executor_manager_ends(self) -> None:
        async with self.desk() as desk:
            child = f"left-by-{desk.executor.id}"
            assert await desk.run(f"child {child}".encode()) == [child.encode()]
            desk.give(b"hang")
            # What the keeper sees when the executor manager is killed: its socket closes.
            await desk.bench.keeper.close()
            assert not _named(child)
            assert not _runs(desk.reports[-1].pid)


def _runs(pid: int) -> bool:
    """Whether a process exists and is no zombie."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(") ")[2][0] not in "ZX"


def _named(name: str) -> list[int]:
    """The processes of this machine with this argument. An isolated one does not know its number here."""
    found: list[int] = []
    for folder in Path("/proc").iterdir():
        try:
            if folder.name.isdecimal() and name.encode() in (folder / "cmdline").read_bytes():
                found.append(int(folder.name))
        except OSError:
            continue
    return found
