"""What messages to a cache may say."""

from __future__ import annotations

import math

import msgspec
import pytest

from flame.model.errors import InvalidArgumentError
from flame.objects.messages import Options


@pytest.mark.parametrize("ttl", [math.nan, math.inf, -math.inf, -1.0])
def test_a_time_to_live_that_is_none_is_refused(ttl: float) -> None:
    with pytest.raises(InvalidArgumentError, match="is no number of seconds from 0 on"):
        Options(ttl=ttl)


@pytest.mark.parametrize("ttl", [math.nan, -1.0])
def test_one_that_comes_from_elsewhere_as_well(ttl: float) -> None:
    with pytest.raises(InvalidArgumentError):
        msgspec.msgpack.decode(msgspec.msgpack.encode([None, ttl]), type=Options)


@pytest.mark.parametrize("ttl", [None, 0, 0.5, 1e9])
def test_other_times_are_taken(ttl: float | None) -> None:
    assert Options(ttl=ttl).ttl == ttl
