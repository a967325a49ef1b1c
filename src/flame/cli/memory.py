"""Amounts of memory as people read them."""

from __future__ import annotations

_UNITS = ("B", "Ki", "Mi", "Gi", "Ti", "Pi")


def human_memory(size: int) -> str:
    """Bytes in the largest unit that leaves at least 1, with one decimal when it is not whole, such as 1.5Gi."""
    power = min(len(_UNITS) - 1, max(0, (size.bit_length() - 1) // 10))
    scaled = size / 1024**power
    return f"{scaled:.0f}{_UNITS[power]}" if scaled == int(scaled) or scaled >= 100 else f"{scaled:.1f}{_UNITS[power]}"
