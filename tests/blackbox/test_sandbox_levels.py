"""The same sandbox at the levels that have a kernel of their own."""

from __future__ import annotations

import urllib.request
from pathlib import Path

import pytest

import flame
from sandboxes import cluster_for_sandboxes, create
from untrusted import require_level

OWN = "import os, random\n(os.environ['FLAME_SESSION_ID'], random.random(), os.urandom(8))"
SERVER = """
import http.server, threading
server = http.server.HTTPServer(("127.0.0.1", 0), http.server.SimpleHTTPRequestHandler)
threading.Thread(target=server.serve_forever, daemon=True).start()
server.server_address[1]
"""


@pytest.mark.parametrize("level", ["gvisor", "microvm"])
def test_everything_that_a_sandbox_does(tmp_path: Path, level: str) -> None:
    with cluster_for_sandboxes(tmp_path / "cluster") as cluster, flame.connect(cluster.endpoint) as connection:
        require_level(connection, level)
        with create(connection, level, timeout=100) as sandbox:
            own = eval(sandbox.run_code(OWN).text)
            assert own[0] == sandbox.id
            assert sandbox.run_code("x = 1\nx + 1").text == "2"
            error = sandbox.run_code("while True: pass", timeout=1).error
            assert error is not None
            assert error.name == "TimeoutError"
            found = sandbox.run_code("import os; os._exit(3)")
            assert found.kernel_lost
            assert sandbox.run_code("'x' in globals()").text == "False"
            assert sandbox.run_command("cat; exit 3", stdin=b"in") == flame.sandbox.CommandResult(3, b"in", b"")
            assert sandbox.run_command("sleep 60", timeout=0.5).timed_out
            sandbox.run_command("for i in 1 2 3; do (sh -c 'sleep 0.1 &' &); done; sleep 1")
            stats = "cat /proc/[0-9]*/stat | cut -d' ' -f3 | sort | uniq -c"
            assert b"Z" not in sandbox.run_command(f"sleep 0.5; {stats}").stdout
            shell = sandbox.start_command(["/bin/sh"], pty=(24, 80))
            shell.write("stty size; exit 4\n")
            ended = shell.wait()
            assert (b"24 80" in ended.stdout, ended.exit_code) == (True, 4)
            with sandbox.files.watch() as changes:
                sandbox.files.write("index.html", b"inside")
                assert next(changes).path == "index.html"
            port = int(sandbox.run_code(SERVER).text)
            with sandbox.expose(port) as exposed:
                assert urllib.request.urlopen(f"{exposed.url}/index.html").read() == b"inside"
            sandbox.pause()
            with pytest.raises(flame.InvalidStateError):
                sandbox.run_code("1")
            sandbox.resume()
            sandbox.run_code("kept = [1]")
            taken = sandbox.snapshot()
            with pytest.raises(flame.SandboxLostError):
                sandbox.run_command("kill -9 $PPID; sleep 60")
        with create(connection, level, snapshot=taken, timeout=100) as twin:
            assert twin.run_code("kept").text == "[1]"
            others = eval(twin.run_code(OWN).text)
            assert not set(own) & set(others)
            assert twin.files.read("index.html") == b"inside"
