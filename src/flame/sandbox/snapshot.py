"""`Snapshot`: the files and variables of a sandbox, to begin others with."""

from __future__ import annotations

import json
import os
import tempfile
import weakref
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

from flame.client.values import short_name
from flame.model.errors import InvalidArgumentError
from flame.sandbox import wire
from flame.sandbox.steps import Steps, Tell, ask, ask_all, do

_MARK = b"flame-snapshot 1 "
_AHEAD = 4
_MAX_HEADER = 16 * 1024**2


class Snapshot:
    """The files of a sandbox's working folder and the variables of its kernel, as they were at one moment.

    Not the memory of programs that run, no files elsewhere, and no pipes, sockets and devices. `skipped` names the
    variables that could not be taken, with the reason. It can begin any number of sandboxes. Its data are a temporary
    file, which goes with the object unless `save` was called.
    """

    def __init__(self, skipped: Mapping[str, str] | None = None) -> None:
        """Made by `Sandbox.snapshot` and `load`."""
        self.skipped: dict[str, str] = dict(skipped or {})
        self.size = 0  # bytes of its data
        with tempfile.TemporaryFile() as file:
            self._file = os.dup(file.fileno())
        weakref.finalize(self, os.close, self._file)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write it to a file, which takes the place of one of this name. Raises OSError."""
        target = Path(path)
        descriptor, name = tempfile.mkstemp(dir=target.absolute().parent, prefix=f".{target.name}.")
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(_MARK + json.dumps({"skipped": self.skipped}).encode() + b"\n")
                for piece in self.pieces():
                    file.write(piece)
            Path(name).replace(target)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Snapshot:
        """Read one that was saved. Raises OSError, InvalidArgumentError.

        Only a sandbox unpacks it, into its own working folder; but whoever wrote it decides what runs there.
        """
        with Path(path).open("rb") as file:
            header = file.readline(_MAX_HEADER)
            try:
                if not header.startswith(_MARK):
                    raise ValueError
                about = cast("dict[str, Any]", json.loads(header[len(_MARK) :]))
                made = cls({str(name): str(why) for name, why in dict(about["skipped"]).items()})
            except (ValueError, KeyError, TypeError):
                raise InvalidArgumentError(f"{os.fspath(path)} is no snapshot of a sandbox") from None
            while piece := file.read(wire.PIECE):
                made.add(piece)
        return made

    def add(self, piece: bytes) -> None:
        """Append to its data."""
        view = memoryview(piece)
        while view:
            written = os.pwrite(self._file, view, self.size)
            view = view[written:]
            self.size += written

    def pieces(self) -> Iterator[bytes]:
        """Its data."""
        at = 0
        while at < self.size:
            piece = os.pread(self._file, wire.PIECE, at)
            at += len(piece)
            yield piece

    def __repr__(self) -> str:
        return f"<Snapshot of {self.size} bytes>"


def take() -> Steps[Snapshot]:
    """Take one of a sandbox."""
    name = short_name("snapshot")
    made = Snapshot()
    try:
        yield from do(wire.TakeSnapshot(name))
        while True:
            part = yield from ask(wire.ReadSnapshot(name), wire.Part)
            made.add(part.data)
            if part.end:
                made.skipped.update(part.skipped)
                return made
    except BaseException:
        yield Tell(wire.EndSnapshot(name))
        raise


def restore(snapshot: Snapshot) -> Steps[None]:
    """Take over a snapshot in a new sandbox."""
    name = short_name("snapshot")
    calls: list[wire.Spool] = []
    for piece in snapshot.pieces():
        calls.append(wire.Spool(name, piece))
        if len(calls) >= _AHEAD:
            yield from ask_all(calls, wire.Done)
            calls = []
    yield from ask_all(calls, wire.Done)
    yield from do(wire.Restore(name))
