"""`flame-executor-manager` as a process."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from flame.link import tcp
from scripted_manager import PATIENCE, ScriptedManager, a_node_here, runs

SOURCE = Path(__file__).parent.parent.parent / "src"
ECHO = """from flame.service import *
class Echo(FlameService):
    def on_task_invoke(self, context):
        return context.input
run(Echo())
"""


@pytest.fixture
async def manager() -> AsyncIterator[ScriptedManager]:
    """Listens where the framed link of a cluster is: two ports above its endpoint."""
    manager = ScriptedManager(tcp("127.0.0.1", 0))
    await manager.open()
    yield manager
    await manager.close()


async def daemon(folder: Path, *arguments: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable, "-m", "flame.node.daemon", *arguments,
        env={"PYTHONPATH": str(SOURCE), "HOME": str(folder), "FLAME_SOCKET_DIR": str(folder / "s")},
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip


async def test_a_node_by_its_configuration_file_until_it_is_told_to_end(
    tmp_path: Path, manager: ScriptedManager
) -> None:
    config = tmp_path / "flame-cluster.yaml"
    config.write_text(
        f"cluster:\n  name: test\n  endpoint: http://127.0.0.1:{manager.address.port - 2}\n"
        "  executors:\n    capacity: cpu=3,mem=2Gi\n"
    )
    process = await daemon(tmp_path, "--config", str(config), "--name", "worker-7")
    assert process.stdout is not None
    line = await asyncio.wait_for(process.stdout.readline(), PATIENCE)
    assert line.decode().startswith("flame-executor-manager is ready: node worker-7, ")
    await manager.until(lambda: manager.link, "the node")
    (hello,) = manager.hellos
    assert hello.id == "worker-7"
    capacity = hello.node.node.status.capacity
    assert (capacity.cpu, capacity.memory) == (3, 2 << 30)
    addresses = {address.type: address.address for address in hello.node.node.status.addresses}
    assert addresses == {"Hostname": socket.gethostname(), "InternalIP": "127.0.0.1"}
    program = tmp_path / "echo.py"
    program.write_text(ECHO)
    manager.start(1, sys.executable, str(program))
    bound = await manager.bound(1)
    assert await manager.answered(1, manager.run(1, b"hello")) == [b"hello"]
    process.send_signal(signal.SIGTERM)
    assert await asyncio.wait_for(process.wait(), PATIENCE) == 0
    assert not runs(bound.pid)


async def test_a_wrong_configuration_is_refused(tmp_path: Path) -> None:
    config = tmp_path / "flame-cluster.yaml"
    config.write_text("cluster:\n  name: test\n  endpoint: http://127.0.0.1:8080\n  executers: {}\n")
    process = await daemon(tmp_path, "--config", str(config))
    _, stderr = await asyncio.wait_for(process.communicate(), PATIENCE)
    assert process.returncode == 2
    assert "executers" in stderr.decode()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--label", "zone"], "invalid label 'zone'"),
        (["--label", "flame.os=mine"], "label 'flame.os': names that begin with 'flame.' are given by the node itself"),
        (["--taint", "a,b"], "invalid taint 'a,b'"),
        (["--max-executors", "0"], "--max-executors 0 is out of range"),
    ],
)
async def test_a_wrong_command_line_is_refused(tmp_path: Path, arguments: list[str], message: str) -> None:
    process = await daemon(tmp_path, *arguments)
    _, stderr = await asyncio.wait_for(process.communicate(), PATIENCE)
    assert process.returncode == 2
    assert message in stderr.decode()


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="there is no core to take away")
async def test_heartbeats_tell_what_the_node_may_use_by_now() -> None:
    cores = os.sched_getaffinity(0)
    async with a_node_here(capacity=None) as node:
        try:
            os.sched_setaffinity(0, [min(cores)])
            found = await node.manager.until(
                lambda: [beat for beat in node.manager.heartbeats if beat.capacity.cpu == 1], "less of it"
            )
        finally:
            os.sched_setaffinity(0, cores)
    assert node.manager.hellos[0].node.node.status.capacity.memory == found[0].capacity.memory
