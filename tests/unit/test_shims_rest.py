"""What an application's labels tell the rest shim, and how answers are read of a service that ends none."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from flame.model.errors import InvalidArgumentError
from flame.shims.rest import RestOptions, options_of
from flame.shims.rest_dialect import Pages, Readers


def test_labels_choose_pages_and_concurrency() -> None:
    assert options_of(["team", "stdio=once"]) == RestOptions(Pages("/healthz", "/invoke"), None)
    chosen = options_of(["rest-ready=/", "rest-invoke=/v1/run?fast=1", "concurrency=16"])
    assert chosen == RestOptions(Pages("/", "/v1/run?fast=1"), 16)


@pytest.mark.parametrize(
    ("label", "words"),
    [
        ("rest-invoke=http://elsewhere/", "rest-invoke=http://elsewhere/ is no path"),
        ("rest-invoke=//elsewhere/", "is no path"),
        ("rest-ready=", "rest-ready= is no path"),
        ("rest-path=/run", "unknown label rest-path=/run; the known ones are rest-ready=, rest-invoke="),
        ("rest-ready", "unknown label rest-ready;"),
        ("concurrency=1e3", "not '1e3'"),
    ],
)
def test_labels_that_mean_nothing_are_refused(label: str, words: str) -> None:
    with pytest.raises(InvalidArgumentError, match=words):
        options_of([label])


class Response:
    """An answer whose body comes as a test says."""

    def __init__(self) -> None:
        self.content: Any = self
        self.pieces: asyncio.Queue[bytes] = asyncio.Queue()

    async def iter_any(self) -> AsyncIterator[bytes]:
        while piece := await self.pieces.get():
            yield piece

    def send(self, *pieces: bytes) -> None:
        for piece in pieces:
            self.pieces.put_nowait(piece)


async def settle() -> None:
    for _ in range(100):
        await asyncio.sleep(0)


async def test_answers_that_do_not_end_are_held_up_all_but_one() -> None:
    readers = Readers(most=50)
    responses: list[Any] = [Response() for _ in range(5)]
    reading = [asyncio.ensure_future(readers.read(response, 1000)) for response in responses]
    for response in responses:
        response.send(*[b"x" * 10] * 10)
    await settle()
    waiting = [response.pieces.qsize() for response in responses]
    assert waiting[0] == 0  # the first one reads on whatever the others have
    assert sum(10 - left for left in waiting[1:]) * 10 <= 50 + 4 * 10
    responses[0].send(b"")
    assert await reading[0] == b"x" * 100
    for response in responses[1:]:
        response.send(b"")
    assert await asyncio.gather(*reading) == [b"x" * 100] * 5


async def test_a_reader_that_gives_up_makes_room() -> None:
    readers = Readers(most=50)
    responses: list[Any] = [Response() for _ in range(2)]
    reading = [asyncio.ensure_future(readers.read(response, 1000)) for response in responses]
    responses[0].send(b"x" * 60)
    responses[1].send(b"y", b"y", b"")
    await settle()
    assert not reading[1].done()
    reading[0].cancel()
    assert await reading[1] == b"yy"
