"""Between the values of the model and the messages of the contract: applications, sessions and tasks. Nothing here
decides or waits."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from flame.engine import views
from flame.engine.events import Failed
from flame.engine.records import Finish
from flame.model.errors import ProtocolError
from flame.model.specs import NO_OPTIONS, ApplicationSpec, RecordedEvent, SessionSpec
from flame.model.states import EventCode, TaskState
from flame.model.task_options import after_attempts
from flame.model.tenants import DEFAULT_TENANT
from flame.proto import link_pb2, shim_pb2, types_pb2
from flame.proto.values import (
    application_spec_message,
    limits_message,
    limits_of,
    number,
    options_message,
    options_of,
    resources_message,
    resources_of,
)

# --- applications ----------------------------------------------------------------------------------------------------


def application_message(view: views.ApplicationView) -> types_pb2.Application:
    return types_pb2.Application(
        metadata=types_pb2.Metadata(id=view.name, name=view.name),
        spec=application_spec_message(view.spec),
        status=types_pb2.ApplicationStatus(state=number(view.state), creation_time=view.created),
    )


# --- sessions --------------------------------------------------------------------------------------------------------


def session_spec_of(message: types_pb2.SessionSpec) -> SessionSpec:
    return SessionSpec(
        application=message.application,
        common_data=message.common_data if message.HasField("common_data") else None,
        min_instances=message.min_instances,
        max_instances=message.max_instances if message.HasField("max_instances") else None,
        priority=message.priority,
        resreq=resources_of(message.resreq) if message.HasField("resreq") else None,
        tenant=message.tenant,
        labels=dict(message.labels),
        task_defaults=options_of(message.task_defaults) if message.HasField("task_defaults") else NO_OPTIONS,
        retention_s=message.retention_s if message.HasField("retention_s") else None,
        gang=message.gang,
        topology=message.topology,
        on_member_loss=message.on_member_loss,
        selector=dict(message.selector),
        tolerations=tuple(message.tolerations),
        prefer_nodes=tuple(message.prefer_nodes),
        max_running_per_key=message.max_running_per_key,
        isolation=message.isolation,
        limits=limits_of(message.limits),
        network=message.network,
        idle_timeout_s=message.idle_timeout_s,
        readable_objects=tuple(message.readable_objects),
    )


def session_message(view: views.SessionView, *, common_data: bool = True, events: bool = True) -> types_pb2.Session:
    spec = view.spec
    return types_pb2.Session(
        metadata=types_pb2.Metadata(id=view.id, name=view.id),
        spec=types_pb2.SessionSpec(
            application=spec.application,
            common_data=spec.common_data if common_data else None,
            min_instances=spec.min_instances,
            max_instances=spec.max_instances,
            batch_size=1,
            priority=spec.priority,
            resreq=resources_message(view.resreq),
            tenant=spec.tenant or DEFAULT_TENANT,
            labels=spec.labels,
            task_defaults=options_message(spec.task_defaults) if spec.task_defaults is not NO_OPTIONS else None,
            retention_s=spec.retention_s,
            gang=spec.gang,
            topology=spec.topology,
            on_member_loss=spec.on_member_loss,
            selector=spec.selector,
            tolerations=spec.tolerations,
            prefer_nodes=spec.prefer_nodes,
            max_running_per_key=spec.max_running_per_key,
            isolation=spec.isolation,
            limits=limits_message(spec.limits),
            network=spec.network,
            idle_timeout_s=spec.idle_timeout_s,
            readable_objects=spec.readable_objects,
        ),
        status=types_pb2.SessionStatus(
            state=number(view.state),
            creation_time=view.created,
            completion_time=view.completed,
            pending=view.pending,
            running=view.running,
            succeed=view.succeed,
            failed=view.failed,
            cancelled=view.cancelled,
            events=event_messages(view.events) if events else (),
            executors=view.executors,
            pending_reason=view.pending_reason,
            pending_since=view.pending_since,
            wanted=view.wanted,
            cpu_ms=view.cpu_ms,
            peak_memory=view.peak_memory,
            written=view.written,
            sent=view.sent,
            received=view.received,
        ),
    )


def event_messages(events: Iterable[RecordedEvent]) -> list[types_pb2.Event]:
    return [types_pb2.Event(code=event.code, message=event.message, creation_time=event.time) for event in events]


def session_context(session_id: str, spec: SessionSpec, application: ApplicationSpec) -> shim_pb2.SessionContext:
    """What an instance is told when it enters the session."""
    return shim_pb2.SessionContext(
        session_id=session_id,
        application=shim_pb2.ApplicationContext(
            name=spec.application,
            shim=number(application.shim),
            image=application.image,
            command=application.command,
            working_directory=application.working_directory,
            url=application.url,
            installer=application.installer,
        ),
        common_data=spec.common_data,
    )


# --- tasks -----------------------------------------------------------------------------------------------------------


def task_message(view: views.TaskView, task_input: bytes | None, output: bytes | None, failure: str) -> types_pb2.Task:
    """`failure` is the text of a failed or cancelled task, empty when it left none."""
    name = str(view.task_id)
    return types_pb2.Task(
        metadata=types_pb2.Metadata(id=name, name=name),
        spec=types_pb2.TaskSpec(session_id=view.session_id, input=task_input, output=output),
        status=types_pb2.TaskStatus(
            state=number(view.state),
            creation_time=view.created,
            completion_time=view.completed,
            events=event_messages(task_events(view, failure)),
            attempt=view.attempt,
            executor_id=view.executor_id,
        ),
    )


def task_events(view: views.TaskView, failure: str) -> list[RecordedEvent]:
    """What happened to a task, told from where it is now. A start has no time of its own: it shows the creation's."""
    events = [RecordedEvent(EventCode.PENDING, "Task was created with state <Pending>", view.created)]
    if view.attempt:
        events.append(RecordedEvent(EventCode.RUNNING, "Task state was updated to <Running>", view.created))
    ended = view.completed or view.created
    if view.state is TaskState.SUCCEED:
        events.append(RecordedEvent(EventCode.SUCCEED, "Task was completed with state <Succeed>", ended))
    elif view.state is TaskState.FAILED:
        text = failure or "Task failed with state <Failed>"
        if view.finish is None:
            text = after_attempts(text, view.attempt)
        events.append(RecordedEvent(EventCode.FAILED, text, ended))
    elif view.state is TaskState.CANCELLED:
        text = failure or "Task was cancelled"
        events.append(RecordedEvent(EventCode.CANCELLED, text, ended))
    return events


