"""Numbers on the command line that have bounds, of which the help does not speak: they are what one expects."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    ParamType = click.ParamType[float]
else:
    ParamType = click.ParamType  # of older versions it has no parameter

_MOST = 2**32 - 1  # what most fields of messages hold


class Bounded(ParamType):
    """A number in a range; click's own types print the range behind every option's help."""

    def __init__(self, within: click.IntRange | click.FloatRange) -> None:
        self.name = "n"
        self._within = within

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Raises BadParameter."""
        return self._within.convert(value, param, ctx)


def whole(least: int = 0, most: int = _MOST) -> Bounded:
    """A whole number."""
    return Bounded(click.IntRange(least, most))


SECONDS = Bounded(click.FloatRange(min=0, min_open=True))  # more than none
