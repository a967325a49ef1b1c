"""What the user may write to choose objects: states, labels, ranges of task ids."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeVar

import click

S = TypeVar("S")

MAX_TASK_ID = 2**63 - 1


def state_filter(words: Sequence[str], known: Mapping[str, S]) -> list[S]:
    """The states named, in any case; commas separate."""
    states: list[S] = []
    for word in (part.strip().lower() for text in words for part in text.split(",")):
        if word not in known:
            raise click.UsageError(f"unknown state {word!r}; the known ones are {', '.join(known)}")
        states.append(known[word])
    return states


def label_filter(texts: Sequence[str], what: str = "label") -> dict[str, str]:
    """KEY=VALUE pairs. `what` they are is for the error's text."""
    labels: dict[str, str] = {}
    for text in texts:
        key, separator, value = text.partition("=")
        if not separator or not key:
            raise click.UsageError(f"invalid {what} {text!r}; write KEY=VALUE")
        labels[key] = value
    return labels


def tolerations(texts: Sequence[str]) -> list[str]:
    """Taints that are tolerated: KEY=VALUE, or KEY for every value."""
    for text in texts:
        if not text.partition("=")[0].strip():
            raise click.UsageError(f"invalid toleration {text!r}; write KEY or KEY=VALUE")
    return list(texts)


def task_ids(texts: Sequence[str]) -> list[int]:
    """Ids and closed ranges of them, such as `1,4-6`, in the order given and each once."""
    ids: dict[int, None] = {}
    for part in (part.strip() for text in texts for part in text.split(",")):
        first, separator, last = part.partition("-")
        if not (first.isascii() and first.isdigit()) or (separator and not (last.isascii() and last.isdigit())):
            raise click.UsageError(f"invalid task id {part!r}; write numbers and ranges such as 1,4-6")
        low, high = int(first), int(last or first)
        if not 0 < low <= high <= MAX_TASK_ID or high - low >= 10_000_000:
            raise click.UsageError(f"invalid range of task ids {part!r}")
        ids.update(dict.fromkeys(range(low, high + 1)))
    return list(ids)
