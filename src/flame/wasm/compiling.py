"""`python -m flame.wasm.compiling`: compiles one component to a file, in a process of its own.

It exits with 0 when the file is there, with REFUSED and the reason on stdout when the component can't be run.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import resource
import sys
from pathlib import Path

import wasmtime
from wasmtime import component as model

from flame.shims.wasm_modules import REFUSED
from flame.wasm.adapter import adapted
from flame.wasm.contract import fault
from flame.wasm.engine import make_engine
from flame.wasm.sections import Unreadable
from flame.wasm.signatures import exports_of

_MAGIC = b"\0asm"
_MAX_MEMORY = 4 * 1024**3
_MAX_SECONDS = 600
_MODULE = b"\x01\x00\x00\x00"  # the version of a core module


def compile_component(source: bytes, target: Path, *, fuel: bool, portable: bool = False) -> str:
    """Write the compiled component. Gives the reason when it can't be run, empty when it can. Raises OSError."""
    wrong = _no_component(source)
    if wrong:
        return wrong
    engine = make_engine(fuel=fuel, portable=portable)
    try:
        component = model.Component(engine, adapted(source))
    except (Unreadable, wasmtime.WasmtimeError) as error:
        return _fault(source, engine) or f"its interface can't be adapted: {error}"
    wrong = fault(exports_of(component, engine), component.type.imports(engine))
    if wrong:
        return wrong
    with target.open("xb") as file:
        file.write(component.serialize())
        file.flush()
        os.fsync(file.fileno())
    target.chmod(0o444)
    return ""


def _fault(source: bytes, engine: wasmtime.Engine) -> str:
    """Why a component that can't be adapted is not one for us."""
    try:
        component = model.Component(engine, source)
    except wasmtime.WasmtimeError as error:
        return f"it is no valid component: {error}"
    return fault(exports_of(component, engine), component.type.imports(engine))


def _no_component(source: bytes) -> str:
    if not source.startswith(_MAGIC):
        return "it is no WebAssembly: it does not begin with \\0asm"
    if source[4:8] == _MODULE:
        return "it is a core module, not a component; make one of it with `wasm-tools component new`"
    return ""


def main() -> int:
    """Compile what the arguments say; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m flame.wasm.compiling", description=__doc__)
    parser.add_argument("source", type=Path)
    parser.add_argument("digest", help="SHA-256 of the source, in hex: what else is there is not compiled")
    parser.add_argument("target", type=Path)
    parser.add_argument("--fuel", action="store_true", help="count fuel")
    parser.add_argument("--portable", action="store_true", help="for every processor of this kind")
    options = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_AS, (_MAX_MEMORY, _MAX_MEMORY))  # components may be made to fill machines
    resource.setrlimit(resource.RLIMIT_CPU, (_MAX_SECONDS, _MAX_SECONDS))
    try:
        source = options.source.read_bytes()
        if hashlib.sha256(source).hexdigest() != options.digest:
            reason = "its file changed while it was read"
        else:
            reason = compile_component(source, options.target, fuel=options.fuel, portable=options.portable)
    except OSError as error:
        reason = f"{error.filename}: {error.strerror}"
    if reason:
        sys.stdout.write(reason)
        return REFUSED
    return 0


if __name__ == "__main__":
    sys.exit(main())
