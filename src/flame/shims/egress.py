"""What an instance reaches by a list: a proxy of its own on the node, and the bridge to it in its sandbox.

The proxy (egress_proxy.py) is a process below the keeper, so that nothing of what an instance sends is read by the
executor manager. Its socket is shown in the sandbox, whose network is its own; the bridge (egress_bridge.py) stands in
front of the program there.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
import sys
from pathlib import Path

import msgspec

from flame.shims.processes import Keeper, Process, Program

_BRIDGE = Path(__file__).with_name("egress_bridge.py")
_SOCKET = "proxy"
_BACKLOG = 128
_END_S = 2.0


class Egress:
    """The proxy of one instance."""

    def __init__(self, process: Process, folder: Path) -> None:
        self.socket = folder / _SOCKET
        self._process = process
        self._folder = folder

    @classmethod
    async def open(cls, keeper: Keeper, executors: Path, executor_id: str, network: str, log: int) -> Egress:
        """Start one for this list. It has a folder of its own in `executors`, by whose name it is found after the
        keeper was killed; what it says goes to `log`. Raises OSError."""
        identity = f"{executor_id}-network"
        folder = executors / identity
        folder.mkdir(mode=0o700)
        try:
            with _listen(folder) as listening:
                argv = [sys.executable, "-I", "-m", "flame.shims.egress_proxy", network]
                passed = {name: os.environ[name] for name in ("LD_LIBRARY_PATH",) if name in os.environ}
                env = {**passed, "FLAME_INSTANCE_ID": identity, "PATH": os.defpath}
                program = Program(sys.executable, argv, env, str(folder))
                process = await keeper.spawn(identity, program, log, log, listening.fileno())
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        return cls(process, folder)

    async def close(self) -> None:
        """End it, when nobody needs it any more; it has said its last word then."""
        self._process.signal(signal.SIGTERM)
        await asyncio.wait({self._process.ended}, timeout=_END_S)
        self._process.signal(signal.SIGKILL)
        await asyncio.wait({self._process.ended})
        await asyncio.to_thread(shutil.rmtree, self._folder, ignore_errors=True)


def bridged(program: Program, proxy: Path) -> Program:
    """The program behind the bridge, both to be started in a sandbox that shows the proxy's socket."""
    argv = [sys.executable, "-I", "-S", str(_BRIDGE), str(proxy), program.path, *program.argv[1:]]
    return msgspec.structs.replace(program, path=sys.executable, argv=argv)


def _listen(folder: Path) -> socket.socket:
    """A listening socket in the folder, however long its path is."""
    listening = socket.socket(socket.AF_UNIX)
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            listening.bind(f"/proc/self/fd/{descriptor}/{_SOCKET}")
        finally:
            os.close(descriptor)
        listening.listen(_BACKLOG)
    except BaseException:
        listening.close()
        raise
    return listening
