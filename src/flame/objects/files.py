"""Files that go into a cache and come out of it."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from pathlib import Path

from flame.model.errors import InvalidStateError
from flame.objects.codecs import Payload
from flame.objects.messages import CHUNK


def file_payload(path: Path, size: int) -> Payload:
    """The bytes of a file, as they are."""

    def write(buffer: memoryview) -> None:
        with path.open("rb", buffering=0) as stream:
            place = 0
            while place < size:
                got = stream.readinto(buffer[place:])
                if not got:
                    raise _shrunk(path, size)
                place += got

    return Payload(size, write)


def file_pieces(path: Path, size: int) -> Iterator[bytes]:
    """The bytes of a file, piece by piece."""
    with path.open("rb", buffering=0) as stream:
        left = size
        while left:
            piece = stream.read(min(CHUNK, left))
            if not piece:
                raise _shrunk(path, size)
            left -= len(piece)
            yield piece


def download_to(path: Path, fill: Callable[[Callable[[memoryview], object]], object]) -> None:
    """Let `fill` write a file; it gets its name when it is whole, else it is removed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name[:100]}.{secrets.token_hex(6)}")
    try:
        with draft.open("xb") as stream:
            fill(stream.write)
        draft.replace(path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise


def _shrunk(path: Path, size: int) -> InvalidStateError:
    return InvalidStateError(f"{path} became shorter than its {size} bytes while it was read")
