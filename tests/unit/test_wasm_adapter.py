"""How bytes get in and out of a component, through what is added to it."""

from __future__ import annotations

import gc
import random
from pathlib import Path

import pytest
from wasmtime.component import Component, Linker

from components import CONDUCT, ECHO, binary, component
from flame.wasm.adapter import ADAPTED, adapted
from flame.wasm.compiling import compile_component
from flame.wasm.contract import FUNCTIONS, SERVICE
from flame.wasm.engine import make_engine
from flame.wasm.guest import Guest, Room, Trapped
from flame.wasm.sections import PREAMBLE, imports_of
from flame.wasm.signatures import exports_of
from flame.wasm.values import Failed

MIB = 1024 * 1024
EVERY_BYTE = bytes(range(256))


def guest(text: str, *, memory: int = 0, arguments: tuple[str, ...] = ()) -> Guest:
    engine = make_engine(fuel=False)
    linker = Linker(engine)
    linker.add_wasip2()
    return Guest(engine, linker, Component(engine, adapted(binary(text))), Room(arguments, {}, memory=memory))


@pytest.fixture
def echo() -> Guest:
    return guest(component(ECHO))


def resident() -> int:
    """This process's memory, in bytes."""
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


@pytest.mark.parametrize("size", [0, 1, 255, 256, 65_536, 100_003, MIB, 16 * MIB])
def test_bytes_come_back_as_they_were(echo: Guest, size: int) -> None:
    data = random.Random(size).randbytes(size)
    assert echo.invoke("1", "session", data) == data


@pytest.mark.parametrize("byte", [b"\0", b"\x7f", b"\x80", b"\xff"])
def test_bytes_that_are_all_alike(echo: Guest, byte: bytes) -> None:
    assert echo.invoke("1", "session", byte * 70_000) == byte * 70_000


def test_every_byte_of_the_common_data_is_kept() -> None:
    conduct = guest(CONDUCT)
    conduct.enter("session", EVERY_BYTE)
    assert conduct.invoke("1", "session", b"common") == EVERY_BYTE


def test_none_comes_back_as_none(echo: Guest) -> None:
    assert echo.invoke("1", "session", None) is None
    assert echo.invoke("1", "session", b"") == b""


@pytest.mark.parametrize("words", ["no luck", "señor", "ä€😀", ""])
def test_the_words_of_an_error_are_unicode(words: str) -> None:
    conduct = guest(CONDUCT)
    conduct.enter("session", None)
    with pytest.raises(Failed) as caught:
        conduct.invoke("1", "session", b"fail " + words.encode())
    assert str(caught.value) == words


def test_words_that_are_no_unicode_trap() -> None:
    conduct = guest(CONDUCT)
    conduct.enter("session", None)
    with pytest.raises(Trapped, match="in on-task-invoke"):
        conduct.invoke("1", "session", b"fail \xff\xfe")


def test_sizes_may_change_from_call_to_call(echo: Guest) -> None:
    """What a call left in the adapter's memory is no part of the next."""
    for size in (MIB, 0, 70_000, 1, 2 * MIB, 17):
        assert echo.invoke("1", "session", b"\xfe" * size) == b"\xfe" * size


def test_a_payload_has_room_up_to_the_limit_of_a_memory() -> None:
    small = guest(component(ECHO), memory=2 * MIB)
    with pytest.raises(Trapped) as caught:
        small.invoke("1", "session", bytes(3 * MIB))
    assert "no-memory-for-the-payload" in caught.value.backtrace
    assert guest(component(ECHO), memory=2 * MIB).invoke("1", "session", bytes(MIB)) == bytes(MIB)


def test_calls_do_not_leak(echo: Guest) -> None:
    data = b"\xfex" * 5_000

    def calls(count: int) -> int:
        for _ in range(count):
            echo.invoke("1", "session", data)
        return resident()

    before = calls(50)
    assert calls(1000) - before < 4 * MIB  # the texts of so many calls would be 30


