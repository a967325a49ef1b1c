"""How an instance takes part in snapshots of its machine, with a socket where the machine would be."""

from __future__ import annotations

import json
import os
import random
import socket
import threading
from collections.abc import Iterator

import pytest

from flame.service import snapshot
from flame.service.rehearsal import quiet, rehearse
from flame.service.wire import Wire


@pytest.fixture
def asked() -> Iterator[tuple[dict[str, str], socket.socket]]:
    """The environment of an instance that shall say when it is prepared, and who hears it."""
    ours, theirs = socket.socketpair()
    with ours:
        yield {"FLAME_SNAPSHOT_FD": str(theirs.detach()), "A": "1"}, ours


def answer(sock: socket.socket, env: dict[str, str], entropy: bytes) -> None:
    sock.sendall(json.dumps({"env": env, "entropy": entropy.hex()}).encode() + b"\n")


def test_nobody_wants_a_snapshot() -> None:
    assert not snapshot.wanted({})
    assert snapshot.offer({}) is False


def test_a_copy_is_told_who_it_is(asked: tuple[dict[str, str], socket.socket]) -> None:
    environ, sock = asked
    assert snapshot.wanted(environ)
    drawn: list[float] = []
    for entropy in (b"one", b"one", b"other"):
        answer(sock, {"B": "2"}, entropy)
        again = {**environ, "FLAME_SNAPSHOT_FD": str(os.dup(int(environ["FLAME_SNAPSHOT_FD"])))}
        assert snapshot.offer(again) is True
        assert again == {"A": "1", "B": "2"}
        assert sock.recv(100) == b"prepared\nresumed\n"
        drawn.append(random.random())
    assert drawn[0] == drawn[1] != drawn[2]
    os.close(int(environ["FLAME_SNAPSHOT_FD"]))


def test_nobody_took_one(asked: tuple[dict[str, str], socket.socket]) -> None:
    environ, sock = asked
    sock.shutdown(socket.SHUT_WR)
    assert snapshot.offer(environ) is False
    assert environ == {"A": "1"}


def test_a_rehearsal_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLAME_EXECUTOR_ID", "mine")
    monkeypatch.delenv("FLAME_SESSION_ID", raising=False)
    before = dict(os.environ)
    rehearse()
    assert dict(os.environ) == before
    for thread in threading.enumerate():
        if thread.name == "flame-attendant":
            thread.join(5)
            assert not thread.is_alive()


def test_whether_something_comes() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        wire = Wire(ours)
        assert quiet(wire)
        theirs.sendall(b"x")
        assert not quiet(wire)
