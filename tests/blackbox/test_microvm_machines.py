"""Virtual machines by themselves: real ones, with a program of the system in them, as the runner starts them."""

from __future__ import annotations

import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from flame.shims.isolation_sandbox import Room
from flame.shims.microvm import Microvm
from flame.shims.microvm_disks import Tree
from microvms import DISK, found, owned, run, wrapped

PC = "microvm_plugins:Pc"


@pytest.fixture(scope="module")
def level(tmp_path_factory: pytest.TempPathFactory) -> Microvm:
    level = found(tmp_path_factory.mktemp("microvm"))
    assert level.missing == ""
    return level


SHOWN = """
read word
echo "$word $(id -u) $(cat $0.d/data) $(stat -c %a $0.d/secret)"
cat
echo "that was it" >&2
exit 3
"""


def test_a_program_has_its_streams_its_files_and_its_exit_status(level: Microvm, tmp_path: Path) -> None:
    script = tmp_path / "script"
    script.write_text(SHOWN)
    folder = tmp_path / "script.d"
    folder.mkdir(mode=0o700)
    (folder / "data").write_text("42")
    (folder / "secret").write_text("")
    (folder / "secret").chmod(0o600)
    (folder / "hidden").mkdir()
    room = Room(readable=[script, folder], hidden=[folder / "hidden"], disk=DISK)
    done = run(wrapped(level, "/bin/sh", str(script), room=room), input=b"hello\nrest")
    assert (done.returncode, done.stdout, done.stderr) == (3, b"hello 1000 42 644\nrest", b"that was it\n")


def test_signals_reach_the_program_and_its_end_comes_back(level: Microvm) -> None:
    source = "trap 'echo bye >&2; exit 7' TERM; echo ready; while :; do sleep 0.05; done"
    with started(level, source) as process:
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 7
        assert process.stderr is not None
        assert process.stderr.read().endswith(b"bye\n")


def test_a_machine_does_not_outlive_its_runner(level: Microvm) -> None:
    with started(level, "echo ready; sleep 3600", FLAME_INSTANCE_ID="outlived") as process:
        [machine] = [pid for pid in owned("outlived") if pid != process.pid]
        with open(f"/proc/{machine}/cmdline") as file:  # noqa: PTH123
            assert "qemu" in file.read()
        watched = os.pidfd_open(machine)
        process.kill()
        process.wait()
        assert wait_for(watched)
    assert owned("outlived") == []


def test_with_the_network_of_its_node(level: Microvm) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        greeter = threading.Thread(target=greet, args=(server,))
        greeter.start()
        room = Room(disk=DISK, network=True)
        command = f"nc 10.0.2.2 {server.getsockname()[1]} </dev/null"
        done = run(wrapped(level, "/bin/sh", "-c", command, room=room), input=b"")
        greeter.join()
    assert (done.returncode, done.stdout) == (0, b"hello from outside\n"), done.stderr


def test_by_another_vmm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    info = tmp_path / "site" / "pc-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: pc\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[flame.vmms]\npc = {PC}\n")
    monkeypatch.syspath_prepend(tmp_path / "site")
    level = found(tmp_path / "level", FLAME_MICROVM_VMM="pc")
    assert level.missing == ""
    done = run(wrapped(level, "/bin/sh", "-c", "ls /sys/bus/pci/devices | wc -l; cat"), input=b"hello")
    count, words = done.stdout.split()
    assert (done.returncode, words) == (0, b"hello"), done.stderr
    assert int(count) > 3


def test_with_a_root_of_the_operator(tmp_path: Path) -> None:
    """The folder of an image, with a Python of its own."""
    tree = Tree(str(tmp_path / "root"))
    packages = frozenset(map(str, Path(sys.base_prefix, "lib").glob("python3*/site-packages")))
    tree.add(sys.base_prefix, left_out=("test", "include"), hidden=packages)
    tree.add_libraries()
    busybox = shutil.which("busybox")
    assert busybox
    tree.add_busybox(busybox)
    tree.finish({"/etc/mine": "my image\n"})
    python = str(Path(sys.executable).resolve())
    own = found(tmp_path / "level", FLAME_MICROVM_ROOT=tree.top, FLAME_MICROVM_PYTHON=python)
    done = run(wrapped(own, "/bin/sh", "-c", "cat /etc/mine"), input=b"")
    assert (done.returncode, done.stdout) == (0, b"my image\n"), done.stderr


def test_what_hinders_a_machine_is_said(tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    own = found(tmp_path / "level", FLAME_MICROVM_ROOT=str(tmp_path / "root"))
    done = run(wrapped(own, "/bin/sh"), input=b"")
    assert done.returncode == 125
    assert f"there is no {sys.executable} on its disk".encode() in done.stderr


def started(level: Microvm, source: str, **env: str) -> subprocess.Popen[bytes]:
    """A shell in a machine, once it has said that it is ready."""
    program = wrapped(level, "/bin/sh", "-c", source, env=env)
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = subprocess.Popen(program.argv, env=dict(program.env), **pipes)  # type: ignore[call-overload]
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    return process


def wait_for(watched: int) -> bool:
    """Until the process of this descriptor has ended."""
    with os.fdopen(watched):
        return bool(select.select([watched], [], [], 10.0)[0])


def greet(server: socket.socket) -> None:
    server.settimeout(60)
    with server.accept()[0] as connection:
        connection.sendall(b"hello from outside\n")
