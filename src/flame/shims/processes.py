"""Programs that end with us: the executor manager's side of the keeper (keeper.py)."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import resource
import signal
import socket
import subprocess
import sys
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import msgspec

from flame.shims.keeper import kill_owned_by

_SCRIPT = Path(__file__).with_name("keeper.py")
_PACKET = 64 * 1024

T = TypeVar("T")


class Program(msgspec.Struct, frozen=True):
    """What to run: the file, its arguments (the name first), environment and working directory.

    It gets the files `opened` as descriptors from keeper.FIRST_OPENED on, and starts in these control groups (their
    folders). A `boxed` one only watches over the processes of a sandbox, which get the signals that are meant for it,
    unless it `relays` them by itself. `verdict` is a file in which it may leave word why it ended, "" = none.
    """

    path: str
    argv: Sequence[str]
    env: Mapping[str, str]
    cwd: str
    opened: Sequence[str] = ()
    groups: Sequence[str] = ()
    boxed: bool = False
    relays: bool = False
    verdict: str = ""


class Process:
    """A running program. `ended` gets the wait status when it and everything it started is gone."""

    def __init__(self, keeper: Keeper, identity: str, pid: int) -> None:
        self.pid = pid
        self.ended: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._keeper = keeper
        self._identity = identity

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to its process group; does nothing when it has ended."""
        if not self.ended.done():
            self._keeper.request({"op": "signal", "id": self._identity, "signal": int(number)})


