"""What a component must export and may import."""

from __future__ import annotations

import pytest
import wasmtime
from wasmtime.component import Component

from components import CONDUCT, ECHO, binary, component
from flame.wasm.contract import ENTER, FUNCTIONS, INVOKE, SERVICE, fault
from flame.wasm.engine import make_engine
from flame.wasm.signatures import exports_of

RIGHT = {SERVICE: FUNCTIONS}


def test_one_that_keeps_to_it() -> None:
    more = {SERVICE: {**FUNCTIONS, "more": "func()"}, "its:own/interface": None}
    assert fault(more, ["wasi:cli/environment@0.2.0", "wasi:sockets/tcp@0.2.6", "wasi:io/poll@0.2.12"]) == ""


@pytest.mark.parametrize(
    ("exports", "imports", "words"),
    [
        ({}, [], "it exports nothing"),
        ({"run": None, SERVICE + "@0.1.0": FUNCTIONS}, [], f"it exports {SERVICE}@0.1.0, run"),
        ({SERVICE: None}, [], f"does not export the interface {SERVICE}"),
        ({SERVICE: {ENTER: FUNCTIONS[ENTER]}}, [], f"lacks the function {INVOKE}: func(record{{task-id: string"),
        ({SERVICE: {**FUNCTIONS, INVOKE: "func()"}}, [], f"{INVOKE} of its interface {SERVICE} is func(); it must be"),
        (
            RIGHT,
            ["wasi:http/outgoing-handler@0.2.0", "a:b/c"],
            "imports a:b/c, wasi:http/outgoing-handler@0.2.0; there",
        ),
        (RIGHT, ["wasi:cli/environment@0.3.0"], "imports wasi:cli/environment@0.3.0"),
    ],
)
def test_what_is_wrong_is_named(exports: dict[str, dict[str, str] | None], imports: list[str], words: str) -> None:
    assert words in fault(exports, imports)


def test_types_are_read_from_a_component() -> None:
    engine = make_engine(fuel=False)
    assert exports_of(Component(engine, binary(CONDUCT)), engine) == RIGHT


def test_what_another_engine_compiled_is_refused() -> None:
    other = make_engine(fuel=True)
    compiled = Component(other, binary(component(ECHO))).serialize()
    with pytest.raises(wasmtime.WasmtimeError, match="fuel"):
        Component.deserialize(make_engine(fuel=False), compiled)
