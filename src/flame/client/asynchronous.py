"""The SDK for asyncio: `AsyncConnection` and `AsyncSession`. The synchronous SDK is a facade over these."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar, Unpack

from google.protobuf.message import Message

from flame.client import wire
from flame.client.endpoints import resolve
from flame.client.feeding import Feeder
from flame.client.futures import TaskFuture, settle
from flame.client.gather import DEFAULT_WINDOW, MISSING, Gather, Missing
from flame.client.outcomes import outcome_of
from flame.client.snapshot import SessionSnapshot, TaskArguments, payload_of
from flame.client.stream import TaskStream
from flame.client.uplink import CALL_TIMEOUT, RECONNECT_TIMEOUT, Uplink
from flame.client.values import (
    Application,
    ApplicationAttributes,
    ClusterInfo,
    Executor,
    Explanation,
    FlameClientTls,
    LogChunk,
    Node,
    SessionAttributes,
    SessionUpdate,
    Task,
    short_name,
)
from flame.model.errors import (
    AlreadyExistsError,
    FlameError,
    FlameErrorCode,
    InvalidArgumentError,
    InvalidStateError,
    NotFoundError,
    TimedOutError,
    UnavailableError,
    error_of,
)
from flame.model.states import SessionState, TaskState
from flame.proto import frontend_pb2 as fe
from flame.proto import types_pb2 as ty

M = TypeVar("M", bound=Message)
CONNECT_TIMEOUT = 10.0
_PAGE = 1000
_YIELD_EVERY = 512


async def connect(
    addr: str | None = None,
    tls_config: FlameClientTls | None = None,
    *,
    timeout: float = CONNECT_TIMEOUT,
    call_timeout: float = CALL_TIMEOUT,
    reconnect_timeout: float | None = RECONNECT_TIMEOUT,
) -> AsyncConnection:
    """Connect to a cluster.

    `addr` is `http://host:port`, `https://host:port`, `unix:/path`, or None: the configured cluster, else the local
    one, which is started when it does not run. All times in seconds: `timeout` for connecting, `call_timeout` for each
    call, `reconnect_timeout` after which everything that waits fails when the cluster is gone (None = never).
    Raises UnavailableError, UnauthenticatedError, InvalidConfigError.
    """
    loop = asyncio.get_running_loop()
    # Reading files and starting a local cluster block; the loop goes on meanwhile.
    endpoint = await loop.run_in_executor(None, resolve, addr, tls_config)
    uplink = Uplink(endpoint, reconnect_timeout=reconnect_timeout)
    await uplink.open(timeout)
    return AsyncConnection(uplink, call_timeout)


class AsyncConnection:
    """A connection to one cluster; made by `connect`. As an async context manager it is closed at the end."""

    def __init__(self, uplink: Uplink, call_timeout: float = CALL_TIMEOUT) -> None:
        self.uplink = uplink
        self.call_timeout = call_timeout

    @property
    def addr(self) -> str:
        """The address that was connected to."""
        return self.uplink.endpoint.text

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """End the connection. Unfinished futures fail here; their tasks go on in the cluster."""
        await self.uplink.close()

    # --- applications ------------------------------------------------------------------------------------------------

    async def register_application(self, name: str, app_attrs: ApplicationAttributes | Mapping[str, Any]) -> None:
        """Raises AlreadyExistsError, InvalidArgumentError."""
        spec = wire.application_to(app_attrs)
        request = fe.RegisterApplicationRequest(name=name, application=spec)
        try:
            await self._change("RegisterApplication", request)
        except UnavailableError as error:
            if not self.uplink.broken(error):
                raise
            await self._register_again(request)

    async def _register_again(self, request: fe.RegisterApplicationRequest) -> None:
        """The connection broke: whether it is registered now, only the cluster knows."""
        try:
            await self._change("RegisterApplication", request)
        except AlreadyExistsError:
            found = await self._call("GetApplication", fe.GetApplicationRequest(name=request.name), ty.Application)
            if found.spec.command != request.application.command or found.spec.url != request.application.url:
                raise

    async def update_application(self, name: str, app_attrs: ApplicationAttributes | Mapping[str, Any]) -> None:
        """Replace the attributes; running executors keep the old ones. Raises NotFoundError, InvalidArgumentError."""
        request = fe.UpdateApplicationRequest(name=name, application=wire.application_to(app_attrs))
        await self._change("UpdateApplication", request)

    async def unregister_application(self, name: str) -> None:
        """Raises NotFoundError, and InvalidStateError while it has open sessions."""
        await self._change("UnregisterApplication", fe.UnregisterApplicationRequest(name=name))

    async def list_applications(self) -> list[Application]:
        """All registered applications."""
        answer = await self._call("ListApplication", fe.ListApplicationRequest(), ty.ApplicationList)
        return [wire.application_from(message) for message in answer.applications]

    async def get_application(self, name: str) -> Application | None:
        """The application of that name, None when there is none."""
        try:
            message = await self._call("GetApplication", fe.GetApplicationRequest(name=name), ty.Application)
        except NotFoundError:
            return None
        return wire.application_from(message)

    # --- the cluster -------------------------------------------------------------------------------------------------

    async def get_cluster(self) -> ClusterInfo:
        """Name, version, limits and health of the cluster."""
        return wire.cluster_from(await self._call("GetCluster", fe.GetClusterRequest(), fe.ClusterInfo))

    async def list_nodes(self) -> list[Node]:
        """All nodes."""
        answer = await self._call("ListNodes", fe.ListNodesRequest(), ty.NodeList)
        return [wire.node_from(message) for message in answer.nodes]

    async def get_node(self, name: str) -> Node:
        """Raises NotFoundError."""
        return wire.node_from((await self._call("GetNode", fe.GetNodeRequest(name=name), fe.GetNodeResponse)).node)

    async def list_executors(self, session_id: str = "", node: str = "") -> list[Executor]:
        """All executors, or those of a session or a node."""
        request = fe.ListExecutorRequest(session_id=session_id, node=node)
        answer = await self._call("ListExecutor", request, ty.ExecutorList)
        return [wire.executor_from(message) for message in answer.executors]

    async def get_executor(self, executor_id: str) -> Executor:
        """Raises NotFoundError."""
        request = fe.GetExecutorRequest(executor_id=executor_id)
        return wire.executor_from(await self._call("GetExecutor", request, ty.Executor))

    # --- sessions --------------------------------------------------------------------------------------------------

    async def create_session(self, attrs: SessionAttributes | str, **options: Any) -> AsyncSession:
        """A new session, described by attributes, or by an application's name and attributes as keywords.

        Raises AlreadyExistsError, NotFoundError (no such application), InvalidArgumentError.
        """
        attrs = session_attributes(attrs, options)
        session_id = attrs.id or short_name(attrs.application)
        spec = wire.session_to(attrs)
        try:
            message = await self._call(
                "CreateSession", fe.CreateSessionRequest(session_id=session_id, session=spec), ty.Session
            )
        except UnavailableError as error:
            if not self.uplink.broken(error):
                raise
            # The connection broke: it may have been created. Opening with a spec does the right thing either way.
            message = await self._call(
                "OpenSession", fe.OpenSessionRequest(session_id=session_id, session=spec), ty.Session
            )
        return AsyncSession(self, message)

    async def open_session(self, session_id: str, spec: SessionAttributes | None = None) -> AsyncSession:
        """The open session of that id; with a spec it is created when it does not exist, and compared when it does.

        Raises NotFoundError, InvalidStateError (it is closed), InvalidArgumentError (it differs from the spec).
        """
        request = fe.OpenSessionRequest(session_id=session_id)
        if spec is not None:
            request.session.CopyFrom(wire.session_to(spec))
        return AsyncSession(self, await self._call("OpenSession", request, ty.Session))

    async def get_session(self, session_id: str) -> AsyncSession:
        """The session of that id, open or closed. Raises NotFoundError."""
        request = fe.GetSessionRequest(session_id=session_id)
        return AsyncSession(self, await self._call("GetSession", request, ty.Session))

    async def list_sessions(
        self,
        states: Sequence[SessionState] = (),
        application: str = "",
        labels: Mapping[str, str] | None = None,
    ) -> list[AsyncSession]:
        """All sessions that match: in one of the states, of the application, with all of the labels."""
        found: list[AsyncSession] = []
        token = ""
        while True:
            request = fe.ListSessionRequest(
                states=[ty.SessionState.Name(state) for state in states],
                application=application,
                labels=labels,
                page_size=_PAGE,
                page_token=token,
            )
            answer = await self._call("ListSession", request, ty.SessionList)
            found.extend(AsyncSession(self, message) for message in answer.sessions)
            token = answer.next_page_token
            if not token:
                return found

    async def close_session(self, session_id: str, *, force: bool = False) -> AsyncSession:
        """Close a session: its pending tasks are cancelled. Closing a closed one does nothing.

        While tasks run this is refused with InvalidStateError, unless `force`, which cancels them too.
        """
        request = fe.CloseSessionRequest(session_id=session_id, force=force)
        return AsyncSession(self, await self._call("CloseSession", request, ty.Session))

    async def delete_session(self, session_id: str) -> None:
        """Remove a closed session with its tasks and results. Raises NotFoundError, InvalidStateError."""
        await self._call("DeleteSession", fe.DeleteSessionRequest(session_id=session_id), ty.Session)

    # --- what happens ------------------------------------------------------------------------------------------------

    async def logs(
        self,
        session_id: str = "",
        *,
        executor_id: str = "",
        stream: str = "",
        follow: bool = False,
        tail_bytes: int = 0,
    ) -> AsyncIterator[LogChunk]:
        """What the instances of a session, or of one executor, printed; see AsyncSession.logs."""
        request = fe.GetLogsRequest(
            session_id=session_id, executor_id=executor_id, stream=stream, follow=follow, tail_bytes=tail_bytes
        )
        async for message in self.uplink.stream("GetLogs", request, fe.LogChunk):
            yield wire.log_from(message)

    async def explain(self, session_id: str, task_id: str = "") -> Explanation:
        """Why a session gets no (further) executor, or what happened to a task. Raises NotFoundError."""
        request = fe.ExplainRequest(session_id=session_id, task_id=str(task_id or ""))
        return wire.explanation_from(await self._call("Explain", request, fe.Explanation))

    # --- inside ------------------------------------------------------------------------------------------------------

    async def _call(self, method: str, request: Message, reply: type[M]) -> M:
        return await self.uplink.call(method, request, reply, self.call_timeout)

    async def _change(self, method: str, request: Message) -> None:
        """Calls that answer a Result. Servers that say no more than that it failed leave its code open."""
        result = await self._call(method, request, ty.Result)
        if result.return_code != 0:
            code = result.error_code if result.HasField("error_code") else FlameErrorCode.INTERNAL
            raise error_of(code, result.message or f"{method} failed with code {result.return_code}", result.remedy)


class AsyncSession(SessionSnapshot):
    """A session: where tasks are submitted. As an async context manager it is closed at the end, after its tasks."""

    def __init__(self, connection: AsyncConnection, message: ty.Session) -> None:
        super().__init__(message)
        self.connection = connection
        self._stream: TaskStream | None = None
        self._keyed: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            await self.wait()
            await self.close()
            return
        try:
            await self.close(force=True)
        except FlameError:
            pass  # what ended the block is the news

    async def refresh(self) -> None:
        """Read state and counters anew."""
        request = fe.GetSessionRequest(session_id=self.id)
        self._load(await self._call("GetSession", request, ty.Session))

    async def close(self, *, force: bool = False) -> None:
        """Close the session for everybody; see AsyncConnection.close_session."""
        request = fe.CloseSessionRequest(session_id=self.id, force=force)
        self._load(await self._call("CloseSession", request, ty.Session))
        stream = self._stream
        if stream is not None:
            stream.when_idle(lambda: self.connection.uplink.release(stream))

    async def wait(self) -> None:
        """Wait until all tasks that this connection submitted to the session have ended."""
        if self._keyed:
            await asyncio.wait(self._keyed)
        if self._stream is not None:
            ended = asyncio.Event()
            self._stream.when_idle(ended.set)
            await ended.wait()

    # --- submitting --------------------------------------------------------------------------------------------------

    @property
    def stream(self) -> TaskStream:
        """The stream that carries this session's tasks."""
        stream = self._stream
        if stream is None or stream.error is not None:
            stream = self._stream = self.connection.uplink.task_stream(self.id)
        return stream

    def submit(self, input: bytes | None = None, **options: Unpack[TaskArguments]) -> TaskFuture:  # noqa: A002
        """Submit one task; the future can be awaited. Raises TooLargeError, InvalidArgumentError."""
        stream = self.stream
        future = TaskFuture(stream)
        if options.get("idempotency_key"):
            self.submit_keyed(future, payload_of(input), self.options(**options))
        else:
            stream.submit(payload_of(input), future, self.options(**options) if options else None)
        return future

    run = submit

    async def invoke(
        self,
        input: bytes | None = None,  # noqa: A002
        timeout: float | None = None,
        **options: Unpack[TaskArguments],
    ) -> bytes | None:
        """Submit one task and wait for its output; after `timeout` seconds the task is cancelled.

        Raises TaskFailedError, TaskCancelledError, TimedOutError.
        """
        future = self.submit(input, **options)
        try:
            async with asyncio.timeout(timeout):
                return await future
        except TimeoutError as error:
            if isinstance(error, FlameError):
                raise
            raise TimedOutError(f"the task did not end within {timeout:g} s and was cancelled") from None

    def map(
        self,
        inputs: Iterable[bytes | None] | AsyncIterable[bytes | None],
        *,
        timeout: float | None = None,
        window: int | None = None,
        return_exceptions: bool = False,
        **options: Unpack[TaskArguments],
    ) -> AsyncIterator[Any]:
        """Outputs of tasks with these inputs, in their order, as they come.

        The inputs may be endless: at most `window` tasks are submitted ahead of what was taken (fewer when they are
        large). `timeout` seconds after the call, results that are missing raise TimedOutError. A failed task raises
        its error, or with `return_exceptions` it is given in place of the output. When the iteration ends early, the
        tasks that have not ended are cancelled.
        """
        return self._map(inputs, timeout, window, return_exceptions, self.options(**options))

    async def _map(
        self,
        inputs: Iterable[bytes | None] | AsyncIterable[bytes | None],
        timeout: float | None,
        window: int | None,
        return_exceptions: bool,
        options: ty.TaskOptions | None,
    ) -> AsyncIterator[Any]:
        deadline = None if timeout is None else time.monotonic() + timeout
        progress = asyncio.Event()  # a result, or an error
        space = asyncio.Event()
        gather = Gather(lambda: (progress.set(), space.set()), check_window(window))
        stream = self.stream
        feeding = asyncio.get_running_loop().create_task(_feed(inputs, stream, gather, options, space))
        feeding.add_done_callback(lambda _: progress.set())
        try:
            while True:
                value = gather.take()
                if value is not MISSING:
                    if gather.room > 0:
                        space.set()
                    if isinstance(value, FlameError) and not return_exceptions:
                        raise value
                    yield value
                    continue
                if feeding.done():
                    feeding.result()  # raises what the inputs raised
                    if gather.consumed == gather.submitted:
                        return
                if gather.error is not None:
                    raise gather.error
                progress.clear()
                gather.wanted = gather.consumed
                try:
                    async with asyncio.timeout_at(_in_loop_time(deadline)):
                        await progress.wait()
                except TimeoutError:
                    raise TimedOutError(f"results were missing after {timeout:g} s") from None
        finally:
            feeding.cancel()
            if gather.consumed < gather.submitted:
                stream.abandon(gather)

    async def as_completed(
        self, futures: Iterable[TaskFuture], timeout: float | None = None
    ) -> AsyncIterator[TaskFuture]:
        """The futures in the order in which they end. Raises TimedOutError `timeout` seconds after the first step."""
        async for future in as_completed(futures, timeout):
            yield future

    def submit_keyed(self, future: TaskFuture, payload: bytes | None, options: ty.TaskOptions | None) -> None:
        """A task with an idempotency key: it may be another client's, so its end is watched instead of delivered."""
        task = asyncio.get_running_loop().create_task(self._follow(future, payload, options))
        self._keyed.add(task)
        task.add_done_callback(self._keyed.discard)

    async def _follow(self, future: TaskFuture, payload: bytes | None, options: ty.TaskOptions | None) -> None:
        stream = self.stream
        try:
            made = await self._create(payload, options)
            future._id = int(made.metadata.id)  # pyright: ignore[reportPrivateUsage]
            if future._cancel_wanted:  # pyright: ignore[reportPrivateUsage]
                stream.cancel(future)
            async for message in self._watch_messages(made.metadata.id):
                value = outcome_of(message)
                if not isinstance(value, Missing):
                    settle(stream.lock, (future,), (value,), plain=False)
                    return
            raise UnavailableError("the cluster stopped telling about the task")
        except FlameError as error:
            settle(stream.lock, (future,), (error,), plain=False)
        except asyncio.CancelledError:
            settle(stream.lock, (future,), (InvalidStateError("the connection was closed"),), plain=False)
            raise

    # --- tasks -------------------------------------------------------------------------------------------------------

    async def create_task(self, input_data: bytes | None, **options: Unpack[TaskArguments]) -> Task:
        """Make a task and do not wait for it; `watch_task` and `get_task` tell what becomes of it."""
        options.setdefault("idempotency_key", short_name("once", 20))  # makes it safe to repeat
        message = await self._create(payload_of(input_data), self.options(**options))
        task = wire.task_from(message)
        task.session_id, task.input = self.id, input_data
        return task

    async def _create(self, payload: bytes | None, options: ty.TaskOptions | None) -> ty.Task:
        request = fe.CreateTaskRequest(task=ty.TaskSpec(session_id=self.id, input=payload, options=options))
        uplink = self.connection.uplink
        while True:
            try:
                return await self._call("CreateTask", request, ty.Task)
            except UnavailableError as error:
                if not uplink.broken(error):
                    raise

    async def get_task(self, task_id: str | int) -> Task:
        """A task with its input and output. Raises NotFoundError."""
        request = fe.GetTaskRequest(session_id=self.id, task_id=str(task_id))
        return wire.task_from(await self._call("GetTask", request, ty.Task))

    async def list_tasks(
        self, states: Sequence[TaskState] = (), *, without_payloads: bool = False
    ) -> AsyncIterator[Task]:
        """The session's tasks by id, all or those in one of the states."""
        after = 0
        uplink = self.connection.uplink
        while True:
            request = fe.ListTaskRequest(
                session_id=self.id,
                states=[ty.TaskState.Name(state) for state in states],
                after_task_id=after,
                without_payloads=without_payloads,
            )
            try:
                async for message in uplink.stream("ListTask", request, ty.Task):
                    after = int(message.metadata.id)
                    yield wire.task_from(message)
                return
            except UnavailableError as error:
                if not uplink.broken(error):
                    raise

    async def watch_task(self, task_id: str | int, timeout: float | None = None) -> AsyncIterator[Task]:
        """The task now and after each change, until it has ended. Raises NotFoundError, TimedOutError."""
        deadline = None if timeout is None else time.monotonic() + timeout
        messages = self._watch_messages(str(task_id))
        try:
            while True:
                try:
                    # Around each step: a deadline must not strike while the caller is at something else.
                    async with asyncio.timeout_at(_in_loop_time(deadline)):
                        message = await anext(messages, None)
                except TimeoutError as error:
                    if isinstance(error, FlameError):
                        raise
                    raise TimedOutError(f"task {task_id} did not end within {timeout:g} s") from None
                if message is None:
                    return
                yield wire.task_from(message)
        finally:
            await messages.aclose()

    async def _watch_messages(self, task_id: str) -> AsyncGenerator[ty.Task]:
        request = fe.WatchTaskRequest(session_id=self.id, task_id=task_id)
        uplink = self.connection.uplink
        last: tuple[int, int] | None = None
        while True:
            try:
                async for message in uplink.stream("WatchTask", request, ty.Task):
                    now = (message.status.state, message.status.attempt)
                    if now != last:
                        yield message
                    last = now
                if last is not None and TaskState(last[0]).terminal:
                    return
            except UnavailableError as error:
                if not uplink.broken(error):
                    raise

    async def watch(self) -> AsyncIterator[SessionUpdate]:
        """State and counters of the session now and after each change, until it is closed."""
        request = fe.WatchSessionRequest(session_id=self.id)
        uplink = self.connection.uplink
        while True:
            try:
                async for message in uplink.stream("WatchSession", request, fe.SessionUpdate):
                    yield wire.update_from(message)
                return
            except UnavailableError as error:
                if not uplink.broken(error):
                    raise

    async def cancel(self, task_ids: Iterable[str | int] | None = None, *, reason: str = "") -> list[str]:
        """Cancel these tasks, or all of the session; answers the ids of those that had not ended."""
        request = fe.CancelTaskRequest(session_id=self.id, reason=reason)
        if task_ids is not None:
            request.task_ids.extend(int(task_id) for task_id in task_ids)
            if not request.task_ids:
                return []
        answer = await self._call("CancelTask", request, fe.CancelTaskResponse)
        return [str(task_id) for task_id in answer.task_ids]

    def logs(
        self, *, executor_id: str = "", stream: str = "", follow: bool = False, tail_bytes: int = 0
    ) -> AsyncIterator[LogChunk]:
        """What the session's instances printed, also those that have ended: all of it or the last `tail_bytes` of each.

        `stream` is "stdout", "stderr" or empty for both; with `follow` it goes on until the session is closed.
        """
        return self.connection.logs(
            self.id, executor_id=executor_id, stream=stream, follow=follow, tail_bytes=tail_bytes
        )

    async def explain(self, task_id: str | int = "") -> Explanation:
        """Why the session gets no (further) executor, or what happened to one of its tasks."""
        return await self.connection.explain(self.id, str(task_id))

    async def _call(self, method: str, request: Message, reply: type[M]) -> M:
        return await self.connection.uplink.call(method, request, reply, self.connection.call_timeout)


