"""The engine that compiles components and the one that runs them: alike, or what was compiled is refused."""

from __future__ import annotations

from platform import machine

import wasmtime
from wasmtime.component import Component, Linker

_STACK = 1024 * 1024  # of the component's own calls; beyond, it traps


def make_engine(*, fuel: bool, portable: bool = False) -> wasmtime.Engine:
    """An engine whose calls can be interrupted, and that counts `fuel` if it shall. What a `portable` one compiles runs
    on every processor of the kind of this one."""
    config = wasmtime.Config()
    config.wasm_component_model = True
    config.epoch_interruption = True
    config.consume_fuel = fuel
    config.max_wasm_stack = _STACK
    if portable:
        config.target = f"{machine()}-unknown-linux-gnu"
    return wasmtime.Engine(config)


def load(engine: wasmtime.Engine, compiled: str) -> tuple[Component, Linker]:
    """A component that `flame.wasm.compiling` wrote, and what it may import. The file is trusted like a program.

    Raises WasmtimeError."""
    linker = Linker(engine)
    linker.add_wasip2()
    return Component.deserialize_file(engine, compiled), linker
