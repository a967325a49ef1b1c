"""What messages to a cache may say."""

from __future__ import annotations

import math
from typing import Any

import msgspec
import pytest

from flame.model.errors import InvalidArgumentError
from flame.objects.messages import Options, TtlRequest


@pytest.mark.parametrize("ttl", [math.nan, math.inf, -math.inf, -1.0, "x"])
def test_a_time_to_live_that_is_none_is_refused(ttl: Any) -> None:
    with pytest.raises(InvalidArgumentError, match="is no number of seconds from 0 on"):
        Options(ttl=ttl)


@pytest.mark.parametrize("ttl", [math.nan, -1.0])
def test_one_that_comes_from_elsewhere_as_well(ttl: float) -> None:
    """As a message that is malformed, which every door refuses."""
    with pytest.raises(msgspec.ValidationError, match=r"ttl .* is no number of seconds"):
        msgspec.msgpack.decode(msgspec.msgpack.encode([None, ttl]), type=Options)


@pytest.mark.parametrize("after", [math.nan, math.inf, -1.0])
def test_a_time_until_the_end_that_is_none_is_refused(after: float) -> None:
    """In JSON it would be none at all, which means something else."""
    with pytest.raises(InvalidArgumentError, match=r"after .* is no number of seconds from 0 on"):
        TtlRequest("a/b/c", after)
    assert TtlRequest("a/b/c", 0).after == 0


@pytest.mark.parametrize("ttl", [None, 0, 0.5, 1e9])
def test_other_times_are_taken(ttl: float | None) -> None:
    assert Options(ttl=ttl).ttl == ttl
