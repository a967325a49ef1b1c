"""Components as this node compiled them, once each.

A compiled component is machine code that is trusted when it is loaded. So it is compiled by a process of the node's own
(flame.wasm.compiling), kept in a folder that sandboxes see only to read, and compared with what was noted of it before
it is used for the first time after a start.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import secrets
import shutil
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from platform import machine

import msgspec

from flame._version import __version__
from flame.model.errors import NotFoundError
from flame.model.states import BindCode
from flame.shims.processes import Program, describe_status
from flame.shims.shim import BindError
from flame.shims.workplace import Workshop

_FORM = "texts"  # of what flame.wasm.compiling makes: another one is compiled anew
REFUSED = 3  # the exit status of the compiler that says why a component can't be run
_AT_ONCE = 2
_MAX_SOURCE = 256 * 1024**2
_MAX_KEPT = 2 * 1024**3  # bytes of compiled components
_COMPILE_S = 300.0
_LAST_BYTES = 4000
_SETTLED_S = 60.0  # what was asked for in this time is about to be used


class Note(msgspec.Struct, frozen=True):
    """What is noted beside a compiled component, after it was written."""

    size: int
    digest: str


class Module:
    """A compiled component. It stays as long as it is held."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.holds = 0

    @property
    def identity(self) -> str:
        return self.path.stem

    def hold(self) -> None:
        """Keep it until `release`. Raises NotFoundError when it is gone."""
        if not self.path.exists():
            raise NotFoundError("the compiled component was removed meanwhile", remedy="it is compiled anew next time")
        self.holds += 1

    def release(self) -> None:
        """Undo one `hold`."""
        self.holds -= 1


