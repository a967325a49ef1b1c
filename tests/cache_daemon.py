"""An object cache as a real daemon on a free loopback port.

with CacheDaemon(tmp_path, storage=True) as cache:
    client = cache.client()
    cache.daemon.kill()     # SIGKILL
    cache.start()           # again, with the same files
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import yaml

from cluster import FOREIGN_PYTHON, FOREIGN_SCRIPTS, Daemon, free_ports
from flame.config import TlsConfig
from flame.objects import ObjectClient


class CacheDaemon:
    """`settings` are further keys of the section `cache`; `file_limit` the largest file that the daemon may write."""

    def __init__(
        self,
        folder: Path,
        *,
        storage: bool = False,
        settings: Mapping[str, object] | None = None,
        scheme: str = "grpc",
        file_limit: int | None = None,
        environ: Mapping[str, str] | None = None,
        host: str = "127.0.0.1",
    ) -> None:
        self.folder = folder
        self.port = free_ports(1)
        self.endpoint = f"{scheme}://{host}:{self.port}"
        self.storage = folder / "objects"
        self.home = folder / "home"
        self.home.mkdir(exist_ok=True)
        self._file_limit = file_limit
        self._environ = dict(environ or {})
        self._clients: list[ObjectClient] = []
        cache: dict[str, object] = {"endpoint": self.endpoint, **(settings or {})}
        if storage:
            cache["storage"] = str(self.storage)
        self.config = folder / f"cache-{self.port}.yaml"
        cluster = {"name": "test", "endpoint": "http://127.0.0.1:8080", "storage": "none"}
        self.config.write_text(yaml.safe_dump({"cluster": cluster, "cache": cache}))
        self.daemon: Daemon

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        for client in self._clients:
            client.close()
        self.daemon.stop()

    def start(self) -> Daemon:
        """Start it (again); returns when it listens."""
        command = [sys.executable, "-m", "flame.cache.daemon", "--config", str(self.config)]
        self.daemon = Daemon("flame-object-cache", command, self.environ(), self.folder)
        self.daemon.wait_for("is ready")
        if self._file_limit is not None:
            resource.prlimit(self.daemon.pid, resource.RLIMIT_FSIZE, (self._file_limit, self._file_limit))
        return self.daemon

    def client(self, tls: TlsConfig | None = None, **options: Any) -> ObjectClient:
        """A client of ours, closed at the end."""
        client = ObjectClient(self.endpoint, tls=tls, **options)
        self._clients.append(client)
        return client

    def environ(self, **more: str) -> dict[str, str]:
        """The environment for the daemon and its clients."""
        kept = {key: os.environ[key] for key in ("PATH", "LANG", "TMPDIR") if key in os.environ}
        return {
            **kept,
            "HOME": str(self.home),
            "FLAME_CACHE_ENDPOINT": self.endpoint,
            "FLAME_LOG": "debug",
            **self._environ,
            **more,
        }

    def foreign(self, script: str, *arguments: str, **environ: str) -> str:
        """Run a script of tests/conformance/foreign with the unmodified client; what it printed."""
        assert FOREIGN_PYTHON.exists(), "the unmodified client is not installed: run make foreign"
        command = [str(FOREIGN_PYTHON), str(FOREIGN_SCRIPTS / script), *arguments]
        done = subprocess.run(
            command,
            env=self.environ(**environ),
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        )
        assert done.returncode == 0, f"{script} failed:\n{done.stdout}\n{done.stderr}\n{self.daemon.log}"
        return done.stdout
