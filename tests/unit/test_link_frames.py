"""The framed carrier reads any split of any bytes: whole frames come out, rubbish ends the link, nothing raises."""

from __future__ import annotations

import asyncio
import itertools
from typing import Any, cast

from hypothesis import given, settings
from hypothesis import strategies as st

from flame.link.framed import FramedCarrier
from flame.link.frames import HEADER, KNOWN_KINDS, Frame, Kind, encode_header
from flame.link.peer import PeerInfo
from flame.model.errors import FlameError, ProtocolError

LIMIT = 1000

frames = st.builds(
    Frame,
    kind=st.sampled_from(sorted(KNOWN_KINDS)),
    channel=st.integers(0, 2**32 - 1),
    body=st.binary(max_size=LIMIT),
    flags=st.integers(0, 1),
)


class Recorder:
    """A receiver that keeps what it is told."""

    def __init__(self) -> None:
        self.frames: list[Frame] = []
        self.faults: list[FlameError] = []
        self.control = False
        self.ended: list[FlameError] = []

    def connected(self, peer: PeerInfo) -> None: ...
    def received(self, frames: list[Frame], control: bool) -> None:
        assert frames
        assert control == any(frame.kind < 16 for frame in frames)
        self.frames += frames

    def failed(self, error: FlameError) -> None:
        self.faults.append(error)

    def drained(self) -> None: ...
    def lost(self, error: FlameError) -> None:
        self.ended.append(error)


def wire(sent: list[Frame]) -> bytes:
    return b"".join(encode_header(f.kind, f.channel, len(f.body), f.flags) + f.body for f in sent)


def feed(data: bytes, cuts: list[int]) -> tuple[Recorder, FramedCarrier]:
    """What a carrier makes of `data` when it arrives cut at these places."""

    async def run() -> tuple[Recorder, FramedCarrier]:
        recorder = Recorder()
        carrier = FramedCarrier(recorder, LIMIT)
        places = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
        for start, stop in itertools.pairwise(places):
            carrier.data_received(data[start:stop])
        return recorder, carrier

    return asyncio.run(run())


@given(st.lists(frames, max_size=8), st.lists(st.integers(0, 10_000), max_size=20))
def test_frames_come_out_as_they_went_in_whatever_the_splits(sent: list[Frame], cuts: list[int]) -> None:
    recorder, _ = feed(wire(sent), cuts)
    assert recorder.frames == sent
    assert not recorder.faults


@given(st.lists(frames, max_size=3))
def test_single_bytes_make_the_same_frames(sent: list[Frame]) -> None:
    data = wire(sent)
    recorder, _ = feed(data, list(range(len(data))))
    assert recorder.frames == sent


@given(st.lists(frames, max_size=3), st.binary(max_size=200), st.lists(st.integers(0, 10_000), max_size=5))
def test_garbage_after_frames_is_a_fault_or_an_unfinished_frame(
    sent: list[Frame], garbage: bytes, cuts: list[int]
) -> None:
    recorder, _ = feed(wire(sent) + garbage, cuts)
    assert recorder.frames[: len(sent)] == sent
    assert len(recorder.faults) <= 1
    assert all(isinstance(fault, ProtocolError) for fault in recorder.faults)


@given(
    length=st.integers(0, 2**32 - 1),
    kind=st.integers(0, 255),
    flags=st.integers(0, 255),
    zero=st.integers(0, 65535),
)
@settings(max_examples=200)
def test_a_bad_header_is_refused_before_its_body_comes(length: int, kind: int, flags: int, zero: int) -> None:
    recorder, _ = feed(HEADER.pack(length, kind, flags, zero, 7), [])
    bad = length > LIMIT or kind not in KNOWN_KINDS or flags > 1 or zero != 0
    assert bool(recorder.faults) == bad


def test_frames_before_the_fault_are_delivered_and_nothing_after_it() -> None:
    good = Frame(Kind.SUBMIT, 1, b"x")
    recorder, carrier = feed(wire([good]) + b"\xff" * 12 + wire([good]), [])
    assert recorder.frames == [good]
    carrier.data_received(wire([good]))
    assert recorder.frames == [good]
    assert len(recorder.faults) == 1


def test_an_oversize_frame_names_the_limit() -> None:
    recorder, _ = feed(encode_header(Kind.SUBMIT, 1, LIMIT + 1), [])
    assert "limit of 1000 bytes" in str(recorder.faults[0])


def test_many_small_pieces_of_a_long_body_are_merged_on_the_way() -> None:
    async def run() -> int:
        carrier = FramedCarrier(Recorder(), 1 << 20)
        carrier.data_received(encode_header(Kind.SUBMIT, 1, 1 << 20))
        for _ in range(20_000):
            carrier.data_received(b"x")
        return len(cast("Any", carrier)._pieces)

    assert asyncio.run(run()) < 20_000 / 256 + 256 + 1
