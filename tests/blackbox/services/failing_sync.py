"""The session manager, with a disk whose syncs fail from SIGUSR1 on: the kernel answers fsync and fdatasync with EIO.

A seccomp filter does it, for all threads of the process, so the daemon and its SQLite are the real ones.
"""

from __future__ import annotations

import ctypes
import errno
import platform
import signal
import struct
import sys

from flame.manager.daemon import main

SECCOMP, FSYNC, FDATASYNC = (317, 74, 75) if platform.machine() == "x86_64" else (277, 82, 83)
PR_SET_NO_NEW_PRIVS, SET_MODE_FILTER, TSYNC = 38, 1, 1
LOAD, EQUAL, RETURN = 0x20, 0x15, 0x06
ALLOW, FAIL = 0x7FFF0000, 0x00050000 | errno.EIO


class Program(ctypes.Structure):
    """struct sock_fprog."""

    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_void_p))


def fail_syncs(*_: object) -> None:
    """From now on no sync succeeds in this process."""
    libc = ctypes.CDLL(None, use_errno=True)
    rules = [
        (LOAD, 0, 0, 0),
        (EQUAL, 1, 0, FSYNC),
        (EQUAL, 0, 1, FDATASYNC),
        (RETURN, 0, 0, FAIL),
        (RETURN, 0, 0, ALLOW),
    ]
    code = ctypes.create_string_buffer(b"".join(struct.pack("<HBBI", *rule) for rule in rules))
    program = Program(len(rules), ctypes.cast(code, ctypes.c_void_p))
    if libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) or libc.syscall(
        SECCOMP, SET_MODE_FILTER, TSYNC, ctypes.byref(program)
    ):
        raise OSError(ctypes.get_errno(), "the kernel refused the filter")


if __name__ == "__main__":
    signal.signal(signal.SIGUSR1, fail_syncs)
    sys.exit(main())
