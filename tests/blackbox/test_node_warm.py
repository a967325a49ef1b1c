"""Instances that a node starts ahead: used for one session, within the budget, and never left behind."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from flame.proto import types_pb2
from flame.shims import warm
from scripted_manager import Births, Node, NodeLog, a_node_apart, a_node_here, gone, parent_of, runs

# Says that it runs before it knows any session, and in its tasks who it is.
TELL = """
    import json
    print("born", flush=True)
    open(os.path.join(sys.argv[1], str(os.getpid())), "w").close()
    class Tell(FlameService):
        def on_session_enter(self, context):
            self.context = context
        def on_task_invoke(self, context):
            names = ("FLAME_EXECUTOR_ID", "FLAME_SESSION_ID", "FLAME_INSTANCE_TOKEN", "FLAME_APPLICATION", "TMPDIR")
            return json.dumps({
                "env": {name: os.environ.get(name) for name in names},
                "pid": os.getpid(),
                "session": self.context.session_id,
                "data": (self.context.common_data() or b"").decode(),
            }).encode()
    run(Tell())
"""


@pytest.fixture
async def node() -> AsyncIterator[Node]:
    async with a_node_here() as node:
        yield node


@pytest.fixture
def log() -> Iterator[NodeLog]:
    with NodeLog() as log:
        yield log


def start(node: Node, channel: int, births: Births, source: str = TELL, **options: Any) -> str:
    service = node.service(source, f"service-{births.folder.name}")
    options = {"warm_instances": 1, **options}
    return node.manager.start(channel, sys.executable, service, str(births.folder), **options)


async def told(node: Node, channel: int) -> dict[str, Any]:
    (answer,) = await node.manager.answered(channel, node.manager.run(channel, b""))
    return json.loads(answer)


async def test_a_session_gets_a_process_that_was_there_before_it(node: Node, log: NodeLog) -> None:
    births = Births(node.folder)
    start(node, 1, births, warm_instances=2)
    first = (await node.manager.bound(1)).pid
    waiting = await births.until(3) - {first}
    await log.waits(waiting)
    executor_id = start(node, 2, births, warm_instances=2, common_data=b"shared")
    bound = await node.manager.bound(2)
    assert bound.pid in waiting
    seen = await told(node, 2)
    own = Path(seen["env"].pop("TMPDIR"))
    assert seen == {
        "env": {
            "FLAME_EXECUTOR_ID": executor_id,
            "FLAME_SESSION_ID": "session-2",
            "FLAME_INSTANCE_TOKEN": "token-2",
            "FLAME_APPLICATION": "app",
        },
        "pid": bound.pid,
        "session": "session-2",
        "data": "shared",
    }
    assert own.is_relative_to(node.folder / "work" / "executors")
    assert own in set(own.parent.iterdir())
    # What it printed while it waited is in the executor's log, and in nobody else's.
    chunks = await node.manager.read_log(session_id="session-2", stream="stdout")
    assert [(chunk.executor_id, chunk.data) for chunk in chunks] == [(executor_id, b"born\n")]
    node.manager.stop(2)
    await node.manager.released(2)
    await gone(bound.pid)
    assert [chunk.data for chunk in await node.manager.read_log(executor_id=executor_id)] == [b"born\n"]


async def test_an_instance_serves_one_session_and_another_one_takes_its_place_in_the_pool(
    node: Node, log: NodeLog
) -> None:
    births = Births(node.folder)
    used: set[int] = set()
    waiting: set[int] = set()
    for channel in range(1, 5):
        start(node, channel, births)
        pid = (await node.manager.bound(channel)).pid
        assert channel == 1 or {pid} == waiting
        used.add(pid)
        assert (await told(node, channel))["session"] == f"session-{channel}"
        node.manager.stop(channel)
        await node.manager.released(channel)
        await gone(pid)
        waiting = await births.until(channel + 1) - used
        await log.waits(waiting)
    assert len(used) == 4


async def test_without_a_wish_nothing_is_started_ahead(node: Node) -> None:
    idle, busy = Births(node.folder, "idle"), Births(node.folder, "busy")
    start(node, 1, idle, warm_instances=0, name="idle")
    await node.manager.bound(1)
    start(node, 2, busy, name="busy")
    await node.manager.bound(2)
    await busy.until(2)
    assert len(idle.pids) == 1


async def test_the_application_used_last_has_the_budget(log: NodeLog) -> None:
    async with a_node_here(warm_instances=3) as node:
        one, two = Births(node.folder, "one"), Births(node.folder, "two")
        start(node, 1, one, name="one", warm_instances=2)
        first = (await node.manager.bound(1)).pid
        waiting = await one.until(3) - {first}
        start(node, 2, two, name="two", warm_instances=2)
        second = (await node.manager.bound(2)).pid
        await two.until(3)
        ended = await first_to_end(waiting)
        assert all(map(runs, (waiting - {ended}) | (two.pids - {second})))
        await log.waits(waiting)
        # Used again, it has the first right.
        start(node, 3, one, name="one", warm_instances=2)
        assert (await node.manager.bound(3)).pid in waiting
        await one.until(5)
        await first_to_end(two.pids - {second})


async def first_to_end(pids: set[int]) -> int:
    """Wait until one of them has ended."""
    waits = {asyncio.ensure_future(gone(pid)): pid for pid in pids}
    done, pending = await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    for wait in pending:
        wait.cancel()
    await asyncio.gather(*pending, return_exceptions=True)
    return waits[done.pop()]


@pytest.mark.parametrize("change", [{"env": {"A": "2"}}, {"working_directory": "/tmp"}, {"warm_instances": 0}])
async def test_what_was_started_for_another_spec_is_not_used(node: Node, log: NodeLog, change: dict[str, Any]) -> None:
    births = Births(node.folder)
    start(node, 1, births, env={"A": "1"})
    await node.manager.bound(1)
    waiting = await births.until(2) - {node.manager.reports[1][0].pid}
    await log.waits(waiting)
    start(node, 2, births, **{"env": {"A": "1"}, **change})
    assert (await node.manager.bound(2)).pid not in waiting
    for pid in waiting:
        await gone(pid)


async def test_a_change_that_instances_do_not_see_keeps_them(node: Node, log: NodeLog) -> None:
    births = Births(node.folder)
    start(node, 1, births)
    first = (await node.manager.bound(1)).pid
    waiting = await births.until(2) - {first}
    await log.waits(waiting)
    start(node, 2, births, description="better described", max_instances=7)
    assert {(await node.manager.bound(2)).pid} == waiting


async def test_gangs_and_gpus_want_a_process_of_their_own(monkeypatch: pytest.MonkeyPatch, log: NodeLog) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    async with a_node_here(capacity=None) as node:
        births = Births(node.folder)
        start(node, 1, births)
        first = (await node.manager.bound(1)).pid
        waiting = await births.until(2) - {first}
        await log.waits(waiting)
        start(node, 2, births, gpus=[1])
        start(node, 3, births, gang=types_pb2.Gang(rank=0, world_size=1))
        assert {(await node.manager.bound(channel)).pid for channel in (2, 3)}.isdisjoint(waiting)
        start(node, 4, births)
        assert {(await node.manager.bound(4)).pid} == waiting


async def test_what_nobody_uses_ends(node: Node) -> None:
    async with a_node_here(warm_idle=0.5) as node:
        births = Births(node.folder)
        start(node, 1, births, warm_instances=2)
        first = (await node.manager.bound(1)).pid
        for pid in await births.until(2) - {first}:
            await gone(pid)
        assert runs(first)


async def test_one_that_dies_waiting_is_replaced_a_few_times(
    node: Node, monkeypatch: pytest.MonkeyPatch, log: NodeLog
) -> None:
    monkeypatch.setattr(warm, "_PAUSES", (0.01, 0.01))
    births = Births(node.folder)
    source = TELL.replace(
        'print("born"',
        """if "FLAME_SESSION_ID" not in os.environ:
        open(os.path.join(sys.argv[1], str(os.getpid())), "w").close()
        sys.exit("no session, no life")
    print("born\"""",
    )
    start(node, 1, births, source)
    await node.manager.bound(1)
    await births.until(4)
    await log.until("no further instance of app is started ahead")
    assert len(births.pids) == 4
    assert "no session, no life" in log.text
    # The next use of the application is worth one more try, and works as ever.
    start(node, 2, births, source)
    await node.manager.bound(2)
    await births.until(6)


