"""What instances write to stdout and stderr: kept in files of bounded size, also for a while after their end.

Each executor has a folder; each stream in it up to two files whose names end with the offset of their first byte in
the stream. When the newer one has half of the limit, it becomes the older one: the newest half to all of `limit`
bytes are always there, and a service that prints a gigabyte costs no more disk than any other.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import shutil
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

from flame.model.errors import NotFoundError
from flame.proto import frontend_pb2

STREAMS = ("stdout", "stderr")
_PIECE = 64 * 1024
_SESSION = "session"


class StreamLog:
    """One stream of one executor. `start` and `end` are the offsets of what is kept."""

    def __init__(self, folder: Path, name: str, limit: int) -> None:
        self.name = name
        self._folder = folder
        self._half = max(1, limit // 2)
        self._files = sorted((int(file.suffix[1:]), file) for file in folder.glob(f"{name}.*"))
        self._out: int | None = None
        self.start = self._files[0][0] if self._files else 0
        self.end = self._files[-1][0] + self._files[-1][1].stat().st_size if self._files else 0

    def append(self, data: bytes) -> None:
        """Write behind what is there. Loses data rather than raise when the disk is full."""
        while data:
            room = self._half - (self.end - self._files[-1][0]) if self._files else 0
            try:
                if room <= 0 or self._out is None:
                    room = self._half
                    self._rotate()
                written = os.write(self._out or -1, data[:room])
            except OSError:
                return
            self.end += written
            data = data[written:]

    def _rotate(self) -> None:
        self.close()
        while len(self._files) > 1:
            self._files.pop(0)[1].unlink(missing_ok=True)
        file = self._folder / f"{self.name}.{self.end}"
        self._out = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self._files.append((self.end, file))
        self.start = self._files[0][0]

    def read(self, offset: int, size: int) -> tuple[int, bytes]:
        """Up to `size` bytes from `offset` on, or from the first byte kept; gives the offset that it began at."""
        offset = max(offset, self.start)
        for start, file in reversed(self._files):
            if offset >= start:
                with file.open("rb") as stream:
                    stream.seek(offset - start)
                    return offset, stream.read(size)
        return offset, b""

    def tail(self, size: int) -> bytes:
        """The last `size` bytes at most."""
        begin = max(self.start, self.end - size)
        found = b""
        while begin + len(found) < self.end:
            _, piece = self.read(begin + len(found), size)
            if not piece:
                break
            found += piece
        return found

    def moved(self, folder: Path) -> None:
        """Its folder has another place now."""
        self._folder = folder
        self._files = [(start, folder / file.name) for start, file in self._files]

    def close(self) -> None:
        if self._out is not None:
            os.close(self._out)
            self._out = None


class ExecutorLog:
    """Both streams of one executor, read from pipes that its instance writes to."""

    def __init__(
        self, folder: Path, executor_id: str, session_id: str, limit: int, followers: set[asyncio.Event]
    ) -> None:
        """`followers` are told whenever something was written, and of the end."""
        self.executor_id = executor_id
        self.session_id = session_id
        self.folder = folder
        self.streams = {name: StreamLog(folder, name, limit) for name in STREAMS}
        self.ended_at: float | None = None  # Unix seconds
        self._pipes: dict[str, int] = {}
        self._followers = followers
        self._allowed = 0
        self._flooded: Callable[[], None] = _nothing

    def watch(self, allowed: int, flooded: Callable[[], None]) -> None:
        """Call `flooded` once, when more bytes than `allowed` were written to both streams together."""
        self._allowed, self._flooded = allowed, flooded

    def open_pipes(self) -> tuple[int, int]:
        """The descriptors that the instance shall have as stdout and stderr; the caller closes them."""
        ends: list[int] = []
        loop = asyncio.get_running_loop()
        for name in STREAMS:
            reading, writing = os.pipe2(os.O_CLOEXEC)
            fcntl.fcntl(reading, fcntl.F_SETFL, os.O_NONBLOCK)
            self._pipes[name] = reading
            loop.add_reader(reading, self._read, name)
            ends.append(writing)
        return ends[0], ends[1]

    def _read(self, name: str) -> bool:
        """Take one piece; true when there may be more."""
        try:
            data = os.read(self._pipes[name], _PIECE)
        except BlockingIOError:
            return False
        if not data:
            self._close_pipe(name)
            return False
        self.append(name, data)
        return True

    def append(self, name: str, data: bytes) -> None:
        """Something that the instance wrote to one of its streams."""
        self.streams[name].append(data)
        if self._allowed and sum(stream.end for stream in self.streams.values()) > self._allowed:
            self._allowed = 0
            self._flooded()
        for news in self._followers:
            news.set()

    def catch_up(self) -> None:
        """Take what is in the pipes now."""
        for name in list(self._pipes):
            while name in self._pipes and self._read(name):
                pass

    def move(self, folder: Path, executor_id: str, session_id: str) -> None:
        """From now on it is the log of this executor, at another place of the same disk. Raises OSError."""
        self.folder.rename(folder)
        self.executor_id, self.session_id, self.folder = executor_id, session_id, folder
        for stream in self.streams.values():
            stream.moved(folder)

    def end(self) -> None:
        """Nothing more is written."""
        self.catch_up()
        for name in list(self._pipes):
            self._close_pipe(name)
        for stream in self.streams.values():
            stream.close()
        self.ended_at = time.time()
        for news in self._followers:
            news.set()

    def _close_pipe(self, name: str) -> None:
        pipe = self._pipes.pop(name)
        asyncio.get_running_loop().remove_reader(pipe)
        os.close(pipe)

    def chunks(self, stream: str, positions: dict[tuple[str, str], int], tail: int) -> Iterator[frontend_pb2.LogChunk]:
        """What is kept of one stream or (empty) both behind `positions`, which move on; at first the last `tail` bytes
        of each, all if 0."""
        for name, log in self.streams.items():
            if stream not in ("", name):
                continue
            key = (self.executor_id, name)
            if key not in positions:
                positions[key] = max(log.start, log.end - tail) if tail else 0
            while True:
                wanted = positions[key]
                offset, data = log.read(wanted, _PIECE)
                if not data:
                    break
                positions[key] = offset + len(data)
                yield frontend_pb2.LogChunk(
                    executor_id=self.executor_id, stream=name, offset=offset, data=data, truncated=offset > wanted
                )


class LogStore:
    """The logs of one node. `limit` in bytes per stream, `keep_s` seconds after an executor's end."""

    def __init__(self, folder: Path, limit: int, keep_s: float) -> None:
        self._folder = folder
        self._limit = limit
        self._keep_s = keep_s
        self._logs: dict[str, ExecutorLog] = {}
        self._followers: set[asyncio.Event] = set()
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        for left in sorted(folder.iterdir()):  # of an earlier run of this node
            if left.is_dir():
                session = left / _SESSION
                owner = session.read_text() if session.exists() else ""
                log = ExecutorLog(left, left.name, owner, limit, self._followers)
                log.ended_at = left.stat().st_mtime
                self._logs[left.name] = log
        self.prune()

    def create(self, executor_id: str, session_id: str) -> ExecutorLog:
        """The log of a new executor. Raises OSError."""
        folder = self._cleared(executor_id)
        folder.mkdir(mode=0o700)
        return self._add(ExecutorLog(folder, executor_id, session_id, self._limit, self._followers))

    def unclaimed(self, folder: Path) -> ExecutorLog:
        """A log that belongs to no executor yet, in a folder that it makes outside the store. Raises OSError."""
        folder.mkdir(mode=0o700)
        return ExecutorLog(folder, "", "", self._limit, self._followers)

    def claim(self, log: ExecutorLog, executor_id: str, session_id: str) -> None:
        """An unclaimed log is this executor's from now on, with what is in it. Raises OSError."""
        log.move(self._cleared(executor_id), executor_id, session_id)
        self._add(log)

    def _cleared(self, executor_id: str) -> Path:
        folder = self._folder / executor_id
        if folder.exists():
            shutil.rmtree(folder, ignore_errors=True)
        return folder

    def _add(self, log: ExecutorLog) -> ExecutorLog:
        (log.folder / _SESSION).write_text(log.session_id)
        self._logs[log.executor_id] = log
        for news in self._followers:
            news.set()
        return log

    def prune(self) -> None:
        """Remove what was kept long enough."""
        oldest = time.time() - self._keep_s
        for executor_id, log in list(self._logs.items()):
            if log.ended_at is not None and log.ended_at < oldest:
                del self._logs[executor_id]
                shutil.rmtree(log.folder, ignore_errors=True)

    def kept(self) -> list[str]:
        """The executors whose logs are here."""
        return list(self._logs)

    async def read(self, request: frontend_pb2.GetLogsRequest) -> AsyncIterator[frontend_pb2.LogChunk]:
        """The log of an executor, or of all executors of a session. With `follow` also what comes, until none of them
        runs any more. Raises NotFoundError when nothing is kept of it here."""
        if request.stream not in ("", *STREAMS):
            raise NotFoundError(f"no stream {request.stream!r}", remedy=f"the streams are {' and '.join(STREAMS)}")
        if not self._chosen(request):
            whose = f"executor {request.executor_id}" if request.executor_id else f"session {request.session_id}"
            raise NotFoundError(f"no logs of {whose} are kept here", remedy=f"they are kept {self._keep_s:g} s long")
        news = asyncio.Event()
        self._followers.add(news)
        positions: dict[tuple[str, str], int] = {}
        try:
            while True:
                news.clear()
                logs = self._chosen(request)
                running = any(log.ended_at is None for log in logs)  # before reading, so that nothing is missed
                for log in logs:
                    for chunk in log.chunks(request.stream, positions, request.tail_bytes):
                        yield chunk
                if not (request.follow and running):
                    return
                await news.wait()
        finally:
            self._followers.discard(news)

    def _chosen(self, request: frontend_pb2.GetLogsRequest) -> list[ExecutorLog]:
        return [
            log
            for log in self._logs.values()
            if request.executor_id in ("", log.executor_id) and request.session_id in ("", log.session_id)
        ]


def _nothing() -> None:
    """Nobody wants to know."""
