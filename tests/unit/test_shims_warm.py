"""The rules for instances that are started ahead."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from flame.proto import shim_pb2, types_pb2
from flame.shims.shim import Launch
from flame.shims.warm import ahead, allot, pause_after, recipe


def launch(name: str = "app", devices: str | None = None, gang: types_pb2.Gang | None = None, **spec: Any) -> Launch:
    context = shim_pb2.SessionContext(
        session_id="s-1",
        application=shim_pb2.ApplicationContext(name=name),
        common_data=b"data",
        executor_id="e-1",
        token="secret",
        gang=gang,
    )
    return Launch("e-1", "secret", types_pb2.ApplicationSpec(command="run", **spec), context, devices)


@pytest.mark.parametrize(
    "change",
    [
        {"description": "text"},
        {"labels": ["a"]},
        {"max_instances": 3},
        {"delay_release": 9},
        {"start_timeout_ms": 5},
        {"warm_instances": 4},
        {"readable_objects": ["data/shared"]},
        {"schema": types_pb2.ApplicationSchema(input="{}")},
    ],
)
def test_what_an_instance_does_not_see_of_its_application_makes_no_difference(change: dict[str, Any]) -> None:
    assert recipe(launch(**change)) == recipe(launch())


@pytest.mark.parametrize(
    "change",
    [
        {"name": "other"},
        {"arguments": ["x"]},
        {"environments": [types_pb2.Environment(name="A", value="1")]},
        {"working_directory": "/w"},
        {"image": "i"},
        {"url": "file:///p"},
        {"shim": types_pb2.Wasm},
        {"isolation": "process"},
        {"limits": types_pb2.Limits(memory=1)},
        {"network": "host"},
    ],
)
def test_whatever_else_is_different_makes_another_instance(change: dict[str, Any]) -> None:
    assert recipe(launch(**change)) != recipe(launch())


@pytest.mark.parametrize(("level", "same"), [("none", True), ("process", False)])
def test_the_size_of_an_executor_matters_where_it_limits_the_instance(level: str, same: bool) -> None:
    small, large = (
        recipe(msgspec.structs.replace(launch(isolation=level), resreq=types_pb2.ResourceRequirement(cpu=cpu)))
        for cpu in (1, 2)
    )
    assert (small == large) is same


def test_gpus_and_a_place_in_a_gang_are_known_at_the_start_only() -> None:
    assert recipe(launch(devices="0,1")) is None
    assert recipe(launch(gang=types_pb2.Gang(rank=0, world_size=1))) is None
    assert recipe(launch(devices="")) is not None


def test_one_that_is_started_ahead_knows_nothing_of_the_session_it_is_modelled_on() -> None:
    made = ahead(launch(arguments=["x"]), "warm-1", "own")
    assert (made.executor_id, made.token) == ("warm-1", "own")
    assert made.application.arguments == ["x"]
    assert made.context == shim_pb2.SessionContext(application=shim_pb2.ApplicationContext(name="app"))
    assert recipe(made) == recipe(launch(arguments=["x"]))


@pytest.mark.parametrize(
    ("wishes", "budget", "given"),
    [
        ([], 8, []),
        ([3], 8, [3]),
        ([3, 3, 3], 8, [3, 3, 2]),
        ([9, 1], 8, [8, 0]),
        ([2, 0, 2], 3, [2, 0, 1]),
        ([1], 0, [0]),
    ],
)
def test_the_budget_is_given_to_those_used_last_first(wishes: list[int], budget: int, given: list[int]) -> None:
    assert allot(wishes, budget) == given


def test_after_a_few_deaths_one_after_another_no_further_one_is_started() -> None:
    pauses = [pause_after(deaths) for deaths in range(1, 6)]
    assert pauses == [1, 5, 25, None, None]
