"""A sandbox's service that waits, and is saved, has run code before: its session sees nothing of that. The test is the
executor manager and the machine that saves it."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import struct
import subprocess
import sys
import termios
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from blackbox.trouble import until
from flame.proto import link_pb2, shim_pb2
from flame.sandbox import wire
from flame.service.wire import Wire

CODE = """
import os, random, sys, threading
print({
    "names": sorted(globals()), "known": dict(os.environ), "drawn": random.random(), "argv": sys.argv,
    "threads": threading.active_count(), "folder": os.listdir(),
})
1 / 0
"""


# Nothing ever comes in time there, however busy the machine of the test is.
PLAYING = """
from flame.service import FlameService, rehearsal, run
from flame.service.rehearsal import Play
rehearsal.quiet = lambda wire: True
class Playing(FlameService):
    plays = 0
    def play(self):
        self.plays += 1
        return Play(FlameService())
    def on_task_invoke(self, context):
        return str(self.plays).encode()
run(Playing())
"""


@contextmanager
def copied(folder: Path, program: Sequence[str], env: dict[str, str]) -> Iterator[Wire]:
    """A service that was saved when it was prepared, as one of the copies of it, which is told this environment; it has
    said hello."""
    link = folder / "link"
    environ = {**os.environ, "FLAME_INSTANCE_LINK": str(link), "OLD": "1"}
    environ.pop("FLAME_SESSION_ID", None)
    ours, theirs = socket.socketpair()
    with socket.socket(socket.AF_UNIX) as listening, ours:
        listening.bind(str(link))
        listening.listen()
        with theirs:
            process = subprocess.Popen(
                [sys.executable, *program],
                env={**environ, "FLAME_SNAPSHOT_FD": str(theirs.fileno())},
                cwd=folder,
                pass_fds=[theirs.fileno()],
            )
        with process:
            assert ours.recv(9) == b"prepared\n"
            ours.sendall(json.dumps({"env": env, "entropy": "00" * 32}).encode() + b"\n")
            sock, _ = listening.accept()
            with sock:
                made = Wire(sock)
                assert [kind for kind, _ in made.read(wait=True)] == [link_pb2.HELLO]
                made.write(link_pb2.WELCOME, link_pb2.Welcome().SerializeToString())
                until(lambda: not unread(sock), "the service to know that it is welcome")
                yield made
                made.write(link_pb2.LEAVE)


def unread(sock: socket.socket) -> int:
    """What of that which was written to it is on its way."""
    return struct.unpack("i", fcntl.ioctl(sock, termios.TIOCOUTQ, bytes(4)))[0]


def received(made: Wire, kind: int) -> bytes:
    while True:
        for found, body in made.read(wait=True):
            if found == kind:
                return body


def asked(made: Wire, number: int, call: wire.Call) -> bytes:
    tasks = link_pb2.Tasks(task_ids=[number], inputs=[wire.encode_call(call)])
    made.write(link_pb2.TASKS, tasks.SerializeToString())
    return bytes(link_pb2.Results.FromString(received(made, link_pb2.RESULTS)).outputs[0])


def first_run(folder: Path, env: dict[str, str]) -> tuple[dict[str, object], str]:
    """What code sees that is the first of its sandbox, and the traceback of its error."""
    folder.mkdir()
    with copied(folder, ["-m", "flame.sandbox.flmexec"], {"COPY": "7"}) as made:
        context = shim_pb2.SessionContext(session_id="sandbox-1", executor_id="e", common_data=wire.common_data())
        made.write(link_pb2.ENTER, context.SerializeToString())
        received(made, link_pb2.ENTERED)
        asked(made, 1, wire.Begin(env))
        progress = wire.decode_answer(asked(made, 2, wire.RunCode("r", CODE)), wire.Progress)
    assert isinstance(progress, wire.Progress)
    assert progress.ended is not None
    assert progress.ended.error is not None
    return eval("".join(piece.stdout for piece in progress.pieces)), progress.ended.error.traceback


def test_nothing_is_left_of_a_rehearsal(tmp_path: Path) -> None:
    seen, traceback = first_run(tmp_path / "a", {"GREETING": "hello"})
    assert seen["names"] == [
        *("__builtins__", "__doc__", "__loader__", "__name__", "__package__", "__spec__"),
        *("display", "os", "random", "sys", "threading"),
    ]
    assert 'File "<run 1>"' in traceback
    assert (seen["argv"], seen["threads"], seen["folder"]) == ([""], 1, [])
    known = seen["known"]
    assert isinstance(known, dict)
    told = {name: known.get(name) for name in ("COPY", "OLD", "GREETING", "FLAME_SESSION_ID", "FLAME_EXECUTOR_ID")}
    assert told == {
        "COPY": "7", "OLD": "1", "GREETING": "hello", "FLAME_SESSION_ID": "sandbox-1", "FLAME_EXECUTOR_ID": "e"
    }  # fmt: skip
    assert not {"FLAME_SNAPSHOT_FD", "FLAME_INSTANCE_LINK"} & known.keys()


@pytest.mark.parametrize(("env", "plays"), [({}, b"2"), ({"FLAME_SESSION_ID": "s"}, b"1")])
def test_a_copy_that_was_made_for_a_session_does_not_keep_it_waiting(
    tmp_path: Path, env: dict[str, str], plays: bytes
) -> None:
    with copied(tmp_path, ["-c", PLAYING], env) as made:
        made.write(link_pb2.ENTER, shim_pb2.SessionContext(session_id="s").SerializeToString())
        received(made, link_pb2.ENTERED)
        made.write(link_pb2.TASKS, link_pb2.Tasks(task_ids=[1], inputs=[b""]).SerializeToString())
        assert link_pb2.Results.FromString(received(made, link_pb2.RESULTS)).outputs[0] == plays
