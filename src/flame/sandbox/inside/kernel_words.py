"""What a kernel may say. Code that it runs can say anything in its place, so it is looked at before it is believed."""

from __future__ import annotations

import base64
from typing import Union

import msgspec

from flame.sandbox.wire import Raised, Shown


class Packed(msgspec.Struct, frozen=True):
    """Bytes."""

    base64: str


class Told(msgspec.Struct, frozen=True):
    """A value that it shows."""

    text: str = ""
    formats: dict[str, Union[str, Packed]] = {}  # noqa: UP007 - msgspec wants it so
    value: bool = False

    def shown(self) -> Shown:
        """As clients get it. Raises ValueError."""
        texts = {kind: data for kind, data in self.formats.items() if isinstance(data, str)}
        packed = {kind: data for kind, data in self.formats.items() if isinstance(data, Packed)}
        found = {kind: base64.b64decode(data.base64, validate=True) for kind, data in packed.items()}
        return Shown(self.text, texts, found, self.value)


class Message(msgspec.Struct, frozen=True):
    """One message: a value that it shows, or with `done` the answer to what it was asked."""

    shown: Told | None = None
    done: bool = False
    error: Raised | None = None
    skipped: dict[str, str] = {}


_decoder = msgspec.json.Decoder(Message)


def understood(body: bytes) -> tuple[Message, Shown | None]:
    """A message, and what it shows. Raises ValueError for what no kernel says."""
    message = _decoder.decode(body)
    return message, message.shown.shown() if message.shown is not None else None