async def as_completed(futures: Iterable[TaskFuture], timeout: float | None = None) -> AsyncIterator[TaskFuture]:
    """The futures in the order in which they end. Raises TimedOutError when that takes more than `timeout` seconds."""
    loop = asyncio.get_running_loop()
    ended: asyncio.Queue[TaskFuture] = asyncio.Queue()

    def tell(future: TaskFuture) -> None:
        try:
            loop.call_soon_threadsafe(ended.put_nowait, future)
        except RuntimeError:
            pass  # the loop is closed, nobody waits

    waiting = set(futures)
    for future in waiting:
        future.add_done_callback(tell)
    deadline = None if timeout is None else time.monotonic() + timeout
    for left in range(len(waiting), 0, -1):
        try:
            async with asyncio.timeout_at(_in_loop_time(deadline)):
                future = await ended.get()
        except TimeoutError:
            raise TimedOutError(f"{left} of {len(waiting)} tasks did not end within {timeout:g} s") from None
        yield future


def _in_loop_time(deadline: float | None) -> float | None:
    """A time of the monotonic clock as the running loop counts it."""
    return None if deadline is None else asyncio.get_running_loop().time() + deadline - time.monotonic()


async def _feed(
    inputs: Iterable[bytes | None] | AsyncIterable[bytes | None],
    stream: TaskStream,
    gather: Gather,
    options: ty.TaskOptions | None,
    space: asyncio.Event,
) -> None:
    """Submit the inputs as far as there is room, and wait for room."""

    async def wait_for_room() -> None:
        while gather.room <= 0:
            space.clear()
            gather.starved = True
            await space.wait()

    if isinstance(inputs, AsyncIterable):
        feeder = Feeder(stream, gather, iter(()), options)
        async for value in inputs:
            await wait_for_room()
            feeder.submit(value)
        return
    feeder = Feeder(stream, gather, iter(inputs), options)
    while not feeder.exhausted:
        await wait_for_room()
        feeder.feed(_YIELD_EVERY)
        await asyncio.sleep(0)


def session_attributes(attrs: SessionAttributes | str, options: Mapping[str, Any]) -> SessionAttributes:
    """Attributes from the two ways to give them. Raises InvalidArgumentError."""
    if isinstance(attrs, SessionAttributes):
        if options:
            raise InvalidArgumentError("give either SessionAttributes or an application's name with keywords")
        return attrs
    try:
        return SessionAttributes(attrs, **{"id" if key == "session_id" else key: v for key, v in options.items()})
    except TypeError as error:
        raise InvalidArgumentError(f"invalid attributes of a session: {error}") from error


def check_window(window: int | None) -> int:
    """Raises InvalidArgumentError."""
    if window is None:
        return DEFAULT_WINDOW
    if window < 1:
        raise InvalidArgumentError(f"the window must be at least 1, not {window}")
    return window
