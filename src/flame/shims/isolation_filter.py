"""The system calls that a sandbox refuses, as the program of classic BPF that the kernel runs for each call.

A list of what is refused rather than of what is allowed: services are whatever users write. Refused is what reaches
beyond the sandbox or widens the kernel's surface: other processes, mounts, new namespaces, keys, modules, BPF, io_uring
(whose operations no filter sees), and sockets that network namespaces do not separate.
"""

from __future__ import annotations

import errno
import struct

_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _KILL_PROCESS, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
_NUMBER, _ARCHITECTURE, _ARGUMENTS = 0, 4, 16  # offsets in what the kernel shows of a call
_X32 = 0x40000000  # calls of the x32 ABI have this bit, and other numbers than those below
_NEW_NAMESPACES = 0x7E020000  # CLONE_NEWNS, CGROUP, UTS, IPC, USER, PID, NET
_TERMINAL_INPUT = (0x5412, 0x541C)  # TIOCSTI, TIOCLINUX: typing into a terminal
_LEASES = (1024,)  # F_SETLEASE: on a file that others only read, it holds up who wants to write to it
_SOCKETS = (1, 2, 10, 16)  # AF_UNIX, AF_INET, AF_INET6, AF_NETLINK

# Architecture's number of the kernel's audit, then the numbers of calls by name.
_SAME = {  # on all architectures, since they were added at the same time
    "io_uring_setup": 425,
    "io_uring_enter": 426,
    "io_uring_register": 427,
    "open_tree": 428,
    "move_mount": 429,
    "fsopen": 430,
    "fsconfig": 431,
    "fsmount": 432,
    "fspick": 433,
    "pidfd_getfd": 438,
    "mount_setattr": 442,
    "quotactl_fd": 443,
    "open_tree_attr": 467,
}
# fmt: off
_NAMES = (
    "ptrace", "process_vm_readv", "process_vm_writev", "kcmp", "mount", "umount2", "pivot_root", "chroot", "swapon",
    "swapoff", "reboot", "sethostname", "setdomainname", "init_module", "delete_module", "finit_module", "quotactl",
    "acct", "settimeofday", "adjtimex", "clock_settime", "clock_adjtime", "syslog", "kexec_load", "kexec_file_load",
    "add_key", "request_key", "keyctl", "unshare", "setns", "perf_event_open", "fanotify_init", "name_to_handle_at",
    "open_by_handle_at", "bpf", "userfaultfd", "lookup_dcookie", "move_pages",
)
# fmt: on
_X86 = (
    "101 310 311 312 165 166 155 161 167 168 169 170 171 175 176 313 179 163 164 159 227 305 103 246 320 248 249 250 "
    "272 308 298 300 303 304 321 323 212 279"
)
_ARM = (
    "117 270 271 272 40 39 41 51 224 225 142 161 162 105 106 273 60 89 170 171 112 266 116 104 294 217 218 219 97 268 "
    "241 262 264 265 280 282 18 239"
)
_ONLY_X86 = {"iopl": 172, "ioperm": 173, "modify_ldt": 154, "uselib": 134}
_CLONE3 = 435


class _Machine:
    def __init__(self, audit: int, numbers: str, clone: int, ioctl: int, fcntl: int, socket: int, **more: int) -> None:
        self.audit = audit
        self.refused = {**dict(zip(_NAMES, map(int, numbers.split()), strict=True)), **_SAME, **more}
        self.clone, self.ioctl, self.fcntl, self.socket = clone, ioctl, fcntl, socket


MACHINES = {
    "x86_64": _Machine(0xC000003E, _X86, clone=56, ioctl=16, fcntl=72, socket=41, **_ONLY_X86),
    "aarch64": _Machine(0xC00000B7, _ARM, clone=220, ioctl=29, fcntl=25, socket=198),
}


def program(machine: str) -> bytes:
    """The filter for a machine as os.uname() names it, one of MACHINES."""
    kind = MACHINES[machine]
    code = [
        _load(_ARCHITECTURE),
        _step(_EQUAL, kind.audit, 1, 0),
        _answer(_KILL_PROCESS),  # calls of another ABI, whose numbers mean something else
        _load(_NUMBER),
    ]
    if machine == "x86_64":
        code += [_step(_AT_LEAST, _X32, 0, 1), _refuse(errno.EPERM)]
    for number in sorted(set(kind.refused.values())):
        code += [_step(_EQUAL, number, 0, 1), _refuse(errno.EPERM)]
    # What it is given lies in memory, where no filter looks; libraries go back to clone.
    code += [_step(_EQUAL, _CLONE3, 0, 1), _refuse(errno.ENOSYS)]
    code += _when(kind.clone, [_load(_ARGUMENTS), _step(_ANY_BIT, _NEW_NAMESPACES, 0, 1), _refuse(errno.EPERM)])
    for call, wishes in ((kind.ioctl, _TERMINAL_INPUT), (kind.fcntl, _LEASES)):
        refused = [step for wish in wishes for step in (_step(_EQUAL, wish, 0, 1), _refuse(errno.EPERM))]
        code += _when(call, [_load(_ARGUMENTS + 8), *refused])
    known = [step for family in _SOCKETS for step in (_step(_EQUAL, family, 0, 1), _answer(_ALLOW))]
    code += _when(kind.socket, [_load(_ARGUMENTS), *known, _refuse(errno.EAFNOSUPPORT)])
    return b"".join([*code, _answer(_ALLOW)])


def _when(number: int, steps: list[bytes]) -> list[bytes]:
    """These steps for this call, which is allowed behind them."""
    return [_step(_EQUAL, number, 0, len(steps) + 1), *steps, _answer(_ALLOW)]


def _step(code: int, value: int = 0, then: int = 0, otherwise: int = 0) -> bytes:
    """One instruction; `then` and `otherwise` are how many are skipped."""
    return struct.pack("=HBBI", code, then, otherwise, value)


def _load(offset: int) -> bytes:
    return _step(_LOAD, offset)


def _answer(value: int) -> bytes:
    return _step(_RETURN, value)


def _refuse(error: int) -> bytes:
    return _answer(_ERRNO | error)
