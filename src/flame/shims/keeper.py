"""The keeper: a small process between an executor manager and its instances. Runs alone, by its path.

It starts the instances and never outlives its owner with them: when its socket closes, for whatever reason, it kills
every process below it and ends. It is their subreaper, so a process that an instance left behind (double fork, own
session, own group) stays below it; and the kernel kills the instances when the keeper itself is killed.

The socket carries one JSON object per packet. Requests: `{"op": "spawn", "id"}` with descriptors (a file with the
JSON of a Program of processes.py; stdout; stderr; stdin, if it gets one) and `{"op": "signal", "id", "signal"}`.
Events: `started` with `pid`, `failed` with `error`, `exited` with the wait `status`; after `exited` nothing of that id
runs any more.

Only the standard library, and little of it: this is started with `python -I -S`.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import resource
import select
import signal
import socket
import sys
import time
from collections.abc import Callable

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
MARKER = b"FLAME_INSTANCE_ID="
FIRST_OPENED = 100  # descriptors of the files that a program gets opened
_PACKET = 64 * 1024
_END_S = 10.0  # how long it goes on killing at its own end
_PAUSE_S = 0.01
_LIBC = ctypes.CDLL(None, use_errno=True)

Reach = Callable[[int, int], None]


class Keeper:
    """The processes it looks after: `mains` maps the pid of each instance's first process to the instance's id."""

    def __init__(self, control: socket.socket) -> None:
        self.control = control
        self.mains: dict[int, str] = {}
        self.pids: dict[str, int] = {}
        self.groups: dict[str, list[str]] = {}  # control groups of each instance
        self.reach: dict[str, Reach] = {}  # how signals other than SIGKILL come to the instance
        self.wakeup, wakeup_in = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.set_wakeup_fd(wakeup_in, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, wake_up)
        self.devnull = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)

    def run(self) -> None:
        """Serve until the socket closes."""
        poll = select.poll()
        poll.register(self.control, select.POLLIN)
        poll.register(self.wakeup, select.POLLIN)
        while True:
            ready = [descriptor for descriptor, _ in poll.poll()]
            if self.wakeup in ready:
                self.drain_wakeup()
                self.reap()
            if self.control.fileno() in ready:
                packet, descriptors, _, _ = socket.recv_fds(self.control, _PACKET, 4)
                for descriptor in descriptors:  # the flag that says so in one step is dropped by this function
                    os.set_inheritable(descriptor, False)
                if not packet:
                    return
                self.serve(json.loads(packet), descriptors)

    def serve(self, request: dict[str, object], descriptors: list[int]) -> None:
        """Do what one request says."""
        instance = str(request["id"])
        if request["op"] == "spawn":
            try:
                self.spawn(instance, *descriptors)
            finally:
                for descriptor in descriptors:
                    os.close(descriptor)
        elif instance in self.pids:
            number = int(str(request["signal"]))
            reach = os.killpg if number == signal.SIGKILL else self.reach[instance]
            try:
                reach(self.pids[instance], number)
            except ProcessLookupError:
                pass

    def tell(self, event: str, instance: str, **more: object) -> None:
        """Send an event. The owner may be gone already; run() finds that out."""
        try:
            self.control.send(json.dumps({"event": event, "id": instance, **more}).encode())
        except OSError:
            pass

    def spawn(self, instance: str, spec: int, stdout: int, stderr: int, stdin: int | None = None) -> None:
        """Start a program in a process group of its own, and wait until it runs or failed to."""
        with open(spec, closefd=False) as file:
            wanted = json.load(file)
        status, status_in = os.pipe2(os.O_CLOEXEC)
        keeper = os.getpid()
        pid = os.fork()
        if not pid:
            try:
                become(wanted, keeper, (self.devnull if stdin is None else stdin, stdout, stderr))
            except BaseException as error:
                text = error.strerror if isinstance(error, OSError) and error.strerror else repr(error)
                os.write(status_in, text.encode())
            finally:
                os._exit(127)
        os.close(status_in)
        with open(status, "rb") as file:  # noqa: PTH123 - a descriptor
            error = file.read().decode()  # ends when the program runs: the descriptor closes itself then
        if error:
            os.waitpid(pid, 0)
            self.tell("failed", instance, error=error)
        else:
            self.mains[pid] = instance
            self.pids[instance] = pid
            self.groups[instance] = wanted["groups"]
            self.reach[instance] = os.kill if wanted["relays"] else signal_inside if wanted["boxed"] else os.killpg
            self.tell("started", instance, pid=pid)

    def reap(self) -> None:
        """Take leave of processes that ended. When an instance's first one did, the rest of it is ended too."""
        while True:
            try:
                # Not reaped yet, so its group's number can't belong to anybody else.
                ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                return
            if ended is None:
                return
            instance = self.mains.pop(ended.si_pid, None)
            if instance is not None:
                kill_group(ended.si_pid)
            _, status = os.waitpid(ended.si_pid, 0)
            if instance is not None:
                del self.pids[instance]
                del self.reach[instance]
                self.sweep(instance, self.groups.pop(instance))
                self.tell("exited", instance, status=status)

    def sweep(self, instance: str, groups: list[str]) -> None:
        """End what an instance left behind. Its control groups know all of it, whatever it did to its environment."""
        for group in groups:
            close_group(group)
        deadline = time.monotonic() + _END_S
        unsure = 5  # looks at processes that just begin to run a program and show no environment yet
        while time.monotonic() < deadline:
            strays, unknown = self.strays(instance)
            for group in groups:
                strays += members(group)
            if not strays and (not unknown or not unsure):
                return
            unsure -= not strays
            for pid in strays:
                kill(pid)
            self.pause()

    def strays(self, instance: str) -> tuple[list[int], bool]:
        """Processes below that belong to this id, and whether there are some whose owner can't be told.

        Those below another instance's first process are that instance's. Of the others the environment tells; one
        that wiped it belongs to this id for certain only when no other instance is left.
        """
        children = processes()
        found: list[int] = []
        unknown = False
        pending = [(pid, False) for pid in children.get(os.getpid(), ()) if pid not in self.mains]
        while pending:
            pid, belongs = pending.pop()
            owner = b"" if belongs else owner_of(pid)
            belongs = belongs or owner == instance.encode() or (not owner and not self.mains)
            if belongs:
                found.append(pid)
            elif not owner:
                unknown = True
            pending += [(child, belongs) for child in children.get(pid, ()) if child not in self.mains]
        return found, unknown

    def end(self) -> None:
        """Kill everything below, until nothing is left."""
        deadline = time.monotonic() + _END_S
        while time.monotonic() < deadline:
            children = processes()
            below = list(children.get(os.getpid(), ()))
            for pid in below:
                below += children.get(pid, ())
            if not below:
                return
            for pid in below:
                kill(pid)
            self.pause()
            self.mains.clear()
            self.reap()

    def pause(self) -> None:
        """Wait for the next death of a child, at most a moment."""
        select.select([self.wakeup], [], [], _PAUSE_S)
        self.drain_wakeup()
        for pid in processes(zombies=True).get(os.getpid(), ()):
            if pid not in self.mains:
                try:
                    os.waitpid(pid, os.WNOHANG)
                except ChildProcessError:
                    pass

    def drain_wakeup(self) -> None:
        try:
            while os.read(self.wakeup, 1024):
                pass
        except BlockingIOError:
            pass


