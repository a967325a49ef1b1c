"""Links of nodes: what executors are to do goes out, reports and results come in."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from functools import partial

from flame.engine.effects import (
    Dispatch,
    InterruptTasks,
    Part,
    RetractTasks,
    StartExecutor,
    StopExecutor,
)
from flame.engine.events import Completed, Event, ExecutorReported, NodeHeartbeat, NodeLeft, Retracted
from flame.journal import JournalError
from flame.link import Frame, Kind, Link
from flame.manager import cluster_wire, wire
from flame.manager.clients import check_absent
from flame.manager.payloads import Bodies, Payloads
from flame.manager.turns import Turns
from flame.model.errors import FlameError, NotFoundError, ProtocolError, UnavailableError
from flame.model.isolation import strictest
from flame.model.specs import ApplicationSpec
from flame.model.states import BindCode, ExecutorState
from flame.proto import frontend_pb2, link_pb2, types_pb2, values
from flame.security import Tokens

_log = logging.getLogger("flame.manager")

MAX_NODE_NAME = 253
FRAME_BYTES = 4 * 1024 * 1024  # tasks with large inputs go out in several frames
BUFFERED_BYTES = 64 * 1024 * 1024  # of one node that does not read: tasks wait, the rest does not

_ForExecutor = StartExecutor | StopExecutor | Dispatch | RetractTasks | InterruptTasks


class _Node:
    """One connected node. What concerns an executor leaves in order: behind tasks whose inputs are being read from
    the journal, the rest of that channel waits in `held_up`."""

    def __init__(self, link: Link, name: str) -> None:
        self.link = link
        self.name = name
        self.held_up: dict[int, deque[_ForExecutor]] = {}


class Nodes:
    """All connected nodes by name."""

    def __init__(self, turns: Turns, payloads: Payloads, tokens: Tokens) -> None:
        self._turns = turns
        self._payloads = payloads
        self._tokens = tokens
        self._nodes: dict[str, _Node] = {}
        self.on_released: Callable[[str], None] = lambda executor_id: None
        self.reported: set[asyncio.Event] = set()
        """Set whenever a node joined or said how far an executor is."""
        """Called with the id of an executor that is gone."""
        for effect in (StartExecutor, StopExecutor, Dispatch, RetractTasks, InterruptTasks):
            turns.handle(effect, self._for_executor)

    # --- coming and going ------------------------------------------------------------------------------------------

    def accept(self, link: Link) -> None:
        """A node is there (again). An older connection of the same node ends. Raises ProtocolError."""
        name = link.hello.id
        if not 0 < len(name) <= MAX_NODE_NAME or not link.hello.HasField("node"):
            raise ProtocolError(f"a node's HELLO needs its name (at most {MAX_NODE_NAME} characters) and what it holds")
        joined = cluster_wire.node_joined(name, link.hello.node)
        old = self._nodes.get(name)
        if old is not None:
            old.link.close(UnavailableError(f"a newer connection of node {name} took over"))
        node = self._nodes[name] = _Node(link, name)
        link.on_frames = partial(self._received, node)
        link.on_closed = partial(self._closed, node)
        _log.info("node_joined node=%s address=%s executors=%d", name, link.peer.address, len(joined.held))
        self._turns.post(joined)
        self._wake()

    def _closed(self, node: _Node, link: Link, error: FlameError | None) -> None:
        del link
        if self._nodes.get(node.name) is not node:
            return  # a newer connection took over
        del self._nodes[node.name]
        reason = error.message if error is not None else "the connection was closed"
        _log.warning("node_left node=%s reason=%r", node.name, reason)
        self._turns.post(NodeLeft(node.name, reason))

    # --- from the node -----------------------------------------------------------------------------------------------

    def _received(self, node: _Node, link: Link, frames: Sequence[Frame]) -> None:
        del link
        for frame in frames:
            kind = frame.kind
            if kind == Kind.RESULTS:
                self._results(node, frame)
            elif kind == Kind.REPORT:
                self._report(node, frame)
            elif kind == Kind.RETRACTED:
                ids = list(link_pb2.Retracted.FromString(frame.body).task_ids)
                self._post(node, frame.channel, Retracted(frame.channel, ids))
            elif kind == Kind.NODE_STATUS:
                status = types_pb2.NodeStatus.FromString(frame.body)
                capacity = cluster_wire.capacity_of(status.capacity) if status.HasField("capacity") else None
                self._turns.post(NodeHeartbeat(node.name, capacity))
            elif kind != Kind.ERROR:
                raise ProtocolError(f"a node sends no frames of kind {kind}")

    def _results(self, node: _Node, frame: Frame) -> None:
        results = link_pb2.Results.FromString(frame.body)
        ids = list(results.task_ids)
        attempts = list(results.attempts)
        if len(results.outputs) != len(ids) or (attempts and len(attempts) != len(ids)):
            raise ProtocolError(
                f"results of {len(ids)} tasks have {len(results.outputs)} outputs, {len(attempts)} attempts"
            )
        check_absent(results.absent, len(ids))
        if not ids:
            return
        failures = wire.failures_of(results) if results.failures else ()
        self._post(node, frame.channel, Completed(frame.channel, ids, frame.body, failures, attempts, results.busy_us))

    def _report(self, node: _Node, frame: Frame) -> None:
        report = link_pb2.Report.FromString(frame.body)
        state = cluster_wire.executor_state_of(report.state)
        self._post(
            node,
            frame.channel,
            ExecutorReported(
                frame.channel,
                state,
                report.code,
                report.message,
                report.pid,
                max(1, report.concurrency),
                report.crashed,
                report.cpu_ms,
                report.peak_memory,
                report.written,
                report.sent,
                report.received,
            ),
        )
        self._wake()
        if state is ExecutorState.RELEASED:
            node.held_up.pop(frame.channel, None)
            executor = self._turns.engine.executors.get(frame.channel)
            if executor is not None:
                self.on_released(executor.id)

    def _wake(self) -> None:
        for event in self.reported:
            event.set()

    def _post(self, node: _Node, channel: int, event: Event) -> None:
        """Nodes speak for their own executors only."""
        executor = self._turns.engine.executors.get(channel)
        if executor is not None and executor.node.name != node.name:
            raise ProtocolError(f"channel {channel} belongs to an executor of node {executor.node.name}")
        self._turns.post(event)

    # --- to the node -------------------------------------------------------------------------------------------------

    def _for_executor(self, effect: _ForExecutor) -> None:
        node = self._nodes.get(effect.node)
        if node is None:
            return  # it is away; when it is back the engine compares what both hold
        waiting = node.held_up.get(effect.channel)
        if waiting is not None:
            waiting.append(effect)
        elif not self._send(node, effect):
            node.held_up[effect.channel] = deque([effect])

    def _send(self, node: _Node, effect: _ForExecutor) -> bool:
        """False when it must wait; `_go_on` is called then."""
        if isinstance(effect, Dispatch):
            return self._dispatch(node, effect)
        if isinstance(effect, StartExecutor):
            self._start(node, effect)
        elif isinstance(effect, StopExecutor):
            body = link_pb2.Stop(grace_ms=effect.grace_ms, reason=effect.reason).SerializeToString()
            node.link.send(Kind.STOP, effect.channel, body)
        elif isinstance(effect, RetractTasks):
            node.link.send(Kind.RETRACT, effect.channel, link_pb2.Retract(keep=effect.keep).SerializeToString())
        else:
            cancel = link_pb2.Cancel(task_ids=wire.range_messages(effect.task_ids), reason=effect.reason)
            node.link.send(Kind.CANCEL, effect.channel, cancel.SerializeToString())
        return True

    def _go_on(self, node: _Node, channel: int) -> None:
        """Send what waited on this channel."""
        waiting = node.held_up.pop(channel, None)
        while waiting:
            if node.link.closed:
                return
            if not self._send(node, waiting[0]):
                node.held_up[channel] = waiting
                return
            waiting.popleft()

    def _start(self, node: _Node, effect: StartExecutor) -> None:
        engine = self._turns.engine
        session = engine.sessions.get(effect.session_id)
        application = engine.applications.get(session.spec.application) if session is not None else None
        if session is None or application is None:
            text = "the application is not registered any more"
            report = ExecutorReported(effect.channel, ExecutorState.RELEASED, BindCode.OTHER, text)
            self._turns.post(report)
            return
        spec: ApplicationSpec = strictest(application.spec, session.spec)
        start = link_pb2.Start(
            executor_id=effect.executor_id,
            context=wire.session_context(effect.session_id, session.spec, spec),
            application=values.application_spec_message(spec),
            resreq=values.resources_message(session.resreq),
            gpus=effect.gpus,
            token=self._tokens.issue(effect.executor_id, effect.session_id),
            gang=values.gang_message(effect.gang),
        )
        node.link.send(Kind.START, effect.channel, start.SerializeToString())

    def _dispatch(self, node: _Node, effect: Dispatch) -> bool:
        if node.link.buffered > BUFFERED_BYTES:
            node.link.when_drained(partial(self._go_on, node, effect.channel))
            return False
        submits: list[link_pb2.Submit] = []
        for part in effect.parts:
            submit = self._payloads.parsed_submit(part.seq)
            if submit is None:
                seqs = [part.seq for part in effect.parts]
                self._payloads.load(seqs, partial(self._loaded, node, effect))
                return False
            submits.append(submit)
        self._send_tasks(node, effect, submits)
        return True

    def _loaded(self, node: _Node, effect: Dispatch, bodies: Bodies, error: JournalError | None) -> None:
        # Called inside _dispatch when the journal answers at once: then nothing waits yet.
        self._turns.call_soon(self._take_loaded, node, effect, bodies, error)

    def _take_loaded(self, node: _Node, effect: Dispatch, bodies: Bodies, error: JournalError | None) -> None:
        waiting = node.held_up.get(effect.channel)
        if node.link.closed or waiting is None or waiting[0] is not effect:
            return
        if error is not None:
            self._unreadable(effect, error)
        else:
            submits = [self._payloads.parsed_submit(part.seq, bodies.get(part.seq)) for part in effect.parts]
            here = [submit for submit in submits if submit is not None]
            if len(here) == len(submits):  # else: the session was purged meanwhile
                self._send_tasks(node, effect, here)
        waiting.popleft()
        self._go_on(node, effect.channel)

    def _unreadable(self, effect: Dispatch, error: JournalError) -> None:
        """The inputs can't be read: the tasks fail with the reason, rather than wait for ever."""
        _log.error("inputs_unreadable channel=%d error=%s", effect.channel, error)
        ids = [task_id for part in effect.parts for task_id in _ids_of(part)]
        text = f"the input can't be read: {error.message}"
        failures = [
            link_pb2.Failure(index=index, state=types_pb2.TaskState.Failed, code=-1, message=text)
            for index in range(len(ids))
        ]
        results = link_pb2.Results(task_ids=ids, outputs=[b""] * len(ids), absent=range(len(ids)), failures=failures)
        body = results.SerializeToString()
        self._turns.post(Completed(effect.channel, ids, body, wire.failures_of(results), _attempts_of(effect.parts)))

    def _send_tasks(self, node: _Node, effect: Dispatch, submits: Sequence[link_pb2.Submit]) -> None:
        tasks = _tasks_of(effect, submits)
        body = tasks.SerializeToString()
        if len(body) <= FRAME_BYTES or len(tasks.task_ids) == 1:
            node.link.send(Kind.TASKS, effect.channel, body)
            return
        for piece in split_tasks(tasks, FRAME_BYTES):
            node.link.send(Kind.TASKS, effect.channel, piece.SerializeToString())

    # --- calls -------------------------------------------------------------------------------------------------------

    def logs(self, name: str, request: frontend_pb2.GetLogsRequest) -> AsyncIterator[bytes]:
        """The LogChunks of a node. Raises NotFoundError when it is not connected."""
        node = self._nodes.get(name)
        if node is None:
            raise NotFoundError(f"node <{name}> is not connected")
        return node.link.stream("ReadLog", request.SerializeToString())

    def names(self) -> list[str]:
        """The connected nodes."""
        return sorted(self._nodes)


