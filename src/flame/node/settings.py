"""The settings of an executor manager."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import msgspec

from flame.config import TlsConfig
from flame.link import DEFAULT_MAX_PAYLOAD, Address
from flame.model.resources import Resources
from flame.model.states import Shim
from flame.packages.limits import StoreLimits
from flame.shims.container_limits import ImageLimits


class NodeSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Times are in seconds, sizes in bytes.

    `manager` is where the session manager's link listens, `name` the node's name (default: the host's). `capacity`
    None means what this machine has (capacity.py). `socket_dir` must have a short path and belong to this user only;
    None means the default (shims/reception.py). `endpoint`, `cache_endpoint` and `ca_file` are told to the instances.

    `grpc` is where the session manager listens for nodes over gRPC, None = nowhere: for when its link can't be reached.
    `labels`, `taints` and `max_executors` (0 = as many as fit) are what the node tells the scheduler of itself.
    `devices` None means the GPUs that are found; `gpu_fraction` executors may share one. `packages` is the folder where
    packages of applications are installed, which nodes of one machine may share; None means one in `work_dir`.
    """

    manager: Address
    work_dir: Path
    name: str = os.uname().nodename
    capacity: Resources | None = None
    socket_dir: Path | None = None
    grpc: Address | None = None
    tls: TlsConfig | None = None
    token: str = ""  # credential for the session manager where TLS and the socket's owner give none
    shim: Shim = Shim.HOST
    labels: Mapping[str, str] = {}
    taints: tuple[str, ...] = ()
    max_executors: int = 0
    devices: tuple[str, ...] | None = None
    gpu_fraction: int = 1
    warm_instances: int = 8  # started ahead on this node, for all applications
    warm_idle: float = 600.0  # after so long without work one of them ends
    endpoint: str = ""
    cache_endpoint: str = ""
    ca_file: str = ""
    max_payload: int = DEFAULT_MAX_PAYLOAD
    cache_ca_file: str = ""  # what object caches (grpcs) are checked with when packages are fetched from them
    packages: Path | None = None
    package_limits: StoreLimits = StoreLimits()
    image_limits: ImageLimits = ImageLimits()
    log_bytes: int = 4 * 1024 * 1024  # of each stream of each executor
    log_keep: float = 3600.0  # after an executor's end
    start_timeout: float = 60.0  # from process start to session entered, unless the application says otherwise
    cancel_grace: float = 2.0  # a task that does not stop when it is told to costs its instance
    terminate_grace: float = 2.0  # from SIGTERM to SIGKILL
    stop_grace: float = 5.0  # for executors to leave their session when this node stops
    heartbeat: float = 5.0
    reconnect_min: float = 0.1
    reconnect_max: float = 5.0
