"""A bounded memory of what was used last."""

from __future__ import annotations

from collections import OrderedDict
from typing import Generic, TypeVar

T = TypeVar("T")


class Recent(Generic[T]):
    """Values by key, up to a number of bytes together; the one not used for the longest time goes first.

    The value put last always stays, however large it is.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._values: OrderedDict[int, tuple[T, int]] = OrderedDict()
        self._size = 0

    def put(self, key: int, value: T, size: int) -> None:
        """Remember a value of `size` bytes."""
        self.drop(key)
        self._values[key] = (value, size)
        self._size += size
        while self._size > self._capacity and len(self._values) > 1:
            _, (_, gone) = self._values.popitem(last=False)
            self._size -= gone

    def get(self, key: int) -> T | None:
        """The value, if it is still here."""
        found = self._values.get(key)
        if found is None:
            return None
        self._values.move_to_end(key)
        return found[0]

    def drop(self, key: int) -> None:
        """Forget it now."""
        found = self._values.pop(key, None)
        if found is not None:
            self._size -= found[1]
