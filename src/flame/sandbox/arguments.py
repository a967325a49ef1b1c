"""What users ask of sandboxes, looked at before anything is done. Both sides load this module."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import cast

from flame.model.errors import InvalidArgumentError


def check_timeout(timeout: object) -> None:
    """Raises InvalidArgumentError for what is neither None nor a time."""
    if timeout is not None and not (isinstance(timeout, (int, float)) and timeout > 0):
        raise InvalidArgumentError(f"timeout must be above 0 seconds, not {timeout!r}")


def check_env(env: object) -> dict[str, str]:
    """The variables, none for None. Raises InvalidArgumentError for what no program can be given."""
    if env is None:
        return {}
    if not isinstance(env, Mapping):
        raise InvalidArgumentError(f"env must be a mapping of names to texts, not {env!r}")
    for name, value in cast("Mapping[object, object]", env).items():
        if not isinstance(name, str) or not name or "=" in name or "\0" in name:
            raise InvalidArgumentError(f"env: no variable can be called {name!r}")
        if not isinstance(value, str) or "\0" in value:
            raise InvalidArgumentError(f"env: the value of {name} must be text without NUL characters, not {value!r}")
    return dict(cast("Mapping[str, str]", env))


def as_command(command: object) -> str | list[str]:
    """One text for the shell, or a program and its arguments. Raises InvalidArgumentError for what is neither."""
    if isinstance(command, str):
        return command
    if isinstance(command, Iterable):
        words = list(cast("Iterable[object]", command))
        if all(isinstance(word, str) for word in words):
            return cast("list[str]", words)
    raise InvalidArgumentError(f"a command is one text or a list of texts, not {command!r}")


def as_bytes(data: object) -> bytes:
    """Bytes, or text as UTF-8. Raises InvalidArgumentError for what is neither."""
    if isinstance(data, str):
        try:
            return data.encode()
        except UnicodeEncodeError as error:
            raise InvalidArgumentError(f"this text can't be sent: {error}") from None
    if isinstance(data, (bytes, bytearray, memoryview)):
        return bytes(cast("bytes", data))
    raise InvalidArgumentError(f"this must be bytes or text, not {type(data).__name__}")
