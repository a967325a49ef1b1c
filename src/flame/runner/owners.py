"""Whose sessions are whose: so that those of a program that was killed are found and closed by the next one."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from flame.model.errors import FlameError
from flame.model.states import SessionState

if TYPE_CHECKING:
    from flame.client.synchronous import Connection

OWNER = "flame.owner"  # the label of a session: PLACE/PID/START of the program that made it


def labels() -> dict[str, str]:
    """Labels for sessions of this process."""
    return {OWNER: f"{_place()}/{os.getpid()}/{_start_of(os.getpid())}"}


def close_abandoned(connection: Connection, application: str) -> None:
    """Close the open sessions of an application whose program ran here and is gone."""
    for session in connection.list_sessions([SessionState.OPEN], application):
        owner = session.labels.get(OWNER, "")
        if owner and _gone(owner):
            try:
                session.close(force=True)
            except FlameError:
                pass  # somebody else was quicker


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
