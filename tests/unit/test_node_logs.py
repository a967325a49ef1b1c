"""Logs of bounded size: the newest bytes are there, at the offsets where they were written."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flame.model.errors import NotFoundError
from flame.proto import frontend_pb2
from flame.shims.logs import LogStore, StreamLog


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)
@given(pieces=st.lists(st.integers(1, 300), max_size=12), limit=st.integers(20, 200))
def test_the_newest_half_of_the_limit_is_always_kept(tmp_path: Path, pieces: list[int], limit: int) -> None:
    for left in tmp_path.iterdir():
        left.unlink()
    log = StreamLog(tmp_path, "stdout", limit)
    written = b""
    for length in pieces:
        piece = bytes(len(written) % 251 + index % 5 for index in range(length))
        log.append(piece)
        written += piece
        kept = log.end - log.start
        assert log.end == len(written)
        assert min(len(written), limit // 2) <= kept <= limit
        assert sum(file.stat().st_size for file in tmp_path.iterdir()) == kept
        assert log.tail(limit) == written[log.start :]
        assert log.tail(1) == written[-1:]
        offset, data = log.read(0, limit)
        assert written[offset:].startswith(data)
        assert data
    log.close()
    assert StreamLog(tmp_path, "stdout", limit).tail(limit) == written[log.start :]


def test_a_disk_that_is_full_loses_output_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = StreamLog(tmp_path, "stdout", 100)
    log.append(b"before ")

    def full(descriptor: int, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.write", full)
        log.append(b"lost")
    log.append(b"after")
    assert log.tail(100) == b"before after"
    log.close()


async def read(store: LogStore, **request: object) -> list[tuple[str, str, bytes]]:
    wanted = frontend_pb2.GetLogsRequest(**request)
    return [(chunk.executor_id, chunk.stream, chunk.data) async for chunk in store.read(wanted)]


async def test_logs_outlive_their_executor_and_the_node_for_the_stated_time(tmp_path: Path) -> None:
    store = LogStore(tmp_path, limit=1000, keep_s=3600)
    for executor in ("x1", "x2"):
        log = store.create(executor, "s1")
        log.streams["stderr"].append(f"from {executor}".encode())
        log.end()
    later = LogStore(tmp_path, limit=1000, keep_s=3600)
    assert await read(later, session_id="s1") == [("x1", "stderr", b"from x1"), ("x2", "stderr", b"from x2")]
    assert await read(later, executor_id="x2", stream="stderr", tail_bytes=2) == [("x2", "stderr", b"x2")]
    assert await read(later, executor_id="x2", stream="stdout") == []
    expired = LogStore(tmp_path, limit=1000, keep_s=-1)
    with pytest.raises(NotFoundError):
        await read(expired, session_id="s1")
    assert not expired.kept()


async def test_a_session_is_followed_through_all_its_executors(tmp_path: Path) -> None:
    store = LogStore(tmp_path, limit=1000, keep_s=3600)
    first = store.create("x1", "s1")
    stdout, stderr = first.open_pipes()
    stream = store.read(frontend_pb2.GetLogsRequest(session_id="s1", follow=True))
    os.write(stdout, b"one")
    assert (await anext(stream)).data == b"one"
    second = store.create("x2", "s1")
    other = store.create("x3", "s2")
    other.streams["stdout"].append(b"not asked for")
    other.end()
    second.streams["stdout"].append(b"two")
    second.end()
    assert (await anext(stream)).data == b"two"
    os.write(stderr, b"three")
    os.close(stdout)
    os.close(stderr)
    first.end()
    assert [(chunk.executor_id, chunk.stream, chunk.data) async for chunk in stream] == [("x1", "stderr", b"three")]


async def test_the_log_of_another_session_is_not_shown(tmp_path: Path) -> None:
    store = LogStore(tmp_path, limit=1000, keep_s=3600)
    store.create("x1", "s1").end()
    with pytest.raises(NotFoundError):
        await read(store, session_id="s2", executor_id="x1")


async def test_an_unknown_stream_is_refused(tmp_path: Path) -> None:
    store = LogStore(tmp_path, limit=1000, keep_s=3600)
    store.create("x1", "s1").end()
    with pytest.raises(NotFoundError, match="the streams are stdout and stderr"):
        await read(store, executor_id="x1", stream="stdlog")
