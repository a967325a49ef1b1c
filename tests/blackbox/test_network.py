"""Networks of listed hosts, in a real cluster: what instances and sandboxes reach, at each level that has them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

import flame
from blackbox.trouble import alive, until
from cluster import Cluster
from flame.model.errors import InvalidArgumentError
from microvms import cached
from untrusted import control_groups, named, require_level, require_sandboxes

SERVICE = """
import http.client, json, os, socket, subprocess, sys, threading, urllib.error, urllib.request
import flame

class Untrusted(flame.FlameService):
    def on_task_invoke(self, context):
        names = dict(globals())
        exec(context.input.decode(), names)
        return json.dumps(names.get("answer")).encode()

def get(url):
    try:
        with urllib.request.urlopen(url) as response:
            return response.read().decode()
    except urllib.error.HTTPError as error:
        return error.read().decode()

flame.run(Untrusted())
"""


KILL = """
answer = []
for number in filter(str.isdigit, os.listdir('/proc')):
    if '\\nUid:\\t1001\\t' in open(f'/proc/{number}/status').read():
        try:
            os.kill(int(number), 9)
            answer.append('ended')
        except PermissionError:
            answer.append('not permitted')
"""


GONE = ("RemoteDisconnected", "ConnectionResetError", "URLError")  # as it died, or afterwards


class Web(ThreadingHTTPServer):
    """An HTTP server on a loopback address of this machine that no sandbox takes for its own."""

    def __init__(self) -> None:
        class Answer(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                body = f"{self.path} of {self.headers['Host']}".encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
                """Nothing."""

        super().__init__(("127.0.0.2", 0), Answer)
        self.where = f"127.0.0.2:{self.server_address[1]}"


@pytest.fixture(scope="module")
def web() -> Iterator[Web]:
    with Web() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """With the application `untrusted`."""
    folder = tmp_path_factory.mktemp("cluster")
    require_sandboxes(folder / "probe")
    with cached(), Cluster(folder) as cluster:
        service = folder / "service.py"
        service.write_text(SERVICE)
        with flame.connect(cluster.endpoint) as connection:
            spec: dict[str, Any] = {"command": sys.executable, "arguments": [str(service)], "isolation": "process"}
            spec["start_timeout"] = 110.0  # machines are emulated
            connection.register_application("untrusted", spec)
            connection.register_application("listed", {**spec, "network": ["*.example.com", "10.0.0.0/8:80"]})
        yield cluster


@pytest.fixture
def connection(cluster: Cluster) -> Iterator[flame.Connection]:
    with flame.connect(cluster.endpoint) as connection:
        yield connection


def ask(session: flame.Session, source: str) -> Any:
    output = session.invoke(source.encode())
    assert output is not None
    return json.loads(output)


def listed(web: Web) -> list[str]:
    """The same for all, so that virtual machines are copies of one."""
    return [web.where, "localhost:1-65535", "nowhere.invalid"]


def log_of(cluster: Cluster, executor: str) -> str:
    """What an executor's instance, and its proxy, wrote to stderr."""
    return "".join(file.read_text() for file in (cluster.folder / "node-1" / "logs").rglob(f"{executor}/stderr.*"))


@pytest.mark.parametrize("level", ["process", "gvisor", "microvm"])
def test_what_is_listed_is_reached_and_nothing_else(
    cluster: Cluster, connection: flame.Connection, web: Web, level: str
) -> None:
    require_level(connection, level)
    with connection.create_session("untrusted", isolation=level, network=listed(web)) as session:
        executor = ask(session, "answer = os.environ['FLAME_EXECUTOR_ID']")
        assert ask(session, f"answer = get('http://{web.where}/a?b')") == f"/a?b of {web.where}"
        tunnel = f"""
            proxy = http.client.HTTPConnection(os.environ['https_proxy'].removeprefix('http://'))
            proxy.set_tunnel({web.where!r})
            proxy.request('GET', '/tunnelled')
            answer = proxy.getresponse().read().decode()
        """
        assert ask(session, "if True:" + tunnel) == f"/tunnelled of {web.where}"
        for url, words in (
            ("http://127.0.0.2:1/", "127.0.0.2:1: 127.0.0.2 is no public address, and not listed as an address"),
            ("http://169.254.169.254/latest", "169.254.169.254 is no public address"),
            ("http://example.com/", "example.com:80: it is not listed"),
        ):
            assert words in ask(session, f"answer = get({url!r})")
        # A listed name that stands for the node itself.
        rebound = "proxy.request('GET', 'http://localhost:80/'); answer = proxy.getresponse().status"
        assert ask(session, f"proxy = http.client.HTTPConnection(os.environ['HTTP_PROXY'][7:]); {rebound}") == 403
        if level == "microvm":
            assert ask(session, KILL) == ["not permitted"]  # what carries its connections is another user's
        for address in ("1.1.1.1", "127.0.0.2"):
            direct = f"answer = socket.socket().connect_ex(({address!r}, {web.server_address[1]})) != 0"
            assert ask(session, direct) is True
    until(lambda: "bytes in" in log_of(cluster, executor), "the proxy's last word")
    log = log_of(cluster, executor)
    assert "network: refused 169.254.169.254:80: 169.254.169.254 is no public address" in log
    assert "which localhost:1-65535 lists: " in log
    assert "network: 2 connections, 4 refused; " in log
    assert not named(f"{executor}-network")


