"""The service behind the application `flmexec`: runs scripts, or serves a sandbox when its session is one.

A sandbox shall be there quickly, so this imports nothing that only scripts need.
"""

from __future__ import annotations

import os
from importlib import import_module

from flame.service.api import FlameService, SessionContext, TaskContext
from flame.service.runtime import run

TYPE_CHECKING = False  # like typing's, without its import
if TYPE_CHECKING:
    from flame.sandbox.inside.kernel_start import Started

SANDBOX = "sandbox"  # what the ids of sandboxes begin with


class ExecService(FlameService):
    """Serves one session."""

    def __init__(self, kernel: Started | None = None) -> None:
        """`kernel`: one that was started ahead, should the session be a sandbox."""
        self._kernel = kernel

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
            kernel.kill()
            kernel.process.wait()

    def on_task_invoke(self, context: TaskContext) -> bytes:
        """Run a script. Raises ValueError for a request that is none, or names no interpreter of this node."""
        from flame.sandbox.inside.scripts import run_script

        return run_script(context.input)


def main() -> None:
    """The console script `flmexec-service`."""
    session_id = os.environ.get("FLAME_SESSION_ID", "")
    kernel: Started | None = None
    # One that waits for a session has the time to get ready; sandboxes want to be quick.
    if not session_id or session_id.startswith(f"{SANDBOX}-"):
        from flame.sandbox.inside.kernel_start import Started
        from flame.sandbox.inside.places import environment, working_folder

        folder = working_folder()
        kernel = Started(environment(os.environ, folder), folder)
        import_module("flame.sandbox.inside.service")  # while there is time
        import_module("flame.service.concurrent")
    run(ExecService(kernel))


if __name__ == "__main__":
    main()
