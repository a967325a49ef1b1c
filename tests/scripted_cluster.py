"""A cluster that answers the calls of the tools from a script, and remembers what was asked."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable

import pytest
from google.protobuf.message import Message

from flame.cli.flmctl import flmctl
from flame.cli.options import Settings
from flame.cli.program import run
from flame.model.errors import FlameError
from flame.proto import frontend_pb2 as fe
from flame.proto import types_pb2 as ty

GIB = 1024**3
START = 1_770_000_000_000  # 2026-02-02T02:40:00Z

Answer = Message | list[Message] | FlameError | Callable[[bytes], Message]


class Script:
    """The answers of a cluster by method, and what was asked."""

    def __init__(self) -> None:
        unit = ty.ResourceRequirement(cpu=1, memory=GIB)
        self.answers: dict[str, Answer] = {
            "GetCluster": fe.ClusterInfo(name="c", version="9", unit=unit),
            "ListTenants": ty.TenantList(tenants=[ty.Tenant(metadata=ty.Metadata(name="default"))]),
        }
        self.asked: list[tuple[str, bytes]] = []
        self.closed = False
        self.settings = Settings()

    def request(self, method: str, kind: type[Message]) -> Message:
        """The one request of this method."""
        (body,) = [body for name, body in self.asked if name == method]
        return kind.FromString(body)

    async def call(self, method: str, request: bytes, *, timeout: float | None = None) -> bytes:
        self.asked.append((method, request))
        answer = self.answers[method]
        if isinstance(answer, FlameError):
            raise answer
        assert not isinstance(answer, list)
        return (answer if isinstance(answer, Message) else answer(request)).SerializeToString()

    async def stream(self, method: str, request: bytes) -> AsyncIterator[bytes]:
        self.asked.append((method, request))
        answer = self.answers[method]
        if isinstance(answer, FlameError):
            raise answer
        assert isinstance(answer, list)
        for message in answer:
            yield message.SerializeToString()

    async def close(self) -> None:
        self.closed = True


def scripted_cluster(monkeypatch: pytest.MonkeyPatch) -> Script:
    """The cluster that every tool finds from now on; times are printed in UTC."""
    script = Script()

    async def open_caller(settings: Settings) -> Script:
        script.settings = settings
        return script

    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    monkeypatch.setattr("flame.cli.connecting.open_caller", open_caller)
    return script


def session(session_id: str = "pi-1", **changes: object) -> ty.Session:
    made = ty.Session(
        metadata=ty.Metadata(id=session_id),
        spec=ty.SessionSpec(application="pi", resreq=ty.ResourceRequirement(cpu=2, memory=4 * GIB), priority=7),
        status=ty.SessionStatus(creation_time=START, pending=5, running=1, succeed=30000, failed=2, cancelled=3),
    )
    for name, value in changes.items():
        setattr(made.status, name, value)
    return made


def task(task_id: int, state: ty.TaskState, **changes: object) -> ty.Task:
    made = ty.Task(
        metadata=ty.Metadata(id=str(task_id)),
        spec=ty.TaskSpec(session_id="pi-1", input=b"\xff\x00", output=b"ok"),
        status=ty.TaskStatus(state=state, creation_time=START, attempt=1, executor_id="e1"),
    )
    for name, value in changes.items():
        setattr(made.status, name, value)
    return made


def flame(*arguments: str) -> int:
    """Run flmctl; its exit code."""
    return run(flmctl, "flmctl", arguments)