def failures_of(results: link_pb2.Results) -> list[Failed]:
    """Raises ProtocolError for failures that name no task, or no end of one."""
    count = len(results.task_ids)
    failures: list[Failed] = []
    for item in results.failures:
        if item.index >= count or item.state not in (TaskState.FAILED, TaskState.CANCELLED):
            raise ProtocolError(f"a failure names column {item.index} of {count} and state {item.state}")
        failures.append(Failed(item.index, TaskState(item.state), item.code, item.message, item.retryable))
    return failures


def results_of_finishes(finished: Sequence[Finish]) -> link_pb2.Results:
    """Tasks that the engine itself ended, in the form in which clients get results."""
    return link_pb2.Results(
        task_ids=[item.task_id for item in finished],
        outputs=[b""] * len(finished),
        absent=range(len(finished)),
        failures=[
            link_pb2.Failure(
                index=index,
                state=number(item.state),
                code=item.code,
                message=item.message,
                retryable=item.retryable,
            )
            for index, item in enumerate(finished)
        ],
    )


def subset_of(results: link_pb2.Results, task_ids: Iterable[int]) -> link_pb2.Results:
    """Some tasks of a batch of results, in their order there."""
    wanted = set(task_ids)
    kept = [index for index, task_id in enumerate(results.task_ids) if task_id in wanted]
    position = {index: place for place, index in enumerate(kept)}
    subset = link_pb2.Results(
        task_ids=[results.task_ids[index] for index in kept],
        outputs=[results.outputs[index] for index in kept],
        absent=[position[index] for index in results.absent if index in position],
        attempts=[results.attempts[index] for index in kept] if results.attempts else (),
    )
    for failure in results.failures:
        if failure.index in position:
            copy = subset.failures.add()
            copy.CopyFrom(failure)
            copy.index = position[failure.index]
    return subset


def ranges_of(ranges: Iterable[link_pb2.Range]) -> list[tuple[int, int]]:
    """Closed ranges, sorted and merged: however often a peer names an id, it counts once."""
    merged: list[tuple[int, int]] = []
    for first, last in sorted((item.first, item.last) for item in ranges):
        if last < first:
            continue
        if merged and first <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(last, merged[-1][1]))
        else:
            merged.append((first, last))
    return merged


def range_messages(task_ids: Iterable[int]) -> list[link_pb2.Range]:
    """Closed ranges that cover the ids."""
    ranges: list[link_pb2.Range] = []
    first = last = 0
    for task_id in sorted(task_ids):
        if first and task_id == last + 1:
            last = task_id
            continue
        if first:
            ranges.append(link_pb2.Range(first=first, last=last))
        first = last = task_id
    if first:
        ranges.append(link_pb2.Range(first=first, last=last))
    return ranges