def test_memory_that_a_call_takes_is_given_back(echo: Guest) -> None:
    data = b"\xfe" * MIB
    echo.invoke("1", "session", data)
    before = resident()
    for _ in range(20):
        echo.invoke("1", "session", data)
    assert resident() - before < 16 * MIB


def test_what_the_linker_does_not_have_is_named() -> None:
    engine = make_engine(fuel=False)
    with pytest.raises(Trapped, match="can't go on while it was instantiated: component imports instance `wasi:"):
        Guest(engine, Linker(engine), Component(engine, adapted(binary(CONDUCT))), Room((), {}))


def test_a_component_keeps_its_own_interface() -> None:
    engine = make_engine(fuel=False)
    exports = exports_of(Component(engine, adapted(binary(CONDUCT))), engine)
    assert exports.keys() == {SERVICE, ADAPTED}
    assert exports[SERVICE] == FUNCTIONS


def test_imports_are_numbered_by_their_sort() -> None:
    text = """(component
      (type (func))
      (core type (module))
      (import "one" (instance $one (export "inside" (instance)) (export "type" (type (sub resource)))))
      (alias export $one "inside" (instance))
      (alias export $one "type" (type $type))
      (core module)
      (import "two" (instance $two))
      (import "func" (func (type 0)))
      (import "resource" (type (sub resource)))
      (import "same" (type (eq $type)))
      (import "component" (component))
      (import "module" (core module (type 0)))
      (alias export $one "type" (type))
      (core instance (instantiate (module 0))))""".replace(" (module 0)", " 0")
    assert [(name, sort.hex(), number) for name, sort, number in imports_of(binary(text)).found] == [
        ("one", "05", 0),
        ("two", "05", 2),
        ("func", "01", 0),
        ("resource", "03", 4),
        ("same", "03", 5),
        ("component", "04", 0),
        ("module", "0011", 0),
    ]


def test_imports_may_come_after_modules() -> None:
    wasi = '(core module $more) (core instance (instantiate $more)) (import "wasi:cli/exit@0.2.0" (instance))'
    assert guest(component(ECHO, wasi=wasi)).invoke("1", "session", b"abc") == b"abc"


def test_numbers_of_more_than_seven_bits() -> None:
    alias = '(alias export $io-error "error" (type $io-error-type))'
    conduct = guest(CONDUCT.replace(alias, alias + '(alias export $io-error "error" (type))' * 300))
    conduct.enter("session", None)
    assert conduct.invoke("1", "session", b"echo abc") == b"abc"


def test_imports_behind_what_is_no_import_are_told(tmp_path: Path) -> None:
    wasi = '(component $c) (instance $i (instantiate $c)) (import "wasi:cli/exit@0.2.0" (instance))'
    words = compile_component(binary(component(ECHO, wasi=wasi)), tmp_path / "compiled", fuel=False)
    assert words == "its interface can't be adapted: it has imports behind a section of kind 4"


def test_one_that_is_cut_off_is_refused(tmp_path: Path) -> None:
    whole = binary(component(ECHO))
    for size in range(0, len(whole) - 1, 7):
        assert compile_component(whole[:size], tmp_path / "compiled", fuel=False)


def test_damage_is_said_of_the_component(tmp_path: Path) -> None:
    """Whatever is damaged, the compiler refuses it with words or compiles it; it never fails otherwise."""
    whole, chance = binary(component(ECHO)), random.Random(7)
    for number in range(300):
        damaged = bytearray(whole)
        damaged[chance.randrange(len(PREAMBLE), len(whole))] = chance.randrange(256)
        target = tmp_path / str(number)
        words = compile_component(bytes(damaged), target, fuel=False)
        assert bool(words) != target.exists()


def test_types_without_the_names_of_the_interface_are_told(tmp_path: Path) -> None:
    text = component(ECHO).replace('(export $task-out "task-context"', '(export $task-out "other-context"')
    assert "its interface can't be adapted: " in compile_component(binary(text), tmp_path / "compiled", fuel=False)
