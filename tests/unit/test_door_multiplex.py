"""The way into a virtual machine: what passes, when it is there, and an inside that lies."""

from __future__ import annotations

import select
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from flame.shims.door_port import WayIn
from flame.shims.guest.door import Door
from flame.shims.guest.multiplex import (
    DATA,
    END,
    FRAME,
    GONE,
    MAX_CONNECTIONS,
    OPEN,
    PAYLOAD,
    ROOM,
    START,
    STOP,
    STOPPED,
    WINDOW,
)
from multiplexed import Ends, received


class Stage(Ends):
    """Both ends of a way in, in one loop. `port` is the inner end of the stream where a test plays the inside."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        for name in ("in", "out"):
            (folder / name).mkdir()
        self.inside, self.outside = folder / "in" / "s.sock", folder / "out" / "s.sock"
        self.way = WayIn(self.loop, self.ours.fileno(), str(self.outside))
        self.program = socket.socket(socket.AF_UNIX)
        self.others.append(self.program)

    def both(self) -> None:
        self.door = Door(self.loop, self.port.fileno(), str(self.inside))

    def listen(self) -> None:
        self.program.bind(str(self.inside))
        self.program.listen(2 * MAX_CONNECTIONS)
        self.until(self.outside.exists)

    def client(self) -> socket.socket:
        client = socket.socket(socket.AF_UNIX)
        client.connect(str(self.outside))
        return self.hold(client)

    def come(self) -> tuple[socket.socket, socket.socket]:
        """Somebody who connects, and the program's end of it."""
        client = self.client()
        self.until(lambda: select.select([self.program], [], [], 0)[0])
        return client, self.hold(self.program.accept()[0])

    def say(self, *frames: tuple[int, int, int, bytes]) -> None:
        """Say this as the inside, and turn until it was taken."""
        data = b"".join(FRAME.pack(*frame[:3]) + frame[3] for frame in frames)
        while data:
            try:
                data = data[self.port.send(data) :]
            except BlockingIOError:
                pass
            self.loop.turn(5)
        self.until(lambda: not select.select([self.ours], [], [], 0)[0])


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    stage = Stage(tmp_path)
    yield stage
    stage.way.close()
    if hasattr(stage, "door"):
        stage.door.close()
    stage.close()


def ended(sock: socket.socket) -> bool:
    """Whether it has, in whichever way."""
    try:
        return received(sock) == b""
    except ConnectionResetError:
        return True


def test_it_is_there_when_the_program_has_its_socket(stage: Stage) -> None:
    stage.both()
    (stage.inside.parent / "other").touch()
    for _ in range(10):
        stage.loop.turn(5)
    assert not stage.outside.exists()
    stage.listen()
    client, taken = stage.come()
    stage.send(client, b"hello", taken)
    stage.send(taken, bytes(range(256)) * 20_000, client)


def test_each_way_ends_by_itself(stage: Stage) -> None:
    stage.both()
    stage.listen()
    client, taken = stage.come()
    client.shutdown(socket.SHUT_WR)
    stage.until(lambda: ended(taken))
    stage.send(taken, b"the answer", client)
    taken.close()
    stage.until(lambda: ended(client))
    client.close()
    stage.until(lambda: not stage.way.size)


def test_who_does_not_read_stops_no_other_and_little_is_held(stage: Stage) -> None:
    stage.both()
    stage.listen()
    _, flooding = stage.come()
    assert stage.stuff(flooding) < 2 * WINDOW + 2 * 1024 * 1024  # buffers of the kernel at both ends
    client, taken = stage.come()
    stage.send(taken, b"an answer", client)


def test_nobody_who_listens_any_more(stage: Stage) -> None:
    stage.both()
    stage.listen()
    stage.program.close()
    client = stage.client()
    stage.until(lambda: ended(client))


def test_more_than_there_may_be_are_closed(stage: Stage) -> None:
    stage.both()
    stage.listen()
    for _ in range(MAX_CONNECTIONS):
        stage.come()
    more = stage.client()
    stage.until(lambda: ended(more))
    for sock in stage.clients[:2]:
        sock.close()
    stage.until(lambda: stage.way.size < MAX_CONNECTIONS)
    client, taken = stage.come()
    stage.send(client, b"now", taken)


BEGUN = (START, 0, 0, b"")
LIES = {
    "a kind that there is not": [(0, 1, 0, b"")],
    "that it starts twice": [BEGUN],
    "that a connection starts": [(START, 1, 0, b"")],
    "what only the outside says": [(STOP, 0, 0, b"")],
    "that it stopped": [(STOPPED, 0, 0, b"")],
    "that it connects": [(OPEN, 2, 0, b"")],
    "that it connects as somebody else": [(OPEN, 1, 0, b"")],
    "bytes for nobody": [(DATA, 2, 1, b"x")],
    "an end of nothing": [(END, 2, 0, b"")],
    "no bytes": [(DATA, 1, 0, b"")],
    "a frame larger than any": [(DATA, 1, PAYLOAD + 1, b"")],
    "a frame of four gigabytes": [(DATA, 1, 2**32 - 1, b"")],
    "more than there is room for": [(DATA, 1, PAYLOAD, bytes(PAYLOAD))] * 300,
    "room that there is not": [(ROOM, 1, 1, b"")],
    "an end twice": [(END, 1, 0, b""), (END, 1, 0, b"")],
    "bytes after it is gone": [(GONE, 1, 0, b""), (DATA, 1, 1, b"x")],
}


@pytest.mark.parametrize("lie", LIES)
def test_an_inside_that_lies_is_found_out(stage: Stage, lie: str) -> None:
    stage.say(BEGUN)
    stage.client()
    stage.until(lambda: stage.way.connections)
    with pytest.raises(ValueError, match=r"connection|frame"):
        stage.say(*LIES[lie])


def test_an_inside_that_connects_before_anybody_could(stage: Stage) -> None:
    with pytest.raises(ValueError, match=f"a frame of kind {OPEN}"):
        stage.say((OPEN, 1, 0, b""))
    assert list(stage.outside.parent.iterdir()) == []


def test_garbage(stage: Stage) -> None:
    with pytest.raises(ValueError, match="a frame of kind 255"):
        stage.say((255, 2**32 - 1, 2**32 - 1, b"\xff" * 1000))


def test_an_inside_that_does_not_listen_holds_up_little(stage: Stage) -> None:
    stage.say(BEGUN)
    clients = [stage.client() for _ in range(MAX_CONNECTIONS)]
    stage.until(lambda: stage.way.connections == len(clients))
    for _ in range(50):
        for client in clients:
            try:
                client.send(bytes(65536))
            except BlockingIOError:
                pass
        stage.loop.turn(5)
    assert stage.way.unsent < 512 * 1024


def test_an_inside_that_goes_away(stage: Stage) -> None:
    stage.say(BEGUN)
    client = stage.client()
    stage.until(lambda: stage.way.connections)
    stage.port.close()
    stage.until(lambda: ended(client))
