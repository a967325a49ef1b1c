"""Sessions that are closed when nothing was asked of them for a while.

The time counts from the end of the last task, or from the session's beginning; what the session manager was away for
does not count. One alarm for each such session looks whether it is over.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from flame.engine import lives, story
from flame.engine.delays import seconds
from flame.model.states import EventCode, SessionState

if TYPE_CHECKING:
    from flame.engine.cluster import Cluster
    from flame.engine.turn import Draft

_LATER_MS = 1000  # while the journal can't be written


def on_alarm(cluster: Cluster, draft: Draft, session_id: str) -> None:
    """Close the session, or look again when its time may be over."""
    session = cluster.sessions.get(session_id)
    if session is None or session.state is not SessionState.OPEN:
        return
    allowed = session.spec.idle_timeout_s * 1000
    if not allowed:
        return  # the alarm is of an earlier session of this id
    if session.pending or session.running:
        cluster.alarm(draft.now_ms + allowed, "unused", session_id)
        return
    last = max(session.created, cluster.settling.began, session.batches[-1].time if session.batches else 0)
    if last + allowed > draft.now_ms:
        cluster.alarm(last + allowed, "unused", session_id)
    elif cluster.read_only:
        cluster.alarm(draft.now_ms + _LATER_MS, "unused", session_id)
    else:
        why = f"nothing was asked of it for {seconds(allowed)}"
        story.record_event(draft, session, EventCode.IDLE, why)
        lives.close(cluster, draft, session, why)
