"""GetLogs: the logs of instances lie on their nodes; several nodes' answers become one stream."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from flame.engine import views
from flame.manager.nodes import Nodes
from flame.manager.turns import Turns
from flame.model.errors import FlameError, InvalidArgumentError, NotFoundError
from flame.proto import frontend_pb2

_QUEUE_LENGTH = 16


class LogReader:
    """Asks the nodes that may hold the logs."""

    def __init__(self, turns: Turns, nodes: Nodes) -> None:
        self._turns = turns
        self._nodes = nodes

    async def read(self, request: frontend_pb2.GetLogsRequest) -> AsyncIterator[frontend_pb2.LogChunk]:
        """Chunks of all streams asked for, each stream in order. Raises NotFoundError when no node knows any."""
        nodes = self._nodes_for(request)
        queue: asyncio.Queue[frontend_pb2.LogChunk | None] = asyncio.Queue(_QUEUE_LENGTH)
        failures: list[FlameError] = []
        tasks = [asyncio.create_task(self._pump(node, request, queue, failures)) for node in nodes]
        running = len(tasks)
        seen = False
        try:
            while running:
                chunk = await queue.get()
                if chunk is None:
                    running -= 1
                else:
                    seen = True
                    yield chunk
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        other = [error for error in failures if not isinstance(error, NotFoundError)]
        if other:
            raise other[0]
        if not seen and failures and len(failures) == len(nodes):
            raise failures[0]

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

    async def _pump(
        self,
        node: str,
        request: frontend_pb2.GetLogsRequest,
        queue: asyncio.Queue[frontend_pb2.LogChunk | None],
        failures: list[FlameError],
    ) -> None:
        try:
            async for body in self._nodes.logs(node, request):
                await queue.put(frontend_pb2.LogChunk.FromString(body))
        except FlameError as error:
            failures.append(error)
        await queue.put(None)
