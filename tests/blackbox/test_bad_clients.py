"""Clients that send garbage, too much, or nonsense: the cluster refuses them and serves the others."""

from __future__ import annotations

import collections
import errno
import os
import socket
import struct
from pathlib import Path

import pytest

import flame
from blackbox.trouble import ask, connect, echoes, numbers, register, until
from cluster import Cluster
from flame.model.errors import AlreadyExistsError, InvalidArgumentError, InvalidStateError, NotFoundError
from flame.proto import link_pb2


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> collections.abc.Iterator[Cluster]:
    with Cluster(tmp_path_factory.mktemp("cluster")) as running, connect(running) as connection:
        register(connection)
        yield running


@pytest.fixture
def connection(cluster: Cluster) -> collections.abc.Iterator[flame.Connection]:
    with connect(cluster) as made:
        yield made


def frame(kind: int, channel: int, body: bytes) -> bytes:
    return struct.pack("<IBBHI", len(body), kind, 0, 0, channel) + body


HELLO = frame(1, 0, link_pb2.Hello(version=1, role="client", id="bad").SerializeToString())


@pytest.mark.parametrize(
    "sent",
    [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        os.urandom(4096),
        b"\xff" * 65536,
        frame(1, 0, b"\xff" * 1000),
        struct.pack("<IBBHI", 2**32 - 1, 1, 0, 0, 0),
        HELLO + HELLO,
        HELLO + frame(18, 5, b"\xff\xff\xff"),
        HELLO + frame(18, 5, link_pb2.Submit(first_seq=1, inputs=[b"x"]).SerializeToString()),
        HELLO + frame(32, 1, b""),
        HELLO + frame(16, 1, link_pb2.Attach(session_id="../../etc/passwd").SerializeToString()),
        HELLO + frame(6, 1, link_pb2.Call(method="Nonsense").SerializeToString()),
    ],
    ids=[
        "http",
        "random",
        "ones",
        "bad-hello",
        "huge",
        "two-hellos",
        "bad-body",
        "unattached",
        "node-frame",
        "path",
        "call",
    ],
)
@pytest.mark.parametrize("port", [0, 2], ids=["grpc", "link"])
def test_garbage_ends_at_its_sender(cluster: Cluster, connection: flame.Connection, sent: bytes, port: int) -> None:
    with socket.create_connection(("127.0.0.1", cluster.port + port), timeout=30) as raw:
        try:  # the other side may hang up at any of these
            raw.sendall(sent)
            raw.shutdown(socket.SHUT_WR)
            while raw.recv(65536):
                pass
        except ConnectionError:
            pass
        except OSError as error:
            if error.errno != errno.ENOTCONN:
                raise
    with connection.create_session("trouble") as session:
        assert numbers([session.invoke(ask(n=1), timeout=30)]) == [1]
    assert "Traceback" not in cluster.manager.log


def test_unknown_things_are_named(connection: flame.Connection) -> None:
    assert connection.get_application("nobody") is None
    for call in (
        lambda: connection.open_session("nobody"),
        lambda: connection.get_session("../../../etc"),
        lambda: connection.close_session("nobody"),
        lambda: connection.delete_session("nobody"),
        lambda: connection.get_node("nobody"),
        lambda: connection.get_executor("nobody"),
        lambda: connection.create_session("nobody"),
    ):
        with pytest.raises(NotFoundError, match=r"nobody|etc"):
            call()
    with connection.create_session("trouble") as session, pytest.raises(NotFoundError):
        session.get_task(99)


@pytest.mark.parametrize("name", ["../x", "a/b", "", ".hidden", "-x", "x" * 300, "naïve"])
def test_application_names_that_could_be_paths_are_refused(connection: flame.Connection, name: str) -> None:
    with pytest.raises(flame.FlameError, match="name"):
        register(connection, name)


@pytest.mark.parametrize("name", ["../../x", "a/b", "/etc", "ü", "a b", "x" * 200, "."])
def test_session_ids_are_only_names(cluster: Cluster, connection: flame.Connection, name: str) -> None:
    with connection.create_session("trouble", session_id=name) as session:
        assert numbers([session.invoke(ask(n=1), timeout=30)]) == [1]
    for folder in (cluster.folder, cluster.folder / "node-1", cluster.folder / "node-1" / "executors"):
        assert not (folder / name).exists() or (folder / name).resolve() in (folder, Path("/etc"))


def test_duplicates_and_closed_sessions(connection: flame.Connection) -> None:
    session = connection.create_session("trouble", session_id="twice")
    with pytest.raises(AlreadyExistsError):
        connection.create_session("trouble", session_id="twice")
    with pytest.raises(InvalidArgumentError, match="spec mismatch: priority"):
        connection.open_session("twice", flame.SessionAttributes(application="trouble", id="twice", priority=5))
    session.close()
    session.close()
    with pytest.raises(InvalidStateError):
        connection.open_session("twice")
    with pytest.raises(flame.FlameError, match=r"not open|closed"):
        session.submit(ask()).result(30)
    with pytest.raises(AlreadyExistsError):
        register(connection)


def test_a_thousand_sessions(connection: flame.Connection) -> None:
    sessions = [connection.create_session("trouble", session_id=f"many-{n}") for n in range(1000)]
    assert numbers(sessions[-1].map(echoes(10))) == list(range(10))
    listed = [session for session in connection.list_sessions() if session.id.startswith("many-")]
    assert len(listed) == 1000
    for session in sessions:
        session.close()


def test_two_clients_share_a_session_and_get_their_own_results(cluster: Cluster, connection: flame.Connection) -> None:
    session = connection.create_session("trouble", session_id="shared")
    with connect(cluster) as second:
        other = second.open_session("shared")
        mine = [session.submit(ask(n=n)) for n in range(300)]
        theirs = [other.submit(ask(n=n)) for n in range(1000, 1300)]
        assert numbers(future.result(30) for future in mine) == list(range(300))
        assert numbers(future.result(30) for future in theirs) == list(range(1000, 1300))
    session.close()


def test_a_million_pending_tasks(cluster: Cluster, connection: flame.Connection) -> None:
    def memory() -> int:
        text = Path(f"/proc/{cluster.manager.pid}/status").read_text()
        return next(int(line.split()[1]) * 1024 for line in text.splitlines() if line.startswith("VmRSS"))

    before = memory()
    connection.register_application("never", flame.ApplicationAttributes(command="sleep", arguments=["3600"]))
    session = connection.create_session("never", max_instances=1)
    count = 1_000_000
    futures = [session.submit(b"x" * 100) for _ in range(count)]
    until(lambda: (session.refresh(), session.pending == count)[1], "a million pending tasks")
    assert len(futures) == count
    assert memory() - before < 300_000_000
    session.close(force=True)
