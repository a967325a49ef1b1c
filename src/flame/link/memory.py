"""The memory carrier: both ends of the link are in one event loop, as in the embedded cluster.

Frames go from one link's queue into the other's, without a socket, two copies and two wake-ups of the loop between.
`connect` takes this way by itself when the unix socket it is told belongs to a server of its own loop: what is served
there, and who may, stays the same.
"""

from __future__ import annotations

import asyncio
import os

from flame.link.framed import Receiver
from flame.link.frames import FIRST_KIND, HEADER_SIZE, Frame
from flame.link.peer import PeerInfo
from flame.model.errors import FlameError, ProtocolError, UnavailableError


class MemoryCarrier:
    """One end. What is written here is received by `other` in the next iteration of the loop, all of it together."""

    def __init__(self, receiver: Receiver, max_frame: int) -> None:
        self.max_frame = max_frame
        self.heard = False
        self.buffered = 0  # bytes written here that the other end has not received
        self.other: MemoryCarrier
        self._receiver = receiver
        self._loop = asyncio.get_running_loop()
        self._inbox: list[Frame] = []
        self._due = False
        self._paused = False
        self._finished = False  # nothing more is written or received here
        self._lost = False

    def write(self, kind: int, channel: int, body: bytes, flags: int) -> None:
        """Queue one frame."""
        if self._finished:
            return
        other = self.other
        if len(body) > other.max_frame:
            error = ProtocolError(f"a frame of {len(body)} bytes is over the limit of {other.max_frame} bytes")
            self._loop.call_soon(other.refuse, error)
            return
        other._inbox.append(Frame(kind, channel, body, flags))
        self.buffered += len(body) + HEADER_SIZE
        other.schedule()

    def flush(self) -> None:
        """Nothing to do: frames leave as they are written."""

    def schedule(self) -> None:
        """Receive what waits in the next iteration of the loop."""
        if not self._due and not self._paused:
            self._due = True
            self._loop.call_soon(self._receive)

    def refuse(self, error: FlameError) -> None:
        """The other end broke the rules."""
        if not self._finished:
            self._receiver.failed(error)

    def pause_reading(self) -> None:
        self._paused = True

    def resume_reading(self) -> None:
        self._paused = False
        if self._inbox:
            self.schedule()

    def finish(self) -> None:
        """End the connection; what is queued for the other end still arrives there first."""
        if not self._finished:
            self._finished = True
            self._inbox.clear()
            self._loop.call_soon(self._end, self.other)
            self._loop.call_soon(self._gone, None)

    def abort(self) -> None:
        """End the connection at once."""
        self.finish()

    def _receive(self) -> None:
        self._due = False
        if self._finished or self._paused:
            return
        frames, self._inbox = self._inbox, []
        self.other.delivered()
        if frames:
            self.heard = True
            self._receiver.received(frames, any(frame.kind < FIRST_KIND for frame in frames))

    def delivered(self) -> None:
        """The other end took everything that was written here."""
        self.buffered = 0
        if not self._finished:
            self._receiver.drained()

    @staticmethod
    def _end(other: MemoryCarrier) -> None:
        """The first end is finished: `other` takes what it still has, then it is finished too."""
        if other._finished:
            return
        other._paused = False
        other._receive()
        if not other._finished:
            other._finished = True
            other._gone(UnavailableError("the connection was closed"))

    def _gone(self, error: FlameError | None) -> None:
        if not self._lost:
            self._lost = True
            self.buffered = 0
            self._receiver.lost(error or UnavailableError("the connection was closed"))


def join(first: MemoryCarrier, second: MemoryCarrier) -> PeerInfo:
    """Make two ends of one connection; answers what each sees of the other: this very process."""
    first.other, second.other = second, first
    pid = os.getpid()
    return PeerInfo(os.getuid(), pid, None, None, f"memory:pid={pid}", True)
