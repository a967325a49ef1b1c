"""What a local cluster is started with."""

from __future__ import annotations

import msgspec

from flame.model.resources import Resources


class DaemonSettings(msgspec.Struct, frozen=True):
    """The command line of the daemon, as JSON. Paths are absolute.

    `executors` None = as many as the machine's cores; `listen` is HOST:PORT of the gRPC frontend for other clients;
    `cache` is HOST:PORT of the object cache for them, or `off`; `config` a flame-cluster.yaml with limits and TLS
    files; `capacity` overrides what the node finds.
    """

    name: str
    folder: str
    data: str
    storage: str
    temporary: bool = False
    executors: int | None = None
    capacity: Resources | None = None
    listen: str | None = None
    cache: str | None = None
    config: str | None = None
    insecure: bool = False
    detached: bool = False
    anonymous: bool = False


class Ready(msgspec.Struct, frozen=True):
    """What the daemon says on its standard output once clients can connect, or why they never will."""

    endpoint: str = ""
    pid: int = 0
    error: str = ""
    remedy: str = ""
    code: int = 0
