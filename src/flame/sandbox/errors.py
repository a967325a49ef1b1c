"""What goes wrong with sandboxes only."""

from __future__ import annotations

from flame.model.errors import InvalidStateError


class SandboxLostError(InvalidStateError):
    """The sandbox ended by itself, with all that was in it: its memory ran out, its service was killed, its node went.
    The message says why, as far as that is known."""

    def __reduce__(self) -> tuple[object, ...]:
        return (_again, (self.message, self.remedy))


def _again(message: str, remedy: str) -> SandboxLostError:
    return SandboxLostError(message, remedy=remedy)
