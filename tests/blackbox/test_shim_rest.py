"""HTTP servers as instances, on a real executor manager and in a real cluster."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from typing import Any

import pytest

from flame.model.states import Shim
from flame.proto import types_pb2
from scripted_manager import Node, a_node_here

PLAIN = """
import os, sys, time
from http.server import BaseHTTPRequestHandler, HTTPServer

class Evaluate(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.answer(200)

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path != "/invoke":
            print(self.path, self.headers["X-Flame-Session-Id"], body.decode(), flush=True)
            return self.answer(204)
        try:
            output = eval(body.decode() or "None")
        except Exception as error:
            return self.answer(500, str(error).encode())
        self.answer(204 if output is None else 200, output or b"")

    def answer(self, status, body=b""):
        self.send_response(status)
        if status != 204:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *words):
        pass

HTTPServer(("127.0.0.1", int(os.environ["PORT"])), Evaluate).serve_forever()
"""


@pytest.fixture
async def node() -> AsyncIterator[Node]:
    async with a_node_here() as node:
        yield node


def start(node: Node, source: str, *, channel: int = 1, **options: Any) -> None:
    file = node.folder / "server.py"
    file.write_text(source)
    node.manager.start(channel, sys.executable, str(file), shim=int(Shim.REST), **options)


async def test_tasks_of_a_plain_http_server(node: Node) -> None:
    start(node, PLAIN, common_data=b"shared")
    assert (await node.manager.bound(1)).concurrency == 1
    ids = node.manager.run(1, b"b'one'", b"1 / 0", None, b"b''", b"bytes(60 << 20)")
    one, failure, absent, empty, large = await node.manager.answered(1, ids)
    assert (one, absent, empty, len(large)) == (b"one", None, b"", 60 << 20)
    assert (failure.state, failure.code) == (types_pb2.Failed, 500)
    assert failure.message == "HTTP 500 Internal Server Error: division by zero"
    node.manager.stop(1)
    assert not (await node.manager.released(1)).crashed
    (chunk,) = await node.manager.read_log(executor_id=node.manager.executor_id(1), stream="stdout")
    assert chunk.data == b"/session/enter session-1 shared\n/session/leave session-1 \n"
