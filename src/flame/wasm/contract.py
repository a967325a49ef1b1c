"""What a component must export and may import, as its types say: the package `component:flame`, in words of WIT."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

SERVICE = "component:flame/service"
ENTER, INVOKE, LEAVE = "on-session-enter", "on-task-invoke", "on-session-leave"

_ERROR = "record{code: enum{internal}, message: string}"
_SESSION = "record{session-id: string, common-data: option<list<u8>>}"
_TASK = "record{task-id: string, session-id: string}"
# Names of parameters and of types are no part of what a call needs.
FUNCTIONS = {
    ENTER: f"func({_SESSION}) -> result<_, {_ERROR}>",
    INVOKE: f"func({_TASK}, option<list<u8>>) -> result<option<list<u8>>, {_ERROR}>",
    LEAVE: f"func({_SESSION}) -> result<_, {_ERROR}>",
}
_GIVEN = re.compile(r"wasi:(cli|clocks|filesystem|io|random|sockets)/[a-z0-9-]+@0\.2\.\d+")


def fault(exports: Mapping[str, Mapping[str, str] | None], imports: Iterable[str]) -> str:
    """Why a component can't be run, empty when it can. `exports` has the functions, with their types, of each interface
    that it exports, None for what is no interface."""
    strange = sorted(name for name in imports if not _GIVEN.fullmatch(name))
    if strange:
        return f"it imports {', '.join(strange)}; there are only the interfaces of WASI 0.2 here, without HTTP"
    functions = exports.get(SERVICE)
    if functions is None:
        found = ", ".join(sorted(exports)) or "nothing"
        return f"it does not export the interface {SERVICE}; it exports {found}"
    for name, wanted in FUNCTIONS.items():
        if name not in functions:
            return f"its interface {SERVICE} lacks the function {name}: {wanted}"
        if functions[name] != wanted:
            return f"{name} of its interface {SERVICE} is {functions[name]}; it must be {wanted}"
    return ""
