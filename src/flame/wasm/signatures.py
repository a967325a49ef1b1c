"""The types of a component's exports in words, as contract.py compares them."""

from __future__ import annotations

from collections.abc import Mapping

import wasmtime
from wasmtime import component as model


def exports_of(component: model.Component, engine: wasmtime.Engine) -> dict[str, Mapping[str, str] | None]:
    """By name: the functions of an interface with their types; None for an export that is no interface."""
    found: dict[str, Mapping[str, str] | None] = {}
    for name, extern in component.type.exports(engine).items():
        item = extern.ty
        found[name] = _functions(item, engine) if isinstance(item, model.ComponentInstanceType) else None
    return found


def _functions(interface: model.ComponentInstanceType, engine: wasmtime.Engine) -> dict[str, str]:
    items = {name: extern.ty for name, extern in interface.exports(engine).items()}
    return {name: _function(item) for name, item in items.items() if isinstance(item, model.FuncType)}


def _function(function: model.FuncType) -> str:
    parameters = ", ".join(_value(kind) for _, kind in function.params)
    result = f" -> {_value(function.result)}" if function.result is not None else ""
    return f"func({parameters}){result}"


def _value(kind: model.ValType | None) -> str:
    match kind:
        case None:
            return "_"
        case model.RecordType():
            return f"record{{{', '.join(f'{name}: {_value(field)}' for name, field in kind.fields)}}}"
        case model.EnumType():
            return f"enum{{{', '.join(kind.names)}}}"
        case model.ListType():
            return f"list<{_value(kind.element)}>"
        case model.OptionType():
            return f"option<{_value(kind.payload)}>"
        case model.ResultType():
            return f"result<{_value(kind.ok)}, {_value(kind.err)}>"
        case _:
            return type(kind).__name__.lower()
