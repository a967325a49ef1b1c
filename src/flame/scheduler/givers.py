"""Which of a tenant's sessions gives an executor first, among those that have one where the asking session can use it.

What a session may use of the nodes (selector, tolerations, policies) is its *domain*; each domain that somebody asked
for has a heap of the sessions with executors in it. A change of a session is one entry in a log; a heap reads on in
that log when it is asked the next time.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from heapq import heapify, heappush
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from flame.scheduler.books import Ask

Entry = tuple[tuple[float, ...], str, int]  # key, session, how many it had then; with another number it is out of date
_SLACK = 64


class _View:
    __slots__ = ("epoch", "heap", "position")

    def __init__(self) -> None:
        self.heap: list[Entry] = []
        self.position = -1  # in the log; -1 = never read
        self.epoch: Hashable = None


class Givers:
    """The sessions of one tenant that have executors."""

    __slots__ = ("_base", "_log", "_views")

    def __init__(self) -> None:
        self._log: list[Ask] = []
        self._base = 0  # position of the first entry of the log
        self._views: dict[Hashable, _View] = {}

    def changed(self, ask: Ask) -> None:
        """How many executors the session has, or where, is not as before."""
        if self._views:
            self._log.append(ask)

    def heap(
        self,
        domain: Hashable,
        epoch: Hashable,
        asks: Mapping[str, Ask],
        key: Callable[[Ask], tuple[float, ...]],
        suits: Callable[[Ask], bool],
    ) -> list[Entry]:
        """The heap of this domain, up to date; those it was made of are thrown away with an old `epoch`.

        `key`: the smallest gives first; `suits`: whether the session has an executor in the domain.
        """
        view = self._views.setdefault(domain, _View())
        end = self._base + len(self._log)
        if view.epoch != epoch or view.position < self._base or len(view.heap) > 4 * len(asks) + _SLACK:
            view.epoch = epoch
            view.heap = [(key(ask), ask.session, ask.have) for ask in asks.values() if ask.have and suits(ask)]
            heapify(view.heap)
        else:
            for ask in dict.fromkeys(self._log[view.position - self._base :]):
                if ask.have and asks.get(ask.session) is ask and suits(ask):
                    heappush(view.heap, (key(ask), ask.session, ask.have))
        view.position = end
        if len(self._log) > 4 * len(asks) + 1024:
            self._base = end
            self._log.clear()
        return view.heap
