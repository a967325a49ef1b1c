"""Level gvisor: a program runs on a kernel of its own, gVisor's, that is a process of the node (`runsc`)."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from flame.model.isolation import Limits
from flame.shims.gvisor_notes import Known, Notes
from flame.shims.gvisor_root import plan
from flame.shims.gvisor_runner import PANIC, PREFIX
from flame.shims.isolation_sandbox import TMP, Room
from flame.shims.levels import shared_folder
from flame.shims.processes import Program
from flame.shims.shim import Launch

_RUNNER = Path(__file__).with_name("gvisor_runner.py")
# How it catches system calls, the best first. Not kvm: on machines without real virtualisation it hangs.
_PLATFORMS = ("systrap", "ptrace")
# The node's control groups hold all of it: it shall not make some of its own.
_OPTIONS = ("--ignore-cgroups",)
_OPTIONS_IF_KNOWN = (
    "--file-access=shared",
    "--overlay2=none",
)  # what changes outside is seen inside; nothing is copied
_PANIC_LOG = "--panic-log="  # and a file
_PROBE_S = 10.0
_LAST_CHARACTERS = 1000
_KNOWN_BY = ("FLAME_INSTANCE_ID",)
# gVisor has threads of its own, and while processes inside come and go many more than they are.
_OWN_PIDS, _PIDS_PER_PID = 1000, 32


class Gvisor:
    """Sandboxes of gVisor. `missing` says why there can be none here; empty = there can. `streams`: this runsc can't
    give them sockets."""

    name = "gvisor"

    def __init__(self, command: Sequence[str], folder: Path, missing: str = "", *, streams: bool = False) -> None:
        self.missing = missing
        self.streams = streams
        self._command = command
        self._folder = folder

    @classmethod
    def find(cls, folder: Path, environ: Mapping[str, str]) -> Gvisor:
        """Look whether this machine can make them, by making one: once after each start of the machine. Blocks a
        moment; raises OSError."""
        runsc = shutil.which("runsc", path=environ.get("PATH"))
        if runsc is None:
            return cls((), folder, "gVisor (runsc) is not installed: put runsc into the PATH of the executor manager")
        (folder / "run").mkdir(mode=0o700, parents=True, exist_ok=True)
        (folder / "passwd").write_text(f"flame:x:0:0::{TMP}:/bin/sh\n")
        (folder / "group").write_text("flame:x:0:\n")
        notes = Notes(shared_folder(cls.name, environ) or folder, runsc)
        known = notes.read()
        if known is not None:
            return cls(_command(runsc, folder, known), folder, streams=known.streams)
        _, flags = _run([runsc, "flags"])
        problems: list[str] = []
        for platform in _PLATFORMS:
            options = [option for option in (*_OPTIONS_IF_KNOWN, _PANIC_LOG) if _knows(flags, option)]
            chosen = Known(platform, options, streams=not _knows(flags, "--host-uds"))
            found = cls(_command(runsc, folder, chosen), folder, streams=chosen.streams)
            found.missing = found._probe()
            if not found.missing:
                notes.write(chosen)
                return found
            problems.append(f"{platform}: {found.missing}")
        return cls((), folder, f"gVisor (runsc) can't make a sandbox here: {'; '.join(problems)}")

    def wrap(self, program: Program, room: Room, limits: Limits, launch: Launch) -> Program:
        """The program, run in a sandbox."""
        return self._wrap(program, room, limits.pids)

    def around(self, limits: Limits) -> Limits:
        """What its control group holds it to. Processes are counted by gVisor; the group only bounds gVisor itself."""
        pids = limits.pids and _OWN_PIDS + _PIDS_PER_PID * limits.pids
        return msgspec.structs.replace(limits, pids=pids)

    def _wrap(self, program: Program, room: Room, pids: int) -> Program:
        wanted = msgspec.json.encode(plan(room, pids, self._folder, self._command)).decode()
        argv = [sys.executable, "-I", "-S", str(_RUNNER), wanted, program.path, *program.argv[1:]]
        env = {PREFIX + name: value for name, value in program.env.items()}
        env.update((name, program.env[name]) for name in _KNOWN_BY if name in program.env)
        return msgspec.structs.replace(program, path=sys.executable, argv=argv, env=env, boxed=True, relays=True)

    def _probe(self) -> str:
        """Why no sandbox can be made, empty = one could."""
        wrapped = self._wrap(Program("/bin/sh", ["sh", "-c", ":"], {}, "/"), Room(), 0)
        status, text = _run(wrapped.argv, wrapped.env)
        return text[-_LAST_CHARACTERS:] or f"exit status {status}" if status else ""


def _command(runsc: str, folder: Path, known: Known) -> list[str]:
    """What runs runsc here."""
    options = [f"{option}{folder}/run/{PANIC}" if option == _PANIC_LOG else option for option in known.options]
    return [runsc, f"--platform={known.platform}", *_OPTIONS, *options]


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
