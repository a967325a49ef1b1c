"""Which local clusters run: one folder each, with a socket, a small JSON file about it, and a lock held for life."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import socket
import struct
from pathlib import Path

import msgspec

from flame.local.folders import check_name, private_folder, runtime_root

SOCKET = "link.sock"
RECORD = "cluster.json"
LOCK = "lock"
DEFAULT_NAME = "default"


class ClusterRecord(msgspec.Struct, frozen=True):
    """A running cluster. `endpoint` is what clients connect to, `listen` the gRPC endpoint for others, if it has one,
    `cache` that of the object cache.

    `temporary`: its data goes when it ends. `anonymous`: it belongs to one process and has a name that nobody will use
    again. `started` in Unix seconds.
    """

    name: str
    pid: int
    endpoint: str
    storage: str
    data: str
    log: str
    version: str
    started: float
    temporary: bool = False
    anonymous: bool = False
    listen: str | None = None
    cache: str = ""


def cluster_folder(name: str) -> Path:
    """The private folder of one cluster, made when it is missing."""
    return private_folder(runtime_root() / check_name(name))


def write_record(folder: Path, record: ClusterRecord) -> None:
    """Publish the record; a reader sees the whole of it or nothing."""
    fresh = folder / f"{RECORD}.new"
    fresh.write_bytes(msgspec.json.encode(record))
    fresh.replace(folder / RECORD)


def read_record(folder: Path) -> ClusterRecord | None:
    """The record in a folder, None when there is none or it is not ours to understand."""
    try:
        return msgspec.json.decode((folder / RECORD).read_bytes(), type=ClusterRecord)
    except (OSError, msgspec.MsgspecError):
        return None


def find(name: str) -> ClusterRecord | None:
    """The cluster of this name, if it runs: its socket has to answer."""
    folder = runtime_root() / check_name(name)
    record = read_record(folder)
    return record if record is not None and listener(folder) is not None else None


def running() -> list[ClusterRecord]:
    """All local clusters of this user that answer, by name."""
    found: list[ClusterRecord] = []
    for folder in sorted(runtime_root().iterdir()):
        record = read_record(folder)
        if record is not None and listener(folder) is not None:
            found.append(record)
    return found


def listener(folder: Path) -> int | None:
    """The process that listens on the cluster's socket, None when nobody does.

    The kernel says who it is, so a number in an old file is never trusted.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(2)
        try:
            probe.connect(str(folder / SOCKET))
        except OSError:
            return None
        credentials = probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        return struct.unpack("3i", credentials)[0]


def take_lock(folder: Path) -> int | None:
    """Become the one process of this cluster until it ends: the open lock, None when another one is."""
    lock = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(lock)
        return None
    return lock


def sweep() -> None:
    """Remove what temporary clusters left behind that were killed."""
    for folder in runtime_root().iterdir():
        record = read_record(folder)
        if record is None or not record.temporary:
            continue
        with contextlib.suppress(OSError):
            lock = take_lock(folder)
            if lock is not None:
                try:
                    retire(folder, record)
                finally:
                    os.close(lock)


def retire(folder: Path, record: ClusterRecord, *, keep_data: bool = False) -> None:
    """Take a cluster out of the registry, with its data when they were temporary. The caller holds its lock."""
    if record.temporary and not keep_data:
        shutil.rmtree(record.data, ignore_errors=True)
    if record.anonymous:
        shutil.rmtree(folder, ignore_errors=True)
    else:
        # The folder and its lock stay: the next cluster of this name may be waiting for it.
        for name in (SOCKET, RECORD):
            (folder / name).unlink(missing_ok=True)
