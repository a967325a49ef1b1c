"""The embedded cluster: all of Flame for this machine, in one process beside the caller's."""

from __future__ import annotations

import atexit
import contextlib
import os
import shutil
import threading
from pathlib import Path
from typing import Self

from flame.local.folders import private_folder, state_root, temporary_folder
from flame.local.launch import Daemon, launch
from flame.local.registry import DEFAULT_NAME, ClusterRecord, cluster_folder, find
from flame.local.settings import DaemonSettings
from flame.model.errors import AlreadyExistsError, FlameError, InvalidArgumentError, InvalidStateError, NotFoundError
from flame.model.resources import Resources


class Cluster:
    """A cluster that runs while this object is started, at the latest until this process ends.

    `executors`: how many unit executors (one core each) run at once, None = one per core. `storage`: `none`,
    `sqlite://FILE` or `fs://FOLDER`, None = a SQLite journal in the cluster's own folder. `listen`: HOST:PORT where
    clients that speak gRPC connect, with the link for clients on other machines at PORT + 2, and health and metrics
    over HTTP at PORT + 3. `cache`: HOST:PORT where the object cache listens for such clients, or `off`; None: there is
    one for programs of this user on this machine, started when it is needed, unless `listen` is set. `config`: a
    flame-cluster.yaml for limits, TLS files and the unit request. `name`: None makes an anonymous one whose data is
    removed when it ends; a named one keeps its data and can be found by other processes. `detach`: it goes on when this
    process ends.

        with Cluster(executors=4) as cluster:
            connection = flame.connect(cluster.endpoint)
    """

    def __init__(
        self,
        executors: int | None = None,
        storage: str | None = None,
        *,
        name: str | None = None,
        listen: str | None = None,
        cache: str | None = None,
        config: str | Path | None = None,
        capacity: Resources | None = None,
        temporary: bool | None = None,
        insecure: bool = False,
        detach: bool = False,
    ) -> None:
        if executors is not None and executors < 1:
            raise InvalidArgumentError(f"a cluster needs at least one executor, not {executors}")
        self.name = name or f"{os.getpid()}-{os.urandom(3).hex()}"
        self._anonymous = name is None
        self._executors = executors
        self._storage = storage
        self._listen = listen
        self._cache = cache
        self._config = Path(config).absolute() if config is not None else None
        self._capacity = capacity
        self._temporary = self._anonymous if temporary is None else temporary
        self._insecure = insecure
        self._detach = detach
        self._daemon: Daemon | None = None
        self._owner = os.getpid()

    @property
    def endpoint(self) -> str:
        """Where clients connect, such as unix:/run/user/1000/flame/x/link.sock. Raises InvalidStateError."""
        if self._daemon is None:
            raise InvalidStateError("the cluster is not started", remedy="use it in a with statement or call start()")
        try:
            return self._daemon.wait_ready()
        except FlameError:
            self._clear(self._daemon)  # who asks for a cluster from now on gets another one
            raise

    @property
    def belongs_here(self) -> bool:
        """Whether it was started by this very process, to end with it."""
        return not self._detach and self._owner == os.getpid()

    @property
    def lost(self) -> str:
        """What became of it when it ended though nobody stopped it, with the end of its log; empty otherwise."""
        daemon = self._daemon
        return "" if daemon is None or not daemon.endpoint or daemon.running else daemon.obituary()

    @property
    def log(self) -> Path:
        """The file with what the cluster logs. Raises InvalidStateError."""
        if self._daemon is None:
            raise InvalidStateError("the cluster is not started", remedy="use it in a with statement or call start()")
        return self._daemon.log

    @property
    def pid(self) -> int:
        """The process of the cluster. Raises InvalidStateError."""
        if self._daemon is None:
            raise InvalidStateError("the cluster is not started", remedy="use it in a with statement or call start()")
        return self._daemon.pid

    def reachable_at(self, endpoint: str) -> bool:
        """Whether this was its endpoint when it started."""
        return self._daemon is not None and self._daemon.endpoint == endpoint

    def start(self, *, wait: bool = True) -> Self:
        """Start it, and wait until clients can connect unless told not to. Raises FlameError."""
        if self._daemon is not None:
            raise InvalidStateError("the cluster is started already")
        if not self._anonymous and find(self.name) is not None:
            raise AlreadyExistsError(f"the local cluster {self.name!r} is running already", remedy="see flmadm status")
        folder = cluster_folder(self.name)
        data = temporary_folder(self.name) if self._temporary else _lasting_folder(self.name)
        self._daemon = launch(
            DaemonSettings(
                name=self.name,
                folder=str(folder),
                data=str(data),
                storage=self._storage or "",
                temporary=self._temporary,
                executors=self._executors,
                capacity=self._capacity,
                listen=self._listen,
                cache=self._cache,
                config=str(self._config) if self._config is not None else None,
                insecure=self._insecure,
                detached=self._detach,
                anonymous=self._anonymous,
            )
        )
        _started.append(self)
        if wait:
            try:
                self._daemon.wait_ready()
            except BaseException:
                self._end()
                raise
            if self._detach:
                self._daemon.forget()
        return self

    def stop(self) -> None:
        """End it, and everything that runs in it; harmless when it is not started."""
        # A forked child has a copy of this object but not of the cluster.
        if self._owner == os.getpid():
            self._end()

    def wait(self) -> str:
        """Wait until it ends by itself; what it said last. Raises InvalidStateError when it is not started."""
        if self._daemon is None:
            raise InvalidStateError("the cluster is not started")
        return self._daemon.wait()

    def __enter__(self) -> Self:
        return self if self._daemon is not None else self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _end(self) -> None:
        daemon, self._daemon = self._daemon, None
        if daemon is not None:
            daemon.stop()
            self._clear(daemon)

    def _clear(self, daemon: Daemon) -> None:
        """Its daemon has ended."""
        with contextlib.suppress(ValueError):  # another thread was quicker
            _started.remove(self)
        # Where all went well nothing of this is left; a daemon that failed left its log to be read.
        if self._temporary:
            shutil.rmtree(daemon.settings.data, ignore_errors=True)
        if self._anonymous:
            shutil.rmtree(daemon.settings.folder, ignore_errors=True)


