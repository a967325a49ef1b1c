"""What a component must export and may import, and how bytes get in and out of it."""

from __future__ import annotations

import ctypes
from pathlib import Path

import pytest
import wasmtime
from wasmtime.component import Component, Linker

from components import CONDUCT, ECHO, binary, component
from flame.wasm import values
from flame.wasm.contract import ENTER, FUNCTIONS, INVOKE, SERVICE, fault
from flame.wasm.engine import make_engine
from flame.wasm.guest import Guest, Room, Trapped
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


@pytest.fixture
def echo() -> Guest:
    engine = make_engine(fuel=False)
    return Guest(engine, Linker(engine), Component(engine, binary(component(ECHO))), Room((), {}))


@pytest.mark.parametrize("size", [0, 1, 255, 8191, 8192, 8193, 100_000])
def test_bytes_come_back_as_they_were(echo: Guest, size: int) -> None:
    data = bytes(range(256)) * (size // 256 + 1)
    assert echo.invoke("1", "session", data[:size]) == data[:size]


def test_none_comes_back_as_none(echo: Guest) -> None:
    assert echo.invoke("1", "session", None) is None


def test_texts_are_unicode(echo: Guest) -> None:
    vector = values.text("ä€😀")
    assert ctypes.string_at(vector.data, vector.size) == "ä€😀".encode()
    values.c.wasm_byte_vec_delete(ctypes.byref(vector))


def test_what_the_linker_does_not_have_is_named() -> None:
    engine = make_engine(fuel=False)
    with pytest.raises(Trapped, match="can't go on while it was instantiated: component imports instance `wasi:"):
        Guest(engine, Linker(engine), Component(engine, binary(CONDUCT)), Room((), {}))


def test_calls_do_not_leak(echo: Guest) -> None:
    data = b"x" * 10_000

    def calls(count: int) -> int:
        for _ in range(count):
            echo.invoke("1", "session", data)
        return int(Path("/proc/self/statm").read_text().split()[1])

    before = calls(50)
    assert calls(500) - before < 2000  # pages; the values of 450 calls would be 35,000


def test_what_another_engine_compiled_is_refused() -> None:
    other = make_engine(fuel=True)
    compiled = Component(other, binary(component(ECHO))).serialize()
    with pytest.raises(wasmtime.WasmtimeError, match="fuel"):
        Component.deserialize(make_engine(fuel=False), compiled)
