"""Expansion of variables and what a program is started with."""

from __future__ import annotations

import pytest

from flame.shims.environment import expand


@pytest.mark.parametrize(
    ("text", "expanded"),
    [
        ("plain", "plain"),
        ("$A", "one"),
        ("${A}", "one"),
        ("$A/$B-${A}", "one/two-one"),
        ("$AB ${AB}", "$AB ${AB}"),
        ("$UNSET ${UNSET}", "$UNSET ${UNSET}"),
        ("$ $$ ${ ${} $-", "$ $$ ${ ${} $-"),
        ("${A", "${A"),
        ("$A$B", "onetwo"),
    ],
)
def test_variables_are_replaced_from_the_first_source_that_has_them(text: str, expanded: str) -> None:
    assert expand(text, {"A": "one"}, {"A": "other", "B": "two"}) == expanded


def test_values_are_not_expanded_again() -> None:
    assert expand("$A", {"A": "$B", "B": "no"}) == "$B"
