"""Namespaces and mounts of the process in front of a sandbox of gVisor: what is made here nobody else sees, and it is
gone when that process is. Only the standard library: the runner uses it."""

from __future__ import annotations

import ctypes
import os

MS_NOSUID, MS_NODEV, MS_BIND, MS_REC, MS_PRIVATE = 2, 4, 4096, 1 << 14, 1 << 18
_CLONE_NEWNS, _CLONE_NEWUSER, _CLONE_NEWNET = 0x00020000, 0x10000000, 0x40000000
_LIBC = ctypes.CDLL(None, use_errno=True)


def enter_namespaces(*, network: bool) -> None:
    """What is mounted from here on is seen by nobody else, nor, without a network, can somebody else reach the socket
    by which the sandbox is ruled. Raises OSError."""
    user, group = os.getuid(), os.getgid()
    if user:
        check(_LIBC.unshare(_CLONE_NEWUSER))
        for name, text in (("setgroups", "deny"), ("uid_map", f"0 {user} 1"), ("gid_map", f"0 {group} 1")):
            with open(f"/proc/self/{name}", "w") as file:
                file.write(text)
    check(_LIBC.unshare(_CLONE_NEWNS | (0 if network else _CLONE_NEWNET)))
    mount("none", "/", "", MS_REC | MS_PRIVATE)


def make_tree(root: str, steps: list[list[str]]) -> None:
    """Raises OSError."""
    os.mkdir(root, 0o755)
    for folder in ("proc", "dev", "sys", "tmp"):
        os.mkdir(f"{root}/{folder}", 0o755)
    add(root, steps)


def add(root: str, steps: list[list[str]]) -> None:
    """Add to a tree. Raises OSError."""
    for kind, path, source in steps:
        inside = root + path
        os.makedirs(os.path.dirname(inside), exist_ok=True)
        if kind == "link":
            os.symlink(source, inside)
        elif kind == "hide":
            mount("tmpfs", inside, "tmpfs", MS_NOSUID | MS_NODEV, "size=4096,mode=0711")
        else:
            place(inside, is_folder=os.path.isdir(source))
            mount(source, inside, "", MS_BIND | MS_REC)


def place(path: str, *, is_folder: bool) -> None:
    """Something to mount over, if there is nothing yet."""
    if is_folder:
        os.makedirs(path, exist_ok=True)
    elif not os.path.exists(path):
        os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o644))


def mount(source: str, target: str, kind: str, flags: int, options: str = "") -> None:
    """Raises OSError."""
    arguments = [text.encode(errors="surrogateescape") for text in (source, target, kind)]
    if _LIBC.mount(*arguments, flags, options.encode()):
        error = ctypes.get_errno()
        raise OSError(error, f"can't mount {target}: {os.strerror(error)}")


def check(result: int) -> None:
    if result:
        error = ctypes.get_errno()
        raise OSError(error, f"can't make a namespace: {os.strerror(error)}")
