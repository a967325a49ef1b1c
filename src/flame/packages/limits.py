"""How large packages may be and how long their installation may take."""

from __future__ import annotations

import msgspec

MIB = 1024**2
GIB = 1024**3


class ArchiveLimits(msgspec.Struct, frozen=True):
    """`max_bytes` and `max_files` of what is unpacked. More than `max_ratio` bytes from one byte of the archive are
    refused once `ratio_from` bytes are unpacked: that is a bomb, not a package."""

    max_bytes: int = 16 * GIB
    max_files: int = 200_000
    max_ratio: int = 200
    ratio_from: int = 64 * MIB


class StoreLimits(msgspec.Struct, frozen=True):
    """Sizes in bytes, times in seconds. `fetch_timeout` and `install_timeout` are for the whole of it, `stall_timeout`
    for a server that says nothing.

    More than `keep_count` packages or `keep_bytes` are not kept, unless they are in use or were a moment ago
    (`keep_recent`).
    """

    max_download: int = 4 * GIB
    fetch_timeout: float = 600.0
    stall_timeout: float = 30.0
    install_timeout: float = 900.0
    archive: ArchiveLimits = ArchiveLimits()
    keep_count: int = 50
    keep_bytes: int = 20 * GIB
    keep_recent: float = 60.0
