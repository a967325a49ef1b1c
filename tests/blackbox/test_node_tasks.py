"""Real instances behind a real executor manager: tasks that succeed, fail, hang, and take their instance with them."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from flame.link import Kind
from flame.proto import link_pb2, types_pb2
from scripted_manager import ECHO, Node, a_node_here, appears, gone

# Does what the input says: a Python expression.
EVALUATE = """
    class Evaluate(FlameService):
        def on_task_invoke(self, context):
            return eval(context.input.decode())
    run(Evaluate())
"""


@pytest.fixture
async def node() -> AsyncIterator[Node]:
    async with a_node_here() as node:
        yield node


async def test_outputs_come_back_and_absent_is_not_empty(node: Node) -> None:
    node.start(1, ECHO)
    assert (await node.manager.bound(1)).concurrency == 1
    ids = node.manager.run(1, b"one", b"", None, b"x" * 1_000_000)
    assert await node.manager.answered(1, ids) == [b"one", b"", None, b"x" * 1_000_000]


async def test_tasks_that_came_before_the_instance_was_ready_are_run(node: Node) -> None:
    node.start(1, ECHO)
    ids = node.manager.run(1, b"early")
    assert await node.manager.answered(1, ids) == [b"early"]


async def test_handlers_get_the_session_the_task_and_the_attempt(node: Node) -> None:
    source = """
        class Show(FlameService):
            def on_session_enter(self, context):
                self.entered = f"{context.session_id} {context.application.name} {context.common_data()!r}"
            def on_task_invoke(self, context):
                return f"{self.entered} {context.session_id} {context.task_id!r} {context.attempt}".encode()
        run(Show())
    """
    node.start(1, source, common_data=b"shared")
    await node.manager.bound(1)
    ids = node.manager.run(1, b"", attempt=3)
    assert await node.manager.answered(1, ids) == [b"session-1 app b'shared' session-1 '1' 3"]
    assert list(node.manager.results[1][0].attempts) == [3]


async def test_signals_are_for_the_main_thread(node: Node) -> None:
    source = """
        import signal
        from pathlib import Path
        def blocks(thread):
            return int(Path(thread, "status").read_text().partition("SigBlk:")[2].split()[0], 16)
        class Threads(FlameService):
            def on_task_invoke(self, context):
                threads = {thread.name: blocks(thread) >> signal.SIGTERM - 1 & 1
                           for thread in Path("/proc/self/task").iterdir()}
                return f"{threads.pop(str(os.getpid()))} {list(threads.values())}".encode()
        run(Threads())
    """
    node.start(1, source)
    await node.manager.bound(1)
    assert await node.manager.answered(1, node.manager.run(1, b"")) == [b"0 [1]"]


async def test_an_exception_fails_its_task_with_text_and_traceback_and_nothing_else(node: Node) -> None:
    node.start(1, EVALUATE)
    await node.manager.bound(1)
    ids = node.manager.run(1, b"1 / 0", b"b'fine'", b"next(iter(()))", b"'text'")
    division, fine, nameless, wrong = await node.manager.answered(1, ids)
    assert (division.state, division.code, division.message) == (types_pb2.Failed, -1, "division by zero")
    assert "eval(context.input.decode())" in division.traceback
    assert "sequential.py" not in division.traceback
    assert "ZeroDivisionError" in division.traceback
    assert fine == b"fine"
    assert nameless.message == "StopIteration"
    assert wrong.message == "on_task_invoke must return bytes or None, not str"
    assert not division.retryable


async def test_an_output_over_the_limit_fails_with_the_name_of_the_setting(node: Node) -> None:
    node.start(1, EVALUATE)
    await node.manager.bound(1)
    ids = node.manager.run(1, b"bytes(100 * 1024 * 1024)", b"bytes(60 * 1024 * 1024)")
    too_large, large = await node.manager.answered(1, ids)
    assert too_large.message == (
        "the output of 104857600 bytes is over the limit of 67108864 bytes (cluster.limits.max_payload)"
    )
    assert len(large) == 60 * 1024 * 1024


@pytest.mark.parametrize(
    ("expression", "words"),
    [
        (b"print('last words', file=sys.stderr) or os._exit(3)", "the instance exited with status 3"),
        (b"sys.exit(4)", "the instance exited with status 4"),
        (b"os.kill(os.getpid(), 9)", "the instance was killed by SIGKILL"),
    ],
)
async def test_an_instance_that_ends_in_a_task_is_reported_as_crashed(
    node: Node, expression: bytes, words: str
) -> None:
    node.start(1, EVALUATE)
    await node.manager.bound(1)
    done = node.manager.run(1, b"b'before'")
    await node.manager.answered(1, done)
    node.manager.run(1, expression, b"b'never'")
    released = await node.manager.released(1)
    assert released.crashed
    assert not released.code
    assert released.message.startswith(words)
    assert ("last words" in released.message) == (b"last words" in expression)
    assert node.manager.answers(1).keys() == set(done)


async def test_results_before_a_long_task_do_not_wait_for_it(node: Node) -> None:
    signal = node.folder / "go on"
    source = f"""
        class Slow(FlameService):
            def on_task_invoke(self, context):
                while context.input == b"long" and not os.path.exists({str(signal)!r}):
                    time.sleep(0.001)
                return context.input
        run(Slow())
    """
    node.start(1, source)
    await node.manager.bound(1)
    short, long = node.manager.run(1, b"short", b"long")
    await node.manager.answered(1, [short])
    assert long not in node.manager.answers(1)
    more = node.manager.run(1, b"behind it")
    signal.touch()
    assert await node.manager.answered(1, [long, *more]) == [b"long", b"behind it"]


async def test_tasks_that_are_not_started_can_be_taken_back(node: Node) -> None:
    entered, signal = node.folder / "entered", node.folder / "go on"
    source = f"""
        class Slow(FlameService):
            def on_task_invoke(self, context):
                print(file=open({str(entered)!r}, "w"))
                while not os.path.exists({str(signal)!r}):
                    time.sleep(0.001)
        run(Slow())
    """
    node.start(1, source)
    await node.manager.bound(1)
    ids = node.manager.run(1, b"", b"", b"", b"")
    await appears(entered)
    node.manager.send(Kind.RETRACT, 1, link_pb2.Retract(keep=2))
    await node.manager.until(lambda: node.manager.retracted.get(1), "retracted tasks")
    assert node.manager.retracted[1] == ids[2:]
    signal.touch()
    assert await node.manager.answered(1, ids[:2]) == [None, None]


async def test_cancelling_ends_a_sleeping_task_and_those_behind_it(node: Node) -> None:
    entered = node.folder / "entered"
    source = f"""
        class Sleep(FlameService):
            def on_task_invoke(self, context):
                if context.input == b"sleep":
                    print(file=open({str(entered)!r}, "w"))
                    time.sleep(3600)
                return context.input
        run(Sleep())
    """
    node.start(1, source)
    await node.manager.bound(1)
    running, queued, kept = node.manager.run(1, b"sleep", b"sleep", b"kept")
    await appears(entered)
    node.manager.cancel(1, queued, running, reason="not needed")
    first, second, third = await node.manager.answered(1, [running, queued, kept])
    for failure in (first, second):
        assert (failure.state, failure.message, failure.retryable) == (types_pb2.Cancelled, "not needed", False)
    assert third == b"kept"
    assert node.manager.reports[1][-1].state == types_pb2.ExecutorBound


async def test_a_task_that_outlives_its_time_out_fails_and_may_be_retried(node: Node) -> None:
    node.start(1, EVALUATE)
    await node.manager.bound(1)
    quick, slow, after = node.manager.run(1, b"b'quick'", b"time.sleep(3600)", b"b'after'", timeout_ms=100)
    first, second, third = await node.manager.answered(1, [quick, slow, after])
    assert (first, third) == (b"quick", b"after")
    assert (second.state, second.message) == (types_pb2.Failed, "task timed out after 100 ms")
    assert second.retryable


DEAF = """
    import signal
    class Deaf(FlameService):
        def on_task_invoke(self, context):
            while True:
                try:
                    time.sleep(3600)
                except BaseException:
                    pass
    run(Deaf())
