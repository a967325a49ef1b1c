"""Expansion of variables and what a program is started with."""

from __future__ import annotations

from pathlib import Path

import pytest

from flame.proto import shim_pb2, types_pb2
from flame.shims.environment import Surroundings, environment, expand
from flame.shims.shim import Launch


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


def environment_of(context: shim_pb2.SessionContext, **application: str) -> dict[str, str]:
    environments = [types_pb2.Environment(name=name, value=value) for name, value in application.items()]
    launch = Launch("e-1", "token", types_pb2.ApplicationSpec(environments=environments), context)
    around = Surroundings(environ={}, bin_dir=Path("/bin"), max_payload=1)
    return environment(launch, around, Path("/t"))


def test_who_knows_no_session_is_told_none() -> None:
    assert "FLAME_SESSION_ID" not in environment_of(shim_pb2.SessionContext())
    found = environment_of(
        shim_pb2.SessionContext(session_id="s-1"), FLAME_SESSION_ID="forged", FLAME_INSTANCE_ID="too"
    )
    assert (found["FLAME_SESSION_ID"], found["FLAME_INSTANCE_ID"]) == ("s-1", "e-1")


def test_a_gang_without_addresses_has_no_master() -> None:
    found = environment_of(shim_pb2.SessionContext(session_id="s", gang=types_pb2.Gang(rank=2, world_size=3)), RANK="7")
    assert found["FLAME_GANG_ADDRESSES"] == ""
    assert (found["FLAME_GANG_RANK"], found["RANK"], found["WORLD_SIZE"]) == ("2", "7", "3")
    assert "MASTER_ADDR" not in found


def test_who_is_in_no_gang_hears_nothing_of_gangs() -> None:
    found = environment_of(shim_pb2.SessionContext(session_id="s"))
    assert not [name for name in found if "GANG" in name or "RANK" in name or "MASTER" in name]
