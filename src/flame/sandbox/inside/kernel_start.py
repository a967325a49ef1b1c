"""A kernel is started, first of all and before there is an event loop: it gets ready while the service does."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
from collections.abc import Mapping

from flame.sandbox.inside.processes import as_victim, kill_group

_PROGRAM = "from flame.sandbox.inside.kernel import main; main({})"


class Started:
    """A kernel's process. It may be started before there is an event loop."""

    def __init__(self, env: Mapping[str, str], cwd: str) -> None:
        """Raises OSError."""
        ours, theirs = socket.socketpair()
        try:
            self.process = subprocess.Popen(
                # -P: no file of the working folder is taken for a module of ours.
                [sys.executable, "-P", "-c", _PROGRAM.format(theirs.fileno())],
                env={"MPLBACKEND": "Agg", **env, "PYTHONUNBUFFERED": "1"},
                cwd=cwd,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        self.socket = ours
        as_victim(self.process.pid)

    def kill(self) -> None:
        """End it and what it started in its group."""
        kill_group(self.process.pid, signal.SIGKILL)