def default_endpoint() -> str:
    """The endpoint of the local cluster: one that this process started, or a running one, or a new one.

    The running one is that of $FLAME_CLUSTER, else the one named `default`, which `flmadm up` starts. A new one ends
    with this process. Raises FlameError.
    """
    return find_or_start().endpoint


def lost_cluster(endpoint: str) -> str:
    """What became of the cluster at this endpoint, if this process started it and it ended by itself: nobody will start
    it again. Empty otherwise."""
    own = (cluster for cluster in list(_started) if cluster.belongs_here and cluster.reachable_at(endpoint))
    return next((cluster.lost for cluster in own), "")


def find_or_start() -> Cluster | ClusterRecord:
    """What `default_endpoint` means. A new cluster may still be starting; its `endpoint` waits for it."""
    with _lock:
        mine = next((cluster for cluster in reversed(_started) if cluster.belongs_here and not cluster.lost), None)
        if mine is not None:
            return mine
        name = os.environ.get("FLAME_CLUSTER")
        record = find(name or DEFAULT_NAME)
        if record is not None:
            return record
        if name:
            raise NotFoundError(
                f"no local cluster {name!r} is running", remedy="start it with flmadm up, or unset FLAME_CLUSTER"
            )
        return Cluster().start(wait=False)


def _lasting_folder(name: str) -> Path:
    root = state_root()
    root.mkdir(mode=0o700, parents=True, exist_ok=True)
    return private_folder(root / name)


_started: list[Cluster] = []
_lock = threading.Lock()


@atexit.register
def _stop_all() -> None:
    for cluster in [cluster for cluster in _started if cluster.belongs_here]:
        cluster.stop()
