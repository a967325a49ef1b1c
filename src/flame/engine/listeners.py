"""Who listens to a session: clients that get the results of their tasks, and those who watch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flame.engine.effects import Accepted, Deliver
from flame.engine.records import Finish
from flame.engine.sessions import SUCCEED
from flame.model.errors import NotFoundError

if TYPE_CHECKING:
    from flame.engine.cluster import Cluster
    from flame.engine.events import Attached, Detached, Unwatch, Watch
    from flame.engine.turn import Draft


def on_attached(cluster: Cluster, draft: Draft, event: Attached) -> None:
    """Answers which submissions from next_seq on are known, then delivers results that the client has not seen."""
    session = cluster.sessions.get(event.session_id)
    if session is None:
        draft.refuse(event.ticket, NotFoundError(f"session <{event.session_id}> not found"))
        return
    session.attached.add(event.client_id)
    known: list[Accepted] = []
    ranges = list(event.unresolved)
    for index in session.client_chunks.get(event.client_id, ()):
        chunk = session.chunks[index]
        if chunk.first_seq + chunk.count > event.next_seq and chunk.first_seq:
            known.append(Accepted(0, chunk.first_seq, chunk.count, chunk.first))
            ranges.append((chunk.first, chunk.first + chunk.count - 1))
    draft.reply(event.ticket, known)
    by_batch: dict[int, list[int]] = {}
    finished: list[Finish] = []
    seen: set[int] = set()
    for first, last in ranges:
        for task_id in range(max(1, first), min(last, session.total) + 1):
            if session.states[task_id - 1] < SUCCEED or task_id in seen:
                continue
            seen.add(task_id)
            if task_id in session.finished:
                finished.append(session.finished[task_id])
            else:
                by_batch.setdefault(session.done_in[task_id - 1] - 1, []).append(task_id)
    for batch, ids in sorted(by_batch.items()):
        draft.after.append(Deliver(session.id, event.client_id, session.batches[batch].seq, ids))
    if finished:
        ids = [item.task_id for item in finished]
        draft.after.append(Deliver(session.id, event.client_id, 0, ids, finished))


def on_detached(cluster: Cluster, draft: Draft, event: Detached) -> None:
    del draft
    session = cluster.sessions.get(event.session_id)
    if session is not None:
        session.attached.discard(event.client_id)


def on_watch(cluster: Cluster, draft: Draft, event: Watch) -> None:
    del draft
    session = cluster.sessions.get(event.session_id)
    if session is not None:
        session.watched[event.task_id] = session.watched.get(event.task_id, 0) + 1


def on_unwatch(cluster: Cluster, draft: Draft, event: Unwatch) -> None:
    del draft
    session = cluster.sessions.get(event.session_id)
    if session is not None and event.task_id in session.watched:
        session.watched[event.task_id] -= 1
        if session.watched[event.task_id] <= 0:
            del session.watched[event.task_id]
