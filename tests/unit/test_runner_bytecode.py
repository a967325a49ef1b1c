"""Functions of another version of Python are known before they can do harm."""

from __future__ import annotations

import sys
from types import CodeType, FunctionType
from typing import Any

import cloudpickle
import pytest

from flame.model.errors import InvalidArgumentError
from flame.runner.bytecode import is_of_this_python, loads

OURS = f"{sys.version_info[0]}.{sys.version_info[1]}"
# `sum(value * 2 for value in values)`, and a closure that calls print.
OTHERS = {
    "3.11": (
        "9700740100000000000000000000640184007c004400a6000000ab000000000000000000a6010000ab0100000000000000005300",
        "950197007401000000000000000000007c008901a6020000ab0200000000000000005300",
    ),
    "3.12": (
        "970074010000000000000000640184007c004400ab00000000000000ab010000000000005300",
        "95019700740100000000000000007c008901ab020000000000005300",
    ),
    "3.13": (
        "95005b01000000000000000053011a0055001300350000000000000035010000000000002400",
        "3e0195005b0100000000000000005500540135020000000000002400",
    ),
}


class Pickled:
    """Pickles as a code object with these arguments does."""

    def __init__(self, *arguments: Any) -> None:
        self.arguments = arguments

    def __reduce__(self) -> Any:
        return CodeType, self.arguments


def made_there(bytecode: bytes) -> Pickled:
    return Pickled(0, 0, 0, 0, 3, 3, bytecode, (None,), ("sum",), (), "f.py", "f", "f", 1, b"", b"", (), ())


@pytest.mark.parametrize(("version", "number"), [(version, number) for version in OTHERS for number in (0, 1)])
def test_a_function_of_another_python_is_refused(version: str, number: int) -> None:
    bytecode = bytes.fromhex(OTHERS[version][number])
    data = cloudpickle.dumps(made_there(bytecode))
    if version == OURS:
        assert loads(data).co_code == bytecode
        return
    with pytest.raises(InvalidArgumentError) as caught:
        loads(data)
    assert caught.value.message.startswith("the client runs Python 3.")
    assert version in caught.value.message
    assert f"this executor Python {OURS}" in caught.value.message
    assert caught.value.remedy.startswith(f"run the client with Python {OURS}")


def test_a_python_that_pickles_code_in_another_way_is_older() -> None:
    with pytest.raises(InvalidArgumentError, match=r"Python 3\.10 or older"):
        loads(
            cloudpickle.dumps(Pickled(0, 0, 0, 0, 3, 3, b"t\x00", (None,), ("sum",), (), "f.py", "f", 1, b"", (), ()))
        )


def test_what_is_no_bytecode_at_all() -> None:
    for bytecode in (b"", b"\x00", b"\xff" * 9, b"t\x00"):
        assert not is_of_this_python(bytecode)
        with pytest.raises(InvalidArgumentError, match="the client runs"):
            loads(cloudpickle.dumps(made_there(bytecode)))


def test_our_own_functions_are_loaded() -> None:
    offset = 3

    class Model:
        def __init__(self) -> None:
            self.values = [value * 2 for value in range(3)]

        async def predict(self, *values: int, **more: int) -> int:
            try:
                return sum(self.values) + sum(values) + offset
            except ValueError:
                return more["none"]

    loaded = loads(cloudpickle.dumps([Model, lambda value: f"{value!r:>5}{offset}", Model]))
    assert loaded[0] is loaded[2]
    assert loaded[0]().values == [0, 2, 4]
    assert loaded[1](7) == "    73"


def codes(code: CodeType) -> list[CodeType]:
    inner = [const for const in code.co_consts if isinstance(const, CodeType)]
    return [code, *(each for const in inner for each in codes(const))]


def test_all_functions_of_the_modules_that_are_loaded_are_known() -> None:
    functions = [
        value
        for module in list(sys.modules.values())
        for value in list(vars(module).values())
        if isinstance(value, FunctionType)
    ]
    unknown = [
        code for function in functions for code in codes(function.__code__) if not is_of_this_python(code.co_code)
    ]
    assert len(functions) > 1000
    assert unknown == []
