"""A small session manager that tests script: it keeps sessions and tasks in memory and does what the test says."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import flame
from flame import link
from flame.client.background import loop_thread
from flame.link import Frame, Kind, Link
from flame.model.errors import AlreadyExistsError, FlameError, InvalidStateError, NotFoundError
from flame.proto import frontend_pb2 as fe
from flame.proto import link_pb2
from flame.proto import types_pb2 as ty

PENDING, SUCCEED, FAILED, CANCELLED = 0, 2, 3, 4


class Hold:
    """The answer of a service that leaves the task pending."""


class Task:
    def __init__(self, task_id: int, payload: bytes | None, client: str) -> None:
        self.id = task_id
        self.payload = payload
        self.client = client
        self.state = PENDING
        self.output: bytes | None = None
        self.failure = link_pb2.Failure()


class Session:
    def __init__(self, session_id: str, spec: ty.SessionSpec) -> None:
        self.id = session_id
        self.spec = spec
        self.open = True
        self.tasks: list[Task] = []
        self.runs: dict[str, list[tuple[int, int, int]]] = {}  # client -> (first_seq, count, first_id)
        self.keys: dict[str, int] = {}
        self.running = 0
        self.explanation = fe.Explanation()


class Manager:
    """`service(payload)` gives a task's output, raises its failure, or answers Hold. Times are what tests make them."""

    def __init__(self, address: link.Address) -> None:
        self.address = address
        self.service: Callable[[bytes | None], Any] = lambda payload: payload
        self.sessions: dict[str, Session] = {}
        self.applications: dict[str, ty.ApplicationSpec] = {}
        self.links: list[Link] = []
        self.frames: list[Frame] = []  # all that came
        self.calls: list[tuple[str, bytes]] = []
        self.before: dict[str, Callable[[Link], Awaitable[None]]] = {}  # before a call is answered
        self.max_payload = 1000
        self.refuse: Callable[[link_pb2.Submit], FlameError | None] = lambda submit: None
        self.accepting = True  # whether submissions are acknowledged
        self.tenants: dict[str, ty.Tenant] = {}
        self.marks: list[fe.MarkNodeRequest] = []
        self.logs: Callable[[fe.GetLogsRequest], AsyncIterator[fe.LogChunk]]
        self.arrived = asyncio.Event()
        self.server: link.LinkServer
        self._channels: dict[tuple[Link, str], int] = {}
        self._attached: dict[tuple[Link, int], str] = {}

    # --- life --------------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        self.server = await link.serve(self.address, self._accept, heartbeat=None)
        self.address = self.server.address

    async def stop(self) -> None:
        self.server.close()
        await self.server.wait_closed()

    def drop(self) -> None:
        """Break all connections, as a crash would."""
        for connected in self.links:
            connected.abort()
        self.links.clear()
        self._channels.clear()
        self._attached.clear()

    async def _accept(self, accepted: Link) -> link_pb2.Welcome:
        self.links.append(accepted)
        self.arrived.set()
        accepted.on_frames = self._received
        accepted.on_call = self._call
        accepted.on_closed = lambda closed, error: self.links.remove(closed) if closed in self.links else None
        return link_pb2.Welcome(server_id="scripted", max_payload=self.max_payload)

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait for a frame that makes the condition true."""
        while not condition():
            self.arrived.clear()
            await self.arrived.wait()

    def count(self, kind: int) -> int:
        return sum(frame.kind == kind for frame in self.frames)

    # --- frames ------------------------------------------------------------------------------------------------------

    def _received(self, connected: Link, frames: list[Frame]) -> None:
        for frame in frames:
            self.frames.append(frame)
            session = self.sessions.get(self._attached.get((connected, frame.channel), ""))
            if frame.kind == Kind.ATTACH:
                self._attach(connected, frame)
            elif frame.kind == Kind.DETACH:
                del self._attached[(connected, frame.channel)]
            elif session is None:
                self._error(connected, frame.channel, NotFoundError("no session is attached"))
            elif frame.kind == Kind.SUBMIT:
                self._submit(connected, frame.channel, session, link_pb2.Submit.FromString(frame.body))
            elif frame.kind == Kind.CANCEL:
                self._cancel(connected, session, link_pb2.Cancel.FromString(frame.body))
        self.arrived.set()

    def _error(self, connected: Link, channel: int, error: FlameError) -> None:
        connected.send(Kind.ERROR, channel, link.to_wire(error).SerializeToString())

    def _attach(self, connected: Link, frame: Frame) -> None:
        attach = link_pb2.Attach.FromString(frame.body)
        session = self.sessions.get(attach.session_id)
        if session is None:
            self._error(connected, frame.channel, NotFoundError(f"session <{attach.session_id}> not found"))
            return
        self._attached[(connected, frame.channel)] = session.id
        self._channels[(connected, session.id)] = frame.channel
        client = connected.hello.id
        known = [run for run in session.runs.get(client, []) if run[0] + run[1] > attach.next_seq]
        answer = link_pb2.Attached(session_id=session.id)
        wanted: list[Task] = []
        for first_seq, count, first in known:
            answer.accepted.add(first_seq=first_seq, count=count, first_task_id=first)
            wanted += session.tasks[first - 1 : first - 1 + count]
        for ids in attach.unresolved:
            wanted += session.tasks[ids.first - 1 : ids.last]
        connected.send(Kind.ATTACHED, frame.channel, answer.SerializeToString())
        self._deliver(connected, session, [task for task in wanted if task.state != PENDING])

    def _submit(self, connected: Link, channel: int, session: Session, submit: link_pb2.Submit) -> None:
        client = connected.hello.id
        runs = session.runs.setdefault(client, [])
        count = len(submit.inputs)
        answer = link_pb2.Accepted(first_seq=submit.first_seq, count=count)
        expected = runs[-1][0] + runs[-1][1] if runs else 1
        error = self.refuse(submit)
        if error is None and not session.open:
            error = InvalidStateError("the session is not open")
        new: list[Task] = []
        if error is None and submit.first_seq < expected:
            answer.first_task_id = next(run[2] for run in runs if run[0] == submit.first_seq)
        elif error is None and submit.first_seq > expected:
            error = flame.ProtocolError("does not continue")
        elif error is None:
            first = len(session.tasks) + 1
            answer.first_task_id = first
            for index, payload in enumerate(submit.inputs):
                new.append(Task(first + index, None if index in submit.absent else payload, client))
            session.tasks += new
            runs.append((submit.first_seq, count, first))
        if error is not None:
            answer.error.CopyFrom(link.to_wire(error))
        for task in new:
            self._serve(task)
        if not self.accepting:
            return
        connected.send(Kind.ACCEPTED, channel, answer.SerializeToString())
        self._deliver(connected, session, [task for task in new if task.state != PENDING])

    def _serve(self, task: Task) -> None:
        try:
            output = self.service(task.payload)
        except Exception as error:
            task.state = FAILED
            task.failure = link_pb2.Failure(message=str(error), traceback=f"Traceback of {error!r}", state="Failed")
            return
        if output is not Hold:
            task.state, task.output = SUCCEED, output

    def finish(self, session_id: str, outputs: dict[int, bytes | None]) -> None:
        """Tasks that were held end now."""
        session = self.sessions[session_id]
        for task_id, output in outputs.items():
            session.tasks[task_id - 1].state = SUCCEED
            session.tasks[task_id - 1].output = output
        tasks = [session.tasks[task_id - 1] for task_id in outputs]
        for connected in self.links:
            self._deliver(connected, session, [task for task in tasks if task.client == connected.hello.id])

    def _deliver(self, connected: Link, session: Session, tasks: list[Task]) -> None:
        channel = self._channels.get((connected, session.id))
        if not tasks or channel is None:
            return
        results = link_pb2.Results()
        for index, task in enumerate(tasks):
            results.task_ids.append(task.id)
            results.outputs.append(task.output or b"")
            if task.output is None:
                results.absent.append(index)
            if task.state != SUCCEED:
                task.failure.index = index
                results.failures.append(task.failure)
        connected.send(Kind.RESULTS, channel, results.SerializeToString())

    def _cancel(self, connected: Link, session: Session, cancel: link_pb2.Cancel) -> None:
        ids: list[int] = []
        for wanted in cancel.task_ids:
            ids += range(wanted.first, wanted.last + 1)
        for wanted in cancel.seqs:
            for first_seq, count, first in session.runs.get(connected.hello.id, []):
                ids += [
                    first + seq - first_seq
                    for seq in range(wanted.first, wanted.last + 1)
                    if first_seq <= seq < first_seq + count
                ]
        self.cancel(session.id, ids)

    def cancel(self, session_id: str, ids: list[int]) -> list[int]:
        session = self.sessions[session_id]
        ended = [session.tasks[task_id - 1] for task_id in ids if session.tasks[task_id - 1].state == PENDING]
        for task in ended:
            task.state = CANCELLED
            task.failure = link_pb2.Failure(state="Cancelled", message="cancelled by the client")
        for connected in self.links:
            self._deliver(connected, session, [task for task in ended if task.client == connected.hello.id])
        return [task.id for task in ended]

    def notice(self, session_id: str, *events: ty.Event, pending_reason: str = "") -> None:
        body = link_pb2.Notice(events=events, pending_reason=pending_reason).SerializeToString()
        for connected in self.links:
            connected.send(Kind.NOTICE, self._channels[(connected, session_id)], body)

    # --- calls -------------------------------------------------------------------------------------------------------

    def _call(self, connected: Link, method: str, request: bytes) -> Awaitable[bytes] | AsyncIterator[bytes]:
        self.calls.append((method, request))
        if method in ("ListTask", "WatchTask", "WatchSession", "GetLogs"):
            self.arrived.set()
            return getattr(self, method)(request)
        return self._answer(connected, method, request)

    async def _answer(self, connected: Link, method: str, request: bytes) -> bytes:
        if method in self.before:
            await self.before[method](connected)
        handler = getattr(self, method, None)
        if handler is None:
            raise NotFoundError(f"no method {method}")
        answer = handler(request).SerializeToString()
        self.arrived.set()
        return answer

    def _session(self, session_id: str) -> Session:
        if session_id not in self.sessions:
            raise NotFoundError(f"session <{session_id}> not found")
        return self.sessions[session_id]

    def _describe(self, session: Session) -> ty.Session:
        states = [task.state for task in session.tasks]
        return ty.Session(
            metadata=ty.Metadata(id=session.id, name=session.id),
            spec=session.spec,
            status=ty.SessionStatus(
                state="Open" if session.open else "Closed",
                creation_time=1_700_000_000_000,
                pending=states.count(PENDING) - session.running,
                running=session.running,
                succeed=states.count(SUCCEED),
                failed=states.count(FAILED),
                cancelled=states.count(CANCELLED),
            ),
        )

    def CreateSession(self, request: bytes) -> ty.Session:  # noqa: N802
        asked = fe.CreateSessionRequest.FromString(request)
        if asked.session_id in self.sessions:
            raise AlreadyExistsError(f"Session '{asked.session_id}' already exists")
        self.sessions[asked.session_id] = Session(asked.session_id, asked.session)
        return self._describe(self.sessions[asked.session_id])

    def OpenSession(self, request: bytes) -> ty.Session:  # noqa: N802
        asked = fe.OpenSessionRequest.FromString(request)
        if asked.session_id not in self.sessions and asked.HasField("session"):
            self.sessions[asked.session_id] = Session(asked.session_id, asked.session)
        return self._describe(self._session(asked.session_id))

    def GetSession(self, request: bytes) -> ty.Session:  # noqa: N802
        return self._describe(self._session(fe.GetSessionRequest.FromString(request).session_id))

    def ListSession(self, request: bytes) -> ty.SessionList:  # noqa: N802
        asked = fe.ListSessionRequest.FromString(request)
        ids = sorted(self.sessions)
        start = ids.index(asked.page_token) if asked.page_token else 0
        page = ids[start : start + 2]
        rest = ids[start + 2 : start + 3]
        return ty.SessionList(
            sessions=[self._describe(self.sessions[name]) for name in page], next_page_token=rest[0] if rest else ""
        )

    def CloseSession(self, request: bytes) -> ty.Session:  # noqa: N802
        asked = fe.CloseSessionRequest.FromString(request)
        session = self._session(asked.session_id)
        session.open = False
        self.cancel(session.id, [task.id for task in session.tasks])
        return self._describe(session)

    def Explain(self, request: bytes) -> fe.Explanation:  # noqa: N802
        return self._session(fe.ExplainRequest.FromString(request).session_id).explanation

    async def WatchSession(self, request: bytes) -> AsyncIterator[bytes]:  # noqa: N802
        session = self._session(fe.WatchSessionRequest.FromString(request).session_id)
        yield fe.SessionUpdate(session=self._describe(session)).SerializeToString()
        await asyncio.Event().wait()  # nothing is told that a test does not say

    async def GetLogs(self, request: bytes) -> AsyncIterator[bytes]:  # noqa: N802
        async for chunk in self.logs(fe.GetLogsRequest.FromString(request)):
            yield chunk.SerializeToString()

    def CreateTenant(self, request: bytes) -> ty.Tenant:  # noqa: N802
        asked = fe.CreateTenantRequest.FromString(request)
        self.tenants[asked.name] = ty.Tenant(
            metadata=ty.Metadata(id=asked.name, name=asked.name),
            spec=asked.tenant,
            status=ty.TenantStatus(creation_time=1_700_000_000_000),
        )
        return self.tenants[asked.name]

    def UpdateTenant(self, request: bytes) -> ty.Tenant:  # noqa: N802
        asked = fe.UpdateTenantRequest.FromString(request)
        self._tenant(asked.name).spec.CopyFrom(asked.tenant)
        return self.tenants[asked.name]

    def DeleteTenant(self, request: bytes) -> ty.Tenant:  # noqa: N802
        name = fe.DeleteTenantRequest.FromString(request).name
        self._tenant(name)
        return self.tenants.pop(name)

    def GetTenant(self, request: bytes) -> ty.Tenant:  # noqa: N802
        return self._tenant(fe.GetTenantRequest.FromString(request).name)

    def ListTenants(self, request: bytes) -> ty.TenantList:  # noqa: N802
        return ty.TenantList(tenants=self.tenants.values())

    def _tenant(self, name: str) -> ty.Tenant:
        if name not in self.tenants:
            raise NotFoundError(f"tenant {name} not found")
        return self.tenants[name]

    def MarkNode(self, request: bytes) -> ty.Node:  # noqa: N802
        asked = fe.MarkNodeRequest.FromString(request)
        self.marks.append(asked)
        node = ty.Node(metadata=ty.Metadata(id=asked.name, name=asked.name))
        node.status.cordoned = asked.mark != "uncordon"
        node.status.draining = asked.mark == "drain"
        return node

    def RegisterApplication(self, request: bytes) -> ty.Result:  # noqa: N802
        asked = fe.RegisterApplicationRequest.FromString(request)
        if asked.name in self.applications:
            raise AlreadyExistsError(f"Application '{asked.name}' already exists")
        self.applications[asked.name] = asked.application
        return ty.Result()

    def GetApplication(self, request: bytes) -> ty.Application:  # noqa: N802
        name = fe.GetApplicationRequest.FromString(request).name
        if name not in self.applications:
            raise NotFoundError(f"Application '{name}' not found")
        return ty.Application(metadata=ty.Metadata(id=name, name=name), spec=self.applications[name])

    def UnregisterApplication(self, request: bytes) -> ty.Result:  # noqa: N802
        self.applications.pop(fe.UnregisterApplicationRequest.FromString(request).name)
        return ty.Result()

    def CreateTask(self, request: bytes) -> ty.Task:  # noqa: N802
        asked = fe.CreateTaskRequest.FromString(request).task
        session = self._session(asked.session_id)
        key = asked.options.idempotency_key
        if key not in session.keys:
            task = Task(len(session.tasks) + 1, asked.input if asked.HasField("input") else None, "")
            session.tasks.append(task)
            session.keys[key] = task.id
            self._serve(task)
        return self._task(session, session.keys[key])

    def GetTask(self, request: bytes) -> ty.Task:  # noqa: N802
        asked = fe.GetTaskRequest.FromString(request)
        return self._task(self._session(asked.session_id), int(asked.task_id))

    def CancelTask(self, request: bytes) -> fe.CancelTaskResponse:  # noqa: N802
        asked = fe.CancelTaskRequest.FromString(request)
        ids = list(asked.task_ids) or [task.id for task in self.sessions[asked.session_id].tasks]
        return fe.CancelTaskResponse(task_ids=self.cancel(asked.session_id, ids))

    def _task(self, session: Session, task_id: int) -> ty.Task:
        if not 1 <= task_id <= len(session.tasks):
            raise NotFoundError(f"task <{task_id}> not found")
        task = session.tasks[task_id - 1]
        made = ty.Task(
            metadata=ty.Metadata(id=str(task_id), name=str(task_id)),
            spec=ty.TaskSpec(session_id=session.id, input=task.payload, output=task.output),
            status=ty.TaskStatus(creation_time=1_700_000_000_000),
        )
        made.status.state = ty.TaskState.Name(task.state)  # type: ignore[assignment]
        if task.failure.message:
            made.status.events.add(code=task.state, message=task.failure.message)
        return made

    async def ListTask(self, request: bytes) -> AsyncIterator[bytes]:  # noqa: N802
        asked = fe.ListTaskRequest.FromString(request)
        session = self._session(asked.session_id)
        for task in session.tasks[asked.after_task_id :]:
            yield self._task(session, task.id).SerializeToString()

    async def WatchTask(self, request: bytes) -> AsyncIterator[bytes]:  # noqa: N802
        asked = fe.WatchTaskRequest.FromString(request)
        session = self._session(asked.session_id)
        while True:
            message = self._task(session, int(asked.task_id))
            yield message.SerializeToString()
            if message.status.state != PENDING:
                return
            self.arrived.clear()
            await self.arrived.wait()


class InThread:
    """The manager of synchronous tests; its calls run in the thread of the client's loop."""

    def __init__(self, manager: Manager) -> None:
        self.manager = manager

    def run(self, work: Any) -> Any:
        """Run a coroutine, or a function, where the manager lives."""

        async def wrapped() -> Any:
            return work()

        return loop_thread().run(work if asyncio.iscoroutine(work) else wrapped())

    def until(self, condition: Callable[[], bool]) -> None:
        self.run(self.manager.until(condition))


@pytest.fixture
async def manager(tmp_path: Path) -> AsyncIterator[Manager]:
    """A manager in the loop of an asynchronous test."""
    manager = Manager(link.unix(tmp_path / "m"))
    await manager.start()
    yield manager
    await manager.stop()


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[InThread]:
    """A manager for a synchronous test."""

    async def make() -> Manager:
        made = Manager(link.unix(tmp_path / "m"))
        await made.start()
        return made

    handle = InThread(loop_thread().run(make()))
    yield handle
    handle.run(handle.manager.stop())


@pytest.fixture
def connection(cluster: InThread) -> Iterator[flame.Connection]:
    """A connection to the manager of a synchronous test."""
    with flame.connect(str(cluster.manager.address)) as connection:
        yield connection


@pytest.fixture
def hold() -> type[Hold]:
    """What a service answers to leave its task pending."""
    return Hold


@pytest.fixture
def clock() -> Callable[[], float]:
    """The monotonic clock."""
    return time.monotonic
