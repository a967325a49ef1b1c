"""What describes services of a Runner and calls of them."""

from __future__ import annotations

import functools
import importlib
import sys
from typing import Any

import pytest

import flame.runner
from flame.runner.types import RunnerContext, RunnerRequest, SessionContext


class Plain:
    def method(self) -> None: ...


class Callable(Plain):
    def __call__(self) -> None: ...


@pytest.mark.parametrize("target", [len, lambda: None, functools.partial(len, ()), Callable(), Plain().method, Plain])
@pytest.mark.parametrize(
    ("arguments", "least", "most"),
    [
        ({}, 0, None),
        ({"warmup": 3}, 3, None),
        ({"autoscale": False}, 1, 1),
        ({"autoscale": False, "warmup": 2}, 2, 2),
    ],
)
def test_functions_and_classes_scale(target: Any, arguments: dict[str, Any], least: int, most: int | None) -> None:
    context = RunnerContext(target, **arguments)
    assert (context.stateful, context.min_instances, context.max_instances) == (False, least, most)


def test_objects_have_one_instance() -> None:
    context = RunnerContext(Plain())
    assert (context.stateful, context.autoscale, context.min_instances, context.max_instances) == (True, False, 1, 1)
    assert RunnerContext(Plain(), warmup=1).min_instances == 1


@pytest.mark.parametrize(
    ("target", "arguments", "said"),
    [
        (len, {"stateful": True}, "always stateless"),
        (Plain, {"stateful": True}, "always stateless"),
        (len, {"warmup": -1}, "at least 0, not -1"),
        (Plain(), {"stateful": False}, "always stateful"),
        (Plain(), {"autoscale": True}, "always fixed"),
        (Plain(), {"warmup": 2}, "only support warmup=0 or warmup=1"),
        (len, {"args": (1,)}, "only a class takes"),
    ],
)
def test_what_goes_not_together_is_refused(target: Any, arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        RunnerContext(target, **arguments)


def test_requests_are_checked() -> None:
    assert RunnerRequest("go", [1], {"a": 2}).args == [1]
    for arguments, said in (((1,), "method must be"), ((None, 1), "args must be"), ((None, (), []), "kwargs must be")):
        with pytest.raises(ValueError, match=said):
            RunnerRequest(*arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("session_id", "said"), [(1, "must be a string"), ("", "cannot be empty"), ("x" * 129, "too long")]
)
def test_session_ids_are_checked(session_id: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        SessionContext(session_id)


def test_all_names_are_there() -> None:
    for name in flame.runner.__all__:
        assert getattr(flame.runner, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'missing'"):
        _ = flame.runner.missing


def test_instances_load_little() -> None:
    """What the service imports before it knows its session: neither cloudpickle nor the client nor asyncio."""
    import subprocess

    program = "import flame.runner.runpy, sys; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    assert "flame.runner.runpy" in loaded
    assert not {"cloudpickle", "asyncio", "flame.client", "flame.client.values", "pyarrow"} & set(loaded)


def test_the_service_is_named_by_its_template() -> None:
    from flame.manager.built_in import BUILT_IN

    assert importlib.import_module(BUILT_IN["flmrun"].arguments[-1]).__name__ == "flame.runner.runpy"