@pytest.mark.parametrize("level", ["process", "gvisor"])
def test_it_is_reached_also_from_a_node_whose_folder_has_a_long_path(tmp_path: Path, web: Web, level: str) -> None:
    folder = tmp_path / ("a-long-name-" * 6)
    folder.mkdir()
    (folder / "service.py").write_text(SERVICE)
    with Cluster(folder) as cluster, flame.connect(cluster.endpoint) as connection:
        require_level(connection, level)
        spec: dict[str, Any] = {"command": sys.executable, "arguments": [str(folder / "service.py")]}
        connection.register_application("far", {**spec, "isolation": level, "network": listed(web)})
        with connection.create_session("far") as session:
            assert ask(session, f"answer = get('http://{web.where}/')") == f"/ of {web.where}"


def test_programs_in_a_sandbox_use_it(cluster: Cluster, connection: flame.Connection, web: Web) -> None:
    with flame.Sandbox.create(network=[web.where], connection=connection) as sandbox:
        code = f"import urllib.request; print(urllib.request.urlopen('http://{web.where}/code').read().decode())"
        assert sandbox.run_code(code).stdout == f"/code of {web.where}\n"
        command = sandbox.run_command([sys.executable, "-c", code])
        assert command.stdout.decode() == f"/code of {web.where}\n"


@pytest.mark.parametrize("level", ["process", "microvm"])
def test_what_passes_is_counted_for_tasks_and_sessions_and_held_to_limits(
    cluster: Cluster, connection: flame.Connection, web: Web, level: str
) -> None:
    require_level(connection, level)
    path = "x" * 5000
    with connection.create_session("untrusted", isolation=level, network=listed(web)) as session:
        executor = ask(session, "answer = os.environ['FLAME_EXECUTOR_ID']")
        future = session.submit(f"answer = len(get('http://{web.where}/{path}'))".encode())
        assert future.result() == str(len(f"/{path} of {web.where}")).encode()
        # What was counted may be told with the next task's.
        second = session.submit(b"import time; time.sleep(0.01); answer = 1")
        second.result()
        tasks = [session.get_task(each.task_id) for each in (future, second)]
        sent, received = (sum(getattr(task, name) for task in tasks) for name in ("sent", "received"))
        assert 5000 < sent < 6000
        assert 5000 < received < 6000
        if tasks[0].sent:
            assert f"{tasks[0].sent} bytes sent and {tasks[0].received} received" in _view(
                cluster, session.id, "-t", str(future.task_id)
            )
        (proxy,) = _proxies_of(executor)
        groups = Path(f"/proc/{proxy}/cgroup").read_text()
        for controller in ("memory", "pids", "cpu"):
            own = f"{executor}-shared/{executor}-network"
            assert any(own in line for line in groups.splitlines() if _counts(line, controller))
        held = [_quota(folder) for folder in control_groups(executor)]  # the instance's, the proxy's, that of both
        assert sorted(filter(None, held)) == ["100000", "100000", "50000"]
        session.close()
        until(lambda: session.refresh() or session.sent, "the end of the executor")
        assert (session.sent, session.received) == (sent, received)
        until(lambda: not control_groups(executor), "the removal of its control groups")
        assert json.loads(_view(cluster, session.id, "-o", "json"))["used"]["received"] == received
    assert f"{sent} bytes out, {received} bytes in" in log_of(cluster, executor)
    assert f"; {sent} bytes went out and {received} came in" in _flmctl(cluster, "explain", "session", session.id)


