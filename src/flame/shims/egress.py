"""What an instance reaches by a list: a proxy of its own on the node, and the bridge to it in its sandbox.

The proxy (egress_proxy.py) is a process below the keeper, so that nothing of what an instance sends is read by the
executor manager. Its socket is shown in the sandbox, whose network is its own; the bridge (egress_bridge.py) stands in
front of the program there.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import shutil
import signal
import socket
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec

from flame.shims.egress_bridge import KEPT
from flame.shims.egress_proxy import CARRIED
from flame.shims.image_python import FOLDER, ImagePython
from flame.shims.limits import Group
from flame.shims.processes import Keeper, Process, Program
from flame.shims.shim import Usage

logger = logging.getLogger("flame.node")

_BRIDGE = Path(__file__).with_name("egress_bridge.py")
_SOCKET = ".net"
_CARRIED = "carried"
_BACKLOG = 128
_END_S = 2.0


class Egress:
    """The proxy of one instance. It is started when somebody comes to its socket: many never do."""

    def __init__(
        self,
        keeper: Keeper,
        executors: Path,
        sockets: Path,
        executor_id: str,
        network: str,
        log: int,
        group: Callable[[str], Group | None],
    ) -> None:
        """`network` is a list. The proxy has a folder of its own in `executors`, by whose name it is found after the
        keeper was killed, and a socket in `sockets`, whose path is short; what it says goes to `log`. `group` makes the
        control group of that name that it is in, and raises OSError. Raises OSError."""
        self._keeper = keeper
        self._make_group = group
        self._group: Group | None = None
        self._identity = f"{executor_id}-network"
        self._network = network
        self._folder = executors / self._identity
        self.socket = sockets / f"{secrets.token_hex(4)}{_SOCKET}"
        self._starting: asyncio.Task[Process | None] | None = None
        self._folder.mkdir(mode=0o700)
        try:
            file = self._folder / _CARRIED
            file.write_bytes(bytes(CARRIED.size))
            self._listening = _listen(self.socket)
            self._carried = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
        except BaseException:
            self.socket.unlink(missing_ok=True)
            shutil.rmtree(self._folder, ignore_errors=True)
            raise
        self._log = os.dup(log)
        asyncio.get_running_loop().add_reader(self._listening.fileno(), self._begin)

    def usage(self) -> Usage:
        """What it used and carried so far; its memory is not told."""
        data = os.pread(self._carried, CARRIED.size, 0)
        sent, received = CARRIED.unpack(data) if len(data) == CARRIED.size else (0, 0)
        cpu = self._group.usage().cpu if self._group is not None else 0.0
        return Usage(cpu, sent=sent, received=received)

    async def close(self) -> None:
        """End it, when nobody needs it any more; it has said its last word then."""
        process = None
        if self._starting is None:
            self._let_go()
        else:
            process = await self._starting
        if process is not None:
            process.signal(signal.SIGTERM)
            await asyncio.wait({process.ended}, timeout=_END_S)
            process.signal(signal.SIGKILL)
            await asyncio.wait({process.ended})
        os.close(self._carried)
        if self._group is not None:
            await asyncio.to_thread(self._group.remove)
        self.socket.unlink(missing_ok=True)
        await asyncio.to_thread(shutil.rmtree, self._folder, ignore_errors=True)

    def _begin(self) -> None:
        loop = asyncio.get_running_loop()
        loop.remove_reader(self._listening.fileno())
        self._starting = loop.create_task(self._start())

    async def _start(self) -> Process | None:
        passed = {name: os.environ[name] for name in ("LD_LIBRARY_PATH",) if name in os.environ}
        env = {**passed, "FLAME_INSTANCE_ID": self._identity, "PATH": os.defpath}
        argv = [sys.executable, "-I", "-m", "flame.shims.egress_proxy", self._network, _CARRIED]
        program = Program(sys.executable, argv, env, str(self._folder))
        try:
            self._group = self._make_group(self._identity)
            if self._group is not None:
                program = msgspec.structs.replace(program, groups=[str(folder) for folder in self._group.folders])
            return await self._keeper.spawn(self._identity, program, self._log, self._log, self._listening.fileno())
        except OSError as error:
            logger.warning("can't start the proxy %s: %s", self._identity, error)
            return None
        finally:
            self._let_go()

    def _let_go(self) -> None:
        """Of what only the proxy needs. Without it, who comes is turned away."""
        asyncio.get_running_loop().remove_reader(self._listening.fileno())
        self._listening.close()
        os.close(self._log)


def bridged(program: Program, proxy: Path) -> Program:
    """The program behind the bridge, both to be started in a sandbox that shows the proxy's socket."""
    argv = [sys.executable, "-I", "-S", str(_BRIDGE), str(proxy), program.path, *program.argv[1:]]
    return msgspec.structs.replace(program, path=sys.executable, argv=argv)


def bridged_in_image(program: Program, proxy: Path, python: ImagePython) -> tuple[Program, Mapping[str, Path]]:
    """The same in the root of an image, and the files of the node that are needed there, by the path inside."""
    bridge = f"{FOLDER}/{_BRIDGE.name}"
    path, *rest = python.command
    argv = [path, *rest, "-I", "-S", bridge, str(proxy), program.path, *program.argv[1:]]
    # What is said to the loader of the image's program is not for the loader of this Python.
    env = {KEPT + name if name.startswith("LD_") else name: value for name, value in program.env.items()}
    return msgspec.structs.replace(program, path=path, argv=argv, env=env), {**python.files, bridge: _BRIDGE}


def _listen(path: Path) -> socket.socket:
    listening = socket.socket(socket.AF_UNIX)
    try:
        listening.bind(str(path))
        listening.listen(_BACKLOG)
    except BaseException:
        listening.close()
        raise
    return listening
