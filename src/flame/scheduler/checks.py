"""Every invariant of the scheduler's books; tests and the simulator check them after each step."""

from __future__ import annotations

from flame.model.resources import Resources
from flame.scheduler.books import Books
from flame.scheduler.groups import Group, Tree


def validate(books: Books, tree: Tree) -> None:
    """Raise AssertionError with the first broken invariant."""
    for place in books.places.values():
        held = sum((holding.resreq for holding in place.holdings.values()), Resources())
        assert place.used == held, f"{place.name}: used {place.used}, held {held}"
        assert place.seats == sum(claim.seats.count(place) for claim in books.claims), place.name
    for ask in books.asks.values():
        assert ask.have == sum(1 for holding in ask.holdings.values() if not holding.leaving), ask.session
        assert (ask.lane is not None) == bool(ask.lacking), f"{ask.session} lacks {ask.lacking}"
        assert not ask.gang or ask.coming in (0, ask.world) or ask.have, ask.session
    used: dict[Group, Resources] = {}
    for holding in books.holdings.values():
        for group in holding.group.path() if holding.group is not None else ():
            used[group] = used.get(group, Resources()) + holding.resreq
    for group in (tree.root, *tree.groups.values()):
        held = used.get(group, Resources())
        assert group.used == held, f"tenant {group.name} counts {group.used}, executors hold {held}"
    for claim in books.claims:
        assert all(holding.leaving and holding.claim is claim for holding in claim.waiting.values())
