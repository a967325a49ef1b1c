"""`run`: serve one session in this process, in the dialect that the executor manager offers."""

from __future__ import annotations

import os
import sys

from flame.service import snapshot
from flame.service.api import FlameService, SessionContext
from flame.service.incoming import is_coroutine
from flame.service.wire import Frame, Wire, connect, over_stdio

TYPE_CHECKING = False  # like typing's, without its import
if TYPE_CHECKING:
    from collections.abc import Callable


def run(service: FlameService, concurrency: int = 1) -> None:
    """Serve the session that this process was started for; returns when the session was left.

    Call it from the main thread. With `concurrency` 1 and ordinary handlers, tasks run one after another in the main
    thread. With more, or with `async def on_task_invoke`, up to `concurrency` tasks run at once in an event loop:
    coroutines in it, ordinary handlers in threads of their own. That is for work that waits, such as requests to
    other services. How many tasks it wants at once a service may also say when it knows its session: see
    SessionContext.

    Raises InvalidStateError when no executor manager started this process, InvalidArgumentError when `concurrency` is
    less than 1. Ends the process with an error message when the link breaks.
    """
    if concurrency < 1:
        from flame.model.errors import InvalidArgumentError

        raise InvalidArgumentError(f"concurrency must be at least 1, not {concurrency}")
    link, endpoint = os.environ.get("FLAME_INSTANCE_LINK"), os.environ.get("FLAME_INSTANCE_ENDPOINT")
    stdio = os.environ.get("FLAME_INSTANCE_STDIO") == "framed"
    if link or stdio:

        def greet() -> tuple[Wire, list[Frame]]:
            copy = snapshot.wanted() and _offered(service)
            wire, frames = over_stdio(concurrency) if stdio else connect(link or "", concurrency)
            if copy and not frames:
                _rehearsed(service, wire)
            return wire, frames

        try:
            _serve_link(service, greet, concurrency)
        except OSError as error:  # of the link: those of handlers fail their tasks
            sys.exit(f"flame: the session ended unexpectedly: {error}")
    elif endpoint:
        from flame.service import grpc_server

        grpc_server.serve(service, endpoint)
    else:
        from flame.model.errors import InvalidStateError

        raise InvalidStateError(
            "no executor manager started this process: neither FLAME_INSTANCE_LINK nor FLAME_INSTANCE_ENDPOINT is set",
            remedy="register an application whose command starts this program, and create a session of it",
        )


def _offered(service: FlameService) -> bool:
    """Let a snapshot be taken, of an instance that has done before what it does first. True in a copy."""
    from flame.service import rehearsal

    rehearsal.rehearse(service)
    return snapshot.offer()


def _rehearsed(service: FlameService, wire: Wire) -> None:
    """Use the time in which a copy waits for a session, unless it was made for one."""
    from flame.service import rehearsal

    if not os.environ.get("FLAME_SESSION_ID") and rehearsal.quiet(wire):
        rehearsal.rehearse(service)


def _serve_link(service: FlameService, greet: Callable[[], tuple[Wire, list[Frame]]], concurrency: int) -> None:
    """`greet` makes the link, once the service is prepared."""
    wire: Wire | None = None
    frames: list[Frame] = []
    entered: SessionContext | None = None
    if concurrency == 1 and not is_coroutine(service.on_task_invoke):
        from flame.service.sequential import Sequential

        if not any(map(is_coroutine, (service.on_prepare, service.on_session_enter, service.on_session_leave))):
            service.on_prepare()
            wire, frames = greet()
            sequential = Sequential(service, wire)
            rest = sequential.serve(frames)
            if rest is None:
                return
            frames, entered = rest, sequential.entered
    import asyncio

    from flame.service.concurrent import Concurrent

    async def serve(wire: Wire | None, frames: list[Frame]) -> None:
        if wire is None:
            preparing = service.on_prepare()
            if preparing is not None:
                await preparing
            wire, frames = greet()
        await Concurrent(service, wire, concurrency, entered).serve(frames)

    asyncio.run(serve(wire, frames))
