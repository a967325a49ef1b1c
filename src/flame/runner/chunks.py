"""Several calls as one. Instances load this module; it needs nothing."""

from __future__ import annotations

TYPE_CHECKING = False  # like typing's, without its import
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from typing import Any


def call_each(function: Callable[..., Any], arguments: list[tuple[Any, ...]]) -> list[Any]:
    """The results of the function with each of these arguments."""
    return [function(*each) for each in arguments]


def call_pickled(function: bytes, *args: Any, **kwargs: Any) -> Any:
    """The result of a function of which there is a pickle."""
    import pickle

    return pickle.loads(function)(*args, **kwargs)


def chunked(arguments: Iterable[tuple[Any, ...]], size: int) -> Iterator[list[tuple[Any, ...]]]:
    """Lists of `size` items; the last one may be shorter."""
    from itertools import islice

    source = iter(arguments)
    while chunk := list(islice(source, size)):
        yield chunk
