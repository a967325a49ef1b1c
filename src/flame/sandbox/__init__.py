"""Sandboxes: places of their own to run code, commands and files in, through sessions of the application `flmexec`."""

from __future__ import annotations

TYPE_CHECKING = False  # like typing's, without its import
if TYPE_CHECKING:
    from flame.sandbox.asynchronous import AsyncFiles, AsyncFileWatch, AsyncRunningCommand, AsyncSandbox
    from flame.sandbox.errors import SandboxLostError
    from flame.sandbox.ports import AsyncExposedPort, ExposedPort
    from flame.sandbox.snapshot import Snapshot
    from flame.sandbox.synchronous import Files, FileWatch, RunningCommand, Sandbox
    from flame.sandbox.values import (
        CodeError,
        CommandInfo,
        CommandResult,
        Execution,
        FileEvent,
        FileInfo,
        Output,
        Result,
    )

__all__ = [
    "AsyncExposedPort",
    "AsyncFileWatch",
    "AsyncFiles",
    "AsyncRunningCommand",
    "AsyncSandbox",
    "CodeError",
    "CommandInfo",
    "CommandResult",
    "Execution",
    "ExposedPort",
    "FileEvent",
    "FileInfo",
    "FileWatch",
    "Files",
    "Output",
    "Result",
    "RunningCommand",
    "Sandbox",
    "SandboxLostError",
    "Snapshot",
]

# The service inside a sandbox loads this package too, and none of these.
_SOURCES = {
    "flame.sandbox.asynchronous": "AsyncFileWatch AsyncFiles AsyncRunningCommand AsyncSandbox",
    "flame.sandbox.errors": "SandboxLostError",
    "flame.sandbox.ports": "AsyncExposedPort ExposedPort",
    "flame.sandbox.snapshot": "Snapshot",
    "flame.sandbox.synchronous": "FileWatch Files RunningCommand Sandbox",
    "flame.sandbox.values": "CodeError CommandInfo CommandResult Execution FileEvent FileInfo Output Result",
}


def __getattr__(name: str) -> object:
    from importlib import import_module

    for module, names in _SOURCES.items():
        if name in names.split():
            value = globals()[name] = getattr(import_module(module), name)
            return value
    raise AttributeError(f"module 'flame.sandbox' has no attribute {name!r}")