class Keeper:
    """The keeper process, started when the first program is."""

    def __init__(self, remove: Sequence[Path] = ()) -> None:
        """`remove`: folders that the keeper removes at its end, also when this process was killed."""
        self._remove = remove
        self._popen: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None
        self._unsent: deque[tuple[bytes, Sequence[int]]] = deque()
        self._starting: dict[str, asyncio.Future[Process]] = {}
        self._running: dict[str, Process] = {}
        self._gone: asyncio.Future[None] | None = None
        self._sweeping: asyncio.Task[None] | None = None

    async def spawn(
        self, identity: str, program: Program, stdout: int, stderr: int, stdin: int | None = None
    ) -> Process:
        """Start a program; the descriptors are the caller's to close. Raises OSError when it can't be started.

        `identity` names it as long as it runs; its environment must carry it as FLAME_INSTANCE_ID.
        """
        if self._control is None:
            self.start()
        spec = os.memfd_create("flame-program")
        started: asyncio.Future[Process] = asyncio.get_running_loop().create_future()
        self._starting[identity] = started
        try:
            # Larger than a packet may be: environments and arguments have no limit worth the name.
            os.write(spec, msgspec.json.encode(program))
            os.lseek(spec, 0, os.SEEK_SET)
            self.request({"op": "spawn", "id": identity}, (spec, stdout, stderr, *(() if stdin is None else (stdin,))))
            return await asyncio.shield(started)
        except asyncio.CancelledError:
            # It may have been started all the same: nobody else would end it.
            await asyncio.wait({started})
            if started.exception() is None:
                process = started.result()
                process.signal(signal.SIGKILL)
                await asyncio.wait({process.ended})
            raise
        finally:
            os.close(spec)

    def start(self) -> None:
        """Start the keeper now, so that the first program does not wait for it."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            # -I -S: nothing of the user's may change it, and it starts in the time of a bare interpreter.
            command = [sys.executable, "-I", "-S", str(_SCRIPT), str(theirs.fileno()), *map(str, self._remove)]
            environment = {name: os.environ[name] for name in ("LD_LIBRARY_PATH",) if name in os.environ}
            self._popen = subprocess.Popen(
                command, pass_fds=(theirs.fileno(),), start_new_session=True, stdin=subprocess.DEVNULL, env=environment
            )
        # More than instances in sandboxes may have, and those are started with what the keeper has inherited.
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
        ours.setblocking(False)
        self._control = ours
        loop = asyncio.get_running_loop()
        self._gone = loop.create_future()
        loop.add_reader(ours.fileno(), self._read)

    def request(self, request: dict[str, object], descriptors: Sequence[int] = ()) -> None:
        """Send one request, later if the socket is full. With descriptors it must leave before they are closed."""
        if self._control is None:
            return
        packet = json.dumps(request).encode()
        # Duplicates, so that they live until the packet has left.
        self._unsent.append((packet, [os.dup(descriptor) for descriptor in descriptors]))
        if len(self._unsent) == 1:
            self._write()

    async def close(self) -> None:
        """End all programs and the keeper; returns when they are gone."""
        if self._control is None or self._gone is None:
            return
        gone = self._gone
        self._control.shutdown(socket.SHUT_WR)
        await gone

    def _write(self) -> None:
        assert self._control is not None
        loop = asyncio.get_running_loop()
        while self._unsent:
            packet, descriptors = self._unsent[0]
            try:
                socket.send_fds(self._control, [packet], list(descriptors))
            except BlockingIOError:
                loop.add_writer(self._control.fileno(), self._write)
                return
            except OSError as error:  # else the keeper is gone: _read finds out
                if error.errno == errno.ETOOMANYREFS:
                    self._happened({**json.loads(packet), "event": "failed", "error": error.strerror})
            self._unsent.popleft()
            for descriptor in descriptors:
                os.close(descriptor)
        loop.remove_writer(self._control.fileno())

    def _read(self) -> None:
        assert self._control is not None
        while True:
            try:
                packet = self._control.recv(_PACKET)
            except BlockingIOError:
                return
            except OSError:
                packet = b""
            if not packet:
                self._lost()
                return
            self._happened(json.loads(packet))

    def _happened(self, event: dict[str, object]) -> None:
        identity = str(event["id"])
        if event["event"] == "exited":
            _set(self._running.pop(identity).ended, int(str(event["status"])))
            return
        starting = self._starting.pop(identity)
        if event["event"] == "started":
            process = self._running[identity] = Process(self, identity, int(str(event["pid"])))
            _set(starting, process)
        elif not starting.done():
            starting.set_exception(OSError(str(event["error"])))

    def _lost(self) -> None:
        """The keeper is gone, and by the kernel's hand so are all instances."""
        assert self._control is not None
        assert self._popen is not None
        assert self._gone is not None
        loop = asyncio.get_running_loop()
        loop.remove_reader(self._control.fileno())
        loop.remove_writer(self._control.fileno())
        self._control.close()
        self._control = None
        for _, descriptors in self._unsent:
            for descriptor in descriptors:
                os.close(descriptor)
        self._unsent.clear()
        self._popen.wait()  # its end of the socket closed: it is ending at this moment
        starting, self._starting = self._starting, {}
        for waiter in starting.values():
            if not waiter.done():
                waiter.set_exception(OSError("the process that starts instances was killed"))
        self._sweeping = loop.create_task(self._sweep(self._gone))

    async def _sweep(self, gone: asyncio.Future[None]) -> None:
        """Make sure of it: what the instances had started is not the kernel's business."""
        running, self._running = self._running, {}
        if running:
            await asyncio.to_thread(kill_owned_by, set(running))
        for process in running.values():
            _set(process.ended, signal.SIGKILL)
        gone.set_result(None)


def _set(waiter: asyncio.Future[T], value: T) -> None:
    if not waiter.done():
        waiter.set_result(value)


def signal_of(status: int, *, boxed: bool = False) -> int:
    """The signal that a wait status tells of, 0 = none. What watches over a sandbox exits with 128 and the signal."""
    if os.WIFSIGNALED(status):
        return os.WTERMSIG(status)
    code = os.WEXITSTATUS(status)
    return code - 128 if boxed and 128 < code < 128 + signal.NSIG else 0


def describe_status(status: int, *, boxed: bool = False) -> str:
    """A wait status in words, such as "exited with status 3" or "was killed by SIGKILL"."""
    number = signal_of(status, boxed=boxed)
    if number:
        try:
            return f"was killed by {signal.Signals(number).name}"
        except ValueError:
            return f"was killed by signal {number}"
    return f"exited with status {os.waitstatus_to_exitcode(status)}"
