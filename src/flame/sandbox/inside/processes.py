"""Processes that the sandbox started: ended, stopped, described."""

from __future__ import annotations

import os
import signal
from pathlib import Path

OWN = "FLAME_INSTANCE_ID"  # the variable by which what the sandbox started is known


def describe(status: int) -> str:
    """How a process ended, from its return code."""
    if status >= 0:
        return f"exited with status {status}"
    try:
        name = signal.Signals(-status).name
    except ValueError:
        name = f"signal {-status}"
    if -status == signal.SIGKILL:
        return f"was killed by {name}, most likely because the sandbox's memory ran out"
    return f"was killed by {name}"


def kill_group(pid: int, number: int) -> bool:
    """Send a signal to the process group of this number. False when there is none."""
    try:
        os.killpg(pid, number)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # one of them runs as somebody else
    return True


def as_victim(pid: int) -> None:
    """Where memory runs out, this one ends before the service does, if the sandbox may say so."""
    try:
        Path(f"/proc/{pid}/oom_score_adj").write_text("500")
    except OSError:
        pass


def everybody(known: set[int]) -> set[int]:
    """All processes that the sandbox started and that run: those below `known` ones, those with a variable of it in
    their environment, and those with the process group or session of one of these. This process is none of them."""
    own = os.getpid()
    parents: dict[int, tuple[int, int, int]] = {}
    found: set[int] = set()
    instance = os.environ.get(OWN, "")
    mark = f"{OWN}={instance}".encode() if instance else b""
    for name in os.listdir("/proc"):
        if not name.isdigit() or int(name) == own:
            continue
        pid = int(name)
        try:
            stat = Path(f"/proc/{name}/stat").read_text(errors="replace")
            fields = stat[stat.rindex(")") + 2 :].split()
            if fields[0] in "ZX":
                continue
            parents[pid] = (int(fields[1]), int(fields[2]), int(fields[3]))
            marked = mark and mark in Path(f"/proc/{name}/environ").read_bytes().split(b"\0")
        except (OSError, ValueError):
            marked = False
        if pid in known or (marked and pid in parents):
            found.add(pid)
    grew = True
    while grew:
        more = {
            pid
            for pid, (parent, group, session) in parents.items()
            if pid not in found and (parent in found or parent == own or group in found or session in found)
        }
        grew = bool(more)
        found |= more
    return found - _above(parents, own)


def below(root: int) -> set[int]:
    """A process, all that it started in turn, and those of its group or session, as far as they can be told."""
    parents: dict[int, tuple[int, int, int]] = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                stat = Path(f"/proc/{name}/stat").read_text(errors="replace")
                fields = stat[stat.rindex(")") + 2 :].split()
                if fields[0] not in "ZX":
                    parents[int(name)] = (int(fields[1]), int(fields[2]), int(fields[3]))
            except (OSError, ValueError):
                continue
    found = {root}
    grew = True
    while grew:
        more = {
            pid
            for pid, (parent, group, session) in parents.items()
            if pid not in found and (parent in found or group == root or session == root)
        }
        grew = bool(more)
        found |= more
    found.discard(os.getpid())
    return {pid for pid in found if pid in parents}


def signal_all(pids: set[int], number: int) -> None:
    """Send a signal to each of them that is still there."""
    for pid in pids:
        try:
            os.kill(pid, number)
        except (ProcessLookupError, PermissionError):
            continue


def _above(parents: dict[int, tuple[int, int, int]], pid: int) -> set[int]:
    """Those that this process runs below: at level process, what made the sandbox."""
    found: set[int] = set()
    try:
        parent = os.getppid() if pid == os.getpid() else 0
    except OSError:
        return found
    while parent and parent not in found:
        found.add(parent)
        parent = parents.get(parent, (0, 0, 0))[0]
    return found
