"""A sandbox of nobody, for which the kernel that waits runs a first piece of code, and a first command runs: what is
done first takes long."""

from __future__ import annotations

from collections.abc import Sequence

from flame.sandbox import wire
from flame.sandbox.inside.kernel_start import Started
from flame.sandbox.inside.service import SandboxService
from flame.service.api import FlameService, SessionContext
from flame.service.rehearsal import Nothing, Play

_CALLS = (
    wire.Begin(),
    wire.RunCode("shows", "print()\ndisplay(0)"),
    wire.RunCode("raises", "raise Exception"),
    wire.StartCommand("command", ":", b"", wait=True),
    wire.ListFolder("."),
)


def play(kernels: Sequence[Started]) -> Play:
    """A session that is a sandbox, begins, and does what leaves nothing behind, also not in the first of these kernels.
    Without one: nothing."""
    if not kernels:
        return Play(Nothing())
    return Play(_Entry(kernels[0]), wire.common_data(), [wire.encode_call(call) for call in _CALLS])


class _Entry(FlameService):
    def __init__(self, kernel: Started) -> None:
        self._kernel = kernel

    def on_session_enter(self, context: SessionContext) -> None:
        context.service, context.concurrency = _Understudy([self._kernel]), wire.CONCURRENCY


class _Understudy(SandboxService):
    """Gives the kernel back in the end."""

    async def on_session_leave(self) -> None:
        self.runs.release()
        await super().on_session_leave()
