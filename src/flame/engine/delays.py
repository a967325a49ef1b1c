"""What holds a task back that its session would have an executor for, in a user's words."""

from __future__ import annotations

from datetime import UTC, datetime

from flame.engine.columns import PENDING, RUNNING, Chunk
from flame.engine.sessions import Session
from flame.model.task_options import retry_delay_ms

Reason = tuple[str, str, str, str, int]  # rule, object, message, remedy, since (Unix ms, 0 = it has no beginning)


def reasons(session: Session, task_id: int) -> list[Reason]:
    """What holds a task back that has not ended, and until when it has time."""
    state = session.states[task_id - 1]
    if state not in (PENDING, RUNNING):
        return []
    chunk = session.chunk_of(task_id)
    options = chunk.options
    name = f"task {task_id}"
    found: list[Reason] = []
    until = session.resting.get(task_id, 0)
    if until:
        attempt = session.attempts.get(task_id, 1)
        text = f"it rests until {clock(until)} before attempt {attempt}; its last failure: "
        text += session.failed_with.get(task_id, "")
        since = until - retry_delay_ms(options, session.failures.get(task_id, 1))
        found.append(("back-off", name, text, "submit with a lower retry_delay", since))
    key = session.keyed.get(options.key) if options.key and state == PENDING and not until else None
    if key is not None and len(key.places) + key.unknown >= session.per_key:
        found.append(("key", name, *_who_holds(session, options.key), chunk.created))
    if options.deadline_ms:
        text = f"its deadline of {seconds(options.deadline_ms)} is over at {clock(chunk.created + options.deadline_ms)}"
        found.append(("deadline", name, text, "submit with a longer deadline", chunk.created))
    return found


def _who_holds(session: Session, name: str) -> tuple[str, str]:
    key = session.keyed[name]
    if not key.places:
        text = f"tasks of its key {name!r} may still run on executors that have not come back since the restart"
        return text, "nothing: they count as lost after cluster.recovery.node.drain"
    holders = ", ".join(str(task_id) for task_id in sorted(key.places)[:5])
    text = f"of its key {name!r}, {session.per_key} at a time may run; those that do, or are retried: {holders}"
    return text, "a session with a higher max_running_per_key runs more of them at once"


def seconds(milliseconds: int) -> str:
    """A span of time as a user reads it."""
    return f"{max(0, milliseconds) / 1000:.3g} s" if milliseconds < 100_000 else f"{milliseconds // 1000} s"


def clock(milliseconds: int) -> str:
    """A time (Unix ms) as a user reads it."""
    return datetime.fromtimestamp(milliseconds / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def past_deadline(session: Session, chunk: Chunk, task_id: int, now: int, reason: str) -> str:
    """Why a task fails whose deadline is over; `reason`: why its session gave it no executor, if it never ran."""
    text = f"the deadline of {seconds(chunk.options.deadline_ms)} is over: "
    began = session.began.get(task_id, 0)
    attempts = session.attempts.get(task_id, 1)
    if session.states[task_id - 1] == PENDING:
        attempts -= 1
    if began:
        tried = "1 attempt" if attempts == 1 else f"{attempts} attempts"
        text += f"the task waited {seconds(began - chunk.created)}, then spent {seconds(now - began)} in {tried}"
    elif attempts:
        text += f"the task did not end in {seconds(now - chunk.created)}, attempt {attempts} was the last"
    elif task_id <= session.replayed:
        text += f"the task did not end in {seconds(now - chunk.created)}; the session manager was restarted meanwhile"
    else:
        text += f"the task waited {seconds(now - chunk.created)} and never ran: {reason}"
    failed = session.failed_with.get(task_id)
    return f"{text}; its last failure: {failed}" if failed else text
