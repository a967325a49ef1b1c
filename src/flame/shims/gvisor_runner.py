"""Stands in front of a program in a sandbox of gVisor. Runs alone, by its path.

Arguments: the JSON of a Plan of gvisor_root.py, and the program with its arguments. The program's environment is this
one's, each name with PREFIX before it: nothing that its application says may change what runs outside of the sandbox.

All that a sandbox needs on this machine is in a mount that only this process and what it starts can see, so it is gone
when they are. They are gone when this process is: each dies with the one that started it.

Only the standard library, and little of it: this is started with `python -I -S`.
"""

# pathlib would cost more than all the rest here:
# ruff: noqa: PTH102, PTH103, PTH110, PTH112, PTH120, PTH123, PTH211
from __future__ import annotations

import ctypes
import json
import os
import signal
import stat
import sys

PREFIX = "INSIDE_"
PANIC = "panic"  # the file in its folder where gVisor says why it failed
NO_PROGRAM = 128  # as runsc exits when it could not start one
PR_SET_PDEATHSIG = 1
_STDIN_IS_STDOUT = ("/bin/sh", "-c", 'exec "$0" "$@" <&1')
_CLONE_NEWNS, _CLONE_NEWUSER, _CLONE_NEWNET = 0x00020000, 0x10000000, 0x40000000
_MS_RDONLY, _MS_NOSUID, _MS_NODEV, _MS_REMOUNT, _MS_BIND, _MS_REC, _MS_PRIVATE = 1, 2, 4, 32, 4096, 1 << 14, 1 << 18
_LIBC = ctypes.CDLL(None, use_errno=True)
_PASSED_ON = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)


def main() -> int:
    """Run the program; gives the exit status, with 128 and its number for a signal."""
    plan, arguments = json.loads(sys.argv[1]), sys.argv[2:]
    signal.pthread_sigmask(signal.SIG_BLOCK, {*_PASSED_ON, signal.SIGCHLD})
    folder = plan["folder"]
    enter_namespaces(network=plan["network"])
    mount("tmpfs", folder, "tmpfs", _MS_NOSUID | _MS_NODEV, "mode=0700")
    root = f"{folder}/root"
    make_tree(root, plan["tree"])
    configuration = plan["configuration"]
    configuration["root"] = {"path": root, "readonly": True}
    # gVisor would make two sockets of one that it gets twice, and close it when a program closes one of the two.
    one_socket = is_one_socket() and os.path.exists(f"{root}/bin/sh")
    configuration["process"]["args"] = [*(_STDIN_IS_STDOUT if one_socket else ()), *arguments]
    configuration["process"]["env"] = [
        f"{name[len(PREFIX) :]}={value}" for name, value in os.environ.items() if name.startswith(PREFIX)
    ]
    with open(f"{folder}/config.json", "w", errors="surrogateescape") as file:
        json.dump(configuration, file)
    command = [*plan["command"], f"--root={folder}/state"]
    name = f"flame-{os.urandom(16).hex()}"
    nothing = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    pid = start([*command, "run", f"--bundle={folder}", name], [nothing if one_socket else 0, 1])
    status = watch(pid, [*command, "kill", "--all", name], nothing)
    why = panic(f"{folder}/{PANIC}")
    if not why:
        return status
    complain(f"gVisor failed: {why}")
    return NO_PROGRAM


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
    mount("none", "/", "", _MS_REC | _MS_PRIVATE)


def make_tree(root: str, steps: list[list[str]]) -> None:
    """Raises OSError."""
    os.mkdir(root, 0o755)
    for folder in ("proc", "dev", "sys", "tmp"):
        os.mkdir(f"{root}/{folder}", 0o755)
    for kind, path, source in steps:
        inside = root + path
        os.makedirs(os.path.dirname(inside), exist_ok=True)
        if kind == "link":
            os.symlink(source, inside)
        elif kind == "hide":
            mount("tmpfs", inside, "tmpfs", _MS_NOSUID | _MS_NODEV, "size=4096,mode=0711")
        else:
            place(inside, is_folder=os.path.isdir(source))
            mount(source, inside, "", _MS_BIND | _MS_REC)


def place(path: str, *, is_folder: bool) -> None:
    """Something to mount over, if there is nothing yet."""
    if is_folder:
        os.makedirs(path, exist_ok=True)
    elif not os.path.exists(path):
        os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o644))


def is_one_socket() -> bool:
    """Whether stdin and stdout are the same socket."""
    one, other = os.fstat(0), os.fstat(1)
    return stat.S_ISSOCK(one.st_mode) and os.path.samestat(one, other)


def fork() -> int:
    """As os.fork. The new process ends when this one does."""
    parent = os.getpid()
    pid = os.fork()
    if not pid:
        _LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it died before the line above took effect
            os._exit(NO_PROGRAM)
    return pid


def start(command: list[str], streams: list[int]) -> int:
    """Start a program with these as its stdin and stdout, and stderr if that is named too; gives its number."""
    pid = fork()
    if pid:
        return pid
    try:
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        for target, source in enumerate(streams):
            os.dup2(source, target)
        kept = {name: value for name, value in os.environ.items() if not name.startswith(PREFIX)}
        os.execve(command[0], command, kept)
    except BaseException as error:
        complain(f"can't start {command[0]}: {error}")
    finally:
        os._exit(NO_PROGRAM)


def watch(main: int, passing_on: list[str], nothing: int) -> int:
    """Pass signals on until the program has ended; gives its exit status. `passing_on` wants the number of a signal."""
    while True:
        number = signal.sigwait({*_PASSED_ON, signal.SIGCHLD})
        if number != signal.SIGCHLD:
            start([*passing_on, str(int(number))], [nothing] * 3)
            continue
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if not pid:
                break
            if pid == main:
                return 128 + os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)


def panic(path: str) -> str:
    """Why gVisor failed, empty = it did not."""
    try:
        with open(path, errors="replace") as file:
            return file.readline(1000).strip()
    except OSError:
        return ""


def complain(text: str) -> None:
    os.write(2, f"{text}\n".encode(errors="replace"))


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


if __name__ == "__main__":
    try:
        status = main()
    except OSError as error:
        complain(f"can't make a sandbox of gVisor: {error.strerror or error}")
        status = NO_PROGRAM
    os._exit(status)
