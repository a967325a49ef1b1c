"""What an instance of `flmexec` is: the service that runs scripts, and gives way to a sandbox."""

from __future__ import annotations

import os
from importlib import import_module

from flame.service.api import FlameService, SessionContext, TaskContext
from flame.service.runtime import run

TYPE_CHECKING = False  # like typing's, without its import
if TYPE_CHECKING:
    from flame.sandbox.inside.kernel_start import Started
    from flame.service.rehearsal import Play


class ExecService(FlameService):
    """Serves one session."""

    def __init__(self, kernel: Started | None = None) -> None:
        """`kernel`: one that was started ahead, should the session be a sandbox."""
        self._kernel = kernel

    def on_prepare(self) -> None:
        if self._kernel is None:
            return
        import_module("flame.sandbox.inside.service")  # while there is time
        import_module("flame.service.concurrent")
        if not os.environ.get("FLAME_SESSION_ID"):  # nobody waits for it
            for name in ("files", "tunnels", "watches", "spools", "snapshots"):
                import_module(f"flame.sandbox.inside.{name}")

    def play(self) -> Play:
        """What is rehearsed where this process is saved, and again in its copies: a sandbox, with its kernel."""
        from flame.sandbox.inside.rehearsing import play

        return play(self._kernel)

    def on_session_enter(self, context: SessionContext) -> None:
        kernel, self._kernel = self._kernel, None
        data = context.common_data()
        if data is not None:
            from flame.sandbox import wire

            if wire.is_sandbox(data):
                from flame.sandbox.inside.service import SandboxService

                context.service, context.concurrency = SandboxService(kernel), wire.CONCURRENCY
                return
        if kernel is not None:
            kernel.end()

    def on_task_invoke(self, context: TaskContext) -> bytes:
        """Run a script. Raises ValueError for a request that is none, or names no interpreter of this node."""
        from flame.sandbox.inside.scripts import run_script

        return run_script(context.input)


def serve(kernel: Started | None) -> None:
    """Serve one session."""
    run(ExecService(kernel))
