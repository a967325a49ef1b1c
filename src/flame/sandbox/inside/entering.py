"""What an instance of `flmexec` is: the service that runs scripts, and gives way to a sandbox."""

from __future__ import annotations

import os
from importlib import import_module

from flame.service.api import FlameService, SessionContext, TaskContext
from flame.service.runtime import run

TYPE_CHECKING = False  # like typing's, without its import
if TYPE_CHECKING:
    from collections.abc import Sequence

    from flame.sandbox.inside.kernel_start import Started
    from flame.service.rehearsal import Play


class ExecService(FlameService):
    """Serves one session."""

    def __init__(self, kernels: Sequence[Started] = ()) -> None:
        """`kernels`: those that were started ahead, should the session be a sandbox."""
        self._kernels = kernels

    def on_prepare(self) -> None:
        if not self._kernels:
            return
        import_module("flame.sandbox.inside.service")  # while there is time
        import_module("flame.service.concurrent")
        if not os.environ.get("FLAME_SESSION_ID"):  # nobody waits for it
            for name in ("files", "tunnels", "watches", "spools", "snapshots"):
                import_module(f"flame.sandbox.inside.{name}")

    def play(self) -> Play:
        """What is rehearsed where this process is saved, and again in its copies: a sandbox, with its kernel."""
        from flame.sandbox.inside.rehearsing import play

        return play(self._kernels)

    def on_session_enter(self, context: SessionContext) -> None:
        kernels, self._kernels = self._kernels, ()
        data = context.common_data()
        if data is not None:
            from flame.sandbox import wire

            if wire.is_sandbox(data):
                from flame.sandbox.inside.service import SandboxService

                context.service, context.concurrency = SandboxService(kernels), wire.CONCURRENCY
                return
        for kernel in kernels:
            kernel.end()

    def on_task_invoke(self, context: TaskContext) -> bytes:
        """Run a script. Raises ValueError for a request that is none, or names no interpreter of this node."""
        from flame.sandbox.inside.scripts import run_script

        return run_script(context.input)


def serve(kernels: Sequence[Started]) -> None:
    """Serve one session."""
    run(ExecService(kernels))
