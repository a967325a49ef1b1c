"""Reading logs over broken connections: what was seen already is not given again."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing

from flame.client import wire
from flame.client.uplink import Uplink
from flame.client.values import LogChunk
from flame.model.errors import NotFoundError, UnavailableError
from flame.model.states import SessionState
from flame.proto import frontend_pb2 as fe
from flame.proto.seen_logs import SeenLogs

RESUME_TIME = 30.0  # seconds
_SHORTEST_PAUSE, _LONGEST_PAUSE = 0.05, 1.0


async def read_logs(uplink: Uplink, request: fe.GetLogsRequest) -> AsyncGenerator[LogChunk]:
    """Chunks of all streams asked for. With `follow`, a connection that breaks is made again and the reading goes on.

    Raises NotFoundError, UnavailableError.
    """
    seen = SeenLogs()
    broke = False
    until = 0.0  # after an interruption: how long the nodes may take to come back
    pause = _SHORTEST_PAUSE
    while True:
        found = False
        try:
            async with aclosing(uplink.stream("GetLogs", request, fe.LogChunk, again=broke)) as messages:
                async for message in messages:
                    found = True
                    rest = seen.rest(message)
                    if rest is not None:
                        yield wire.log_from(rest)
        except UnavailableError as error:
            if not request.follow or not uplink.broken(error):
                raise
            broke = True
            request.tail_bytes = 0  # the last bytes are others now
            until, pause = time.monotonic() + RESUME_TIME, _SHORTEST_PAUSE
            continue
        except NotFoundError:
            if time.monotonic() >= until:
                raise
        # After a restart of the session manager its nodes come later than its clients.
        if time.monotonic() >= until or (found and await _over(uplink, request)):
            return
        await asyncio.sleep(pause)
        pause = min(2 * pause, _LONGEST_PAUSE)


async def _over(uplink: Uplink, request: fe.GetLogsRequest) -> bool:
    """Whether nothing more will be written."""
    if request.executor_id:
        return True  # its node was there, and it ran no more
    try:
        session = await uplink.session(request.session_id)
    except NotFoundError:
        return True
    return session.status.state != SessionState.OPEN
