"""Process 1 of a virtual machine: starts the one program it is there for, and lets nobody but the runner outside say
what happens. Started with `python -I -S` from a folder that holds nothing but this package.

Ports lead outside. `flame.link` is the program's stdin and stdout, `flame.log` its stderr, `flame.network` the way to
what a list names (bridge.py), `flame.door` the way to a socket of the program (door.py), `flame.control` carries a JSON
object per line. From outside: `start` (a program, its limits), `signal`, `ended` (stdin ends after so many bytes),
`resume` (after a snapshot: environment, time, randomness). From here: `prepared` (take a snapshot now), `refused`,
`resumed`, `exited` (the exit status, whether memory ran out, how many bytes went to link and log).

The program is user 1000, or that of its image, without any capability, in a control group of its own: the kernel may
have to kill it, but never this process.
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import resource
import select
import signal
import socket
import struct
import sys
import time
from typing import Any

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))))

from flame.shims.guest.bridge import leave_behind
from flame.shims.guest.door import Watch, leave_door, make_folder
from flame.shims.guest.pump import Lines, Loop, Pump

GROUP = "/sys/fs/cgroup/flame"
MAX_LINE = 16 * 1024 * 1024  # an environment and arguments have no limit worth the name
DISKS = "/run/disks"  # where boot.sh shows what is on the disks, whatever is mounted above them
RESOLVER = "nameserver 10.0.2.3\n"  # of the network that QEMU makes
SHARED_MEMORY = 64 * 1024**2
_RNDADDENTROPY, _RNDRESEEDCRNG = 0x40085203, 0x5207
_SIOCSIFADDR, _SIOCSIFNETMASK, _SIOCGIFFLAGS, _SIOCSIFFLAGS, _SIOCADDRT = 0x8916, 0x891C, 0x8913, 0x8914, 0x890B
_ADDRESS, _GATEWAY = "10.0.2.15", "10.0.2.2"  # of the network that QEMU makes
_MS_NOSUID, _MS_NODEV, _MS_NOEXEC, _MS_BIND = 2, 4, 8, 4096
_PR_SET_NO_NEW_PRIVS, _PR_CAPBSET_DROP, _LAST_CAPABILITY = 38, 24, 63
_PORT_S = 30.0
_MAX_OPEN = 65536
_LIBC = ctypes.CDLL(None, use_errno=True)


class Guest:
    """The machine's one program, from its start to its end."""

    def __init__(self) -> None:
        self.loop = Loop()
        self.control = port("flame.control")
        self.link = port("flame.link")
        self.log = port("flame.log")
        self.lines = Lines(MAX_LINE)
        self.main = 0
        self.door = 0  # the process that connects to the program
        self.status: int | None = None
        self.snapshot: socket.socket | None = None  # where the program says that it is prepared
        self.judged = False  # whether it was said that a snapshot may be taken, or never
        self.proxies: dict[str, str] = {}  # variables that name the way out
        self.input_ends: int | None = None  # after so many bytes
        self.wakeup, wakeup_in = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.set_wakeup_fd(wakeup_in, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda number, frame: None)

    def run(self) -> None:
        """Serve for ever: whoever started the machine ends it."""
        self.loop.watch(self.control, select.POLLIN, self.on_control)
        self.loop.watch(self.wakeup, select.POLLIN, self.on_child)
        while True:
            self.loop.turn()

    def on_control(self, events: int) -> None:
        try:
            data = os.read(self.control, 1 << 16)
        except BlockingIOError:
            return
        if not data:  # nobody outside
            self.loop.watch(self.control, 0, self.on_control)
            return
        for line in self.lines.feed(data):
            message = json.loads(line)
            getattr(self, "do_" + message.pop("op"))(**message)

    def tell(self, event: str, **more: Any) -> None:
        data = json.dumps({"event": event, **more}).encode() + b"\n"
        while data:
            try:
                data = data[os.write(self.control, data) :]
            except BlockingIOError:
                select.select([], [self.control], [])

    # --- what is asked for -----------------------------------------------------------------------------------------

    def do_start(
        self,
        program: dict[str, Any],
        limits: dict[str, int],
        shown: list[str],
        now: float,
        entropy: str,
        network: bool,
        listed: bool,
        door: str,
        prepare: bool,
    ) -> None:
        """Set up the machine and start the program. With `listed` it reaches what a list names, at `door` it
        may make a socket, with `prepare` it is asked to say when a snapshot may be taken."""
        refresh(now, entropy)
        furnish(limits, network=network)
        if network:
            name_servers()
        for path in shown:
            show(path)
        if listed:
            self.proxies = leave_behind(port("flame.network"), program["user"][0])
            program["env"].update(self.proxies)
        user, group = program["user"]
        if door:
            make_folder(door, user, group)
            if not prepare:
                self.door = leave_door(port("flame.door"), door, user, group)
        ours, theirs = socket.socketpair()
        error_out, error_in = os.pipe2(os.O_CLOEXEC)
        passed = self.expect_snapshot(door) if prepare else None
        self.main = start(program, (theirs.fileno(), error_in), passed)
        for descriptor in (theirs.detach(), error_in, *(() if passed is None else (passed.detach(),))):
            os.close(descriptor)
        for descriptor in (ours.fileno(), error_out):
            os.set_blocking(descriptor, False)
        self.stdin = ours
        self.incoming = Pump(self.loop, self.link, ours.fileno(), self.on_moved)
        self.outgoing = Pump(self.loop, os.dup(ours.fileno()), os.dup(self.link))
        self.errors = Pump(self.loop, error_out, self.log)
        for pump in (self.incoming, self.outgoing, self.errors):
            pump.begin()

    def expect_snapshot(self, door: str) -> socket.socket:
        """The program's end of a socket where it will say that it is prepared."""
        self.snapshot, asked = socket.socketpair()
        self.loop.watch(self.snapshot.fileno(), select.POLLIN, self.on_snapshot)
        if door:
            Watch(self.loop, door, self.on_socket)
        return asked

    def do_signal(self, number: int) -> None:
        """To all processes of the program."""
        for pid in members():
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                pass

    def do_ended(self, after: int) -> None:
        """The program's stdin is over once so many bytes came."""
        self.input_ends = after
        self.on_moved()

    def do_resume(self, env: dict[str, str], now: float, entropy: str) -> None:
        """Go on as the copy of a machine: another one's identity, time and randomness."""
        refresh(now, entropy)
        for pump in (self.incoming, self.outgoing, self.errors):
            pump.moved = 0
        self.tell("resumed")
        if self.snapshot is not None:
            self.loop.watch(self.snapshot.fileno(), 0, self.on_snapshot)
            self.snapshot.sendall(json.dumps({"env": {**env, **self.proxies}, "entropy": entropy}).encode() + b"\n")
            self.snapshot.close()
            self.snapshot = None

    # --- what happens ----------------------------------------------------------------------------------------------

    def on_snapshot(self, events: int) -> None:
        """The program is prepared, or shall never be."""
        assert self.snapshot is not None
        said = self.snapshot.recv(64, socket.MSG_DONTWAIT)
        self.loop.watch(self.snapshot.fileno(), 0, self.on_snapshot)
        if self.judged:
            return
        self.judged = True
        self.errors.drain()
        self.tell("prepared" if said == b"prepared\n" else "refused", log=self.errors.moved)

    def on_socket(self) -> None:
        """The program serves at a socket, and has nothing to say of snapshots."""
        if not self.judged:
            self.judged = True
            self.errors.drain()
            self.tell("refused", log=self.errors.moved)

    def on_moved(self) -> None:
        if self.input_ends is not None and self.incoming.moved >= self.input_ends and self.incoming.idle:
            try:
                self.stdin.shutdown(socket.SHUT_WR)
            except OSError:
                pass  # it closed it first
            self.incoming.stop()

    def on_child(self, events: int) -> None:
        try:
            while os.read(self.wakeup, 1024):
                pass
        except BlockingIOError:
            pass
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if not pid:
                return
            if pid == self.door:  # nobody reaches the program any more
                write(GROUP + "/cgroup.kill", "1")
            if pid == self.main and self.status is None:
                self.status = os.waitstatus_to_exitcode(status)
                self.finish()

    def finish(self) -> None:
        """The program has ended: so has all that it started, and what it said counts."""
        write(GROUP + "/cgroup.kill", "1")
        while members():
            time.sleep(0.002)  # they are not children of this process yet
        for pump in (self.outgoing, self.errors):
            while not (pump.ended and pump.idle):
                self.loop.turn()
        status = self.status or 0
        self.tell(
            "exited",
            status=128 - status if status < 0 else status,
            starved=status == -signal.SIGKILL and starved(),
            link=self.outgoing.moved,
            log=self.errors.moved,
        )