def _ids_of(part: Part) -> range:
    return range(part.first_task_id, part.first_task_id + part.stop - part.start)


def _attempts_of(parts: Sequence[Part]) -> list[int]:
    """The column of attempts, empty when all are the first."""
    if all(part.attempt == 1 for part in parts):
        return []
    return [part.attempt for part in parts for _ in range(part.stop - part.start)]


def _tasks_of(effect: Dispatch, submits: Sequence[link_pb2.Submit]) -> link_pb2.Tasks:
    tasks = link_pb2.Tasks(timeout_ms=effect.timeout_ms, attempts=_attempts_of(effect.parts))
    for part, submit in zip(effect.parts, submits, strict=True):
        base = len(tasks.task_ids) - part.start
        tasks.task_ids.extend(_ids_of(part))
        whole = part.start == 0 and part.stop == len(submit.inputs)
        tasks.inputs.extend(submit.inputs if whole else submit.inputs[part.start : part.stop])
        if submit.absent:
            tasks.absent.extend(base + index for index in submit.absent if part.start <= index < part.stop)
    return tasks


def split_tasks(tasks: link_pb2.Tasks, limit: int) -> list[link_pb2.Tasks]:
    """The same tasks in messages of at most about `limit` bytes, at least one task in each."""
    absent = frozenset(tasks.absent)
    pieces: list[link_pb2.Tasks] = []
    room = 0
    for index, (task_id, task_input) in enumerate(zip(tasks.task_ids, tasks.inputs, strict=True)):
        if not pieces or len(task_input) > room:
            pieces.append(link_pb2.Tasks(timeout_ms=tasks.timeout_ms))
            room = limit
        piece = pieces[-1]
        room -= len(task_input)
        if index in absent:
            piece.absent.append(len(piece.task_ids))
        piece.task_ids.append(task_id)
        piece.inputs.append(task_input)
        if tasks.attempts:
            piece.attempts.append(tasks.attempts[index])
    return pieces
