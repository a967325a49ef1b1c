"""How large images may be, how long it may take to have them, and how many are kept."""

from __future__ import annotations

import msgspec

GIB = 1024**3


class ImageLimits(msgspec.Struct, frozen=True):
    """Sizes in bytes, times in seconds. `max_bytes` and `max_files` are of one image, unpacked, `timeout` is for each
    thing that podman or tar does.

    More than `keep_count` images or `keep_bytes` are not kept, nor any that was not used for `keep_age`, unless they
    are in use.
    """

    max_bytes: int = 20 * GIB
    max_files: int = 1_000_000
    timeout: float = 900.0
    keep_count: int = 10
    keep_bytes: int = 50 * GIB
    keep_age: float = 7 * 24 * 3600.0