# --- the machine -----------------------------------------------------------------------------------------------------


def port(name: str) -> int:
    """The port of this name, opened, both ways and non-blocking."""
    deadline = time.monotonic() + _PORT_S
    while time.monotonic() < deadline:
        for each in os.listdir("/sys/class/virtio-ports"):
            try:
                with open(f"/sys/class/virtio-ports/{each}/name") as file:
                    if file.read().strip() == name:
                        return os.open(f"/dev/{each}", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
            except OSError:
                pass
        time.sleep(0.005)  # its name comes some time after the port
    raise OSError(f"there is no port {name}")


def refresh(now: float, entropy: str) -> None:
    """Take time and randomness from outside."""
    time.clock_settime(time.CLOCK_REALTIME, now)
    seed = bytes.fromhex(entropy)
    with open("/dev/urandom", "wb") as file:
        fcntl.ioctl(file, _RNDADDENTROPY, struct.pack("ii", len(seed) * 8, len(seed)) + seed)
        fcntl.ioctl(file, _RNDRESEEDCRNG)


def furnish(limits: dict[str, int], *, network: bool) -> None:
    """Make what the program finds: /tmp, /dev/shm, a control group, a network."""
    for name in ("pts", "shm", "mqueue"):
        os.makedirs(f"/dev/{name}", exist_ok=True)
    mount("devpts", "/dev/pts", "devpts", _MS_NOSUID | _MS_NOEXEC, "ptmxmode=0666,mode=0620")
    mount("tmpfs", "/dev/shm", "tmpfs", _MS_NOSUID | _MS_NODEV, f"mode=1777,size={SHARED_MEMORY}")
    mount("tmpfs", "/tmp", "tmpfs", _MS_NOSUID | _MS_NODEV, f"mode=1777,size={limits['disk']}")
    for name, target in (("fd", "/proc/self/fd"), ("stdin", "/proc/self/fd/0"), ("stdout", "/proc/self/fd/1"),
                         ("stderr", "/proc/self/fd/2")):  # fmt: skip
        if not os.path.lexists(f"/dev/{name}"):
            os.symlink(target, f"/dev/{name}")
    for name in ("null", "zero", "full", "random", "urandom", "tty", "ptmx"):
        if os.path.exists(f"/dev/{name}"):
            os.chmod(f"/dev/{name}", 0o666)
    mount("cgroup2", "/sys/fs/cgroup", "cgroup2", _MS_NOSUID | _MS_NODEV | _MS_NOEXEC, "")
    write("/sys/fs/cgroup/cgroup.subtree_control", "+memory +pids")
    os.mkdir(GROUP)
    if limits["memory"]:
        write(GROUP + "/memory.max", str(limits["memory"]))
        write(GROUP + "/memory.swap.max", "0")
    if limits["pids"]:
        write(GROUP + "/pids.max", str(limits["pids"]))
    write("/proc/self/oom_score_adj", "-1000")
    socket.sethostname("flame")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        raise_interface(sock, b"lo")
        if network:
            raise_interface(sock, b"eth0", _ADDRESS, "255.255.255.0")
            route = struct.pack("L16s16s16sH", 0, internet("0.0.0.0"), internet(_GATEWAY), internet("0.0.0.0"), 3)
            fcntl.ioctl(sock, _SIOCADDRT, route + bytes(64))


def name_servers() -> None:
    """Images have those of the machine that they were made on, if any."""
    if os.path.exists("/etc/resolv.conf"):
        write("/run/resolv.conf", RESOLVER)
        mount("/run/resolv.conf", "/etc/resolv.conf", "none", _MS_BIND, "")


def show(path: str) -> None:
    """Something of the disks that lies where another file system has been mounted since."""
    source = DISKS + path
    if os.path.isdir(source):
        os.makedirs(path, mode=0o755, exist_ok=True)
    else:
        os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT, 0o644))
    mount(source, path, "none", _MS_BIND, "")


