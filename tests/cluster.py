"""A cluster of real daemons on free loopback ports, for tests that look at it from outside.

    with Cluster(tmp_path) as cluster:
        ...                                   # cluster.endpoint, cluster.link
        cluster.manager.kill()                # SIGKILL, by its own process id
        cluster.start_manager()               # again, with the same journal
        result = cluster.foreign("tasks.py")  # a script of tests/conformance/foreign, with the unmodified client

Readiness is an event: a line that the daemon writes. When a daemon ends too early, the error shows its log.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Self

import yaml

ROOT = Path(__file__).parent.parent
FOREIGN_PYTHON = ROOT / ".venv-foreign" / "bin" / "python"
FOREIGN_SCRIPTS = ROOT / "tests" / "conformance" / "foreign"
PATIENCE = 30.0  # seconds that a test waits for something that must come


class Daemon:
    """One process and what it wrote."""

    def __init__(self, name: str, command: list[str], environ: Mapping[str, str], folder: Path) -> None:
        self.name = name
        self.lines: list[str] = []
        self._changed = threading.Condition()
        self.process = subprocess.Popen(
            command, env=environ, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as stream:
            for line in stream:
                with self._changed:
                    self.lines.append(line.rstrip("\n"))
                    self._changed.notify_all()
        self.process.wait()
        with self._changed:
            self._changed.notify_all()

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def log(self) -> str:
        """Everything it wrote so far."""
        with self._changed:
            return "\n".join(self.lines)

    def wait_for(self, text: str, *, after: int = 0) -> None:
        """Until a line (from number `after` on) holds the text. Raises AssertionError when the process ends first."""

        def seen() -> bool:
            return any(text in line for line in self.lines[after:]) or self.process.poll() is not None

        with self._changed:
            self._changed.wait_for(seen, PATIENCE)
            found = any(text in line for line in self.lines[after:])
        assert found, f"{self.name} did not say {text!r} (exit status {self.process.poll()}):\n{self.log}"

    def stop(self) -> int:
        """SIGTERM, and its exit status."""
        return self._end(signal.SIGTERM)

    def kill(self) -> int:
        """SIGKILL, and its exit status."""
        return self._end(signal.SIGKILL)

    def _end(self, number: signal.Signals) -> int:
        if self.process.poll() is None:
            self.process.send_signal(number)
        try:
            status = self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise AssertionError(f"{self.name} did not end after {number.name}:\n{self.log}") from None
        self._reader.join()
        return status


class Cluster:
    """A session manager and its nodes. `settings` are further keys of the cluster file's section `cluster`, `cache` is
    the address of an object cache."""

    def __init__(
        self,
        folder: Path,
        *,
        storage: str | None = None,
        nodes: int = 1,
        capacity: str = "cpu=2,mem=4g",
        settings: Mapping[str, object] | None = None,
        scheme: str = "http",
        cache: str = "",
    ) -> None:
        folder.mkdir(exist_ok=True)
        self.folder = folder
        self.port = free_ports(4)
        self.endpoint = f"{scheme}://127.0.0.1:{self.port}"
        self.link = f"tcp:127.0.0.1:{self.port + 2}"
        self.http = f"{scheme}://127.0.0.1:{self.port + 3}"
        self.home = folder / "home"
        self.home.mkdir()
        self.config = folder / "flame-cluster.yaml"
        cluster: dict[str, object] = {
            "name": "test",
            "endpoint": self.endpoint,
            "storage": storage or f"sqlite://{folder}/flame.db",
            "executors": {"capacity": capacity},
            **(settings or {}),
        }
        self.config.write_text(
            yaml.safe_dump({"cluster": cluster, **({"cache": {"endpoint": cache}} if cache else {})})
        )
        self.manager: Daemon
        self.nodes: dict[str, Daemon] = {}
        self._names = [f"node-{number}" for number in range(1, nodes + 1)]

    def __enter__(self) -> Self:
        try:
            self.start_manager()
            for name in self._names:
                self.start_node(name)
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start_manager(self, script: Path | None = None) -> Daemon:
        """Start the session manager (again), or a script that runs it; returns when it listens."""
        self.manager = self._daemon("flame-session-manager", [], script)
        self.manager.wait_for("is ready")
        return self.manager

    def start_node(self, name: str, *arguments: str) -> Daemon:
        """Start an executor manager (again); returns when the session manager knows it."""
        said = len(self.manager.lines)
        node = self.nodes[name] = self._daemon(
            "flame-executor-manager", ["--name", name, "--work-dir", str(self.folder / name), *arguments]
        )
        self.manager.wait_for(f"node_joined node={name} ", after=said)
        return node

    def stop(self) -> None:
        """End what still runs."""
        for daemon in [*self.nodes.values(), *([self.manager] if hasattr(self, "manager") else [])]:
            daemon.stop()

    def environ(self, **more: str) -> dict[str, str]:
        """The environment for daemons and clients of this cluster."""
        names = ("PATH", "LANG", "TMPDIR", "FLAME_SOCKET_DIR", "FLAME_MICROVM_CACHE")
        kept = {key: os.environ[key] for key in names if key in os.environ}
        path = os.pathsep.join((str(Path(sys.executable).parent), kept.get("PATH", os.defpath)))
        return {**kept, "PATH": path, "HOME": str(self.home), "FLAME_ENDPOINT": self.endpoint, **more}

    def _daemon(self, program: str, arguments: list[str], script: Path | None = None) -> Daemon:
        module = {"flame-session-manager": "flame.manager.daemon", "flame-executor-manager": "flame.node.daemon"}
        what = ["-m", module[program]] if script is None else [str(script)]
        command = [sys.executable, *what, "--config", str(self.config), *arguments]
        return Daemon(program, command, self.environ(), self.folder)

    def foreign(self, script: str, *arguments: str) -> str:
        """Run a script of tests/conformance/foreign with the unmodified client; what it printed."""
        assert FOREIGN_PYTHON.exists(), "the unmodified client is not installed: run make foreign"
        command = [str(FOREIGN_PYTHON), str(FOREIGN_SCRIPTS / script), *arguments]
        done = subprocess.run(
            command, env=self.environ(), cwd=self.folder, capture_output=True, text=True, timeout=100, check=False
        )
        assert done.returncode == 0, f"{script} failed:\n{done.stdout}\n{done.stderr}\n{self.manager.log}"
        return done.stdout


def free_ports(count: int) -> int:
    """The first of `count` neighbouring TCP ports that are free on the loopback now."""
    while True:
        with socket.socket() as first:
            first.bind(("127.0.0.1", 0))
            port: int = first.getsockname()[1]
            rest = [socket.socket() for _ in range(count - 1)]
            try:
                for number, one in enumerate(rest, 1):
                    one.bind(("127.0.0.1", port + number))
            except (OSError, OverflowError):
                continue
            finally:
                for one in rest:
                    one.close()
        return port
