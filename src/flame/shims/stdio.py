"""The stdio shim: an instance is a program that talks over its stdin and stdout. Its stderr is its log.

A label of the application says in which form: `stdio=framed` (the instance link), `stdio=lines` (a line of JSON per
task, the default), `stdio=once` (a process per task, stdio_once.py). In the first two forms stdin and stdout are one
socket, which a byte stream in both directions is simplest with.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

from flame.model.errors import InvalidArgumentError
from flame.model.states import BindCode
from flame.shims.shim import BindError, Instance, Launch, Owner
from flame.shims.stdio_framed import FramedStream
from flame.shims.stdio_lines import LinesStream
from flame.shims.stdio_once import OnceInstance
from flame.shims.streams import StreamDoor
from flame.shims.workplace import Workshop, in_words

FORMS = ("framed", "lines", "once")
_MAX_CONCURRENCY = 10_000


class Form(msgspec.Struct, frozen=True):
    """How a program talks, and how many tasks it wants at once (lines only)."""

    name: str = "lines"
    concurrency: int = 1


def label_values(labels: Iterable[str]) -> dict[str, str]:
    """The labels of the shape `name=value`."""
    return {name: value for name, found, value in (label.partition("=") for label in labels) if found}


def refuse_unknown(labels: Iterable[str], prefix: str, known: Sequence[str]) -> None:
    """Raises InvalidArgumentError for one that begins like those of a shim and is none: it would be without effect."""
    for label in labels:
        name, found, _ = label.partition("=")
        if name.startswith(prefix) and not (found and name in known):
            raise InvalidArgumentError(
                f"unknown label {label[:60]}", remedy=f"the known ones are {', '.join(f'{name}=' for name in known)}"
            )


def concurrency_of(text: str) -> int:
    """A label's or header's number of tasks at once. Raises InvalidArgumentError."""
    if not text.isdecimal() or not text.isascii() or not 1 <= int(text) <= _MAX_CONCURRENCY:
        raise InvalidArgumentError(f"concurrency must be a number from 1 to {_MAX_CONCURRENCY}, not {text[:20]!r}")
    return int(text)


def form_of(labels: Iterable[str]) -> Form:
    """What an application's labels say. Raises InvalidArgumentError."""
    values = label_values(labels)
    name = values.get("stdio", "lines")
    if name not in FORMS:
        raise InvalidArgumentError(f"unknown label stdio={name}", remedy=f"write stdio= and one of {', '.join(FORMS)}")
    concurrency = concurrency_of(values.get("concurrency", "1"))
    if concurrency > 1 and name != "lines":
        raise InvalidArgumentError(
            f"the label concurrency={concurrency} means nothing with stdio={name}", remedy="leave it out"
        )
    return Form(name, concurrency)


class StdioShim:
    """Starts programs and talks with them over stdin and stdout."""

    missing = ""

    def __init__(self, workshop: Workshop) -> None:
        self._workshop = workshop

    async def prepare(self, launch: Launch) -> Launch:
        """Install the application's package if it is not there yet. Raises BindError with code 10."""
        return await self._workshop.prepare(launch)

    async def start(self, launch: Launch, owner: Owner) -> Instance:
        """Start the application's command; in the form `once` only look for it. Raises BindError with code 11."""
        try:
            form = form_of(launch.application.labels)
        except InvalidArgumentError as error:
            raise BindError(BindCode.START, in_words(error)) from None
        place = await self._workshop.open(launch, {"FLAME_INSTANCE_STDIO": form.name})
        if form.name == "once":
            return OnceInstance(place, owner)
        stream = (
            FramedStream(owner, place.max_payload, place.objects)
            if form.name == "framed"
            else LinesStream(owner, launch.context.session_id, place.max_payload, form.concurrency)
        )
        return await StreamDoor(stream).start(place, owner)
