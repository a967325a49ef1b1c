"""A virtual machine as the runner sees it: what is told to process 1 inside, what it says, and its streams. Nothing
that comes from inside is trusted: a line that makes no sense ends the machine. Only the standard library."""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import time
from typing import Any, cast

from flame.shims.door_port import WayIn
from flame.shims.egress_port import WayOut
from flame.shims.guest.pump import CHUNK, Lines, Loop, Pump
from flame.shims.microvm_machine import Running, VmmError

PORTS = ("control", "link", "log", "console")
_NETWORK = "network"  # one more, for what a list names
_DOOR = "door"  # and one for who connects to the program
_RELAYED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)
_MAX_LINE = 4096
_STOPPED_S = 10.0
_LAST_WORDS_S = 2.0
_NUMBERS = {"status": 255, "link": 2**63, "log": 2**63}  # what may be said, and how large it may be


class LiesError(Exception):
    """What came from inside is nothing that process 1 says."""


class Signalled(Exception):  # noqa: N818 - nothing is wrong
    """The runner was told to end while there was no program to tell it to."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class Ports:
    """Both ends of the streams of a machine that is about to start; those of the machine are closed by `started`."""

    def __init__(self, *, listed: bool = False, door: bool = False) -> None:
        """`listed`: its network is a list; `door`: its program may be connected to."""
        more = (*((_NETWORK,) if listed else ()), *((_DOOR,) if door else ()))
        pairs = {name: socket.socketpair() for name in (*PORTS, *more)}
        self.ours = {name: pair[0] for name, pair in pairs.items()}
        self._theirs = {name: pair[1] for name, pair in pairs.items()}

    def descriptors(self) -> dict[str, int]:
        return {name: end.fileno() for name, end in self._theirs.items()}

    def started(self) -> None:
        for end in self._theirs.values():
            end.close()


class Signals:
    """The signals that this process passes on, as something to wait for."""

    def __init__(self) -> None:
        self.descriptor, into = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.set_wakeup_fd(into, warn_on_full_buffer=False)
        for number in _RELAYED:
            signal.signal(number, lambda number, frame: None)

    def taken(self) -> list[int]:
        try:
            return [number for number in os.read(self.descriptor, 64) if number in _RELAYED]
        except BlockingIOError:
            return []


class Inside:
    """A machine that runs. What its program and its kernel print goes to stderr from the start, and what it asks of the
    network to the socket `proxy`, "" = nowhere. Who connects to `door` is connected to the program, "" = nobody."""

    def __init__(self, running: Running, ports: Ports, signals: Signals, proxy: str = "", door: str = "") -> None:
        """Raises OSError."""
        ports.started()
        self.running = running
        self.loop = Loop()
        self._ends = ports.ours
        self._signals = signals
        self._lines = Lines(_MAX_LINE)
        self._events: list[dict[str, Any]] = []
        self._unsent = b""
        self._gone = False
        self._started = False
        for end in self._ends.values():
            end.setblocking(False)
        for descriptor in (0, 1, 2):
            os.set_blocking(descriptor, False)
        self.log = Pump(self.loop, self._ends["log"].fileno(), os.dup(2))
        self._console = Pump(self.loop, self._ends["console"].fileno(), os.dup(2))
        link = self._ends["link"].fileno()
        self._stdin = Pump(self.loop, 0, os.dup(link), self._on_input)
        self.outgoing = Pump(self.loop, link, 1)
        self._control = self._ends["control"].fileno()
        self._control_out = os.dup(self._control)
        self.loop.watch(self._control, select.POLLIN, self._on_control)
        self.loop.watch(signals.descriptor, select.POLLIN, self._on_signal)
        self._way_out = WayOut(self.loop, self._ends[_NETWORK].fileno(), proxy) if proxy else None
        self._way_in = WayIn(self.loop, self._ends[_DOOR].fileno(), door) if door else None
        self.log.begin()
        self._console.begin()

    def tell(self, op: str, **more: Any) -> None:
        """Say this to process 1, when it listens."""
        self._unsent += json.dumps({"op": op, **more}).encode() + b"\n"
        self._send(select.POLLOUT)

    def listen(self) -> None:
        """Take a first word of the program, while nobody wants to hear one, for the event `spoke`."""
        self.loop.watch(self._ends["link"].fileno(), select.POLLIN, self._on_word)

    def connect(self) -> None:
        """From now on the program has stdin and stdout of this process, and gets its signals."""
        self._started = True
        self._stdin.begin()
        self.outgoing.begin()

    def wait(self, *events: str, seconds: float | None = None) -> dict[str, Any]:
        """Until one of these is said. Raises VmmError when the machine ends before or the time is over, LiesError,
        Signalled."""
        deadline = None if seconds is None else time.monotonic() + seconds
        while not self._events:
            if self._gone:
                raise VmmError("the virtual machine ended before its program did")
            left = None if deadline is None else max(0.0, deadline - time.monotonic()) * 1000
            if left == 0.0:
                raise VmmError(f"the virtual machine did not say {' or '.join(events)} within {seconds:g} s")
            self._turn(left)
        event = self._events.pop(0)
        if event["event"] not in events:
            raise LiesError(f"it said {event['event']!r} instead of {' or '.join(events)}")
        return event

    def read_on(self, *, link: int = 0, log: int = 0) -> None:
        """Until so many bytes of its streams have been passed on, or it has ended."""
        while not self._gone and (self.log.moved < log or self.outgoing.moved < link):
            self._turn()

    def hear_out(self) -> None:
        """Until what the program said where it was connected to has been passed on, or it has ended, or nobody reads it
        for a while."""
        way = self._way_in
        if way is None:
            return
        way.stop()
        deadline = time.monotonic() + _LAST_WORDS_S
        while way.size and not self._gone and (left := deadline - time.monotonic()) > 0:
            self._turn(left * 1000)

    def save(self) -> None:
        """Make the template that the machine was started to become. No connection is in it. Raises VmmError, LiesError,
        Signalled."""
        way = self._way_out
        if way is not None:
            way.stop()
            deadline = time.monotonic() + _STOPPED_S
            while not way.stopped and not self._gone:
                left = deadline - time.monotonic()
                if left <= 0:
                    raise VmmError("the virtual machine did not close its network before it was saved")
                self._turn(left * 1000)
        self.running.save()

    def end(self) -> None:
        """Kill the machine, and pass on what it had said."""
        self.running.kill()
        for pump in (self.outgoing, self.log, self._console) if self._started else (self.log, self._console):
            pump.drain()
        if self._way_out is not None:
            self._way_out.close()
        if self._way_in is not None:
            self._way_in.close()
        for end in self._ends.values():
            end.close()

    def _turn(self, milliseconds: float | None = None) -> None:
        try:
            self.loop.turn(milliseconds)
        except ValueError as error:
            raise LiesError(str(error)) from error

    def _on_control(self, events: int) -> None:
        try:
            data = os.read(self._control, CHUNK)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._gone = True
            self.loop.watch(self._control, 0, self._on_control)
            return
        for line in self._lines.feed(data):
            self._events.append(event_of(line))
        if len(self._events) > len(PORTS):
            raise LiesError("it says more than anybody asked for")

    def _on_word(self, events: int) -> None:
        self.loop.watch(self._ends["link"].fileno(), 0, self._on_word)
        self._events.append({"event": "spoke", **dict.fromkeys(_NUMBERS, 0)})

    def _on_signal(self, events: int) -> None:
        for number in self._signals.taken():
            if not self._started:
                raise Signalled(number)
            self.tell("signal", number=number)

    def _on_input(self) -> None:
        if self._stdin.ended and self._stdin.idle:
            self.tell("ended", after=self._stdin.moved)

    def _send(self, events: int) -> None:
        try:
            while self._unsent:
                self._unsent = self._unsent[os.write(self._control_out, self._unsent) :]
        except BlockingIOError:
            pass
        except OSError:
            self._unsent = b""  # it has ended, which reading tells
        self.loop.watch(self._control_out, select.POLLOUT if self._unsent else 0, self._send)


def event_of(line: bytes) -> dict[str, Any]:
    """What process 1 says in a line. Raises ValueError for what it would never say."""
    said: object = json.loads(line)
    if not isinstance(said, dict):
        raise ValueError("a line is no event")
    event = cast("dict[str, Any]", said)
    if not isinstance(event.get("event"), str):
        raise ValueError("a line names no event")
    for name, most in _NUMBERS.items():
        value = event.setdefault(name, 0)
        if type(value) is not int or not 0 <= value <= most:
            raise ValueError(f"{name} is {str(value)[:40]}")
    return event
