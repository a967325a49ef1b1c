"""What happened to a session, as its users are told: durable events, and lines that are not."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flame.engine.effects import RecordKind, SessionChanged
from flame.engine.records import EventMeta
from flame.model.specs import RecordedEvent

if TYPE_CHECKING:
    from flame.engine.sessions import Session
    from flame.engine.turn import Draft

MAX_EVENTS = 1000  # of one session that are kept, the newest ones


def tell(draft: Draft, session: Session, text: str) -> None:
    """Add a line to the session's story (not durable)."""
    session.story.append(RecordedEvent(0, text, draft.now_ms))


def record_event(draft: Draft, session: Session, code: int, message: str) -> None:
    """A durable event of the session; everybody who follows it is told."""
    made = RecordedEvent(code, message, draft.now_ms)
    session.events.append(made)
    del session.events[:-MAX_EVENTS]
    session.story.append(made)
    draft.record(RecordKind.EVENT, session.id, EventMeta(code, message, draft.now_ms))
    draft.after.append(SessionChanged(session.id, session.state, [made]))