FLOOD = """
import resource
soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
host, _, port = os.environ['HTTP_PROXY'][7:].partition(':')
numbers = iter(range(COUNT))
held = []
def connect():
    for number in numbers:
        held.append(socket.create_connection((host, int(port))))
threads = [threading.Thread(target=connect) for _ in range(48)]
for thread in threads: thread.start()
for thread in threads: thread.join()
answer = len(held)
"""


@pytest.mark.parametrize(("level", "count"), [("process", 2_000), ("microvm", 500)])
def test_a_flood_of_connections_hurts_who_makes_it_only(
    connection: flame.Connection, web: Web, level: str, count: int
) -> None:
    require_level(connection, level)
    fetch = f"""
try: answer = get('http://{web.where}/')
except OSError as error: answer = type(error).__name__
"""
    with (
        connection.create_session("untrusted", isolation=level, network=listed(web)) as session,
        connection.create_session("untrusted", network=listed(web)) as other,
    ):
        executor = ask(session, "answer = os.environ['FLAME_EXECUTOR_ID']")
        assert ask(session, FLOOD.replace("COUNT", str(count))) == count
        assert ask(other, fetch) == f"/ of {web.where}"
        # When what is held is let go, the way out is there again.
        ask(session, "import gc; gc.collect()")
        until(lambda: ask(session, fetch) == f"/ of {web.where}", "room for another connection")
        assert len(_proxies_of(executor)) == 1


PREPARED = """
import http.client, json, os, sys, time, urllib.request
import flame

class Prepared(flame.FlameService):
    def on_prepare(self):
        url = f"http://{sys.argv[1]}/prepared"
        self.page = urllib.request.urlopen(url).read().decode()
        self.tunnel = http.client.HTTPConnection(os.environ["https_proxy"].removeprefix("http://"))
        self.tunnel.set_tunnel(sys.argv[1])
        self.tunnel.connect()
        self.at = time.monotonic()

    def on_task_invoke(self, context):
        self.tunnel.sock.settimeout(60)
        left = self.tunnel.sock.recv(1).decode()
        return json.dumps([self.at, self.page, left, urllib.request.urlopen(context.input.decode()).status]).encode()

flame.run(Prepared())
"""


def test_copies_of_a_machine_have_what_was_fetched_and_none_of_its_connections(
    cluster: Cluster, connection: flame.Connection, web: Web
) -> None:
    require_level(connection, "microvm")
    service = cluster.folder / "prepared.py"
    service.write_text(PREPARED)
    spec = {"command": sys.executable, "arguments": [str(service), web.where], "isolation": "microvm"}
    connection.register_application("prepared", {**spec, "network": listed(web), "start_timeout": 110.0})
    answers: list[Any] = []
    for _ in range(2):
        with connection.create_session("prepared") as session:
            answers.append(ask(session, f"http://{web.where}/"))
    assert answers[0] == answers[1]
    assert answers[0][1:] == [f"/prepared of {web.where}", "", 200]


def test_without_its_bridge_or_its_proxy_an_instance_reaches_nothing(connection: flame.Connection, web: Web) -> None:
    fetch = f"""
try: answer = get('http://{web.where}/')
except OSError as error: answer = type(error).__name__
"""
    with connection.create_session("untrusted", network=[web.where]) as session:
        end = """
for number in filter(str.isdigit, os.listdir('/proc')):
    if int(number) > 2 and b'egress_bridge' in open(f'/proc/{number}/cmdline', 'rb').read():
        os.kill(int(number), 9)
        answer = 'ended'
"""
        assert ask(session, end) == "ended"
        assert ask(session, fetch) in GONE
    with connection.create_session("untrusted", network=[web.where]) as session:
        executor = ask(session, "answer = os.environ['FLAME_EXECUTOR_ID']")
        assert not _proxies_of(executor)  # nobody came yet
        assert ask(session, fetch) == f"/ of {web.where}"
        (proxy,) = _proxies_of(executor)
        os.kill(proxy, signal.SIGKILL)
        until(lambda: not alive(proxy), "the end of the proxy")
        assert ask(session, fetch) in GONE


