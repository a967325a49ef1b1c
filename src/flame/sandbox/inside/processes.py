"""Processes that the sandbox started: ended, stopped, described."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import asyncio

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


def when_ended(pid: int, callback: Callable[[], None]) -> Callable[[], None]:
    """Call back in the event loop when a child has ended, and before anybody has waited for it, unless what this
    returns was called."""
    import asyncio
    import threading

    loop = asyncio.get_running_loop()
    try:
        watch = os.pidfd_open(pid)
    except OSError:  # gVisor has none
        wanted = [callback]
        threading.Thread(target=_wait, args=(pid, loop, wanted), name=f"flame-child-{pid}", daemon=True).start()
        return wanted.clear

    def forget() -> None:
        loop.remove_reader(watch)
        os.close(watch)

    def ended() -> None:
        forget()
        callback()

    loop.add_reader(watch, ended)
    return forget


def _wait(pid: int, loop: asyncio.AbstractEventLoop, wanted: list[Callable[[], None]]) -> None:
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    try:
        loop.call_soon_threadsafe(lambda: [callback() for callback in wanted])
    except RuntimeError:
        pass  # the service has ended


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
        with open(f"/proc/{pid}/oom_score_adj", "w") as file:
            file.write("500")
    except OSError:
        pass


class Family(NamedTuple):
    """Where a process belongs."""

    parent: int
    group: int
    session: int


def reap(known: set[int]) -> None:
    """Let children go that have ended and that this process did not start: those that others left to it."""
    for pid, family in running(ended=True).items():
        if family.parent == os.getpid() and pid not in known:
            try:
                os.waitpid(pid, os.WNOHANG)
            except ChildProcessError:
                continue


def running(*, ended: bool = False) -> dict[int, Family]:
    """All processes that can be seen here and have not ended, or those that have."""
    found: dict[int, Family] = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                with open(f"/proc/{name}/stat", errors="replace") as file:
                    text = file.read()
            except OSError:
                continue  # it has ended
            state, parent, group, session = text[text.rindex(")") + 2 :].split(maxsplit=4)[:4]
            if (state in "ZX") is ended:
                found[int(name)] = Family(int(parent), int(group), int(session))
    return found


def below(root: int) -> set[int]:
    """A process, all that it started in turn, and those of its group or session, as far as they can be told."""
    return _with_descendants(running(), {root}) - {os.getpid()}


def kill_family(root: int) -> None:
    """End a process and all that `below` finds. None goes on because another has ended: a shell would begin with its
    next command."""
    found: set[int] = set()
    while more := below(root) - found:  # those that were started meanwhile; what is stopped starts none
        signal_all(more, signal.SIGSTOP)
        found |= more
    signal_all(found, signal.SIGKILL)


def everybody(known: set[int], *, alone: bool) -> set[int]:
    """All that the sandbox started and that runs: the `known` ones, those that this process started, those that have a
    variable of it in their environment, and what belongs to them; `alone`: whoever can be seen. This process is none of
    them."""
    own, found = os.getpid(), running()
    if alone:
        return found.keys() - _above(found, own)
    instance = os.environ.get(OWN, "")
    mark = f"{OWN}={instance}".encode()
    roots = {pid for pid, family in found.items() if pid in known or family.parent == own}
    roots |= {pid for pid in found if instance and _marked(pid, mark)}
    return _with_descendants(found, roots - _above(found, own) - {own}) - {own}


def signal_all(pids: set[int], number: int) -> None:
    """Send a signal to each of them that is still there."""
    for pid in pids:
        try:
            os.kill(pid, number)
        except (ProcessLookupError, PermissionError):
            continue


def _with_descendants(processes: Mapping[int, Family], roots: set[int]) -> set[int]:
    found = roots & processes.keys()
    grew = bool(found)
    while grew:
        more = {
            pid
            for pid, family in processes.items()
            if pid not in found and (family.parent in found or family.group in roots or family.session in roots)
        }
        grew = bool(more)
        found |= more
    return found


def _marked(pid: int, mark: bytes) -> bool:
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            return mark in file.read().split(b"\0")
    except OSError:
        return False


def _above(processes: Mapping[int, Family], pid: int) -> set[int]:
    """Those that a process runs below: at level process, what made the sandbox."""
    found: set[int] = set()
    while pid in processes and pid not in found:
        found.add(pid)
        pid = processes[pid].parent
    return found
