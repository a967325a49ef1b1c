"""Many connections over one stream: what passes, what a slow one may stop, and an end that lies."""

from __future__ import annotations

import random
import select
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from flame.shims.egress_port import WayOut
from flame.shims.guest.bridge import Bridge
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
    """Both ends of a machine's way out, and what is before and behind them, in one loop. `port` is the outer end of
    the stream where a test plays the inside itself."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.proxy = socket.socket(socket.AF_UNIX)
        self.proxy.bind(str(folder / "proxy"))
        self.proxy.listen(2 * MAX_CONNECTIONS)
        self.path = str(folder / "proxy")
        self.listening = socket.create_server(("127.0.0.1", 0), backlog=2 * MAX_CONNECTIONS)
        self.listening.setblocking(False)
        self.others += [self.proxy, self.listening]

    def both(self) -> None:
        self.bridge = Bridge(self.loop, self.port.fileno(), self.listening)
        self.outer()

    def outer(self) -> None:
        self.way = WayOut(self.loop, self.ours.fileno(), self.path)

    def come(self) -> tuple[socket.socket, socket.socket]:
        """A program that connects, and the proxy's end of it."""
        client = self.client()
        return client, self.taken()

    def client(self) -> socket.socket:
        return self.hold(socket.create_connection(self.listening.getsockname()))

    def taken(self) -> socket.socket:
        """The proxy's end of the next one."""
        self.until(lambda: select.select([self.proxy], [], [], 0)[0])
        return self.hold(self.proxy.accept()[0])

    def push(self, frames: bytes, done: Callable[[], object]) -> int:
        """Say this as the inside, as far as it is taken, until it is done; gives how much was."""
        sent = 0

        def step() -> object:
            nonlocal sent
            try:
                sent += self.port.send(frames[sent : sent + 65536]) if sent < len(frames) else 0
            except BlockingIOError:
                pass
            return done()

        self.until(step)
        return sent


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    stage = Stage(tmp_path)
    yield stage
    stage.close()
    if hasattr(stage, "way"):
        stage.way.close()
    if hasattr(stage, "bridge"):
        stage.bridge.close()


# --- what passes -----------------------------------------------------------------------------------------------------


def test_bytes_pass_both_ways_and_each_way_ends_by_itself(stage: Stage) -> None:
    stage.both()
    client, proxy = stage.come()
    data = bytes(range(256)) * 5000
    stage.send(client, data, proxy)
    client.shutdown(socket.SHUT_WR)
    stage.until(lambda: received(proxy) == b"")
    stage.send(proxy, data, client)
    proxy.close()
    stage.until(lambda: received(client) == b"")


def test_what_was_said_before_the_end_comes(stage: Stage) -> None:
    stage.both()
    client, proxy = stage.come()
    data = b"x" * WINDOW
    client.sendall(data)
    client.close()
    came = bytearray()
    stage.until(lambda: (part := received(proxy)) == b"" or came.extend(part or b""))
    assert came == data


def test_a_slow_connection_stops_no_other_and_holds_little(stage: Stage) -> None:
    stage.both()
    slow, slow_proxy = stage.come()
    quick, quick_proxy = stage.come()
    for sender in (slow, slow_proxy):
        # What lies in sockets, and a window on each side.
        assert stage.stuff(sender) < 8 * 1024 * 1024
    stage.send(quick, b"y" * 500_000, quick_proxy)
    stage.send(quick_proxy, b"z" * 500_000, quick)


def test_a_client_that_is_gone_is_told_to_the_proxy(stage: Stage) -> None:
    stage.both()
    client, proxy = stage.come()
    client.shutdown(socket.SHUT_WR)
    stage.until(lambda: received(proxy) == b"")
    client.close()

    def broken() -> bool:
        try:
            proxy.send(bytes(1000))
        except (BrokenPipeError, ConnectionResetError):
            return True
        return False

    stage.until(broken)


def test_numbers_are_used_up_by_many_connections(stage: Stage) -> None:
    stage.both()
    for _ in range(3 * MAX_CONNECTIONS):
        client, proxy = stage.come()
        client.close()
        stage.until(lambda proxy=proxy: received(proxy) == b"")
        proxy.close()
        stage.clients.clear()


def test_without_a_proxy_a_connection_ends(stage: Stage) -> None:
    stage.both()
    stage.proxy.close()
    client = stage.client()
    stage.until(lambda: received(client) == b"")


def test_more_than_there_may_be_are_closed(stage: Stage) -> None:
    stage.both()
    for _ in range(MAX_CONNECTIONS):
        stage.come()
    more = stage.client()
    stage.until(lambda: received(more) == b"")
    for sock in stage.clients[:2]:
        sock.close()
    stage.until(lambda: stage.bridge.size < MAX_CONNECTIONS)
    client, proxy = stage.come()
    stage.send(client, b"now", proxy)