def wake_up(number: int, frame: object) -> None:
    """A handler must be set for the signal to reach the wakeup descriptor."""


def become(wanted: dict[str, object], keeper: int, streams: tuple[int, int, int]) -> None:
    """In the child: turn into the program. Raises OSError."""
    os.setpgid(0, 0)
    _LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != keeper:  # it died before the line above took effect
        os._exit(127)
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGCHLD, signal.SIGPIPE, signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_DFL)
    for target, source in enumerate(streams):
        os.dup2(source, target)
    groups: list[str] = wanted["groups"]  # type: ignore[assignment]
    opened: list[str] = wanted["opened"]  # type: ignore[assignment]
    for group in groups:
        with open(f"{group}/cgroup.procs", "w") as file:  # noqa: PTH123
            file.write("0")
    if wanted["boxed"]:
        # Where the kernel hands cores to a program, that would write what the sandbox holds to the node's disk.
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        # Descriptors under way in sockets are counted for each user, and who sends one is refused when there are more
        # than its own limit: with less than their node they can't keep it from sending us any.
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, hard // 2), hard // 2))
    for target, path in enumerate(opened, FIRST_OPENED):
        os.dup2(os.open(path, os.O_RDONLY | os.O_CLOEXEC), target)
    os.chdir(wanted["cwd"])  # type: ignore[arg-type]
    os.execve(wanted["path"], wanted["argv"], wanted["env"])  # type: ignore[arg-type]


