"""Networks of listed hosts in images that have nothing but busybox: no Python, no C library."""

from __future__ import annotations

import tarfile
import threading
from collections.abc import AsyncIterator, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from flame.proto import types_pb2
from images import add_busybox, imported
from scripted_manager import Node, a_node_here

LEVELS = ("process", "gvisor")
PROGRAMS = ("sh", "cat", "wget", "nc", "env", "ls", "sed")
# Another program could not start with it.
LOADER = "LD_LIBRARY_PATH=/app:/nowhere"


class Answer(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        body = self.path.encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Nothing."""


@pytest.fixture(scope="module")
def web() -> Iterator[str]:
    """HTTP servers at 127.0.0.2 and 127.0.0.3; the port of both."""
    with ThreadingHTTPServer(("127.0.0.2", 0), Answer) as server:
        port = server.server_address[1]
        with ThreadingHTTPServer(("127.0.0.3", port), Answer) as other:
            threads = [threading.Thread(target=each.serve_forever) for each in (server, other)]
            for thread in threads:
                thread.start()
            yield str(port)
            for each in (server, other):
                each.shutdown()
            for thread in threads:
                thread.join()


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("image")
    (folder / "libc.so.6").write_text("no library")
    archive = folder / "image.tar"
    with tarfile.open(archive, "w") as tar:
        add_busybox(tar, PROGRAMS)
        tar.add(folder / "libc.so.6", "app/libc.so.6")
    with imported(archive, f"ENV {LOADER}") as name:
        yield name


@pytest.fixture
async def node() -> AsyncIterator[Node]:
    async with a_node_here() as node:
        yield node


async def says(node: Node, image: str, script: str, **spec: Any) -> list[str]:
    """What the script prints in an instance of the image, in lines."""
    node.manager.start(
        1, "sh", "-c", script, shim=types_pb2.Container, image=image, labels=["stdio=once"], env={"PYTHONPATH": ""},
        **spec,
    )  # fmt: skip
    await node.manager.bound(1)
    [answer] = await node.manager.answered(1, node.manager.run(1, None))
    assert isinstance(answer, bytes), answer
    return answer.decode().splitlines()


@pytest.mark.parametrize("level", LEVELS)
async def test_what_is_listed_is_reached_and_nothing_else(node: Node, image: str, web: str, level: str) -> None:
    found = await says(
        node,
        image,
        f"""
        wget -q -O - http://127.0.0.2:{web}/listed; echo
        for host in 127.0.0.3:{web} 169.254.169.254 example.com; do
            wget -q -O - http://$host/ 2>&1 | sed 's/.*403.*/refused/'
        done
        echo | nc 127.0.0.2 {web} >/tmp/answer 2>&1 || echo unreachable
        unset http_proxy
        wget -q -O - http://127.0.0.2:{web}/ 2>/tmp/words || echo unreachable
        """,
        isolation=level,
        network=f"127.0.0.2:{web}",
    )
    assert found == ["/listed", "refused", "refused", "refused", "unreachable", "unreachable"]


@pytest.mark.parametrize("level", LEVELS)
async def test_the_program_finds_its_image_as_it_is(node: Node, image: str, web: str, level: str) -> None:
    found = await says(
        node, image, "env | sed -n '/^LD_/p; /KEPT/p'; ls /; ls /app", isolation=level, network=f"127.0.0.2:{web}"
    )
    assert found[0] == LOADER
    assert set(found[1:]) >= {"app", "bin", "libc.so.6"}
    assert not any("KEPT" in line for line in found)


async def test_at_level_none_a_list_is_refused(node: Node, image: str) -> None:
    node.manager.start(1, "sh", shim=types_pb2.Container, image=image, network="pypi.org")
    released = await node.manager.released(1)
    assert (released.code, released.message) == (
        11,
        "a network of listed hosts needs isolation: set it to process or more",
    )
