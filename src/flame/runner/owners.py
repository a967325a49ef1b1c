"""Whose sessions are whose: so that those of a program that was killed are found and closed by the next one, and those
that an instance made by who closes the session of that instance."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from flame.model.errors import FlameError
from flame.model.states import SessionState

if TYPE_CHECKING:
    from flame.client.synchronous import Connection
    from flame.client.synchronous_session import Session

OWNER = "flame.owner"  # the label of a session: PLACE/PID/START of the program that made it
PARENT = "flame.parent"  # and, when an instance made it, the session of that instance
RUNNER = "flame.runner"  # label of applications that a Runner registered, and may unregister


def labels() -> dict[str, str]:
    """Labels for sessions of this process."""
    found = {OWNER: f"{_place()}/{os.getpid()}/{_start_of(os.getpid())}"}
    parent = os.environ.get("FLAME_SESSION_ID") if os.environ.get("FLAME_INSTANCE_ID") else None
    return {**found, PARENT: parent} if parent else found


def close_abandoned(connection: Connection, application: str) -> None:
    """Close the open sessions of an application whose program ran here and is gone."""
    for session in connection.list_sessions([SessionState.OPEN], application):
        if _gone(session.labels.get(OWNER, "")):
            _close(connection, session)


def close_children(connection: Connection, parent: str, *, abandoned: bool = False) -> None:
    """Close the open sessions that instances of a session made, and what was made for those; with `abandoned` only
    those whose instance ran here and is gone. Raises FlameError when the cluster can't be asked."""
    for session in connection.list_sessions([SessionState.OPEN], labels={PARENT: parent}):
        if not abandoned or _gone(session.labels.get(OWNER, "")):
            _close(connection, session)


def _close(connection: Connection, session: Session) -> None:
    try:
        session.close(force=True)
        close_children(connection, session.id)
        known = connection.get_application(session.application)
        # The instance would have removed it. Whoever else uses it keeps it.
        if known is not None and RUNNER in (known.labels or ()) and PARENT in session.labels:
            connection.unregister_application(session.application)
    except FlameError:
        pass  # somebody else was quicker, or uses it


def _gone(owner: str) -> bool:
    place, pid, start = ("", "", *owner.split("/"))[-3:]
    return place == _place() and pid.isdecimal() and _start_of(int(pid)) != start


def _place() -> str:
    """Where process ids mean the same: this host, and on it this container."""
    return f"{os.uname().nodename}-{Path('/proc/self/ns/pid').stat().st_ino}"


def _start_of(pid: int) -> str:
    """When a process began, in ticks since the machine did; empty when there is none. A process id alone is used anew
    some day."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return ""
    return stat.rpartition(")")[2].split()[19]
