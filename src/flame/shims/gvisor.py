"""Level gvisor: a program runs on a kernel of its own, gVisor's, that is a process of the node (`runsc`)."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from flame.model.isolation import Limits
from flame.shims.gvisor_processes import PREFIX
from flame.shims.gvisor_root import Copied, plan
from flame.shims.gvisor_sandbox import DATA, DOOR, LINK, OBJECTS, PANIC
from flame.shims.isolation_sandbox import TMP, Room, own_folders
from flame.shims.levels import shared_folder
from flame.shims.notes import Notes
from flame.shims.processes import Program
from flame.shims.shim import Launch
from flame.shims.snapshots import COMMON_DATA, REFUSED, SEEN, SNAPSHOT, alike

_RUNNER = Path(__file__).with_name("gvisor_runner.py")
# How it catches system calls, the best first. Not kvm: on machines without real virtualisation it hangs.
_PLATFORMS = ("systrap", "ptrace")
# The node's control groups hold all of it: it shall not make some of its own.
_OPTIONS = ("--ignore-cgroups",)
_OPTIONS_OF_USERS = ("--rootless",)  # who are root in a namespace that has no other user
_OPTIONS_IF_KNOWN = (
    "--file-access=shared",
    "--overlay2=none",
)  # what changes outside is seen inside; nothing is copied
_PANIC_LOG = "--panic-log="  # and a file
_PROBE_S = 10.0
_LAST_CHARACTERS = 1000
_KNOWN_BY = ("FLAME_INSTANCE_ID",)
_ENDPOINT, _OBJECTS, _RELAY = "FLAME_INSTANCE_ENDPOINT", "FLAME_CACHE_ENDPOINT", "relay:"
_SNAPSHOTS, _CACHE = "FLAME_GVISOR_SNAPSHOTS", "FLAME_GVISOR_CACHE"  # settings
_SNAPSHOTS_KEPT, _NOTES_KEPT = 8, 64
_LEAST_FOR_COPIES = 96 * 1024**2  # of memory: to restore takes more than to start
# gVisor has threads of its own, and while processes inside come and go many more than they are.
_OWN_PIDS, _PIDS_PER_PID = 1000, 32


class Known(msgspec.Struct, frozen=True):
    """How a sandbox was made that worked. `streams`: this runsc can't give it sockets, `users`: it can give it another
    user than root, to whom all files belong."""

    platform: str
    options: Sequence[str]
    streams: bool
    users: bool


class Gvisor:
    """Sandboxes of gVisor. `missing` says why there can be none here; empty = there can. `streams`: this runsc can't
    give them sockets."""

    name = "gvisor"

    def __init__(
        self, command: Sequence[str], folder: Path, missing: str = "", *, streams: bool = False,
        cache: Path | None = None, kept: int = 0, users: bool = True,
    ) -> None:  # fmt: skip
        """In `cache` are snapshots, `kept` of them; 0 = none are made. `users`: programs of images may be others than
        root."""
        self.missing = missing
        self.streams = streams
        self._users = users
        self._command = command
        self._folder = folder
        self._cache = cache or folder / "snapshots"
        self._kept = {SNAPSHOT: kept, REFUSED: _NOTES_KEPT, SEEN: _NOTES_KEPT}

    @classmethod
    def find(cls, folder: Path, environ: Mapping[str, str]) -> Gvisor:
        """Look whether this machine can make them, by making one: once after each start of the machine. Blocks a
        moment; raises OSError."""
        runsc = shutil.which("runsc", path=environ.get("PATH"))
        if runsc is None:
            return cls((), folder, "gVisor (runsc) is not installed: put runsc into the PATH of the executor manager")
        settings = environ.get(_SNAPSHOTS) or str(_SNAPSHOTS_KEPT)
        if not settings.isdecimal():
            return cls((), folder, f"{_SNAPSHOTS} must be the number of snapshots to keep, not {settings!r}")
        (folder / "run").mkdir(mode=0o700, parents=True, exist_ok=True)
        for name, text in (("passwd", f"flame:x:0:0::{TMP}:/bin/sh\n"), ("group", "flame:x:0:\n")):
            (folder / name).write_text(text)
            os.utime(folder / name, (0, 0))  # a snapshot of another node shall find what it knows
        shared = shared_folder(cls.name, environ) or folder
        cache = Path(environ.get(_CACHE) or shared / "snapshots")
        kept = 0 if os.getuid() else int(settings)  # runsc restores for root only
        notes = Notes(shared, runsc, Known)
        known = notes.read()
        if known is not None:
            command = _command(runsc, folder, known)
            return cls(command, folder, streams=known.streams, cache=cache, kept=kept, users=known.users)
        _, flags = _run([runsc, "flags"])
        problems: list[str] = []
        for platform in _PLATFORMS:
            options = [option for option in (*_OPTIONS_IF_KNOWN, _PANIC_LOG) if _knows(flags, option)]
            chosen = Known(platform, options, streams=not _knows(flags, "--host-uds"), users=True)
            command = _command(runsc, folder, chosen)
            found = cls(command, folder, streams=chosen.streams, cache=cache, kept=kept)
            found.missing = found._probe()
            if not found.missing:
                found._users = not os.geteuid() and not found._probe(Room(root=Path("/")))
                notes.write(msgspec.structs.replace(chosen, users=found._users))
                return found
            problems.append(f"{platform}: {found.missing}")
        return cls((), folder, f"gVisor (runsc) can't make a sandbox here: {'; '.join(problems)}")

    def wrap(self, program: Program, room: Room, limits: Limits, launch: Launch) -> Program:
        """The program, run in a sandbox."""
        if not self._copied(program, room, limits, launch):
            return self._wrap(program, room, limits.pids)
        link, door, *objects = room.sockets
        env, data = dict(program.env), program.env.get(COMMON_DATA, "")
        env.update(FLAME_INSTANCE_LINK=LINK, FLAME_INSTANCE_ENDPOINT=f"{DOOR}/{Path(env[_ENDPOINT]).name}")
        added = [("open", LINK, str(link))]
        if objects:
            env[_OBJECTS] = _RELAY + OBJECTS
            added.append(("open", OBJECTS, str(objects[0])))
        if data:
            env[COMMON_DATA] = DATA
            added.append(("show", DATA, data))
        readable = [path for path in room.readable if str(path) != data]
        hidden = [*room.hidden, self._cache]
        own = [folder for folder in own_folders() if folder not in readable]
        prefixes = dict.fromkeys((sys.prefix, sys.base_prefix))
        copied = Copied(
            added,
            str(door),
            str(self._cache),
            self._kept,
            limits.memory,
            list(prefixes),
            [str(path) for path in (*own, *readable) if str(path) not in prefixes],
            [str(path) for path in hidden],
        )
        room = msgspec.structs.replace(room, readable=readable, hidden=hidden, sockets=())
        return self._wrap(msgspec.structs.replace(program, env=env), room, limits.pids, copied)

    def _copied(self, program: Program, room: Room, limits: Limits, launch: Launch) -> bool:
        """Whether it may be a copy: of a program that may speak the link, and has nothing else that is its own, nor a
        part in the node's network, with which runsc saves none, nor a bridge to a proxy: gVisor fails where something
        waits at a TCP socket."""
        env = program.env
        named = [env.get("FLAME_INSTANCE_LINK"), str(Path(env.get(_ENDPOINT, "")).parent)]
        if env.get(_OBJECTS, "").startswith(_RELAY):
            named.append(env[_OBJECTS].removeprefix(_RELAY))
        application = launch.application
        return (
            self._kept[SNAPSHOT] > 0
            and (not limits.memory or limits.memory >= _LEAST_FOR_COPIES)
            and [str(path) for path in room.sockets] == named
            and not room.network
            and alike(application.labels, application.arguments, gang=launch.context.HasField("gang"))
        )

    def around(self, limits: Limits) -> Limits:
        """What its control group holds it to. Processes are counted by gVisor; the group only bounds gVisor itself."""
        pids = limits.pids and _OWN_PIDS + _PIDS_PER_PID * limits.pids
        return msgspec.structs.replace(limits, pids=pids)

    def _wrap(self, program: Program, room: Room, pids: int, copied: Copied | None = None) -> Program:
        if not self._users:
            room = msgspec.structs.replace(room, user=(0, 0))
        wanted = msgspec.json.encode(plan(room, pids, self._folder, self._command, copied)).decode()
        argv = [sys.executable, "-I", "-S", str(_RUNNER), wanted, program.path, *program.argv[1:]]
        env = {PREFIX + name: value for name, value in program.env.items()}
        env.update((name, program.env[name]) for name in _KNOWN_BY if name in program.env)
        return msgspec.structs.replace(program, path=sys.executable, argv=argv, env=env, boxed=True, relays=True)

    def _probe(self, room: Room | None = None) -> str:
        """Why no such sandbox can be made, empty = one could."""
        wrapped = self._wrap(Program("/bin/sh", ["sh", "-c", ":"], {}, "/"), room or Room(), 0)
        status, text = _run(wrapped.argv, wrapped.env)
        return text[-_LAST_CHARACTERS:] or f"exit status {status}" if status else ""


def _command(runsc: str, folder: Path, known: Known) -> list[str]:
    """What runs runsc here."""
    options = [f"{option}{folder}/run/{PANIC}" if option == _PANIC_LOG else option for option in known.options]
    own = _OPTIONS_OF_USERS if os.getuid() else ()
    return [runsc, f"--platform={known.platform}", *_OPTIONS, *own, *options]


def _knows(flags: str, option: str) -> bool:
    """Whether what `runsc flags` prints has it."""
    return re.search(rf"^ *-{option.strip('-').partition('=')[0]}\b", flags, re.MULTILINE) is not None


def _run(command: Sequence[str], environ: Mapping[str, str] | None = None) -> tuple[int, str]:
    """Its exit status and what it wrote; -1 when it did not end in time."""
    with tempfile.TemporaryFile() as words:
        try:
            done = subprocess.run(
                command, env=environ, stdin=subprocess.DEVNULL, stdout=words, stderr=words,
                timeout=_PROBE_S, check=False,
            )  # fmt: skip
        except (OSError, subprocess.TimeoutExpired) as error:
            return -1, str(error)
        words.seek(0)
        return done.returncode, words.read().decode(errors="replace").strip()
