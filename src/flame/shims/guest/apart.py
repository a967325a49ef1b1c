"""Processes of a virtual machine beside its program, which have no privilege, and nothing open but what they serve."""

from __future__ import annotations

import ctypes
import os
import signal
from collections.abc import Callable, Sequence

from flame.shims.guest.pump import Loop

_PR_SET_NO_NEW_PRIVS = 38


def leave(user: int, group: int, kept: Sequence[int], make: Callable[[Loop], object], closed: str) -> int:
    """Start a process that serves what `make` makes, as this user, with the descriptors `kept`; gives its number. When
    it can't go on, it says that `closed` is, and ends."""
    pid = os.fork()
    if pid:
        return pid
    try:
        _alone(user, group, kept)
        loop = Loop()
        served = make(loop)
        while served:
            loop.turn()
    except BaseException as error:
        os.write(2, f"flame: {closed} is closed: {error!r}\n".encode())
    finally:
        os._exit(1)


def _alone(user: int, group: int, kept: Sequence[int]) -> None:
    """Go on as this user, without any privilege, and with nothing open but these and stdin, stdout, stderr."""
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for name in os.listdir("/proc/self/fd"):
        if int(name) > 2 and int(name) not in kept:
            try:
                os.close(int(name))
            except OSError:
                pass  # the one that the folder was read with
    os.setsid()
    os.setgroups([])
    os.setgid(group)
    os.setuid(user)
    ctypes.CDLL(None).prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
