"""What models are told of what happened in a sandbox: text of bounded length, pictures, and files that are neither."""

from __future__ import annotations

import mimetypes
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from flame.model.errors import FlameError
    from flame.sandbox.values import CommandResult, Execution, FileInfo

LIMIT = 20_000  # characters of one answer, unless told otherwise
MAX_BINARY = 1024**2  # bytes of a file that is neither text nor a picture
_MAX_IMAGES = 8
# How pictures begin that models can see; the name of WebP stands behind a length.
_IMAGES = {"image/png": b"\x89PNG\r\n", "image/jpeg": b"\xff\xd8\xff", "image/gif": b"GIF8", "image/webp": b"RIFF"}
_WEBP = b"WEBP"


@dataclass(frozen=True)
class Image:
    """A picture; `kind` is its MIME type."""

    kind: str
    data: bytes


@dataclass(frozen=True)
class Binary:
    """A file that is neither text nor a picture; `kind` is its MIME type, as far as its name tells."""

    path: str
    kind: str
    data: bytes


@dataclass(frozen=True)
class Answer:
    """What a model is told. `failed`: what it asked for was not done, or not to its end."""

    text: str
    images: Sequence[Image] = field(default_factory=list[Image])
    failed: bool = False
    binary: Binary | None = None


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
    """A file's content: text, a picture, or bytes that whoever asks for the model may keep."""
    picture = _picture(data)
    if picture is not None:
        return Answer(f"[{path} is a picture of {len(data)} bytes]", [picture])
    try:
        return Answer(cut(data.decode(), limit))
    except UnicodeDecodeError:
        kind = mimetypes.guess_type(path)[0] or "application/octet-stream"
    said = f"{path} is no text: {len(data)} bytes of {kind}"
    if len(data) > MAX_BINARY:
        most = f"over the limit of {MAX_BINARY} bytes for such files"
        return Answer(f"{said}, {most}; look at it with code, pack it, or split it", failed=True)
    return Answer(f"[{said}; look at it with code]", binary=Binary(path, kind, data))


def _picture(data: bytes) -> Image | None:
    for kind, beginning in _IMAGES.items():
        if data.startswith(beginning) and (kind != "image/webp" or data[8:12] == _WEBP):
            return Image(kind, data)
    return None


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
