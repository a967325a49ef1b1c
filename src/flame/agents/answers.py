"""What models are told of what happened in a sandbox: text of bounded length, and pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from flame.model.errors import FlameError
    from flame.sandbox.values import CommandResult, Execution, FileInfo

LIMIT = 20_000  # characters of one answer, unless told otherwise
_MAX_IMAGES = 8
_IMAGES = {"image/png": b"\x89PNG\r\n", "image/jpeg": b"\xff\xd8\xff"}


@dataclass(frozen=True)
class Image:
    """A picture; `kind` is its MIME type."""

    kind: str
    data: bytes


@dataclass(frozen=True)
class Answer:
    """What a model is told. `failed`: what it asked for was not done, or not to its end."""

    text: str
    images: Sequence[Image] = field(default_factory=list[Image])
    failed: bool = False


def of_execution(execution: Execution, limit: int = LIMIT) -> Answer:
    """What a run of code gave: its output, what it displayed, and its traceback."""
    error = execution.error
    images = [
        Image(kind, data)
        for result in execution.results
        for kind, data in result.formats.items()
        if kind in _IMAGES and isinstance(data, bytes)
    ]
    parts = [
        cut(execution.stdout, limit),
        _titled("stderr", cut(execution.stderr, limit // 2)),
        cut("\n".join(result.text for result in execution.results), limit // 2),
    ]
    if error is not None:
        parts.append(cut(error.traceback, limit // 2))
        if error.name not in error.traceback:  # it was ended from outside
            parts.append(f"{error.name}: {error.message}")
    if execution.cut:
        parts.append(f"[{execution.cut} characters of output were left out]")
    if execution.kernel_lost:
        parts.append("[the interpreter ended: its variables are gone]")
    if len(images) > _MAX_IMAGES:
        parts.append(f"[{len(images) - _MAX_IMAGES} more pictures were left out]")
    return Answer(_joined(parts) or "[no output]", images[:_MAX_IMAGES], error is not None)


def of_command(result: CommandResult, limit: int = LIMIT) -> Answer:
    """How a command ended, and what it printed."""
    parts = [
        cut(result.stdout.decode(errors="replace"), limit),
        _titled("stderr", cut(result.stderr.decode(errors="replace"), limit // 2)),
    ]
    if result.dropped:
        parts.append(f"[{result.dropped} bytes of output were left out]")
    if result.timed_out:
        parts.append("[its time was over, and it was ended]")
    parts.append(f"[exit code {result.exit_code}]")
    return Answer(_joined(parts), failed=result.timed_out)


def of_file(path: str, data: bytes, limit: int = LIMIT) -> Answer:
    """A file's content: text, or a picture."""
    for kind, beginning in _IMAGES.items():
        if data.startswith(beginning):
            return Answer(f"[{path} is a picture of {len(data)} bytes]", [Image(kind, data)])
    try:
        return Answer(cut(data.decode(), limit))
    except UnicodeDecodeError:
        return Answer(f"{path} is no text: {len(data)} bytes; look at it with code", failed=True)


def of_folder(files: Sequence[FileInfo], limit: int = LIMIT) -> Answer:
    """The entries of a folder: folders end with a slash, files stand with their size in bytes."""
    lines = [f"{file.name}/" if file.is_folder else f"{file.name}  {file.size}" for file in files]
    return Answer(cut("\n".join(lines), limit) or "[the folder is empty]")


def of_error(error: FlameError) -> Answer:
    """Why something could not be done, and what to do about it."""
    return Answer(f"error: {error.message}" + (f"\nhint: {error.remedy}" if error.remedy else ""), failed=True)


def cut(text: str, limit: int) -> str:
    """The text, or its beginning and its end with a note between them, of about `limit` characters."""
    if len(text) <= limit:
        return text
    tail = limit // 3
    head = limit - tail
    return f"{text[:head]}\n[... {len(text) - limit} characters left out ...]\n{text[len(text) - tail :]}"


def _titled(title: str, text: str) -> str:
    return f"[{title}]\n{text}" if text.strip() else ""


def _joined(parts: Sequence[str]) -> str:
    return "\n".join(part.rstrip("\n") for part in parts if part.strip())
