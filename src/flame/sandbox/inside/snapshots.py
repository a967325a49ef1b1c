"""Snapshots: the working folder as an archive, with the kernel's variables beside it; made and taken over.

An archive is a compressed tar: `about.json`, `variables` if there are any, and `files/...`. It is made while nothing
of the sandbox runs, so its files fit together.
"""

from __future__ import annotations

import asyncio
import gzip
import io
import json
import os
import queue
import stat
import tarfile
import threading
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, cast

from flame.model.errors import InvalidArgumentError
from flame.sandbox.wire import PIECE, Part

_ABOUT, _VARIABLES, _FILES = "about.json", "variables", "files"
_AHEAD = 4  # pieces that wait to be fetched
_LEVEL = 1  # of compression: files of a sandbox are taken and restored, not kept for years


class Taking:
    """A snapshot that is being made, in a thread. `fetch` gives it piece by piece."""

    def __init__(self, folder: str, variables: Path | None, about: Mapping[str, Any], skipped: dict[str, str]) -> None:
        self._pieces: queue.Queue[bytes | Exception | None] = queue.Queue(_AHEAD)
        self._gone = threading.Event()
        self._skipped = skipped
        threading.Thread(target=self._make, args=(folder, variables, about), name="flame-snapshot", daemon=True).start()

    async def fetch(self) -> Part:
        """The next piece. Raises OSError when the files can't be read."""
        piece = await asyncio.to_thread(self._pieces.get)
        if isinstance(piece, Exception):
            raise piece
        return Part(piece) if piece is not None else Part(b"", end=True, skipped=self._skipped)

    def give_up(self) -> None:
        """Nobody fetches the rest."""
        self._gone.set()
        while True:
            try:
                self._pieces.get_nowait()
            except queue.Empty:
                return

    def _make(self, folder: str, variables: Path | None, about: Mapping[str, Any]) -> None:
        try:
            writer = io.BufferedWriter(_Pieces(self._pieces, self._gone), PIECE)
            with (
                gzip.GzipFile(fileobj=cast("BinaryIO", writer), mode="wb", compresslevel=_LEVEL, mtime=0) as packed,
                tarfile.open(fileobj=packed, mode="w|", format=tarfile.PAX_FORMAT, dereference=False) as archive,
            ):
                described = json.dumps(dict(about)).encode()
                entry = tarfile.TarInfo(_ABOUT)
                entry.size = len(described)
                archive.addfile(entry, io.BytesIO(described))
                if variables is not None:
                    archive.add(variables, _VARIABLES)
                archive.add(folder, _FILES, filter=_kept)
            writer.flush()
            ended: Exception | None = None
        except Exception as error:
            ended = error if isinstance(error, OSError) else OSError(f"{type(error).__name__}: {error}")
        if variables is not None:
            variables.unlink(missing_ok=True)
        self._put(ended)

    def _put(self, piece: bytes | Exception | None) -> None:
        if not self._gone.is_set():
            self._pieces.put(piece)


class _Pieces(io.RawIOBase):
    """Where the archive is written to."""

    def __init__(self, pieces: queue.Queue[bytes | Exception | None], gone: threading.Event) -> None:
        self._pieces = pieces
        self._gone = gone

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        if self._gone.is_set():
            raise OSError("nobody fetches this snapshot any more")
        self._pieces.put(bytes(data))
        return len(data)


def _kept(entry: tarfile.TarInfo) -> tarfile.TarInfo | None:
    """Files, folders and links; pipes, sockets and devices are left out."""
    if not (entry.isreg() or entry.isdir() or entry.issym() or entry.islnk()):
        return None
    entry.uid = entry.gid = 0
    entry.uname = entry.gname = ""
    entry.mode = stat.S_IMODE(entry.mode) & 0o777
    return entry


def unpack(file: int, folder: str, variables: Path) -> dict[str, Any]:
    """Put the files of an archive, which is closed, into a folder; answers what it says about itself.

    `variables` is where those go, if there are any. Nothing is written outside of the
    folder, whatever the archive says: links are made last, so nothing is written through one of its own, and the folder
    has none that leads elsewhere before. Raises InvalidArgumentError for what is no such archive.
    """
    about: dict[str, Any] = {}
    links: list[tarfile.TarInfo] = []
    folders: list[tarfile.TarInfo] = []
    try:
        with (
            os.fdopen(file, "rb") as raw,
            gzip.GzipFile(fileobj=raw) as packed,
            tarfile.open(fileobj=packed, mode="r|") as archive,
        ):
            for entry in archive:
                path = PurePosixPath(entry.name)
                if entry.name == _ABOUT and entry.isreg():
                    about = json.loads(_content(archive, entry))
                elif entry.name == _VARIABLES and entry.isreg():
                    variables.write_bytes(_content(archive, entry))
                elif path.parts[:1] == (_FILES,) and len(path.parts) > 1:
                    inside = entry.replace(name=str(PurePosixPath(*path.parts[1:])), deep=False)
                    if entry.issym():
                        links.append(inside)
                        continue
                    if entry.islnk():
                        target = PurePosixPath(entry.linkname)
                        if target.parts[:1] != (_FILES,):
                            raise InvalidArgumentError(f"the snapshot has a link out of its files: {entry.name}")
                        inside.linkname = str(PurePosixPath(*target.parts[1:]))
                    archive.extract(inside, folder, filter="data")
                    if entry.isdir():
                        folders.append(inside)
            for link in links:
                _make_link(link, folder)
            for made in reversed(folders):  # now, since nothing can be made in some of them; no link took their place
                Path(folder, made.name).chmod(made.mode & 0o777)
    except (tarfile.TarError, OSError, EOFError, ValueError) as error:
        raise InvalidArgumentError(f"this snapshot can't be taken over: {error}") from None
    return about


def _content(archive: tarfile.TarFile, entry: tarfile.TarInfo) -> bytes:
    found = archive.extractfile(entry)
    assert found is not None
    return found.read()


def _make_link(link: tarfile.TarInfo, folder: str) -> None:
    """Links may lead anywhere, as those that were made by hand; only the link itself has to be inside."""
    path = Path(folder, link.name)
    if ".." in PurePosixPath(link.name).parts or not path.parent.resolve().is_relative_to(Path(folder).resolve()):
        raise InvalidArgumentError(f"the snapshot has a link outside of its files: {link.name}")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    path.symlink_to(link.linkname)