def raise_interface(sock: socket.socket, name: bytes, address: str = "", mask: str = "") -> None:
    if address:
        fcntl.ioctl(sock, _SIOCSIFADDR, struct.pack("16s16s8x", name, internet(address)))
        fcntl.ioctl(sock, _SIOCSIFNETMASK, struct.pack("16s16s8x", name, internet(mask)))
    known = fcntl.ioctl(sock, _SIOCGIFFLAGS, struct.pack("16sH22x", name, 0))
    (flags,) = struct.unpack_from("H", known, 16)
    fcntl.ioctl(sock, _SIOCSIFFLAGS, struct.pack("16sH22x", name, flags | 1))


def internet(address: str) -> bytes:
    """A struct sockaddr_in."""
    return struct.pack("=HH4s8x", socket.AF_INET, 0, socket.inet_aton(address))


def mount(source: str, target: str, kind: str, flags: int, options: str) -> None:
    if _LIBC.mount(source.encode(), target.encode(), kind.encode(), flags, options.encode()):
        number = ctypes.get_errno()
        raise OSError(number, f"can't mount {target}: {os.strerror(number)}")


def write(path: str, text: str) -> None:
    with open(path, "w") as file:
        file.write(text)


# --- the program -----------------------------------------------------------------------------------------------------


