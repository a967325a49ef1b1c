"""Memory for large payloads, used again."""

from __future__ import annotations

import pyarrow as pa

from flame.objects import blocks
from flame.objects.blocks import LARGE, block


def test_a_block_is_used_again_when_nobody_reads_it() -> None:
    blocks._free.clear()
    view, buffer = block(2 * LARGE)
    view[:4] = b"mine"
    address = buffer.address
    part = buffer.slice(0, 4)
    del view, buffer
    _, second = block(2 * LARGE)
    assert second.address != address
    assert part.to_pybytes() == b"mine"
    del part
    _, third = block(2 * LARGE - 100)
    assert (third.address, third.size) == (address, 2 * LARGE - 100)


def test_a_block_much_too_large_is_not_taken() -> None:
    _, buffer = block(20 * LARGE)
    address = buffer.address
    del buffer
    _, small = block(LARGE)
    assert small.address != address


def test_small_ones_are_plain_memory() -> None:
    view, buffer = block(10)
    view[:] = b"0123456789"
    assert isinstance(buffer, pa.Buffer)
    assert buffer.to_pybytes() == b"0123456789"
