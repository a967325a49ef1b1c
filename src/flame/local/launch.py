"""Starting the daemon of a local cluster, and ending it."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import msgspec

from flame.local.registry import ClusterRecord, cluster_folder, find, listener, retire, sweep, take_lock
from flame.local.settings import DaemonSettings, Ready
from flame.model.errors import FlameError, InternalError, NotFoundError, TimedOutError, error_of

# A large journal takes its time to be read; whoever loses patience before has Ctrl-C.
START_TIMEOUT = 300.0
STOP_TIMEOUT = 30.0
LOG = "daemon.log"
_LOG_LINES = 10


class Daemon:
    """The process of a local cluster that this process started. It ends when this process ends, unless detached."""

    def __init__(self, settings: DaemonSettings) -> None:
        self.settings = settings
        self.log = Path(settings.data) / LOG
        self.endpoint = ""
        self._fault: FlameError | None = None  # why it did not start
        self._asking = threading.Lock()  # its one line is read once, whoever waits for it
        self._deadline = time.monotonic() + START_TIMEOUT
        with self.log.open("ab") as log:
            # A session of its own keeps the terminal's Ctrl-C from it: it ends when its standard input does.
            self._process = subprocess.Popen(
                [sys.executable, "-m", "flame.local.daemon", msgspec.json.encode(settings).decode()],
                stdin=subprocess.DEVNULL if settings.detached else subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,
                cwd="/",
            )

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether it has not ended yet."""
        return self._process.poll() is None

    def wait_ready(self) -> str:
        """Wait until clients can connect: the endpoint. Raises the daemon's error, with the last lines of its log; any
        number of threads may wait."""
        if self.endpoint:
            return self.endpoint
        with self._asking:
            if not self.endpoint and self._fault is None:
                try:
                    self.endpoint = self._started()
                except FlameError as error:
                    self._fault = error
                    raise
            if self._fault is not None:
                raise error_of(self._fault.code, self._fault.message, self._fault.remedy)
        return self.endpoint

    def _started(self) -> str:
        line = self._read_line()
        if not line:
            self.stop()
            raise InternalError(
                f"the local cluster ended while it started (exit code {self._process.returncode})",
                remedy=self.last_words(),
            )
        ready = msgspec.json.decode(line, type=Ready)
        if ready.error:
            self.stop()
            raise error_of(ready.code, ready.error, "\n".join(filter(None, (ready.remedy, self.last_words()))))
        if self.settings.detached and self._process.stdout is not None:
            self._process.stdout.close()
        return ready.endpoint

    def stop(self) -> None:
        """End it and wait for that; a daemon that does not end in time is killed. Harmless when it has ended."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        if self.settings.detached and self.running:
            self._process.terminate()
        try:
            self._process.wait(STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()

    def wait(self) -> str:
        """Wait until it ends by itself; the end of its log."""
        self._process.wait()
        return self.last_words()

    def obituary(self) -> str:
        """How it ended, and the end of its log."""
        code = self._process.returncode or 0
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        return f"the local cluster of this program {how}; {self.last_words()}"

    def forget(self) -> None:
        """Leave a detached daemon to itself."""
        self._process.returncode = 0

    def last_words(self) -> str:
        """How the log ends, and where it is unless it is about to go."""
        name = "its log" if self.settings.temporary else f"its log {self.log}"
        try:
            lines = self.log.read_text(errors="replace").splitlines()[-_LOG_LINES:]
        except OSError as error:
            return f"{name} can't be read: {error.strerror}"
        return "\n".join([f"{name} ends with", *lines]) if lines else f"{name} is empty"

    def _read_line(self) -> bytes:
        """The daemon's one line; empty when it ended without. Raises TimedOutError."""
        assert self._process.stdout is not None
        descriptor = self._process.stdout.fileno()
        line = b""
        while not line.endswith(b"\n"):
            left = self._deadline - time.monotonic()
            if left <= 0 or not _readable(descriptor, left):
                self._process.kill()
                raise TimedOutError(
                    f"the local cluster did not start within {START_TIMEOUT:g} s", remedy=self.last_words()
                )
            part = os.read(descriptor, 65536)
            if not part:
                return b""
            line += part
        return line


def launch(settings: DaemonSettings) -> Daemon:
    """Start a daemon; `wait_ready` on it tells when it can be used."""
    try:
        sweep()
        return Daemon(settings)
    except OSError as error:
        raise InternalError(f"the local cluster can't be started: {error}") from error


def stop_cluster(record: ClusterRecord) -> bool:
    """End a running cluster that any process of this user started, and wait for it. False when it had to be killed.

    Raises NotFoundError when it does not run any more.
    """
    folder = cluster_folder(record.name)
    pid = listener(folder)
    if pid is None:
        raise NotFoundError(f"the local cluster {record.name!r} is not running")
    process = os.pidfd_open(pid)
    try:
        signal.pidfd_send_signal(process, signal.SIGTERM)
        if _readable(process, STOP_TIMEOUT):
            return True
        signal.pidfd_send_signal(process, signal.SIGKILL)
        _readable(process, None)
    finally:
        os.close(process)
    lock = take_lock(folder)
    if lock is not None:
        retire(folder, record)
        os.close(lock)
    return False


def _readable(descriptor: int, timeout: float | None) -> bool:
    """Wait until there is something to read (of a process: until it ended); False after `timeout` seconds."""
    # Not select(): it knows no descriptors beyond 1023, and this may be a program with many.
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(None if timeout is None else timeout * 1000))


def running_cluster(name: str) -> ClusterRecord:
    """The running cluster of this name. Raises NotFoundError."""
    record = find(name)
    if record is None:
        raise NotFoundError(f"no local cluster {name!r} is running", remedy="start it with flmadm up --detach")
    return record