class Modules:
    """The compiled components of a node, in `folder`, made by this version of wasmtime."""

    def __init__(self, workshop: Workshop, folder: Path, version: str, max_kept: int = _MAX_KEPT) -> None:
        self._workshop = workshop
        self._folder = folder
        self._version = version
        self._max_kept = max_kept
        self._known: dict[str, Module] = {}
        self._making: dict[str, asyncio.Task[Module]] = {}
        self._turns = asyncio.Semaphore(_AT_ONCE)

    def open(self) -> None:
        """Make the folder; remove what was not finished. Raises OSError."""
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for file in self._folder.iterdir():
            if not (file.suffix in (".note", ".cwasm") and file.with_suffix(".note").exists()):
                file.unlink(missing_ok=True)

    async def provide(self, source: Path, *, fuel: bool, portable: bool = False) -> Module:
        """The component of this file, compiled now if need be; for each processor of this machine's kind if it shall be
        `portable`. Raises BindError."""
        try:
            digest = await asyncio.to_thread(_digest_of_source, source)
        except OSError as error:
            raise BindError(BindCode.START, f"can't read component {str(source)!r}: {error.strerror}") from error
        options = [*(["--fuel"] if fuel else []), *(["--portable"] if portable else [])]
        key = _key(digest, self._version, options)
        making = self._making.get(key)
        if making is None:
            making = self._making[key] = asyncio.get_running_loop().create_task(
                self._make(key, source, digest, options)
            )
            making.add_done_callback(lambda done: self._made(key, done))
        # Others may wait for it too: it is made, whoever gives up.
        return await asyncio.shield(making)

    def _made(self, key: str, done: asyncio.Task[Module]) -> None:
        del self._making[key]
        if not done.cancelled():
            done.exception()  # whoever waited has seen it, or nobody waits any more

    async def _make(self, key: str, source: Path, digest: str, options: Sequence[str]) -> Module:
        known = self._known.get(key)
        if known is None or not known.path.exists():
            known = Module(self._folder / f"{key}.cwasm")
            if not await asyncio.to_thread(_is_whole, known.path):
                await self._compile(known.path, source, digest, options)
            self._known[key] = known
        await asyncio.to_thread(os.utime, known.path)
        return known

    async def _compile(self, target: Path, source: Path, digest: str, options: Sequence[str]) -> None:
        draft = self._folder / f"{secrets.token_hex(8)}.draft"
        arguments = [str(source), digest, str(draft), *options]
        try:
            async with self._turns:
                status, words = await self._run("flame.wasm.compiling", arguments)
            if status:
                why = words if os.WIFEXITED(status) and os.WEXITSTATUS(status) == REFUSED else ""
                why = why or f"the compiler {describe_status(status)}: {words or 'it said nothing'}"
                raise BindError(BindCode.START, f"can't run component {str(source)!r}: {why}")
            await asyncio.to_thread(self._keep, draft, target)
        except OSError as error:
            raise BindError(BindCode.START, f"can't keep a compiled component: {error}") from error
        finally:
            draft.unlink(missing_ok=True)

    async def _run(self, module: str, arguments: list[str]) -> tuple[int, str]:
        """Run a module of ours as a program: its wait status, and the end of what it wrote."""
        identity = f"compile-{secrets.token_hex(8)}"
        own = self._workshop.folder / identity  # by its name it is found after the keeper was killed
        own.mkdir(mode=0o700)
        output = os.memfd_create("flame-compiler")
        try:
            env = {"FLAME_INSTANCE_ID": identity, "TMPDIR": str(own), "PATH": os.defpath}
            argv = [sys.executable, "-I", "-m", module, *arguments]
            process = await self._workshop.keeper.spawn(
                identity, Program(sys.executable, argv, env, str(own)), output, output
            )
            done, _ = await asyncio.wait({process.ended}, timeout=_COMPILE_S)
            if not done:
                process.signal(signal.SIGKILL)
                await process.ended
                return process.ended.result(), f"it did not end within {_COMPILE_S:g} s"
            size = os.lseek(output, 0, os.SEEK_END)
            words = os.pread(output, _LAST_BYTES, max(0, size - _LAST_BYTES))
            return process.ended.result(), words.decode(errors="replace").strip()
        finally:
            os.close(output)
            await asyncio.to_thread(shutil.rmtree, own, ignore_errors=True)

    def _keep(self, draft: Path, target: Path) -> None:
        """The compiler has written the draft and ended. The note comes last: what has one is whole. Raises OSError."""
        note = Note(draft.stat().st_size, _digest(draft))
        self._make_room(note.size)
        draft.rename(target)
        noted = draft.with_suffix(".note-draft")
        with noted.open("wb") as file:
            file.write(msgspec.json.encode(note))
            file.flush()
            os.fsync(file.fileno())
        noted.rename(target.with_suffix(".note"))

    def _make_room(self, size: int) -> None:
        """Remove those that nobody uses, the longest unused first, until there is room for so many bytes."""
        files = [(file.stat(), file) for file in self._folder.glob("*.cwasm")]
        total = size + sum(status.st_size for status, _ in files)
        now = time.time()
        for status, file in sorted(files, key=lambda each: each[0].st_mtime):
            module = self._known.get(file.stem)
            used = (module is not None and module.holds) or now - status.st_mtime < _SETTLED_S
            if total <= self._max_kept or used:
                continue
            file.with_suffix(".note").unlink(missing_ok=True)  # first: without it the rest is no more than a leftover
            file.unlink(missing_ok=True)
            total -= status.st_size


def _key(digest: str, version: str, options: Sequence[str]) -> str:
    """The same for what is compiled to the same code."""
    parts = (digest, version, __version__, _FORM, machine(), _features(), *options)
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def _features() -> str:
    """What the first processor can do, as the kernel tells it: a folder may move to another machine."""
    for line in Path("/proc/cpuinfo").read_text(errors="replace").splitlines():
        name, _, value = line.partition(":")
        if name.strip() in ("flags", "Features"):
            return value.strip()
    return ""


def _digest_of_source(file: Path) -> str:
    """Raises OSError and BindError."""
    if file.stat().st_size > _MAX_SOURCE:
        raise BindError(BindCode.START, f"component {str(file)!r} is larger than {_MAX_SOURCE} bytes")
    return _digest(file)


def _digest(file: Path) -> str:
    """SHA-256 in hex. Raises OSError."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _is_whole(path: Path) -> bool:
    """Whether the compiled component is there, as it was noted."""
    try:
        note = msgspec.json.decode(path.with_suffix(".note").read_bytes(), type=Note)
        return path.stat().st_size == note.size and _digest(path) == note.digest
    except (OSError, msgspec.MsgspecError):
        return False
