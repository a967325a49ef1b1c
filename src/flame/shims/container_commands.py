"""What is run for images, podman and tar: below the keeper, so that it ends with the node, and held to limits."""

from __future__ import annotations

import asyncio
import os
import resource
import secrets
import shutil
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from flame.model.states import BindCode
from flame.shims.container_limits import ImageLimits
from flame.shims.processes import Keeper, Process, Program
from flame.shims.removal import remove_tree
from flame.shims.shim import BindError

_CHUNK = 64 * 1024
_LAST_BYTES = 4000
_LAST_CHARACTERS = 1000
_LOOK_S = 0.2
# podman writes a layer as it comes, then unpacked to a process of its own, which writes it to the disk.
_TIMES_WRITTEN = 3


class Done(msgspec.Struct, frozen=True):
    """How a command ended: its exit status, what it wrote to stdout, and the end of what it wrote to stderr."""

    status: int
    text: str
    words: str


class TooMuchError(Exception):
    """It was ended because it did more than the limits allow; the text says what."""


class Commands:
    """Runs them. Each has a folder in `folder` meanwhile, by whose name it is found after the keeper was killed."""

    def __init__(self, keeper: Keeper, folder: Path, environ: Mapping[str, str], limits: ImageLimits) -> None:
        self._keeper = keeper
        self._folder = folder
        self._environ = environ
        self._limits = limits

    async def run(self, *command: str, listing: bool = False, most: int = 0) -> Done:
        """Run it to its end. No file that it writes is larger than an image may be, or than `most` bytes where that is
        more, nor is all of it much more; `listing` means that each line on stdout stands for a file of an image, and
        they are counted and not kept. Raises TooMuchError and OSError."""
        identity = f"image-{secrets.token_hex(8)}"
        own = self._folder / identity
        own.mkdir(mode=0o700)
        words = os.memfd_create("flame-words")
        try:
            program = Program(
                shutil.which(command[0], path=self._environ.get("PATH")) or command[0],
                command,
                {**self._environ, "FLAME_INSTANCE_ID": identity, "TMPDIR": str(own)},
                str(own),
            )
            return await self._run(identity, program, words, max(most, self._limits.max_bytes), listing=listing)
        finally:
            os.close(words)
            await asyncio.to_thread(remove_tree, own)

    async def do(self, *command: str, listing: bool = False, most: int = 0) -> None:
        """The same; raises BindError with code 10 too, when it fails."""
        done = await self.run(*command, listing=listing, most=most)
        if done.status:
            why = reason(done.words) or f"it exits with status {done.status}"
            raise BindError(BindCode.INSTALL, f"can't unpack the image: {Path(command[0]).name}: {why}")

    async def _run(self, identity: str, program: Program, words: int, most: int, *, listing: bool) -> Done:
        reading, writing = os.pipe2(os.O_CLOEXEC)
        try:
            process = await self._keeper.spawn(identity, program, writing, words)
        except BaseException:
            os.close(reading)
            raise
        finally:
            os.close(writing)
        jobs: list[asyncio.Task[object]] = []
        try:
            async with asyncio.timeout(self._limits.timeout):
                jobs = [asyncio.ensure_future(self._watch(process, most))]
                text = asyncio.ensure_future(self._read(reading, listing=listing))
                jobs.append(text)
                for job in asyncio.as_completed(jobs):
                    await job
            status = os.waitstatus_to_exitcode(await asyncio.shield(process.ended))
        except TimeoutError:
            raise TooMuchError(
                f"{Path(program.path).name} did not end within {self._limits.timeout:g} s (executors.images.timeout)"
            ) from None
        finally:
            for job in jobs:
                job.cancel()
            await asyncio.gather(*jobs, return_exceptions=True)
            process.signal(signal.SIGKILL)
            await asyncio.wait({process.ended})
        return Done(status, text.result(), _end_of(words))

    async def _watch(self, process: Process, most: int) -> None:
        """Returns when it has ended. Raises TooMuchError."""
        try:
            resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (most, most))
        except ProcessLookupError:
            pass  # it was quick
        while not process.ended.done():
            if _written(process.pid) > _TIMES_WRITTEN * most:
                raise TooMuchError(larger(most))
            await asyncio.wait({process.ended}, timeout=_LOOK_S)  # nobody tells how much a process writes

    async def _read(self, descriptor: int, *, listing: bool) -> str:
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader(_CHUNK)
        transport, _ = await loop.connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(descriptor, "rb", 0)
        )
        pieces: list[bytes] = []
        files = 0
        try:
            while piece := await reader.read(_CHUNK):
                if not listing:
                    pieces.append(piece)
                files += piece.count(b"\n") if listing else 0
                if files > self._limits.max_files:
                    raise TooMuchError(
                        f"it has more than {self._limits.max_files} files, which is what this node allows"
                        " (executors.images.max_files)"
                    )
        finally:
            transport.close()
        return b"".join(pieces).decode(errors="replace")


def reason(words: str) -> str:
    """Why a command failed, of all that it wrote: its last error, else the end."""
    _, found, last = words.rpartition("Error: ")
    return last.strip()[:_LAST_CHARACTERS] if found else words[-_LAST_CHARACTERS:]


def larger(limit: int) -> str:
    """Why an image is refused that has more bytes."""
    return f"it is larger than {limit} bytes, which is what this node allows (executors.images.max_size)"


def _written(pid: int) -> int:
    """How many bytes a process, and those that it has started, have written so far, to files and to each other."""
    total = 0
    pending: Sequence[int] = [pid]
    while pending:
        below: list[int] = []
        for each in pending:
            try:
                counted = Path(f"/proc/{each}/io").read_text().split()
                total += int(counted[counted.index("wchar:") + 1])
                for thread in Path(f"/proc/{each}/task").iterdir():
                    below += map(int, (thread / "children").read_text().split())
            except OSError:
                continue  # it has ended, or is not ours to look at
        pending = below
    return total


def _end_of(descriptor: int) -> str:
    size = os.fstat(descriptor).st_size
    return os.pread(descriptor, _LAST_BYTES, max(0, size - _LAST_BYTES)).decode(errors="replace").strip()
