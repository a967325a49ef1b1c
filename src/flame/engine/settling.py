"""After a restart: sessions that were open wait a moment for the nodes that were there, so that no executor starts
beside one that went on and comes back with its node.

Which nodes there are is recorded when one comes that was not known, and when one is lost. A session that was opened
since the restart has nothing to wait for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from flame.engine.effects import RecordKind
from flame.engine.records import NameMeta
from flame.engine.sessions import Session

if TYPE_CHECKING:
    from flame.engine.cluster import Cluster
    from flame.engine.turn import Draft

SETTLE_MS = 6_000  # a node that lost its session manager tries again after five seconds at most


def begin(cluster: Cluster) -> None:
    """All records are replayed."""
    settling = cluster.settling
    settling.absent = set(settling.known)
    settling.began = cluster.now
    if settling.absent:
        settling.until = cluster.now + min(SETTLE_MS, cluster.settings.drain_ms)
        cluster.alarm(settling.until, "settled", "")
        cluster.alarm(cluster.now + cluster.settings.drain_ms, "absent", "")


def waits(cluster: Cluster, session: Session) -> bool:
    """Whether executors of this session may still come back."""
    settling = cluster.settling
    return bool(settling.absent) and cluster.now < settling.until and session.created <= settling.began


def joined(cluster: Cluster, draft: Draft, name: str) -> None:
    """The node is there. When it was the last one, sessions go on."""
    settling = cluster.settling
    if name not in settling.known:
        settling.known.add(name)
        draft.record(RecordKind.NODE, "", NameMeta(name))
    if name in settling.absent:
        settling.absent.discard(name)
        if not settling.absent:
            on_settled(cluster)


def lost(cluster: Cluster, draft: Draft, name: str) -> None:
    """The node is given up: nobody waits for it after the next restart."""
    if name in cluster.settling.known:
        cluster.settling.known.discard(name)
        draft.record(RecordKind.NODE_GONE, "", NameMeta(name))


def on_settled(cluster: Cluster) -> None:
    """Nobody waits any longer: what each session wants is to be worked out again."""
    for session in cluster.sessions.values():
        if session.created <= cluster.settling.began:
            cluster.changed(session)


def on_absent_alarm(cluster: Cluster, draft: Draft) -> None:
    """Nodes that have not come back since the restart count as lost."""
    for name in sorted(cluster.settling.absent):
        lost(cluster, draft, name)
    cluster.settling.absent.clear()