class Talk:
    """One connection, each of whose ends says something of its own, and may go away in the midst of it."""

    def __init__(self, chance: random.Random, ends: tuple[socket.socket, socket.socket]) -> None:
        self.ends = list(ends)
        self.chance = chance
        self.words = [chance.randbytes(chance.choice((0, 1, 1000, 200_000))) for _ in ends]
        self.sent = [0, 0]
        self.said_all = [False, False]
        self.came = [bytearray(), bytearray()]
        self.over = [False, False]  # whether all has come
        self.leaves = chance.choice((-1, -1, -1, 0, 1))

    def step(self, which: int) -> None:
        end, words = self.ends[which], self.words[which]
        if end.fileno() < 0:
            return
        if self.leaves == which and self.chance.random() < 0.1:
            end.close()
            return
        try:
            if self.sent[which] < len(words):
                self.sent[which] += end.send(words[self.sent[which] : self.sent[which] + 50_000])
            elif not self.said_all[which]:
                self.said_all[which] = True
                end.shutdown(socket.SHUT_WR)
        except BlockingIOError:
            pass
        except OSError:
            self.said_all[which] = True
        try:
            data = received(end)
        except ConnectionResetError:
            data = b""
        if data == b"":
            self.over[which] = True
        self.came[which] += data or b""
        if self.over[which] and self.said_all[which]:
            end.close()


@pytest.mark.parametrize("seed", range(5))
def test_many_at_once_that_end_in_all_ways(stage: Stage, seed: int) -> None:
    stage.both()
    chance = random.Random(seed)
    talks: list[Talk] = []

    def step() -> bool:
        if len(talks) < 60:
            talks.append(Talk(chance, stage.come()))
        for talk in chance.sample(talks, min(len(talks), 20)):
            talk.step(chance.randrange(2))
        return len(talks) == 60 and all(end.fileno() < 0 for talk in talks for end in talk.ends)

    stage.until(step)
    for talk in talks:
        for which, words in ((0, talk.words[1]), (1, talk.words[0])):
            assert words.startswith(talk.came[which])
            if talk.leaves < 0:
                assert talk.came[which] == words
    stage.until(lambda: stage.way.size == stage.bridge.size == 0)


# --- a machine that is saved -----------------------------------------------------------------------------------------


def test_nothing_is_under_way_in_a_machine_that_is_saved_and_its_copy_goes_on(stage: Stage) -> None:
    stage.both()
    client, proxy = stage.come()
    stage.stuff(client)
    stage.way.stop()
    stage.until(lambda: stage.way.stopped)
    assert received(stage.ours) is None
    assert received(stage.port) is None
    proxy.close()
    waiting = stage.client()  # comes before the copy has a way out
    # The copy's runner knows nothing of what was before.
    stage.way.close()
    stage.outer()
    stage.send(waiting, b"here", stage.taken())


# --- an inside that lies ---------------------------------------------------------------------------------------------

OPENED = [(OPEN, 1)]
LIES = {
    "a kind that there is not": [(0, 1)],
    "another kind that there is not": [(200, 1)],
    "bytes for nobody": [(DATA, 1, 1, b"x")],
    "no bytes": [*OPENED, (DATA, 1)],
    "a frame larger than any": [*OPENED, (DATA, 1, PAYLOAD + 1)],
    "a frame of four gigabytes": [*OPENED, (DATA, 1, 2**32 - 1)],
    "more than there is room for": [*OPENED, *[(DATA, 1, PAYLOAD, bytes(PAYLOAD))] * 300],
    "room that there is not": [*OPENED, (ROOM, 1, 1)],
    "a number twice": [*OPENED, *OPENED],
    "a number that is not the next": [(OPEN, 2)],
    "an end of nothing": [(END, 1)],
    "an end twice": [*OPENED, (END, 1), (END, 1)],
    "bytes after the end": [*OPENED, (END, 1), (DATA, 1, 1, b"x")],
    "bytes after it is gone": [*OPENED, (GONE, 1), (DATA, 1, 1, b"x")],
    "that it stopped": [(STOPPED,)],
    "what only the outside says": [(START,)],
    "also that": [(STOP,)],
    "more connections than there may be": [(OPEN, number) for number in range(1, MAX_CONNECTIONS + 2)],
}


@pytest.mark.parametrize("lie", LIES)
def test_an_inside_that_lies_is_found_out(stage: Stage, lie: str) -> None:
    stage.outer()
    frames = b"".join(
        FRAME.pack(frame[0], frame[1] if len(frame) > 1 else 0, frame[2] if len(frame) > 2 else 0)
        + (frame[3] if len(frame) > 3 else b"")
        for frame in LIES[lie]
    )
    with pytest.raises(ValueError, match=r"connection|frame"):
        stage.push(frames, lambda: False)


def test_an_inside_that_asks_and_does_not_listen_is_not_heard_any_more(stage: Stage) -> None:
    stage.outer()
    stage.proxy.close()  # so that each OPEN is answered
    count = 60_000
    frames = b"".join(FRAME.pack(OPEN, number, 0) + FRAME.pack(END, number, 0) for number in range(1, count + 1))
    quiet = 0
    heard = 0

    def no_more() -> bool:
        nonlocal quiet, heard
        quiet, heard = (quiet + 1 if stage.way.connections == heard else 0), stage.way.connections
        return quiet > 50

    sent = stage.push(frames, no_more)
    assert 0 < stage.way.connections < count
    assert stage.way.unsent < 512 * 1024
    # When it listens again, all goes on.
    came = bytearray()
    stage.push(frames[sent:], lambda: came.extend(received(stage.port) or b"") or len(came) >= FRAME.size * (count + 1))


def test_garbage(stage: Stage) -> None:
    stage.outer()
    with pytest.raises(ValueError, match="a frame of kind 255"):
        stage.push(b"\xff" * 1000, lambda: False)


def test_an_inside_that_goes_away(stage: Stage) -> None:
    stage.outer()
    stage.push(FRAME.pack(OPEN, 1, 0), lambda: True)
    taken = stage.taken()
    stage.port.close()
    stage.until(lambda: received(taken) == b"")
