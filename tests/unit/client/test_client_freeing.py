"""When a large input may go: its task has ended, and that is known."""

from __future__ import annotations

import pytest

from flame.client.freeing import ended
from flame.client.futures import CancelledTaskError, Settled
from flame.model.errors import InvalidStateError, TaskFailedError, UnavailableError


@pytest.mark.parametrize(
    ("value", "known"),
    [
        (b"output", True),
        (None, True),
        (TaskFailedError("no"), True),
        (CancelledTaskError("cancelled"), True),
        (UnavailableError("the connection is lost"), False),
        (InvalidStateError("the connection was closed"), False),
    ],
)
def test_a_lost_connection_is_not_the_end_of_a_task(value: Settled, known: bool) -> None:
    assert ended(value) is known
