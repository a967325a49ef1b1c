"""The kernel's variables as bytes in a file, and back: what cloudpickle can take."""

from __future__ import annotations

import pickle
import types
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import cloudpickle  # pyright: ignore[reportMissingTypeStubs]

_NAMESPACE = "flame: the kernel's namespace"
_OWN = frozenset({"__builtins__", "__name__", "__doc__", "__package__", "__loader__", "__spec__", "_"})


class _Pickler(cloudpickle.Pickler):
    """Functions of the kernel keep its namespace as their globals, instead of each a copy of it."""

    globals_ref: dict[int, dict[str, Any]]

    def __init__(self, file: Any, namespace: dict[str, Any]) -> None:
        super().__init__(file)  # pyright: ignore[reportUnknownMemberType]
        self._stand_in: dict[str, Any] = {_NAMESPACE: True}
        self.globals_ref[id(namespace)] = self._stand_in

    def persistent_id(self, obj: object) -> str | None:
        return _NAMESPACE if obj is self._stand_in else None


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: Any, namespace: dict[str, Any]) -> None:
        super().__init__(file)
        self._namespace = namespace

    def persistent_load(self, pid: str) -> dict[str, Any]:
        if pid != _NAMESPACE:
            raise pickle.UnpicklingError(f"unknown reference {pid!r}")
        return self._namespace


def save(module: types.ModuleType, path: str, leave_out: Iterable[object] = ()) -> dict[str, str]:
    """Write the variables; answers those that can't be, with the reason."""
    without = list(leave_out)
    wanted = {
        name: value
        for name, value in module.__dict__.items()
        if name not in _OWN and not any(value == each for each in without if callable(value))
    }
    skipped: dict[str, str] = {}
    try:
        _write(wanted, module, path)
    except Exception:
        for name, value in list(wanted.items()):
            try:
                _write({name: value}, module, path)
            except Exception as error:
                skipped[name] = f"{type(error).__name__}: {error}"[:300]
                del wanted[name]
        _write(wanted, module, path)
    return skipped


def load(module: types.ModuleType, path: str) -> None:
    """Take over the variables of such a file. Raises what their classes raise."""
    with Path(path).open("rb") as file:
        module.__dict__.update(_Unpickler(file, module.__dict__).load())


def _write(values: dict[str, Any], module: types.ModuleType, path: str) -> None:
    with Path(path).open("wb") as file:
        _Pickler(file, module.__dict__).dump(values)  # pyright: ignore[reportUnknownMemberType]