"""


async def test_an_instance_whose_task_does_not_stop_is_killed_without_blame_for_the_others(node: Node) -> None:
    node.start(1, DEAF)
    bound = await node.manager.bound(1)
    slow, behind = node.manager.run(1, b"", b"", timeout_ms=50)
    (failure,) = await node.manager.answered(1, [slow])
    released = await node.manager.released(1)
    assert failure.message == "task timed out after 50 ms"
    assert failure.retryable
    assert not released.crashed
    assert released.message == f"the instance was killed because task {slow} did not stop when told to"
    assert behind not in node.manager.answers(1)
    await gone(bound.pid)


async def test_cancelling_a_task_that_does_not_stop_kills_the_instance(node: Node) -> None:
    node.start(1, DEAF)
    await node.manager.bound(1)
    (slow,) = node.manager.run(1, b"")
    node.manager.cancel(1, slow, reason="enough")
    (failure,) = await node.manager.answered(1, [slow])
    assert (failure.state, failure.message) == (types_pb2.Cancelled, "enough")
    assert not (await node.manager.released(1)).crashed


async def test_a_stopped_process_is_found_by_the_time_out_of_its_task(node: Node) -> None:
    node.start(1, EVALUATE)
    bound = await node.manager.bound(1)
    (stuck,) = node.manager.run(1, b"os.kill(os.getpid(), 19)", timeout_ms=50)
    (failure,) = await node.manager.answered(1, [stuck])
    assert failure.message == "task timed out after 50 ms"
    await node.manager.released(1)
    await gone(bound.pid)


# --- several tasks at once -------------------------------------------------------------------------------------------


async def test_coroutines_run_at_once_up_to_the_declared_number(node: Node) -> None:
    source = """
        import asyncio
        class Meet(FlameService):
            async def on_session_enter(self, context):
                self.barrier = asyncio.Barrier(4)
            async def on_task_invoke(self, context):
                await self.barrier.wait()
                return context.input
        run(Meet(), concurrency=4)
    """
    node.start(1, source)
    assert (await node.manager.bound(1)).concurrency == 4
    ids = node.manager.run(1, *[str(number).encode() for number in range(8)])
    assert await node.manager.answered(1, ids) == [str(number).encode() for number in range(8)]


async def test_ordinary_handlers_run_at_once_in_threads(node: Node) -> None:
    source = """
        import threading
        class Meet(FlameService):
            barrier = threading.Barrier(3)
            def on_task_invoke(self, context):
                self.barrier.wait()
                if context.input == b"bad":
                    raise ValueError("bad one")
                return context.input
        run(Meet(), concurrency=3)
    """
    node.start(1, source)
    await node.manager.bound(1)
    ids = node.manager.run(1, b"a", b"bad", b"c")
    first, failure, third = await node.manager.answered(1, ids)
    assert (first, third) == (b"a", b"c")
    assert failure.message == "bad one"
    assert "raise ValueError" in failure.traceback


async def test_a_coroutine_is_cancelled_alone(node: Node) -> None:
    entered = node.folder / "entered"
    source = f"""
        import asyncio
        class Wait(FlameService):
            async def on_task_invoke(self, context):
                if context.input == b"wait":
                    print(file=open({str(entered)!r}, "w"))
                    await asyncio.Event().wait()
                return context.input
        run(Wait(), concurrency=2)
    """
    node.start(1, source)
    await node.manager.bound(1)
    waiting, other = node.manager.run(1, b"wait", b"other")
    await appears(entered)
    node.manager.cancel(1, waiting)
    failure, output = await node.manager.answered(1, [waiting, other])
    assert failure.state == types_pb2.Cancelled
    assert output == b"other"


async def test_each_running_task_has_its_own_time_out(node: Node) -> None:
    source = """
        import asyncio
        class Wait(FlameService):
            async def on_task_invoke(self, context):
                if context.input == b"wait":
                    await asyncio.Event().wait()
                return context.input
        run(Wait(), concurrency=2)
    """
    node.start(1, source)
    await node.manager.bound(1)
    ids = node.manager.run(1, b"wait", b"wait", b"wait", b"fine", timeout_ms=50)
    *late, fine = await node.manager.answered(1, ids)
    assert [failure.message for failure in late] == ["task timed out after 50 ms"] * 3
    assert fine == b"fine"


async def test_an_exit_in_a_coroutine_ends_the_instance(node: Node) -> None:
    source = """
        class Exit(FlameService):
            async def on_task_invoke(self, context):
                sys.exit(5)
        run(Exit())
    """
    node.start(1, source)
    await node.manager.bound(1)
    node.manager.run(1, b"")
    released = await node.manager.released(1)
    assert released.crashed
    assert released.message.startswith("the instance exited with status 5")
