"""Batches that are not accepted: their numbers go on without gaps, also after refusals."""

from __future__ import annotations

import threading
from collections import deque

from flame.client.batches import Batch, take_batch
from flame.client.futures import TaskFuture
from flame.client.gather import Gather
from flame.client.outbox import Outbox
from flame.model.errors import ExhaustedError, FlameError, InvalidArgumentError, ProtocolError
from flame.proto import link_pb2

LOCK = threading.Lock()
OUT_OF_ORDER = ProtocolError("expected another number")
FULL = ExhaustedError("full", retryable=True)
TOO_MANY = ExhaustedError("too many at once", retryable=False)
BAD = InvalidArgumentError("no")


def box(*counts: int, of_map: bool = False) -> Outbox:
    """An outbox with batches of so many tasks."""
    outbox = Outbox()
    for count in counts:
        owners = [Gather(lambda: None, 100)] * count if of_map else [object.__new__(TaskFuture) for _ in range(count)]
        batch = take_batch(deque((b"input", owner, None) for owner in owners), outbox.next_seq, 512, LOCK)
        assert batch is not None
        outbox.add(batch)
    return outbox


def answer(outbox: Outbox, first_seq: int, error: FlameError) -> bool:
    batch = outbox.take(first_seq)
    assert batch is not None
    return outbox.refuse(batch, error)


def numbers(batches: list[Batch]) -> list[tuple[int, int]]:
    """The first number and the count of each, in its frame as well."""
    for batch in batches:
        message = link_pb2.Submit.FromString(batch.body)
        assert (message.first_seq, len(message.inputs)) == (batch.first_seq, batch.count)
    return [(batch.first_seq, batch.count) for batch in batches]


def test_numbers_go_on() -> None:
    outbox = box(3, 2)
    assert numbers(list(outbox)) == [(1, 3), (4, 2)]
    assert (outbox.first_seq, outbox.next_seq) == (1, 6)
    assert outbox.take(4) is not None
    assert outbox.take(4) is None  # told twice
    assert outbox.take(1) is not None
    assert (bool(outbox), outbox.first_seq) == (False, 6)


def test_those_after_a_refused_one_get_its_numbers() -> None:
    outbox = box(3, 2, 1)
    assert not answer(outbox, 1, BAD)
    assert answer(outbox, 4, OUT_OF_ORDER)
    assert (outbox.stuck, outbox.answered) == (True, False)
    assert answer(outbox, 6, OUT_OF_ORDER)
    assert outbox.answered
    assert numbers(outbox.renumber()) == [(1, 2), (3, 1)]
    assert (outbox.stuck, outbox.next_seq, numbers(list(outbox))) == (False, 4, [(1, 2), (3, 1)])
    assert outbox.renumber() == []


def test_one_that_is_refused_for_its_size_goes_in_two() -> None:
    outbox = box(5)
    assert answer(outbox, 1, TOO_MANY)
    assert numbers(outbox.renumber()) == [(1, 2), (3, 3)]
    assert not answer(box(1), 1, TOO_MANY)


def test_a_full_quota_fails_futures_and_holds_up_a_map() -> None:
    assert not answer(box(2), 1, FULL)
    outbox = box(4, 2, of_map=True)
    assert answer(outbox, 1, FULL)
    assert answer(outbox, 5, OUT_OF_ORDER)
    assert outbox.renumber() == []
    assert (bool(outbox), outbox.next_seq, [batch.count for batch in outbox.held.batches]) == (True, 1, [4, 2])
    first = outbox.held.take()
    assert first is not None
    outbox.add_again(first)
    assert numbers(list(outbox.batches)) == [(1, 2)]
    assert sum(batch.count for batch in outbox.clear()) == 6
    assert not outbox


def test_it_says_what_is_under_way() -> None:
    outbox = box(2, 2)
    owners = outbox.batches[1].owner
    assert isinstance(owners, list)
    future = owners[1]
    assert future is not None
    assert outbox.seq_of(future) == 4
    future._cancel_wanted = True
    assert list(outbox.unwanted()) == [(4, 4)]
    assert outbox.seq_of(object.__new__(TaskFuture)) == 0
    assert not outbox.full
    outbox.batches[0].body = bytes(33 << 20)
    outbox.add(outbox.batches.popleft())
    assert outbox.full
