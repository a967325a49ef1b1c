"""What was read of logs: whoever asks again is told from the beginning, and gives nothing twice."""

from __future__ import annotations

from flame.proto import frontend_pb2


class SeenLogs:
    """How far each stream of each executor was read, in bytes from its beginning. False when nothing was."""

    def __init__(self) -> None:
        self._ends: dict[tuple[str, str], int] = {}

    def __bool__(self) -> bool:
        return bool(self._ends)

    def rest(self, chunk: frontend_pb2.LogChunk) -> frontend_pb2.LogChunk | None:
        """The chunk with what is new of it only; None when nothing is."""
        key = (chunk.executor_id, chunk.stream)
        seen = self._ends.get(key)
        end = chunk.offset + len(chunk.data)
        if seen is not None and chunk.offset <= seen:
            if end <= seen:
                return None
            # Without a gap before it: nothing between what was seen and this is missing.
            chunk.data = chunk.data[seen - chunk.offset :]
            chunk.offset, chunk.truncated = seen, False
        self._ends[key] = end
        return chunk