def processes(*, zombies: bool = False) -> dict[int, list[int]]:
    """The children of each process of this machine; those that are dead already only with `zombies`."""
    children: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):  # noqa: PTH208 - pathlib costs more than all the rest here
        if not name.isdecimal():
            continue
        try:
            with open(f"/proc/{name}/stat", "rb") as file:  # noqa: PTH123
                stat = file.read()
        except OSError:
            continue
        state, parent = stat[stat.rindex(b")") + 2 :].split(b" ", 2)[:2]
        if zombies or state not in (b"Z", b"X"):
            children.setdefault(int(parent), []).append(int(name))
    return children


def owner_of(pid: int) -> bytes:
    """The id in a process's environment, empty when there is none."""
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:  # noqa: PTH123
            entries = file.read().split(b"\0")
    except OSError:
        return b""
    for entry in entries:
        if entry.startswith(MARKER):
            return entry[len(MARKER) :]
    return b""


def kill_owned_by(instances: set[str]) -> None:
    """Kill every process of this machine whose environment names one of these ids. For the owner of a dead keeper."""
    ids = {instance.encode() for instance in instances}
    deadline = time.monotonic() + _END_S
    while time.monotonic() < deadline:
        found = [pid for children in processes().values() for pid in children if owner_of(pid) in ids]
        if not found:
            return
        for pid in found:
            kill(pid)
        time.sleep(_PAUSE_S)  # they are not our children: nothing tells us when they are gone


def members(group: str) -> list[int]:
    """The processes in a control group, and in those that were made below it."""
    found: list[int] = []
    for folder, _, _ in os.walk(group):
        try:
            with open(f"{folder}/cgroup.procs") as file:  # noqa: PTH123
                found += [int(line) for line in file if line.strip() != "0"]
        except OSError:
            pass  # it is gone
    return found


def close_group(group: str) -> None:
    """Nothing in this control group can start another process, so that all of them can be caught. In version 2 the
    kernel kills them itself."""
    for name, text in (("pids.max", "0"), ("cgroup.kill", "1")):
        try:
            with open(f"{group}/{name}", "r+") as file:  # noqa: PTH123
                file.write(text)
        except OSError:
            pass  # a group of another controller, or of another version


def signal_inside(monitor: int, number: int) -> None:
    """Signal the processes of a sandbox, except the first one: it, and who watches over it, end when those have."""
    children = processes()
    pending = [child for first in children.get(monitor, ()) for child in children.get(first, ())]
    for pid in pending:
        pending += children.get(pid, ())
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            pass


def kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass


def kill_group(group: int) -> None:
    try:
        os.killpg(group, signal.SIGKILL)
    except OSError as error:
        if error.errno not in (errno.ESRCH, errno.EPERM):
            raise


def main() -> None:
    """Arguments: the descriptor of the socket, and folders to remove at the end."""
    # Who stops the executor manager may signal its whole session or control group; this process ends by itself.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    _LIBC.prctl(PR_SET_CHILD_SUBREAPER, 1)
    keeper = Keeper(socket.socket(fileno=int(sys.argv[1])))
    keeper.control.set_inheritable(False)
    try:
        keeper.run()
    finally:
        keeper.end()
        if len(sys.argv) > 2:
            import shutil

            for folder in sys.argv[2:]:
                shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
