"""What an application's labels say of how its component is run."""

from __future__ import annotations

import re
from collections.abc import Iterable

import msgspec

from flame.model.errors import InvalidArgumentError
from flame.shims.stdio import label_values, refuse_unknown

_SIZE = re.compile(r"([0-9]{1,15})(|Ki|Mi|Gi)")
_UNITS = {"": 1, "Ki": 1024, "Mi": 1024**2, "Gi": 1024**3}
PAGE = 64 * 1024  # linear memories grow by it
MAX_FUEL = 2**63 - 1
# What a worker takes beside the memories of its component, with a large one that was compiled (measured).
OWN_MEMORY = 64 * 1024**2


class WasmOptions(msgspec.Struct, frozen=True):
    """`memory`: bytes that each linear memory may have; `fuel`: what a call may use of it; 0 = without end."""

    memory: int = 0
    fuel: int = 0


def options_of(labels: Iterable[str], memory_limit: int) -> WasmOptions:
    """What labels say; `memory_limit` is the one of the whole instance, 0 = none. Raises InvalidArgumentError."""
    if memory_limit and memory_limit < OWN_MEMORY + PAGE:
        raise InvalidArgumentError(
            f"{memory_limit} bytes of memory leave nothing to a component: its worker needs {OWN_MEMORY}",
            remedy="raise limits.memory, or the executor's memory; the label wasm-memory= limits the component alone",
        )
    labels = tuple(labels)
    refuse_unknown(labels, "wasm-", ("wasm-memory", "wasm-fuel"))
    values = label_values(labels)
    memory = _memory(values["wasm-memory"]) if "wasm-memory" in values else 0
    fuel = _fuel(values["wasm-fuel"]) if "wasm-fuel" in values else 0
    # Without it the whole worker would be killed, where the component can be told that there is no more.
    return WasmOptions(memory or (memory_limit - OWN_MEMORY if memory_limit else 0), fuel)


def _memory(text: str) -> int:
    match = _SIZE.fullmatch(text)
    size = int(match[1]) * _UNITS[match[2]] if match else 0
    if not PAGE <= size < 2**63:
        raise InvalidArgumentError(
            f"the label wasm-memory={text[:40]} is no size of at least {PAGE} bytes", remedy="write it like 64Mi"
        )
    return size


def _fuel(text: str) -> int:
    if not text.isdecimal() or not text.isascii() or len(text) > 19 or not 1 <= int(text) <= MAX_FUEL:
        raise InvalidArgumentError(f"the label wasm-fuel={text[:40]} is no number from 1 to {MAX_FUEL}")
    return int(text)
