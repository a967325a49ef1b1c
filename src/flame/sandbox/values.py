"""What sandboxes give: the results of code and commands, files, changes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime


@dataclass(frozen=True)
class CodeError:
    """Why code did not come to its end.

    `name` is the class of the exception; TimeoutError when its time was over, KeyboardInterrupt when it was
    interrupted, KernelDied or KernelRestarted when its kernel ended. `traceback` has the user's lines.
    """

    name: str
    message: str
    traceback: str


@dataclass(frozen=True)
class Result:
    """Something that code displayed: `text` as Python shows it, and `formats` by MIME type, such as `text/html`,
    `image/png` (bytes), `image/svg+xml`, `application/json` (its text)."""

    text: str
    formats: Mapping[str, str | bytes] = field(default_factory=dict[str, "str | bytes"])


@dataclass(frozen=True)
class Execution:
    """What a run of code gave.

    `results` are what it displayed, in order, the value of the last expression among them; `text` is that value's text,
    empty when there is none. `error` is None when it came to its end. `cut` counts characters and bytes of output that
    were over the limit and dropped. `kernel_lost`: its kernel ended, and the variables are gone.
    """

    stdout: str
    stderr: str
    results: list[Result]
    error: CodeError | None = None
    text: str = ""
    cut: int = 0
    kernel_lost: bool = False


@dataclass(frozen=True)
class CommandResult:
    """How a command ended. `exit_code` is 128 and the signal's number when a signal ended it. `timed_out`: its time was
    over, and it was ended. `dropped` counts bytes that it printed and that were not kept."""

    exit_code: int
    stdout: bytes
    stderr: bytes
    timed_out: bool = False
    dropped: int = 0


@dataclass(frozen=True)
class Output:
    """Something that a running command printed; in a terminal all of it is `stdout`. `dropped` counts bytes before it
    that are gone, since nobody read them in time."""

    stdout: bytes
    stderr: bytes
    dropped: int = 0


@dataclass(frozen=True)
class CommandInfo:
    """A command that runs in a sandbox."""

    id: str
    command: list[str]
    pid: int
    started: datetime
    pty: bool


@dataclass(frozen=True)
class FileInfo:
    """A file in a sandbox. `kind` is "file", "folder", "link" or "other"; `size` in bytes; `mode` its permissions;
    `target` where a link leads."""

    name: str
    path: str
    kind: str
    size: int
    mode: int
    modified: datetime
    target: str = ""

    @property
    def is_folder(self) -> bool:
        return self.kind == "folder"


@dataclass(frozen=True)
class FileEvent:
    """Something that happened to a file that is watched. `kind` is "created" (also of one that takes the place of
    another, as `files.write` does it), "changed", "removed", "renamed" (from `old`) or "lost": there were more events
    than were kept, so look at the files again."""

    kind: str
    path: str
    is_folder: bool = False
    old: str = ""
