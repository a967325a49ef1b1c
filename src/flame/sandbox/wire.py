"""What a client and the service inside its sandbox say to each other: tasks of the sandbox's session.

A task's input is one of the calls of `Call`, its output the answer that the call's comment names, or a `Fault`. Calls
that wait for something ("polls") come back after POLL_S at the latest, with nothing if nothing happened; the client
asks again. Times are seconds, sizes bytes. Both sides load this module.
"""

from __future__ import annotations

from typing import TypeVar, Union

import msgspec

from flame.model.errors import FlameError, InvalidArgumentError, ProtocolError, error_of

T = TypeVar("T")

APPLICATION = "flmexec"
MARK = b"flame-sandbox "  # what the common data of a sandbox's session begin with
VERSION = 1
POLL_S = 20.0
PIECE = 512 * 1024  # of files and streams, in one task
CONCURRENCY = 1000  # calls at once; polls count
LOST = -1  # code of the fault of an instance that did not begin this sandbox


def common_data() -> bytes:
    """The common data of a new sandbox's session."""
    return MARK + str(VERSION).encode()


def is_sandbox(data: bytes | None) -> bool:
    """Whether these are the common data of a sandbox's session."""
    return data is not None and data.startswith(MARK)


# --- answers ----------------------------------------------------------------------------------------------------------


class Fault(msgspec.Struct, frozen=True):
    """The call was refused or failed. `code`: a FlameErrorCode, or LOST."""

    code: int
    message: str
    remedy: str = ""

    def error(self) -> FlameError:
        return error_of(self.code, self.message, self.remedy)


class Done(msgspec.Struct, frozen=True):
    """Nothing to tell."""


class Begun(msgspec.Struct, frozen=True):
    """`folder` is the working folder, `python` the version of the kernel."""

    folder: str
    python: str


class Shown(msgspec.Struct, frozen=True):
    """Something that code displayed: formats by MIME type, as text or as bytes. `value`: it is the value of the last
    expression."""

    text: str
    texts: dict[str, str]
    data: dict[str, bytes]
    value: bool = False


class Piece(msgspec.Struct, frozen=True):
    """Something that a run of code gave, in order; one of the three."""

    stdout: str = ""
    stderr: str = ""
    shown: Shown | None = None


class Raised(msgspec.Struct, frozen=True):
    """Why code did not come to its end."""

    name: str
    message: str
    traceback: str


class Ended(msgspec.Struct, frozen=True):
    """A run of code is over. `cut`: bytes of its output that were dropped; `restarted`: its kernel was ended, and its
    variables are lost."""

    error: Raised | None = None
    cut: int = 0
    restarted: bool = False


class Progress(msgspec.Struct, frozen=True):
    """Of a run of code: what came behind the pieces that the client has, and its end if all of it is here."""

    pieces: list[Piece]
    ended: Ended | None = None


class Exit(msgspec.Struct, frozen=True):
    """A command's end. `status`: of its first process, 128 and the signal's number if it was killed by one."""

    status: int
    timed_out: bool = False


class Output(msgspec.Struct, frozen=True):
    """What a command printed from where the client was; `at_*` is where it is now. `dropped`: bytes that came before
    and are gone, since nobody read them. `ended` when there is no more to come."""

    stdout: bytes
    stderr: bytes
    at_stdout: int
    at_stderr: int
    dropped: int = 0
    ended: Exit | None = None


class Taken(msgspec.Struct, frozen=True):
    """How many bytes were taken."""

    size: int


class Command(msgspec.Struct, frozen=True):
    """A command that runs. `started`: Unix time."""

    id: str
    command: list[str]
    pid: int
    started: float
    pty: bool


class Commands(msgspec.Struct, frozen=True):
    commands: list[Command]


class File(msgspec.Struct, frozen=True):
    """A file or what else has a name in a folder. `kind`: file, folder, link or other; `target`: of a link."""

    name: str
    path: str
    kind: str
    size: int
    mode: int
    modified: float
    target: str = ""


class Files(msgspec.Struct, frozen=True):
    """`next`: where the list goes on, empty at its end."""

    files: list[File]
    next: str = ""