async def test_one_that_is_killed_waiting_or_speaks_out_of_turn_is_replaced(
    node: Node, monkeypatch: pytest.MonkeyPatch, log: NodeLog
) -> None:
    monkeypatch.setattr(warm, "_PAUSES", (0.01, 0.01))
    births = Births(node.folder)
    start(node, 1, births)
    first = (await node.manager.bound(1)).pid
    (second,) = await births.until(2) - {first}
    os.kill(second, signal.SIGKILL)
    (third,) = await births.until(3) - {first, second}
    await log.waits({third})
    start(node, 2, births)
    assert (await node.manager.bound(2)).pid == third
    rude = Births(node.folder, "rude")
    source = TELL.replace(
        "run(Tell())",
        """from flame.service import wire
    from flame.proto import link_pb2
    if "FLAME_SESSION_ID" not in os.environ:
        link, _ = wire.connect(os.environ["FLAME_INSTANCE_LINK"], 1)
        link.write(link_pb2.RESULTS, link_pb2.Results(task_ids=[1], outputs=[b""]).SerializeToString())
        time.sleep(3600)
    run(Tell())""",
    )
    start(node, 3, rude, source, name="rude")
    bound = (await node.manager.bound(3)).pid
    await first_to_end(await rude.until(3) - {bound})
    assert "has entered no session" in log.text


