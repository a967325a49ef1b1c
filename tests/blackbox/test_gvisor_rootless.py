"""Level gvisor on a node whose executor manager is no root. Where a kernel lets no such user make user namespaces, the
node says so."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from blackbox.test_container_rootless import Home, a_node
from prepared import PREPARED, program
from untrusted import ask

pytestmark = pytest.mark.skipif(os.getuid() != 0, reason="only root can become somebody else")


@pytest.fixture
def home() -> Iterator[Home]:
    folder = Path(f"/tmp/fl{uuid4().hex[:8]}")
    folder.mkdir(mode=0o755)
    try:
        yield Home(folder, numbers=False)
    finally:
        shutil.rmtree(folder)


async def test_instances_of_an_ordinary_user(home: Home) -> None:
    """They are started each time: runsc restores for root only."""
    async with a_node(home) as node:
        label = node.manager.hellos[-1].node.node.spec.labels["flame.isolation.gvisor"]
        refused = home.run("unshare", "--user", "--map-root-user", "--mount", "true").returncode != 0
        assert label == ("no" if refused else "yes")
        path = program(home.folder, PREPARED, "prepared")
        for channel in () if refused else (1, 2, 3):
            node.manager.start(channel, sys.executable, path, isolation="gvisor")
            await node.manager.bound(channel)
            assert "Starting gVisor" in await ask(node, channel, "answer = subprocess.check_output('dmesg').decode()")
            assert await ask(node, channel, "answer = [state[1], os.getuid()]") == [True, 0]
            assert await ask(node, channel, "answer = open('/x', 'w')") == {"error": "EROFS"}
            size = 50_000  # what fits into the pipe
            assert await ask(node, channel, f"answer = os.write(2, b'x' * {size})") == size
            chunks = await node.manager.read_log(executor_id=node.manager.executor_id(channel))
            assert b"".join(chunk.data for chunk in chunks) == b"x" * size
        assert not list(home.folder.glob("cache/flame/gvisor/snapshots/*"))
