"""HTTP servers as instances, on a real executor manager and in a real cluster."""

from __future__ import annotations

import json
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

import flame
from blackbox.trouble import alive, connect, instances, until
from cluster import Cluster
from flame.link import Kind
from flame.model.errors import TaskFailedError
from flame.model.states import Shim
from flame.proto import link_pb2, types_pb2
from scripted_manager import Node, a_node_here, appears

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

# An asynchronous server on its own socket. A task says what to do: a method's name, and a word for it.
AIOHTTP = """
import asyncio, os, sys
from aiohttp import web

class Service:
    asked = False

    async def healthz(self, request):
        if self.asked:  # it is ready: what it says from now on, and where it points to, does not matter
            raise web.HTTPFound("http://127.0.0.1:1/")
        self.asked = True
        return web.Response(headers={"X-Flame-Concurrency": "4"})

    async def enter(self, request):
        if await request.read() == b"refuse":
            return web.Response(status=409, text="no such model")
        return web.Response()

    async def invoke(self, request):
        what, _, word = (await request.text()).partition(" ")
        return await getattr(self, what)(request, word)

    async def headers(self, request, word):
        return web.Response(text=request.headers[word])

    async def stream(self, request, word):
        response = web.StreamResponse()
        await response.prepare(request)
        for number in range(int(word)):
            await response.write(b"%d;" % number)
            await asyncio.sleep(0)
        return response

    async def busy(self, request, word):
        return web.Response(status=503, text="try later")

    async def together(self, request, word):
        self.inside = getattr(self, "inside", 0) + 1
        if self.inside == int(word):
            self.all_here.set()
        await self.all_here.wait()
        return web.Response(text="together")

    async def hang(self, request, word):
        with open(word, "w") as file:
            print("in", file=file)
        try:
            await asyncio.sleep(3600)
        finally:
            with open(word + ".left", "w") as file:
                print("left", file=file)

    async def cut(self, request, word):
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b"half of it")
        request.transport.abort()
        return response

    async def announce(self, request, word):
        response = web.StreamResponse(headers={"Content-Length": word})
        await response.prepare(request)
        await asyncio.sleep(3600)

    async def elsewhere(self, request, word):
        raise web.HTTPFound(word)

    async def length(self, request, word):
        return web.Response(text=str(len(word)))

service = Service()
service.all_here = asyncio.Event()
app = web.Application(client_max_size=0)
app.add_routes([web.get("/healthz", service.healthz), web.post("/session/enter", service.enter),
                web.post("/invoke", service.invoke)])
if __name__ == "__main__":
    where = {"path": os.environ["FLAME_REST_SOCKET"]} if "port" not in sys.argv else {
        "host": "127.0.0.1", "port": int(os.environ["PORT"])}
    web.run_app(app, **where, print=None, access_log=None, handler_cancellation=True)
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


async def test_a_service_says_how_many_tasks_it_takes_at_once(node: Node) -> None:
    start(node, AIOHTTP)
    assert (await node.manager.bound(1)).concurrency == 4
    ids = node.manager.run(1, *[b"together 4"] * 4)
    assert await node.manager.answered(1, ids) == [b"together"] * 4


async def test_a_label_says_it_louder(node: Node) -> None:
    start(node, AIOHTTP, labels=["concurrency=2"])
    assert (await node.manager.bound(1)).concurrency == 2


async def test_tasks_know_their_session_their_number_and_their_attempt(node: Node) -> None:
    start(node, AIOHTTP)
    names = [b"headers X-Flame-Session-Id", b"headers X-Flame-Task-Id", b"headers X-Flame-Attempt"]
    ids = node.manager.run(1, *names, attempt=3)
    assert await node.manager.answered(1, ids) == [b"session-1", b"2", b"3"]


async def test_answers_that_come_in_pieces_are_put_together(node: Node) -> None:
    start(node, AIOHTTP)
    (whole,) = await node.manager.answered(1, node.manager.run(1, b"stream 1000"))
    assert whole == b"".join(b"%d;" % number for number in range(1000))


async def test_large_inputs(node: Node) -> None:
    start(node, AIOHTTP)
    size = 60 << 20
    assert await node.manager.answered(1, node.manager.run(1, b"length " + b"x" * size)) == [b"%d" % size]


async def test_a_service_that_is_busy_may_be_asked_again(node: Node) -> None:
    start(node, AIOHTTP)
    busy, redirect = await node.manager.answered(1, node.manager.run(1, b"busy ", b"elsewhere http://127.0.0.1:1/"))
    assert (busy.code, busy.message, busy.retryable) == (503, "HTTP 503 Service Unavailable: try later", True)
    assert (redirect.code, redirect.retryable) == (302, False)


async def test_a_session_that_is_refused(node: Node) -> None:
    start(node, AIOHTTP, common_data=b"refuse")
    released = await node.manager.released(1)
    assert (released.code, released.message) == (12, "POST /session/enter: HTTP 409 Conflict: no such model")


async def test_a_cancelled_call_is_hung_up_and_the_service_goes_on(node: Node) -> None:
    start(node, AIOHTTP)
    await node.manager.bound(1)
    file = node.folder / "hang"
    (task,) = node.manager.run(1, b"hang %s" % str(file).encode())
    await appears(file)
    node.manager.cancel(1, task, reason="not needed")
    (failure,) = await node.manager.answered(1, [task])
    assert (failure.state, failure.message) == (types_pb2.Cancelled, "not needed")
    await appears(Path(f"{file}.left"))
    assert await node.manager.answered(1, node.manager.run(1, b"stream 1")) == [b"0;"]
    assert node.manager.reports[1][-1].state == types_pb2.ExecutorBound


async def test_an_answer_that_breaks_off_is_no_answer(node: Node) -> None:
    start(node, AIOHTTP)
    await node.manager.bound(1)
    (task,) = node.manager.run(1, b"cut ")
    released = await node.manager.released(1)
    assert released.crashed
    assert f"the call of task {task} was lost" in released.message
    assert not node.manager.answers(1)


async def test_an_answer_that_will_be_too_large_is_not_waited_for(node: Node) -> None:
    start(node, AIOHTTP, labels=["concurrency=1"])
    failure, after = await node.manager.answered(1, node.manager.run(1, b"announce 99999999999", b"stream 1"))
    assert failure.message.startswith("the output of 99999999999 bytes is over the limit")
    assert after == b"0;"


async def test_a_server_that_is_never_ready_is_quoted(node: Node) -> None:
    start(node, PLAIN.replace("self.answer(200)", "self.answer(502)"), start_timeout_ms=4000)
    released = await node.manager.released(1)
    assert released.code == 11
    assert released.message.endswith("within 4 s; it answers GET /healthz with HTTP 502")


async def test_what_is_not_begun_can_be_taken_back(node: Node) -> None:
    start(node, AIOHTTP, labels=["concurrency=1"])
    await node.manager.bound(1)
    file = node.folder / "hang"
    ids = node.manager.run(1, b"hang %s" % str(file).encode(), b"stream 1", b"stream 1")
    await appears(file)
    node.manager.send(Kind.RETRACT, 1, link_pb2.Retract(keep=2))
    await node.manager.until(lambda: node.manager.retracted.get(1), "retracted tasks")
    assert node.manager.retracted[1] == ids[2:]
    node.manager.stop(1, grace_ms=0)
    assert not (await node.manager.released(1)).crashed


# --- in a real cluster ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with Cluster(tmp_path_factory.mktemp("cluster")) as running, connect(running) as connection:
        register(running, connection, "on-a-port", AIOHTTP, "port")
        register(running, connection, "on-a-socket", AIOHTTP)
        yield running


def register(cluster: Cluster, connection: flame.Connection, name: str, source: str, *arguments: str) -> None:
    program = cluster.folder / f"{name}.py"
    program.write_text(source)
    attributes = flame.ApplicationAttributes(
        shim=Shim.REST, command=sys.executable, arguments=[str(program), *arguments]
    )
    connection.register_application(name, attributes)


@pytest.mark.parametrize("application", ["on-a-port", "on-a-socket"])
def test_a_session_of_an_http_server(cluster: Cluster, application: str) -> None:
    with connect(cluster) as connection, connection.create_session(application) as session:
        inputs = [json.dumps(number).encode() for number in range(200)]
        assert len(list(session.map(b"stream " + data for data in inputs))) == 200
        assert session.invoke(b"headers X-Flame-Session-Id", timeout=30) == session.id.encode()
        with pytest.raises(TaskFailedError, match="500"):
            session.invoke(b"nothing like that", timeout=30)
        with pytest.raises(flame.FlameError, match="timed out"):
            session.submit(b"hang /dev/null", run_timeout=0.5).result(30)
        assert session.invoke(b"stream 2", timeout=30) == b"0;1;"


def test_nothing_runs_after_the_executor_manager_was_killed(tmp_path: Path) -> None:
    with Cluster(tmp_path) as cluster, connect(cluster) as connection:
        register(cluster, connection, "server", AIOHTTP)
        session = connection.create_session("server")
        session.invoke(b"stream 1", timeout=30)
        pids = instances(connection, session.id)
        assert pids
        assert all(map(alive, pids))
        cluster.nodes["node-1"].kill()
        until(lambda: not any(map(alive, pids)), "the end of the server")
