"""The instance's own, light form of the link agrees with the link."""

from __future__ import annotations

import socket
import threading
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flame.link import frames
from flame.proto import link_pb2
from flame.service.wire import HEADER, FrameBuffer, LinkClosedError, Wire


def test_header_and_kinds_are_those_of_the_link() -> None:
    assert HEADER.format == frames.HEADER.format
    for kind in frames.Kind:
        assert link_pb2.FrameKind.Value(kind.name) == kind


@settings(deadline=None)
@given(bodies=st.lists(st.binary(max_size=40), max_size=6), cuts=st.lists(st.integers(0, 300), max_size=8))
def test_frames_come_out_as_they_went_in_whatever_the_splits(bodies: list[bytes], cuts: list[int]) -> None:
    sent = [(index + 1, body) for index, body in enumerate(bodies)]
    stream = b"".join(part for kind, body in sent for part in Wire.parts(kind, body))
    buffer = FrameBuffer()
    found: list[tuple[int, bytes]] = []
    edges = sorted({0, len(stream), *(min(cut, len(stream)) for cut in cuts)})
    for start, stop in pairwise(edges):
        found += buffer.feed(stream[start:stop])
    assert found == sent
    assert buffer.missing == 0


def test_a_large_frame_passes_through_a_socket() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        body = bytes(range(256)) * 10_000
        sender = threading.Thread(target=Wire(theirs).write, args=(link_pb2.TASKS, body))
        sender.start()
        wire = Wire(ours)
        found: list[tuple[int, bytes]] = []
        while not found:
            found = wire.read(wait=True)
        sender.join()
        assert found == [(link_pb2.TASKS, body)]
        assert wire.read(wait=False) == []


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (Wire.parts(link_pb2.ERROR, link_pb2.Error(message="unknown token").SerializeToString()), "unknown token"),
        (Wire.parts(link_pb2.PING), "answered with a frame of kind 4 instead of a welcome"),
        ([], "the executor manager closed the link"),
    ],
)
def test_a_refused_greeting_says_why(answer: list[bytes], message: str) -> None:
    ours, theirs = socket.socketpair()
    with ours:
        for part in answer:
            theirs.sendall(part)
        theirs.shutdown(socket.SHUT_WR)
        with pytest.raises(LinkClosedError, match=message):
            Wire(ours).greet(link_pb2.Hello())
        theirs.close()


def test_the_welcome_sets_the_limit_of_payloads() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        for part in Wire.parts(link_pb2.WELCOME, link_pb2.Welcome(max_payload=99).SerializeToString()):
            theirs.sendall(part)
        wire = Wire(ours)
        assert wire.greet(link_pb2.Hello()) == []
        assert wire.max_payload == 99
