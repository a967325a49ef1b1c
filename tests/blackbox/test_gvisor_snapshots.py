"""Instances at level gvisor that are copies of one, saved when its service was prepared."""

from __future__ import annotations

import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from prepared import ASYNC, FAILS, PREPARED
from scripted_manager import Node, a_node_here
from untrusted import ask

LEVEL = "gvisor"
NOT_USED = b"no snapshot is used, the instance is started"


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where snapshots are kept."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("cache")
        patch.setenv("FLAME_GVISOR_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where programs lie: at the same place for all, since where they lie is a part of what they are."""
    return tmp_path_factory.mktemp("programs")


@pytest.fixture
async def node() -> AsyncIterator[Node]:
    async with a_node_here() as node:
        yield node


def start(node: Node, folder: Path, channel: int, source: str, name: str, **options: Any) -> None:
    file = folder / f"{name}.py"
    if not file.exists():
        file.write_text("import os, sys, time\nfrom flame.service import *\n" + source.replace("\n    ", "\n"))
    node.manager.start(channel, sys.executable, str(file), **{"isolation": LEVEL, **options})


async def test_copies_share_what_was_prepared_and_nothing_else(node: Node, folder: Path) -> None:
    for channel in (1, 2):
        start(node, folder, channel, PREPARED, "prepared")
        await node.manager.bound(channel)
    states = [await ask(node, channel, "answer = state") for channel in (1, 2)]
    assert states[0] == states[1]  # on_prepare has run once, at that time
    assert states[0][1] is False  # and knew nobody's identity
    # What one session leaves behind is not another's.
    assert await ask(node, 1, "state.append('mine'); open('/tmp/mine', 'w').close(); answer = len(state)") == 3
    assert await ask(node, 2, "answer = [len(state), os.path.exists('/tmp/mine')]") == [2, False]
    # Who it is, what time it is, and chance.
    for channel in (1, 2):
        known = await ask(node, channel, "answer = [os.environ['FLAME_EXECUTOR_ID'], os.environ['FLAME_SESSION_ID']]")
        assert known == [node.manager.executor_id(channel), f"session-{channel}"]
        assert await ask(node, channel, "answer = 'FLAME_SNAPSHOT_FD' in os.environ") is False
        assert abs(await ask(node, channel, "answer = time.time()") - time.time()) < 5
    tokens = [await ask(node, channel, "answer = os.environ['FLAME_INSTANCE_TOKEN']") for channel in (1, 2)]
    assert tokens[0] != tokens[1]
    for source in ("random.random()", "secrets.token_hex()", "str(uuid.uuid4())", "ssl.RAND_bytes(8).hex()"):
        drawn = [await ask(node, channel, f"answer = {source}") for channel in (1, 2)]
        assert drawn[0] != drawn[1], source


async def test_a_service_is_prepared_in_the_loop_that_it_works_in(node: Node, folder: Path) -> None:
    for channel in (1, 2):
        start(node, folder, channel, ASYNC, "async")
        await node.manager.bound(channel)
        assert await node.manager.answered(channel, node.manager.run(channel, b"")) == [b"the same"]


async def test_a_service_that_can_not_be_prepared(node: Node, folder: Path) -> None:
    start(node, folder, 1, FAILS, "failing")
    released = await node.manager.released(1)
    assert "the instance exited with status 1 before it was ready" in released.message
    assert "RuntimeError: no model here" in released.message
