"""Files of the store: written whole, removed whatever is in them, logs."""

from __future__ import annotations

import contextlib
import ctypes
import os
import secrets
import shutil
from collections.abc import Generator
from pathlib import Path

from flame.packages.fetch import Say

_END_BYTES = 4000
_END_LINES = 20


@contextlib.contextmanager
def appending(log: Path) -> Generator[Say]:
    """Lines for a log."""
    with log.open("a") as out:
        yield lambda text: print(text, file=out, flush=True)


def end_of(log: Path) -> str:
    """The end of what the last command (`$ ...`) in a log printed, as a clause to append to a message."""
    with contextlib.suppress(OSError), log.open("rb") as stream:
        stream.seek(max(0, log.stat().st_size - _END_BYTES))
        text = stream.read().decode(errors="replace").strip()
        lines = text[text.rfind("\n$ ") + 1 :].splitlines()
        if lines:
            return "; the end of its output:\n" + "\n".join(lines[-_END_LINES:])
    return ""


def write_whole(file: Path, content: bytes) -> None:
    """All of it or nothing, also when the machine goes down meanwhile."""
    beside = file.with_name(f"{file.name}.{secrets.token_hex(4)}")
    with beside.open("xb") as out:
        out.write(content)
        out.flush()
        os.fsync(out.fileno())
    beside.replace(file)


def remove_tree(folder: Path) -> None:
    """It may hold folders that let nobody remove what is in them."""
    try:
        shutil.rmtree(folder)
    except FileNotFoundError:
        return
    except OSError:
        for path, folders, _ in os.walk(folder):
            for inner in (Path(path, name) for name in folders):
                if not inner.is_symlink():
                    inner.chmod(0o700)
        shutil.rmtree(folder, ignore_errors=True)


def settle(folder: Path) -> int:
    """Let all of it reach the disk; returns how many bytes it takes there."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        ctypes.CDLL(None).syncfs(handle)
    finally:
        os.close(handle)
    return sum(file.lstat().st_blocks * 512 for file in folder.rglob("*"))