def start(program: dict[str, Any], streams: tuple[int, int], asked: socket.socket | None) -> int:
    """Start it; `streams` are stdin with stdout, and stderr; `asked` is where it says that it is prepared. One that
    can't be started exits with 127, as in shells."""
    pid = os.fork()
    if pid:
        return pid
    both, errors = streams
    try:
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGCHLD, signal.SIGPIPE, signal.SIGXFSZ):
            signal.signal(number, signal.SIG_DFL)
        os.setsid()
        write(GROUP + "/cgroup.procs", "0")
        write("/proc/self/oom_score_adj", "0")
        for target, source in enumerate((both, both, errors)):
            os.dup2(source, target)
        env: dict[str, str] = program["env"]
        if asked is not None:
            asked.set_inheritable(True)
            env = {**env, "FLAME_SNAPSHOT_FD": str(asked.fileno())}
        resource.setrlimit(resource.RLIMIT_NOFILE, (_MAX_OPEN, _MAX_OPEN))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        for capability in range(_LAST_CAPABILITY):
            _LIBC.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0)
        os.setgroups([])
        number, group = program["user"]
        os.setgid(group)
        os.setuid(number)
        _LIBC.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        os.chdir(program["cwd"])
        os.execve(program["path"], program["argv"], env)
    except BaseException as error:
        os.write(2, f"flame: can't start {program['path']}: {error}\n".encode())
    os._exit(127)


def members() -> list[int]:
    with open(GROUP + "/cgroup.procs") as file:
        return [int(line) for line in file]


def starved() -> bool:
    """Whether one of its processes was killed for want of memory."""
    with open(GROUP + "/memory.events") as file:
        return dict(line.split() for line in file).get("oom_kill", "0") != "0"


if __name__ == "__main__":
    Guest().run()
