"""The tools that agents get of a sandbox, whatever framework they are of."""

from __future__ import annotations

import asyncio
import base64
import binascii
from collections.abc import Awaitable, Callable
from inspect import iscoroutinefunction
from typing import TYPE_CHECKING, Literal, ParamSpec, TypeVar, cast

from flame.agents import answers
from flame.agents.answers import LIMIT, Answer
from flame.model.errors import (
    AlreadyExistsError,
    ExhaustedError,
    FlameError,
    InvalidArgumentError,
    NotFoundError,
    PermissionDeniedError,
    TooLargeError,
    UnavailableError,
)

if TYPE_CHECKING:
    from flame.sandbox import AsyncSandbox, Sandbox

P = ParamSpec("P")
T = TypeVar("T")
TIMEOUT = 120.0  # seconds of one call, unless told otherwise
MAX_FILE = 4 * 1024**2  # bytes that are read of a file

RUN_CODE = (
    "Run Python code in a sandbox and see what it prints, the value of its last expression, and plots. Variables, "
    "imports and files last from one call to the next."
)
RUN_COMMAND = "Run a shell command in the sandbox and see its output and exit code. It starts in the working folder."
READ_FILE = "Read a file of the sandbox: its text, or the picture (PNG, JPEG, GIF, WebP)."
WRITE_FILE = (
    "Write a file in the sandbox; one of this name is replaced, folders above it are made. With encoding base64 the "
    "content is decoded first, for files that are no text."
)
LIST_FILES = "List a folder of the sandbox, by default the working folder."

Encoding = Literal["text", "base64"]

# What the model can do something about. Other errors end what the agent does.
_REPAIRABLE = (
    AlreadyExistsError,
    ExhaustedError,
    InvalidArgumentError,
    NotFoundError,
    PermissionDeniedError,
    TooLargeError,
)


class Toolbox:
    """Calls of a sandbox whose answers are for models.

    `timeout` is for each call in seconds, `limit` for the length of an answer in characters. What the model did wrong
    is an answer; other errors are raised: SandboxLostError, InvalidStateError, and those of the connection.
    """

    def __init__(self, sandbox: Sandbox, *, timeout: float = TIMEOUT, limit: int = LIMIT) -> None:
        self.sandbox = sandbox
        self._timeout = timeout
        self._limit = limit

    def run_code(self, code: str) -> Answer:
        return answers.of_execution(self.sandbox.run_code(code, timeout=self._timeout), self._limit)

    def run_command(self, command: str) -> Answer:
        try:
            return answers.of_command(self.sandbox.run_command(command, timeout=self._timeout), self._limit)
        except _REPAIRABLE as error:
            return answers.of_error(error)

    def read_file(self, path: str) -> Answer:
        try:
            return answers.of_file(path, self.sandbox.files.read(path, max_size=MAX_FILE), self._limit)
        except _REPAIRABLE as error:
            return answers.of_error(readable(path, error))

    def write_file(self, path: str, content: str, encoding: Encoding = "text") -> Answer:
        try:
            data = decoded(content, encoding)
            self.sandbox.files.write(path, data)
        except _REPAIRABLE as error:
            return answers.of_error(error)
        return written(path, data)

    def list_files(self, path: str = ".") -> Answer:
        try:
            return answers.of_folder(self.sandbox.files.list(path), self._limit)
        except _REPAIRABLE as error:
            return answers.of_error(error)


class AsyncToolbox:
    """As Toolbox, for asyncio; a sandbox that is none of asyncio is called in threads. Calls may have a shorter time
    than the toolbox's."""

    def __init__(self, sandbox: Sandbox | AsyncSandbox, *, timeout: float = TIMEOUT, limit: int = LIMIT) -> None:
        self.sandbox = sandbox
        self._timeout = timeout
        self._limit = limit

    async def run_code(self, code: str, timeout: float | None = None) -> Answer:
        execution = await called(self.sandbox.run_code, code, timeout=self._time(timeout))
        return answers.of_execution(execution, self._limit)

    async def run_command(self, command: str, timeout: float | None = None) -> Answer:
        try:
            result = await called(self.sandbox.run_command, command, timeout=self._time(timeout))
            return answers.of_command(result, self._limit)
        except _REPAIRABLE as error:
            return answers.of_error(error)

    async def read_file(self, path: str) -> Answer:
        try:
            data = await called(self.sandbox.files.read, path, max_size=MAX_FILE)
            return answers.of_file(path, data, self._limit)
        except _REPAIRABLE as error:
            return answers.of_error(readable(path, error))

    async def write_file(self, path: str, content: str, encoding: Encoding = "text") -> Answer:
        try:
            data = decoded(content, encoding)
            await called(self.sandbox.files.write, path, data)
        except _REPAIRABLE as error:
            return answers.of_error(error)
        return written(path, data)

    async def list_files(self, path: str = ".") -> Answer:
        try:
            return answers.of_folder(await called(self.sandbox.files.list, path), self._limit)
        except _REPAIRABLE as error:
            return answers.of_error(error)

    def _time(self, timeout: float | None) -> float:
        return self._timeout if timeout is None else min(timeout, self._timeout)


async def called(method: Callable[P, T | Awaitable[T]], *args: P.args, **options: P.kwargs) -> T:
    """What a method of a sandbox gives, in a thread if it is no coroutine's."""
    if iscoroutinefunction(method):
        return await cast("Awaitable[T]", method(*args, **options))
    return cast("T", await asyncio.to_thread(method, *args, **options))


def readable(path: str, error: FlameError) -> FlameError:
    """The error of a file that was read, with a remedy that a model has."""
    if isinstance(error, TooLargeError):
        return TooLargeError(
            f"{path} has more than {MAX_FILE} bytes", remedy="read a part of it with a command, such as head or sed"
        )
    return error


def decoded(content: str, encoding: Encoding) -> bytes:
    """The bytes that a model wants to be written. Raises InvalidArgumentError."""
    try:
        return base64.b64decode("".join(content.split()), validate=True) if encoding == "base64" else content.encode()
    except (binascii.Error, ValueError) as error:
        remedy = "encode the bytes again, or leave encoding out for text"
        raise InvalidArgumentError(f"the content can't be written as {encoding}: {error}", remedy=remedy) from None


def written(path: str, data: bytes) -> Answer:
    return Answer(f"wrote {len(data)} bytes to {path}")


def missing(extra: str, error: ImportError) -> UnavailableError:
    """A framework that is not installed."""
    return UnavailableError(
        f"{error.name or extra} is not installed", remedy=f"pip install 'flame-engine[{extra}]'", retryable=False
    )
