"""Instances at level microvm that are copies of one machine, saved when its service was prepared."""

from __future__ import annotations

import os
import random
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from flame.proto import types_pb2
from microvms import CACHE, DISK, LIMITS, at_hand
from prepared import ASYNC, FAILS, PREPARED, are_apart, program
from scripted_manager import Node, NodeLog, a_node_here
from untrusted import ask

HELD = types_pb2.Limits(memory=LIMITS.memory, pids=LIMITS.pids, disk=DISK)


@pytest.fixture(scope="module", autouse=True)
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where programs lie: at the same place for all, since where they lie is a part of what they are."""
    folder = tmp_path_factory.mktemp("microvm")
    with at_hand(folder):
        yield folder


@pytest.fixture
async def node() -> AsyncIterator[Node]:
    async with a_node_here() as node:
        yield node


def start(node: Node, folder: Path, channel: int, source: str, name: str, **options: Any) -> None:
    given = {"isolation": "microvm", "limits": HELD, "start_timeout_ms": 110_000, **options}
    node.manager.start(channel, sys.executable, program(folder, source, name), **given)


async def test_copies_share_what_was_prepared_and_nothing_else(node: Node, folder: Path) -> None:
    for channel in (1, 2):
        start(node, folder, channel, PREPARED, "prepared")
        await node.manager.bound(channel)
    states = [await ask(node, channel, "answer = state") for channel in (1, 2)]
    assert states[0] == states[1]  # on_prepare has run once, at that time
    assert states[0][1] is False  # and knew nobody's identity
    await are_apart(node, 1, 2)


async def test_an_application_may_do_without(node: Node, folder: Path) -> None:
    for channel, labels in ((1, []), (2, ["snapshot=off"])):
        start(node, folder, channel, PREPARED, "prepared", labels=labels)
        await node.manager.bound(channel)
    assert [(await ask(node, channel, "answer = state"))[1] for channel in (1, 2)] == [False, True]


async def test_a_changed_program_is_not_the_saved_one(node: Node, folder: Path) -> None:
    name = f"changing{random.randrange(1 << 30)}"
    start(node, folder, 1, PREPARED, name)
    await node.manager.bound(1)
    file = folder / f"{name}.py"
    file.write_text(file.read_text().replace("state = []", "state = ['changed']"))
    start(node, folder, 2, PREPARED, name)
    await node.manager.bound(2)
    assert await ask(node, 1, "answer = len(state)") == 2
    assert await ask(node, 2, "answer = state[0]") == "changed"


async def test_a_snapshot_that_is_broken_is_made_anew(node: Node, folder: Path) -> None:
    start(node, folder, 1, PREPARED, "prepared")
    await node.manager.bound(1)
    newest = max(CACHE.glob("snapshot-*"), key=lambda place: place.stat().st_mtime)
    os.truncate(newest / "state", 1000)
    start(node, folder, 2, PREPARED, "prepared")
    await node.manager.bound(2)
    assert await ask(node, 2, "answer = state[1]") is True
    assert b"no snapshot is used, the machine is booted" in await written(node, 2)
    start(node, folder, 3, PREPARED, "prepared")
    await node.manager.bound(3)
    assert b"no snapshot" not in await written(node, 3)


async def test_a_service_is_prepared_in_the_loop_that_it_works_in(node: Node, folder: Path) -> None:
    start(node, folder, 1, ASYNC, "async")
    await node.manager.bound(1)
    assert await node.manager.answered(1, node.manager.run(1, b"")) == [b"the same"]


async def test_a_service_is_prepared_at_level_none_too(node: Node, folder: Path) -> None:
    start(node, folder, 1, PREPARED, "prepared", isolation="none", limits=None)
    await node.manager.bound(1)
    assert len(await ask(node, 1, "answer = state")) == 2
    start(node, folder, 2, ASYNC, "async", isolation="none", limits=None)
    await node.manager.bound(2)
    assert await node.manager.answered(2, node.manager.run(2, b"")) == [b"the same"]


async def test_a_service_that_can_not_be_prepared(node: Node, folder: Path) -> None:
    start(node, folder, 1, FAILS, "failing")
    released = await node.manager.released(1)
    assert "the instance exited with status 1 before it was ready" in released.message
    assert "RuntimeError: no model here" in released.message


async def test_copies_that_wait_for_a_session(node: Node, folder: Path) -> None:
    with NodeLog() as log:
        start(node, folder, 1, PREPARED, "prepared", warm_instances=1)
        await node.manager.bound(1)
        await log.until("waits for a session of app")
        start(node, folder, 2, PREPARED, "prepared", warm_instances=1)
        bound = await node.manager.bound(2)
    assert f"process {bound.pid} waits for a session" in log.text
    known = await ask(node, 2, "answer = [os.environ['FLAME_EXECUTOR_ID'], os.environ['FLAME_SESSION_ID']]")
    assert known == [node.manager.executor_id(2), "session-2"]


async def written(node: Node, channel: int) -> bytes:
    """What an instance wrote to stderr."""
    chunks = await node.manager.read_log(executor_id=node.manager.executor_id(channel))
    return b"".join(chunk.data for chunk in chunks)
