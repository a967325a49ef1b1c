"""Rows of the table of docs/isolation.md at the levels that have a kernel of their own. The virtual machines are copies
of one."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

import hostile
from microvms import cached, owned
from scripted_manager import Node, a_node_here
from untrusted import MIB, ask, named, throttled

KERNELS = ("gvisor", "microvm")


@pytest.fixture(scope="module")
def accomplice(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with cached():
        yield hostile.prepared(tmp_path_factory.getbasetemp())


@pytest.fixture
async def node(accomplice: Path) -> AsyncIterator[Node]:
    async with a_node_here() as node:
        yield node


@pytest.mark.parametrize("level", KERNELS)
async def test_an_output_flood_costs_no_more_than_any_other_log(accomplice: Path, level: str) -> None:
    async with a_node_here(log_bytes=MIB) as node:
        await hostile.begin(node, accomplice, 1, level)
        assert await ask(node, 1, "for _ in range(32): os.write(2, bytes(1 << 18))\nanswer = 1") == 1
        logs = node.folder / "work" / "logs" / node.manager.executor_id(1)
        assert sum(file.stat().st_size for file in logs.iterdir()) <= 1.5 * MIB
        node.manager.stop(1, grace_ms=0)


async def test_wall_time(node: Node, accomplice: Path) -> None:
    await hostile.begin(node, accomplice, 1, "microvm", wall_ms=300)
    [failure] = await node.manager.answered(1, node.manager.run(1, b"time.sleep(3600)"))
    assert failure.message == "the instance's wall time of 0.3 s is over"
    assert failure.retryable
    await node.manager.released(1)
    assert owned(node.manager.executor_id(1)) == []


async def test_more_processor_time_than_its_limit(node: Node, accomplice: Path) -> None:
    await hostile.begin(node, accomplice, 1, "microvm", cpu_millis=100)
    assert await ask(node, 1, "while time.process_time() < 0.1: pass\nanswer = 1") == 1
    assert throttled(node.manager.executor_id(1)) > 0
    node.manager.stop(1, grace_ms=0)


# Those of x86_64, which level microvm is tested on.
CALLS = {
    "mount": "165, 0, b'/tmp', b'tmpfs', 0, 0",
    "setns": "308, 0, 0",
    "bpf": "321, 0, 0, 0",
    "userfaultfd": "323, 0",
    "perf_event_open": "298, 0, 0, -1, -1, 0",
    "init_module": "175, 0, 0, b''",
    "kexec_load": "246, 0, 0, 0, 0",
}


async def test_what_it_calls_and_leaves_behind_is_of_its_own_kernel(node: Node, accomplice: Path) -> None:
    await hostile.begin(node, accomplice, 1, "microvm")
    calls = ", ".join(f"{name!r}: libc.syscall({arguments})" for name, arguments in CALLS.items())
    assert await ask(node, 1, f"libc = ctypes.CDLL(None)\nanswer = {{{calls}}}") == dict.fromkeys(CALLS, -1)
    mark = f"3600.{node.manager.executor_id(1)[:6]}"
    source = f"""
if not os.fork():
    os.setsid()
    os.execve('/bin/sh', ['sh', '-c', 'trap "" TERM; sleep {mark}'], {{}})
answer = os.uname().release
"""
    assert await ask(node, 1, source) != os.uname().release
    assert named(mark) == []  # it is no process of the node
    node.manager.stop(1)
    await node.manager.released(1)
    assert owned(node.manager.executor_id(1)) == []