async def test_what_it_leaves_behind_ends_with_its_executor(node: Node, log: NodeLog) -> None:
    births = Births(node.folder)
    source = TELL.replace(
        "return json",
        """reader, writer = os.pipe()
            if not os.fork():
                os.setsid()
                if not os.fork():
                    os.write(writer, str(os.getpid()).encode())
                    os.execve(sys.executable, [sys.executable, "-c", "import time; time.sleep(3600)"], os.environ)
                os._exit(0)
            os.wait()
            return os.read(reader, 100)
            return json""",
    )
    start(node, 1, births, source)
    first = (await node.manager.bound(1)).pid
    waiting = await births.until(2) - {first}
    await log.waits(waiting)
    start(node, 2, births, source)
    assert {(await node.manager.bound(2)).pid} == waiting
    (child,) = await node.manager.answered(2, node.manager.run(2, b""))
    assert runs(int(child))
    node.manager.stop(2)
    await node.manager.released(2)
    assert not runs(int(child))


async def test_a_node_that_stops_leaves_none_behind(node: Node) -> None:
    births = Births(node.folder)
    start(node, 1, births, warm_instances=3)
    await node.manager.bound(1)
    await births.until(4)
    await node.executors.stop()
    assert not any(map(runs, births.pids))
    assert not any((node.folder / "work" / "executors").iterdir())
    assert len(list((node.folder / "work" / "logs").iterdir())) == 1


async def test_an_executor_manager_that_is_killed_leaves_none_behind(node: Node) -> None:
    process = await a_node_apart(node)
    births = Births(node.folder)
    start(node, 1, births, warm_instances=3)
    first = (await node.manager.bound(1)).pid
    await births.until(4)
    start(node, 2, births, warm_instances=3)
    await node.manager.bound(2)
    pids, keeper = births.pids, parent_of(first)
    process.kill()
    await process.wait()
    await gone(keeper)
    assert not any(map(runs, births.pids | pids))
