"""The service behind the application `flmexec`: runs scripts, or serves a sandbox when its session is one.

A sandbox shall be there quickly: its kernel is a copy of this process, made before anything else is loaded, and so is
the one that takes its place when it has ended.
"""

from __future__ import annotations

import os

TYPE_CHECKING = False  # like typing's, without its import
if TYPE_CHECKING:
    from flame.sandbox.inside.kernel_start import Started

SANDBOX = "sandbox"  # what the ids of sandboxes begin with


def main() -> None:
    """The console script `flmexec-service`."""
    session_id = os.environ.get("FLAME_SESSION_ID", "")
    kernels: list[Started] = []
    # One that waits for a session has the time to get ready; sandboxes want to be quick.
    if not session_id or session_id.startswith(f"{SANDBOX}-"):
        from flame.sandbox.inside import kernel_start
        from flame.sandbox.inside.places import environment, working_folder

        folder = working_folder()
        env = environment(os.environ, folder)
        kernels = [kernel_start.copy(env, folder)]
        try:
            kernels.append(kernel_start.copy(env, folder))
        except OSError:
            pass  # no more processes are allowed
    from flame.sandbox.inside.entering import serve

    serve(kernels)


if __name__ == "__main__":
    main()
