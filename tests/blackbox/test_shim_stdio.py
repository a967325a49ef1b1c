"""Programs behind stdin and stdout: the three forms, on a real executor manager and in a real cluster."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from typing import Any

import pytest

from flame.model.states import Shim
from flame.proto import types_pb2
from scripted_manager import Node, a_node_here

LINES = """
import json, os, sys, time
for line in sys.stdin:
    task = json.loads(line)
    try:
        answer = {"task_id": task["task_id"], "output": eval(task["input"] or "None")}
    except Exception as error:
        answer = {"task_id": task["task_id"], "error": str(error)}
    print(json.dumps(answer), flush=True)
"""


@pytest.fixture
async def node() -> AsyncIterator[Node]:
    async with a_node_here() as node:
        yield node


def start(node: Node, form: str, command: str, *arguments: str, channel: int = 1, **options: Any) -> None:
    labels = [f"stdio={form}", *options.pop("labels", [])]
    node.manager.start(channel, command, *arguments, shim=int(Shim.STDIO), labels=labels, **options)


def script(node: Node, source: str, name: str = "program") -> str:
    file = node.folder / name
    file.write_text(source)
    file.chmod(0o755)
    return str(file)


async def test_lines(node: Node) -> None:
    start(node, "lines", "python3", script(node, LINES))
    await node.manager.bound(1)
    ids = node.manager.run(1, b"'one'", b"1/0", b"None", None, b"''", b"'x' * 1000000", b"{'a': 1}")
    one, failure, *others, document = await node.manager.answered(1, ids)
    assert one == b"one"
    assert (failure.state, failure.code, failure.message) == (types_pb2.Failed, -1, "division by zero")
    assert others == [None, None, b"", b"x" * 1_000_000]
    assert document == b'{"a": 1}'
    node.manager.stop(1)
    assert not (await node.manager.released(1)).crashed


async def test_once(node: Node) -> None:
    start(node, "once", script(node, "#!/bin/sh\nread x; echo $x $FLAME_TASK_ID; echo words >&2; exit ${x#ok}\n"))
    await node.manager.bound(1)
    ids = node.manager.run(1, b"ok0\n", b"ok3\n")
    assert await node.manager.answered(1, ids[:1]) == [b"ok0 1\n"]
    (failure,) = await node.manager.answered(1, ids[1:])
    assert (failure.code, failure.message) == (3, "the program exited with status 3; the end of its stderr:\nwords")
    node.manager.stop(1)
    assert not (await node.manager.released(1)).crashed


async def test_framed(node: Node) -> None:
    file = node.service("""
        class Evaluate(FlameService):
            def on_task_invoke(self, context):
                print("to the log", flush=True)
                return eval(context.input.decode())
        run(Evaluate())
    """)
    start(node, "framed", sys.executable, file)
    await node.manager.bound(1)
    ids = node.manager.run(1, b"b'one'", b"1/0", b"bytes(60 << 20)")
    one, failure, large = await node.manager.answered(1, ids)
    assert (one, failure.message, len(large)) == (b"one", "division by zero", 60 << 20)
    node.manager.stop(1)
    assert not (await node.manager.released(1)).crashed