class Content(msgspec.Struct, frozen=True):
    """A part of a file. `size` is that of the whole file, `file` tells it from others that had its name."""

    data: bytes
    size: int
    file: int


class Change(msgspec.Struct, frozen=True):
    """`kind`: created, changed, removed, renamed (from `old`), or lost: there were too many to tell."""

    kind: str
    path: str
    folder: bool = False
    old: str = ""


class Changes(msgspec.Struct, frozen=True):
    changes: list[Change]


class Received(msgspec.Struct, frozen=True):
    """Bytes of a connection. `end`: the other side sends no more."""

    data: bytes
    end: bool = False


class Part(msgspec.Struct, frozen=True):
    """A piece of a snapshot; `skipped` are the variables left out and why, `end` is set with the last one."""

    data: bytes
    end: bool = False
    skipped: dict[str, str] = {}


# --- calls ------------------------------------------------------------------------------------------------------------


class _Call(msgspec.Struct, tag=True, tag_field="call", omit_defaults=True):
    """Base of all calls."""


class Begin(_Call):
    """The first one, once. `env` is for all that runs in the sandbox. -> Begun"""

    env: dict[str, str] = {}
    alone: bool = False  # no process of anybody else can be seen there


class RunCode(_Call):
    """Run code in the kernel, after what was asked for before. `eager`: answer with the first thing that it gives,
    else with its end. A poll. -> Progress"""

    id: str
    code: str
    timeout: float | None = None
    env: dict[str, str] = {}
    eager: bool = False


class FollowCode(_Call):
    """Go on with a run, after the first `seen` of its pieces. A poll. -> Progress"""

    id: str
    seen: int
    eager: bool = False


class Interrupt(_Call):
    """Interrupt the code that runs, or only this run. -> Done"""

    id: str = ""


class RestartKernel(_Call):
    """End the kernel and what it runs; the next run gets a new one. -> Done"""


class StartCommand(_Call):
    """Start a command under this id: words, or one text for the shell. `stdin`: bytes for it, and no more; None leaves
    it open to Write. `spool` names bytes sent ahead by Spool. `followed`: the client is going to read its output.
    `wait`: answer when it has ended, as a poll. -> Output"""

    id: str
    command: list[str] | str
    stdin: bytes | None = None
    spool: str = ""
    env: dict[str, str] = {}
    cwd: str = ""
    timeout: float | None = None
    pty: tuple[int, int] | None = None
    followed: bool = False
    wait: bool = False


class FollowCommand(_Call):
    """What it printed behind these places; `wait` for its end (or much output) instead of the first byte. A poll.
    -> Output"""

    id: str
    at_stdout: int = 0
    at_stderr: int = 0
    wait: bool = False
    patience: float = POLL_S


class Write(_Call):
    """Write to its stdin, or terminal; `end` closes it. A poll: it may take none for now. -> Taken"""

    id: str
    data: bytes = b""
    end: bool = False


class Spool(_Call):
    """Bytes for the stdin of a command that is about to be started. -> Done"""

    id: str
    data: bytes


class Kill(_Call):
    """Send a signal to a command's processes. -> Done"""

    id: str
    signal: int


class Resize(_Call):
    """Change the size of a command's terminal. -> Done"""

    id: str
    rows: int
    columns: int


class ListCommands(_Call):
    """-> Commands"""


class Stat(_Call):
    """-> Files, with none if there is no such file"""

    path: str


class ListFolder(_Call):
    """`start`: `next` of the part before; a long list comes in parts. -> Files"""

    path: str
    start: str = ""


class ReadFile(_Call):
    """-> Content"""

    path: str
    offset: int = 0
    size: int = PIECE


class WriteFile(_Call):
    """A part of a new file, which takes the name's place with the `last` one. -> Done"""

    path: str
    id: str
    offset: int
    data: bytes
    last: bool = False
    mode: int | None = None


class MakeDir(_Call):
    """Make a folder, and those above it. -> Done"""

    path: str


class Remove(_Call):
    """-> Done"""

    path: str
    recursive: bool = False


