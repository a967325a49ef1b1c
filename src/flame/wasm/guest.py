"""One instance of a component: called, interrupted, and done with after its first trap."""

from __future__ import annotations

import ctypes
import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import wasmtime
from wasmtime import component as model

from flame.wasm import values
from flame.wasm.adapter import ADAPTED
from flame.wasm.contract import ENTER, INVOKE, LEAVE
from flame.wasm.values import c

_MEMORIES = 16  # linear memories that one component may have, where their size is limited
_TABLE_ELEMENTS = 1_000_000
_INSTANCES = 10_000  # of core modules inside of one component
_CAUSE = re.compile(r"wasm trap: (.*)", re.DOTALL)


class Room(msgspec.Struct, frozen=True):
    """What a component is given: its arguments and environment; fuel for each call and bytes for each of its linear
    memories, 0 = without end."""

    arguments: Sequence[str]
    environment: Mapping[str, str]
    fuel: int = 0
    memory: int = 0


class Trapped(Exception):  # noqa: N818 - told to clients, in its words
    """The component can't be called again. `backtrace` says where it was."""

    def __init__(self, message: str, backtrace: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.backtrace = backtrace


class Guest:
    """One instance of an adapted component. Each call may raise Trapped, or values.Failed when it returned an error."""

    def __init__(self, engine: wasmtime.Engine, linker: model.Linker, component: model.Component, room: Room) -> None:
        """Raises Trapped, also when it imports what is not there."""
        self._room = room
        self._store = store = wasmtime.Store(engine)
        if room.memory:
            store.set_limits(room.memory, _TABLE_ELEMENTS, _INSTANCES, _INSTANCES, _MEMORIES)
        store.set_wasi(_wasi(room))
        self._refuel()
        try:
            self._instance = linker.instantiate(store, component)
        except wasmtime.WasmtimeError as error:
            raise self._trapped(error, "while it was instantiated") from None
        service = self._instance.get_export_index(store, ADAPTED)
        found = [self._instance.get_export_index(store, name, service) for name in (ENTER, INVOKE, LEAVE)]
        functions = [self._instance.get_func(store, index) if index is not None else None for index in found]
        self._enter, self._invoke, self._leave = (_raw(function) for function in functions)
        self._context: Any = store._context()  # pyright: ignore[reportPrivateUsage]

    def enter(self, session_id: str, common_data: bytes | None) -> None:
        """`on-session-enter`."""
        self._of_session(self._enter, ENTER, session_id, common_data)

    def leave(self, session_id: str) -> None:
        """`on-session-leave`."""
        self._of_session(self._leave, LEAVE, session_id, None)

    def invoke(self, task_id: str, session_id: str, data: bytes | None) -> bytes | None:
        """`on-task-invoke`: the output."""
        parameters = (values.Value * 3)()
        values.put_text(parameters[0], task_id)
        values.put_text(parameters[1], session_id)
        values.put_optional_bytes(parameters[2], data)
        return self._call(self._invoke, INVOKE, parameters)

    def _of_session(self, function: Any, name: str, session_id: str, common_data: bytes | None) -> None:
        parameters = (values.Value * 2)()
        values.put_text(parameters[0], session_id)
        values.put_optional_bytes(parameters[1], common_data)
        self._call(function, name, parameters)

    def _call(self, function: Any, name: str, parameters: Any) -> bytes | None:
        self._refuel()
        result = values.Value()
        try:
            failed = c.wasmtime_component_func_call(
                ctypes.byref(function), self._context, parameters, len(parameters), ctypes.byref(result), 1
            )
        finally:
            for parameter in parameters:
                c.wasmtime_component_val_delete(ctypes.byref(parameter))
        if failed:
            error = wasmtime.WasmtimeError._from_ptr(failed)  # pyright: ignore[reportPrivateUsage]
            raise self._trapped(error, f"in {name}")
        try:
            return values.take_result(result)
        finally:
            c.wasmtime_component_val_delete(ctypes.byref(result))

    def _refuel(self) -> None:
        """For the next call: the fuel, and that one tick from now on interrupts it."""
        if self._room.fuel:
            self._store.set_fuel(self._room.fuel)
        self._store.set_epoch_deadline(1)

    def _trapped(self, error: wasmtime.WasmtimeError, where: str) -> Trapped:
        if isinstance(error, wasmtime.ExitTrap):
            return Trapped(f"the component exited with status {error.code} {where}")
        text = str(error)
        cause = _CAUSE.search(text)
        if cause is None:
            return Trapped(f"the component can't go on {where}: {text}")
        words = cause[1].strip()
        if words.startswith("all fuel consumed"):
            words = f"it used all of its fuel of {self._room.fuel}"
        return Trapped(f"the component trapped {where}: {words}", text)


def _wasi(room: Room) -> wasmtime.WasiConfig:
    """No files, no network, no input; what it prints goes where ours goes."""
    config = wasmtime.WasiConfig()
    config.argv = list(room.arguments)
    config.env = list(room.environment.items())
    sys.stdout.flush()
    config.inherit_stdout()
    config.inherit_stderr()
    return config


def _raw(function: model.Func | None) -> Any:
    assert function is not None
    return function._func  # pyright: ignore[reportPrivateUsage]
