"""Caches that hang: closing what waits for them does not wait with it."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pyarrow.flight as flight
import pytest

from flame.model.errors import UnavailableError
from flame.node.relay import ObjectRelay
from flame.objects import ObjectClient, ObjectRef
from flame.objects import messages as m
from flame.objects.cells import ANSWER_KEY, CHUNK_SCHEMA, batch, cell, described
from flame.objects.wire import frame

PATIENCE = 20.0  # seconds; calls that hang take 30


class Hanging(flight.FlightServerBase):
    """A cache whose host hangs in `where`: an action, or GET after the first piece. `door` is what LOCAL answers."""

    def __init__(self, where: str, door: m.LocalDoor | None = None) -> None:
        self.where = where
        self.reached = threading.Event()
        self.go_on = threading.Event()
        self._door = door or m.LocalDoor()
        super().__init__("grpc://127.0.0.1:0")

    def do_action(self, context: Any, action: flight.Action) -> Any:
        if action.type == self.where:
            self.hang()
        status = m.CacheStatus("grpc://127.0.0.1:1", 0, 0, 0, 0, 0, 0, 0)
        yield flight.Result(msgspec.json.encode(self._door if action.type == "LOCAL" else status))

    def do_get(self, context: Any, ticket: flight.Ticket) -> flight.FlightDataStream:
        answer = m.Answer(1, 1, False, True, (m.Part(1, 1_000_000),))
        schema = described(CHUNK_SCHEMA, {ANSWER_KEY: msgspec.json.encode(answer)})

        def pieces() -> Iterator[Any]:
            yield batch([cell(bytes(1000))], CHUNK_SCHEMA)
            self.hang()

        return flight.GeneratorStream(schema, pieces())

    def hang(self) -> None:
        self.reached.set()
        self.go_on.wait()


@pytest.fixture
def hanging() -> Iterator[Callable[..., Hanging]]:
    made: list[Hanging] = []

    def make(where: str, door: m.LocalDoor | None = None) -> Hanging:
        made.append(Hanging(where, door))
        return made[-1]

    yield make
    for server in made:
        server.go_on.set()
        server.shutdown()


class Caller(threading.Thread):
    """A call in a thread of its own. `said` is what it raised."""

    def __init__(self, call: Callable[[], object]) -> None:
        super().__init__(daemon=True)
        self.said: BaseException | None = None
        self._call = call
        self.start()

    def run(self) -> None:
        try:
            self._call()
        except BaseException as error:
            self.said = error

    def ends(self) -> bool:
        self.join(PATIENCE)
        return not self.is_alive()


@pytest.mark.parametrize("where", ["LOCAL", "STAT"])
def test_a_node_that_stops_does_not_wait_for_its_way_to_the_cache(
    tmp_path: Path, hanging: Callable[..., Hanging], where: str
) -> None:
    server = hanging(where)
    relay = ObjectRelay(f"grpc://127.0.0.1:{server.port}", None, tmp_path)
    asking = Caller(relay.cache)
    assert server.reached.wait(PATIENCE)
    assert Caller(relay.close).ends()
    assert asking.is_alive()
    server.go_on.set()
    assert asking.ends()
    assert isinstance(asking.said, UnavailableError)
    with pytest.raises(UnavailableError, match="this node stops"):
        relay.cache()


def test_a_node_that_stops_ends_what_it_fetches(tmp_path: Path, hanging: Callable[..., Hanging]) -> None:
    server = hanging("GET")
    relay = ObjectRelay(f"grpc://127.0.0.1:{server.port}", None, tmp_path)
    link, _ = relay.cache()
    _, pieces = link.remote().open("a/b/c", 0, 0, "")
    fetching = Caller(lambda: list(pieces))
    assert server.reached.wait(PATIENCE)
    relay.close()
    assert fetching.ends()
    assert isinstance(fetching.said, UnavailableError)
    assert "was closed here" in fetching.said.message


def test_a_client_that_is_closed_ends_what_it_gets_over_flight(hanging: Callable[..., Hanging]) -> None:
    server = hanging("GET")
    client = ObjectClient(f"grpc://127.0.0.1:{server.port}")
    getting = Caller(lambda: client.get(ObjectRef(client.endpoint, "a/b/c")))
    assert server.reached.wait(PATIENCE)
    client.close()
    assert getting.ends()
    assert isinstance(getting.said, UnavailableError)
    assert "was closed here" in getting.said.message


def test_a_client_that_is_closed_ends_what_it_gets_over_a_plain_connection(hanging: Callable[..., Hanging]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        server = hanging("", m.LocalDoor(port=listening.getsockname()[1]))
        client = ObjectClient(f"grpc://127.0.0.1:{server.port}")
        getting = Caller(lambda: client.get(ObjectRef(client.endpoint, "a/b/c")))
        connection, _ = listening.accept()
        with connection:
            for reply in (m.Welcome(0, client.endpoint), m.Answer(1, 1, False, True, (m.Part(1, 1_000_000),))):
                (size,) = struct.unpack("<I", connection.recv(4, socket.MSG_WAITALL))
                connection.recv(size, socket.MSG_WAITALL)
                connection.sendall(frame(reply))
            client.close()
            assert getting.ends()
        assert isinstance(getting.said, UnavailableError)
        assert "was closed here" in getting.said.message


SLOW = 0.7  # seconds until a host that is busy, or far away, has answered at all


def test_a_host_that_is_slow_to_answer_at_first_is_waited_for(hanging: Callable[..., Hanging]) -> None:
    server = hanging("")
    carrying: list[threading.Thread] = []
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def pass_on() -> None:
            while True:
                try:
                    outer, _ = listening.accept()
                except OSError:
                    return
                time.sleep(SLOW)
                inner = socket.create_connection(("127.0.0.1", server.port))
                for source, target in ((outer, inner), (inner, outer)):
                    carrying.append(threading.Thread(target=carry, args=(source, target), daemon=True))
                    carrying[-1].start()

        def carry(source: socket.socket, target: socket.socket) -> None:
            with source, contextlib.suppress(OSError):
                while data := source.recv(65536):
                    target.sendall(data)
                target.shutdown(socket.SHUT_WR)

        passing = threading.Thread(target=pass_on, daemon=True)
        passing.start()
        with ObjectClient(f"grpc://127.0.0.1:{listening.getsockname()[1]}") as client:
            assert client.status().endpoint == "grpc://127.0.0.1:1"
        listening.shutdown(socket.SHUT_RDWR)
        passing.join(PATIENCE)
    server.shutdown()
    for thread in carrying:
        thread.join(PATIENCE)


def test_a_door_that_hangs_is_passed_by(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who gets no welcome there takes another way."""
    from flame.objects import shared

    monkeypatch.setattr(shared, "_WELCOME_TIMEOUT", 0.1)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "door"))
        listening.listen()
        with pytest.raises(TimeoutError):
            shared.SharedClient(m.LocalDoor(str(tmp_path / "door"), "token"))