class Rename(_Call):
    """-> Done"""

    path: str
    new: str


class Watch(_Call):
    """Begin to watch a file or folder. -> Done"""

    id: str
    path: str
    recursive: bool = False


class FollowWatch(_Call):
    """What changed since the last answer. A poll. -> Changes"""

    id: str
    patience: float = POLL_S


class EndWatch(_Call):
    """-> Done"""

    id: str


class Connect(_Call):
    """Connect to a port inside. -> Done"""

    id: str
    port: int


class Send(_Call):
    """Bytes for a connection; `end`: no more will come. A poll: it may take none for now. -> Taken"""

    id: str
    data: bytes = b""
    end: bool = False


class Receive(_Call):
    """What came on a connection. A poll. -> Received"""

    id: str


class Disconnect(_Call):
    """-> Done"""

    id: str


class Pause(_Call):
    """Stop all that the sandbox started. -> Done"""


class Resume(_Call):
    """-> Done"""


class TakeSnapshot(_Call):
    """Begin a snapshot under this id; all that the sandbox started stands still until it is fetched. -> Done"""

    id: str


class ReadSnapshot(_Call):
    """The next piece. A poll. -> Part"""

    id: str


class EndSnapshot(_Call):
    """Nobody fetches the rest. -> Done"""

    id: str


class Restore(_Call):
    """Take over the files, the variables and the environment of a snapshot that was sent by Spool under this id.
    -> Done"""

    id: str


Call = Union[  # noqa: UP007 - msgspec wants it so
    Begin, RunCode, FollowCode, Interrupt, RestartKernel, StartCommand, FollowCommand, Write, Spool, Kill, Resize,
    ListCommands, Stat, ListFolder, ReadFile, WriteFile, MakeDir, Remove, Rename, Watch, FollowWatch, EndWatch,
    Connect, Send, Receive, Disconnect, Pause, Resume, TakeSnapshot, ReadSnapshot, EndSnapshot,
    Restore,
]  # fmt: skip
Answer = (
    Done | Begun | Progress | Output | Taken | Commands | Files | Content | Changes | Received | Part | Fault
)  # of which each call has one, or a Fault

_encoder = msgspec.msgpack.Encoder()
_calls: msgspec.msgpack.Decoder[Call] = msgspec.msgpack.Decoder(Call)
_FINE, _FAULT = b"\0", b"\1"
_NO_CALL, _AGE = "this is no call of a sandbox: {}", "is its client as new as it?"


def encode_call(call: Call) -> bytes:
    """A task's input. Raises InvalidArgumentError for what can't be sent."""
    try:
        return _encoder.encode(call)
    except (UnicodeEncodeError, TypeError, OverflowError) as error:
        raise InvalidArgumentError(f"this can't be sent to a sandbox: {error}") from None


def decode_call(data: bytes) -> Call:
    """Raises InvalidArgumentError when a value of the call is none that it can have, ProtocolError."""
    try:
        return _calls.decode(data)
    except msgspec.ValidationError as error:
        why, _, place = str(error).partition(" - at ")
        name = place.strip("`").removeprefix("$.")
        if not name or name == "call":
            raise ProtocolError(_NO_CALL.format(error), remedy=_AGE) from None
        raise InvalidArgumentError(f"{name}: {why[:1].lower()}{why[1:].replace('`', '')}") from None
    except (msgspec.DecodeError, ValueError) as error:
        raise ProtocolError(_NO_CALL.format(error), remedy=_AGE) from None


def encode_answer(answer: Answer) -> bytes:
    """A task's output."""
    return (_FAULT if isinstance(answer, Fault) else _FINE) + _encoder.encode(answer)


def decode_answer(data: bytes | None, kind: type[T]) -> T | Fault:
    """Raises ProtocolError."""
    try:
        if data and data[:1] == _FAULT:
            return msgspec.msgpack.decode(memoryview(data)[1:], type=Fault)
        return msgspec.msgpack.decode(memoryview(data or b"")[1:], type=kind)
    except (msgspec.DecodeError, ValueError) as error:
        raise ProtocolError(f"the sandbox gave no {kind.__name__}: {error}") from None
