"""Sessions that are closed when nothing was asked of them for a while.

The time counts from the end of the last task, or from the session's beginning; what the session manager was away for
does not count. One alarm for each such session looks whether it is over.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from flame.engine import lives
from flame.engine.delays import seconds
from flame.engine.sessions import Session
from flame.model.states import EventCode, SessionState

if TYPE_CHECKING:
    from flame.engine.engine import Engine
    from flame.engine.turn import Draft

_LATER_MS = 1000  # while the journal can't be written


def arm(engine: Engine, session: Session) -> None:
    """The session is open: look when its time may be over for the first time."""
    if session.spec.idle_timeout_s:
        engine.alarm(engine.now + session.spec.idle_timeout_s * 1000, "unused", session.id)


def on_alarm(engine: Engine, draft: Draft, session_id: str) -> None:
    """Close the session, or look again when its time may be over."""
    session = engine.sessions.get(session_id)
    if session is None or session.state is not SessionState.OPEN:
        return
    allowed = session.spec.idle_timeout_s * 1000
    if not allowed:
        return  # the alarm is of an earlier session of this id
    if session.pending or session.running:
        engine.alarm(draft.now_ms + allowed, "unused", session_id)
        return
    last = max(session.created, engine.settling.began, session.batches[-1].time if session.batches else 0)
    if last + allowed > draft.now_ms:
        engine.alarm(last + allowed, "unused", session_id)
    elif engine.read_only:
        engine.alarm(draft.now_ms + _LATER_MS, "unused", session_id)
    else:
        why = f"nothing was asked of it for {seconds(allowed)}"
        lives.record_event(draft, session, EventCode.IDLE, why)
        lives.close(engine, draft, session, why)
