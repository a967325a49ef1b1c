"""Frames of the link: kinds, flags, header. The bodies are the messages of `proto/flame/v1/link.proto`."""

from __future__ import annotations

from enum import IntEnum
from struct import Struct
from typing import NamedTuple

VERSION = 1
HEADER = Struct("<IBBHI")  # body length, kind, flags, zero, channel
HEADER_SIZE = HEADER.size
MORE = 1  # flag: further replies to this call follow
DEFAULT_MAX_PAYLOAD = 64 * 1024 * 1024
# A frame holds at least one payload whole; the rest of a batch and its columns need some room beside it.
FRAME_SLACK = 8 * 1024 * 1024


class Kind(IntEnum):
    """Kinds of frame; the numbers are those of FrameKind on the wire."""

    HELLO = 1
    WELCOME = 2
    ERROR = 3
    PING = 4
    PONG = 5
    CALL = 6
    REPLY = 7
    HANGUP = 8
    TAKEN = 9
    ATTACH = 16
    ATTACHED = 17
    SUBMIT = 18
    ACCEPTED = 19
    RESULTS = 20
    CANCEL = 21
    DETACH = 22
    NOTICE = 23
    START = 32
    REPORT = 33
    TASKS = 34
    RETRACT = 35
    RETRACTED = 36
    STOP = 37
    NODE_STATUS = 38
    ENTER = 48
    ENTERED = 49
    LEAVE = 50
    LEFT = 51
    OBJECTS = 52
    OBJECTS_TAKEN = 53


# Kinds below this one are the link's own: whoever uses a link never sees them in `on_frames`.
FIRST_KIND = 16
KNOWN_KINDS = frozenset(int(kind) for kind in Kind)


class Frame(NamedTuple):
    """One message of the link."""

    kind: int
    channel: int
    body: bytes
    flags: int = 0


def encode_header(kind: int, channel: int, length: int, flags: int = 0) -> bytes:
    """The header that goes before a body of `length` bytes."""
    return HEADER.pack(length, kind, flags, 0, channel)
