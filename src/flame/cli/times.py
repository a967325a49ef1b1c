"""Times as people and programs read them. All inputs are Unix milliseconds."""

from __future__ import annotations

from datetime import UTC, datetime


def local_time(milliseconds: int) -> str:
    """Local time with its distance from UTC, such as 2026-03-01T14:05:09+01:00; `-` when there is none."""
    if milliseconds <= 0:
        return "-"
    return datetime.fromtimestamp(milliseconds / 1000).astimezone().isoformat(timespec="seconds")


def utc_time(milliseconds: int) -> str | None:
    """UTC with milliseconds, such as 2026-03-01T13:05:09.120Z; None when there is none."""
    if milliseconds <= 0:
        return None
    return datetime.fromtimestamp(milliseconds / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def span(seconds: float) -> str:
    """A length of time in its two largest units, such as 45s, 3m12s, 5h02m, 2d07h."""
    whole = max(0, int(seconds))
    days, rest = divmod(whole, 86400)
    hours, rest = divmod(rest, 3600)
    minutes, rest = divmod(rest, 60)
    if days:
        return f"{days}d{hours:02}h"
    if hours:
        return f"{hours}h{minutes:02}m"
    return f"{minutes}m{rest:02}s" if minutes else f"{rest}s"


def stopwatch(seconds: float) -> str:
    """A measured time: `153 ms` under a second, `3.29 s` under two minutes, else `5m12s`."""
    if seconds < 0.9995:
        return f"{seconds * 1000:.0f} ms"
    return f"{seconds:.2f} s" if seconds < 120 else span(seconds)