def test_a_session_may_only_be_stricter(connection: flame.Connection) -> None:
    for network, words in (
        ("host", r"application listed has network \*.example.com, 10.0.0.0/8:80; a session of it can't have more"),
        (["pypi.org"], "has a network without pypi.org"),
        (["10.0.0.0/8"], "has a network without 10.0.0.0/8"),
    ):
        with pytest.raises(InvalidArgumentError, match=words):
            connection.create_session("listed", network=network)
    with connection.create_session("listed", network=["a.example.com:443", "10.1.1.1:80"]) as session:
        assert ask(session, "answer = get('http://10.1.1.2:80/')").endswith("not listed as an address\n")
    with connection.create_session("listed", network="none") as session:
        assert ask(session, "answer = os.environ.get('HTTP_PROXY')") is None


def test_lists_that_mean_nothing_are_refused(connection: flame.Connection) -> None:
    for network, words in (
        (["http://pypi.org"], "unknown network 'http://pypi.org'"),
        (["a,b"], "'a,b' is no host or address"),
        ("lan", "unknown network 'lan'"),
    ):
        with pytest.raises(InvalidArgumentError, match=words):
            connection.create_session("untrusted", network=network)
    connection.register_application("plain", {"command": sys.executable})
    with pytest.raises(InvalidArgumentError, match=r"network pypi.org needs isolation"):
        connection.create_session("plain", network=["pypi.org"])
    with pytest.raises(InvalidArgumentError, match="can't be kept off the network"):
        flame.Sandbox.create(isolation="none", network=["pypi.org"], connection=connection)


def test_a_session_waits_where_no_node_can_hold_its_list_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runsc = tmp_path / "bin" / "runsc"
    runsc.parent.mkdir()
    runsc.write_text("#!/bin/sh\n")  # one that makes sandboxes, and lets no sockets in
    runsc.chmod(0o755)
    monkeypatch.setenv("PATH", f"{runsc.parent}:{Path(sys.executable).parent}")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with Cluster(tmp_path / "c") as cluster, flame.connect(cluster.endpoint) as connection:
        [node] = connection.list_nodes()
        assert (node.labels["flame.isolation.gvisor"], node.labels["flame.network.gvisor"]) == ("yes", "no")
        connection.register_application("app", {"command": "/bin/true", "isolation": "gvisor", "network": ["pypi.org"]})
        with connection.create_session("app") as session:
            future = session.submit(b"")
            why = _flmctl(cluster, "explain", "session", session.id)
            assert "no node may take it: on node-1 label flame.network.gvisor" in why
            assert not connection.list_executors(session.id)
            future.cancel()


def test_nothing_of_it_outlives_the_executor_manager(tmp_path: Path, web: Web) -> None:
    with Cluster(tmp_path / "c") as cluster, flame.connect(cluster.endpoint) as connection:
        service = tmp_path / "service.py"
        service.write_text(SERVICE)
        spec = {"command": sys.executable, "arguments": [str(service)], "isolation": "process"}
        connection.register_application("untrusted", spec)
        session = connection.create_session("untrusted", network=[web.where])
        executor = ask(session, f"get('http://{web.where}/'); answer = os.environ['FLAME_EXECUTOR_ID']")
        (proxy,) = _proxies_of(executor)
        cluster.nodes["node-1"].kill()
        until(lambda: not alive(proxy), "the end of the proxy")


def _view(cluster: Cluster, session: str, *arguments: str) -> str:
    return _flmctl(cluster, "view", "-s", session, *arguments)


def _flmctl(cluster: Cluster, *arguments: str) -> str:
    command = [str(Path(sys.executable).with_name("flmctl")), *arguments]
    return subprocess.run(command, env=cluster.environ(), capture_output=True, text=True, check=True).stdout


def _counts(line: str, controller: str) -> bool:
    """Whether a line of /proc/PID/cgroup is about the tree that has this controller."""
    names = line.split(":")[1]
    return not names or controller in names.split(",")


def _quota(group: Path) -> str:
    """How much of each 100 ms it may have, in microseconds; empty in a tree of another controller."""
    files = [group / "cpu.cfs_quota_us", group / "cpu.max"]
    return next((file.read_text().split()[0] for file in files if file.exists()), "")


def _proxies_of(executor: str) -> list[int]:
    return [pid for pid in named("egress_proxy") if executor in _environment(pid)]


def _environment(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/environ").read_text()
    except OSError:
        return ""
