"""GetLogs: the logs of instances lie on their nodes; several nodes' answers become one stream.

A session that is followed is followed until it is closed: a node on which it gets an executor meanwhile is asked as
soon as that executor runs.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

from flame.engine import views
from flame.manager.nodes import Nodes
from flame.manager.turns import Turns
from flame.manager.watches import Watches
from flame.model.errors import FlameError, InvalidArgumentError, NotFoundError
from flame.model.states import ExecutorState, SessionState
from flame.proto import frontend_pb2
from flame.proto.seen_logs import SeenLogs

_QUEUE_LENGTH = 16


class LogReader:
    """Asks the nodes that may hold the logs."""

    def __init__(self, turns: Turns, nodes: Nodes, watches: Watches) -> None:
        self._turns = turns
        self._nodes = nodes
        self._watches = watches

    async def read(self, request: frontend_pb2.GetLogsRequest) -> AsyncIterator[frontend_pb2.LogChunk]:
        """Chunks of all streams asked for, each stream in order. Raises NotFoundError when no node knows any."""
        names = self._nodes_for(request)
        reading = _Reading(self._nodes, request)
        for name in names:
            reading.ask(name)
        waits = request.follow and not request.executor_id
        watching = asyncio.create_task(self._accompany(reading, request.session_id)) if waits else None
        if watching is not None:
            watching.add_done_callback(lambda _: reading.wake())
        try:
            async for chunk in reading.chunks(lambda: watching is None or watching.done()):
                yield chunk
        finally:
            if watching is not None:
                watching.cancel()
            await reading.close()
        reading.check(len(names))

    async def _accompany(self, reading: _Reading, session_id: str) -> None:
        """Ask the nodes that come to have executors of the session, until it is closed or gone."""
        changed = asyncio.Event()
        self._nodes.reported.add(changed)
        try:
            with self._watches.watch(session_id) as watcher:
                while True:
                    changed.clear()
                    session = self._turns.engine.sessions.get(session_id)
                    if session is None or session.state is not SessionState.OPEN:
                        return
                    for executor in session.executors.values():
                        if executor.state in (ExecutorState.BINDING, ExecutorState.BOUND):
                            reading.ask(executor.node.name)
                    waiters = [asyncio.ensure_future(watcher.wait()), asyncio.ensure_future(changed.wait())]
                    try:
                        await asyncio.wait(waiters, return_when=asyncio.FIRST_COMPLETED)
                    finally:
                        for waiter in waiters:
                            waiter.cancel()
        finally:
            self._nodes.reported.discard(changed)

    def _nodes_for(self, request: frontend_pb2.GetLogsRequest) -> list[str]:
        engine = self._turns.engine
        if not request.session_id and not request.executor_id:
            raise InvalidArgumentError("name a session or an executor")
        if request.session_id:
            views.session(engine, request.session_id)
        if request.executor_id:
            for executor in engine.executors.values():
                if executor.id == request.executor_id:
                    return [executor.node.name]
        # Executors that are gone are known to their nodes only.
        return self._nodes.names()


class _Reading:
    """One GetLogs under way. `_told`: a node that is asked again begins anew."""

    def __init__(self, nodes: Nodes, request: frontend_pb2.GetLogsRequest) -> None:
        self._nodes = nodes
        self._request = request
        self._queue: asyncio.Queue[frontend_pb2.LogChunk | None] = asyncio.Queue(_QUEUE_LENGTH)
        self._pumps: dict[str, asyncio.Task[None]] = {}
        self._failures: dict[str, FlameError] = {}  # by node, of its last answer
        self._told = SeenLogs()

    def ask(self, node: str) -> None:
        """Read what this node has, unless that is under way."""
        if node not in self._pumps:
            self._failures.pop(node, None)
            self._pumps[node] = asyncio.create_task(self._pump(node))

    def wake(self) -> None:
        """Look again whether this is the end."""
        try:
            self._queue.put_nowait(None)
        except asyncio.QueueFull:
            pass  # then somebody is about to look

    async def chunks(self, ended: Callable[[], bool]) -> AsyncIterator[frontend_pb2.LogChunk]:
        """Until no node has more to say and `ended()`."""
        while self._pumps or not ended() or not self._queue.empty():
            chunk = await self._queue.get()
            fresh = self._told.rest(chunk) if chunk is not None else None
            if fresh is not None:
                yield fresh

    def check(self, asked: int) -> None:
        """Raise what went wrong; that a node knows nothing only when none of those asked does."""
        other = [error for error in self._failures.values() if not isinstance(error, NotFoundError)]
        if other:
            raise other[0]
        if asked and not self._told and len(self._failures) >= asked:
            raise next(iter(self._failures.values()))

    async def close(self) -> None:
        """Stop asking."""
        pumps = list(self._pumps.values())
        for pump in pumps:
            pump.cancel()
        await asyncio.gather(*pumps, return_exceptions=True)

    async def _pump(self, node: str) -> None:
        try:
            async for body in self._nodes.logs(node, self._request):
                await self._queue.put(frontend_pb2.LogChunk.FromString(body))
        except FlameError as error:
            self._failures[node] = error
        self._pumps.pop(node, None)
        self.wake()
