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
    from flame.engine.engine import Engine
    from flame.engine.turn import Draft

SETTLE_MS = 6_000  # a node that lost its session manager tries again after five seconds at most


class Settling:
    """`known` nodes are in the journal; `absent` are those of them that have not come back since the restart."""

    __slots__ = ("absent", "began", "known", "until")

    def __init__(self) -> None:
        self.known: set[str] = set()
        self.absent: set[str] = set()
        self.began = 0  # Unix ms
        self.until = 0


def begin(engine: Engine) -> None:
    """All records are replayed."""
    settling = engine.settling
    settling.absent = set(settling.known)
    settling.began = engine.now
    if settling.absent:
        settling.until = engine.now + min(SETTLE_MS, engine.settings.drain_ms)
        engine.alarm(settling.until, "settled", "")
        engine.alarm(engine.now + engine.settings.drain_ms, "absent", "")


def waits(engine: Engine, session: Session) -> bool:
    """Whether executors of this session may still come back."""
    settling = engine.settling
    return bool(settling.absent) and engine.now < settling.until and session.created <= settling.began


def joined(engine: Engine, draft: Draft, name: str) -> None:
    """The node is there. When it was the last one, sessions go on."""
    settling = engine.settling
    if name not in settling.known:
        settling.known.add(name)
        draft.record(RecordKind.NODE, "", NameMeta(name))
    if name in settling.absent:
        settling.absent.discard(name)
        if not settling.absent:
            on_settled(engine)


def lost(engine: Engine, draft: Draft, name: str) -> None:
    """The node is given up: nobody waits for it after the next restart."""
    if name in engine.settling.known:
        engine.settling.known.discard(name)
        draft.record(RecordKind.NODE_GONE, "", NameMeta(name))


def on_settled(engine: Engine) -> None:
    """Nobody waits any longer: what each session wants is to be worked out again."""
    for session in engine.sessions.values():
        if session.created <= engine.settling.began:
            engine.changed(session)


def on_absent_alarm(engine: Engine, draft: Draft) -> None:
    """Nodes that have not come back since the restart count as lost."""
    for name in sorted(engine.settling.absent):
        lost(engine, draft, name)
    engine.settling.absent.clear()
