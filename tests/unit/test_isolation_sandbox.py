"""What a sandbox shows and what it hides, as options of bwrap; the filter of system calls, run as the kernel does."""

from __future__ import annotations

import errno
import struct
import sys
from pathlib import Path

import pytest

from flame.model.isolation import NO_LIMITS
from flame.proto import shim_pb2, types_pb2
from flame.shims import isolation_filter
from flame.shims.isolation_devices import device_files, names_inside
from flame.shims.isolation_sandbox import Room, Sandboxes, arguments, folders_of_interpreter, forbidden, readable
from flame.shims.processes import Program, describe_status, signal_of
from flame.shims.shim import BindError, Launch

ALLOW, KILL = 0x7FFF0000, 0x80000000
X86, ARM, I386 = 0xC000003E, 0xC00000B7, 0x40000003


def run(program: bytes, architecture: int, number: int, *given: int) -> int:
    """What the kernel answers: the filter's instructions, carried out on a call."""
    call = struct.pack("<IIQ6Q", number, architecture, 0, *given, *[0] * (6 - len(given)))
    steps = list(struct.iter_unpack("=HBBI", program))
    place = accumulator = 0
    while True:
        code, then, otherwise, value = steps[place]
        place += 1
        if code == 0x06:
            return int(value)
        if code == 0x20:
            [accumulator] = struct.unpack_from("<I", call, value)
            continue
        holds = {0x15: accumulator == value, 0x35: accumulator >= value, 0x45: bool(accumulator & value)}[code]
        place += then if holds else otherwise


def refused(error: int) -> int:
    return 0x00050000 | error


@pytest.mark.parametrize(
    ("call", "answer"),
    [
        ((X86, 0), ALLOW),  # read
        ((X86, 101), refused(errno.EPERM)),  # ptrace
        ((X86, 165), refused(errno.EPERM)),  # mount
        ((X86, 435), refused(errno.ENOSYS)),  # clone3
        ((X86, 56, 0x11), ALLOW),  # clone, as fork does it
        ((X86, 56, 0x3D0F00), ALLOW),  # clone, as threads are made
        ((X86, 56, 0x10000011), refused(errno.EPERM)),  # a user namespace
        ((X86, 16, 1, 0x5412), refused(errno.EPERM)),  # TIOCSTI
        ((X86, 16, 1, 0x5413), ALLOW),
        ((X86, 72, 1, 1024), refused(errno.EPERM)),  # F_SETLEASE
        ((X86, 72, 1, 3), ALLOW),
        ((X86, 41, 1), ALLOW),  # AF_UNIX
        ((X86, 41, 40), refused(errno.EAFNOSUPPORT)),  # AF_VSOCK
        ((X86, 41, 38), refused(errno.EAFNOSUPPORT)),  # AF_ALG
        ((X86, 0x40000000), refused(errno.EPERM)),  # the x32 ABI
        ((I386, 0), KILL),
    ],
)
def test_the_filter_on_x86(call: tuple[int, ...], answer: int) -> None:
    assert run(isolation_filter.program("x86_64"), *call) == answer


@pytest.mark.parametrize(
    ("call", "answer"),
    [
        ((ARM, 63), ALLOW),
        ((ARM, 117), refused(errno.EPERM)),
        ((ARM, 220, 0x10000011), refused(errno.EPERM)),
        ((ARM, 25, 1, 1024), refused(errno.EPERM)),
        ((X86, 0), KILL),
    ],
)
def test_the_filter_on_arm(call: tuple[int, ...], answer: int) -> None:
    assert run(isolation_filter.program("aarch64"), *call) == answer


def test_a_private_network_unless_it_is_asked_for() -> None:
    folder = Path("/node/isolation")
    alone, open_ = arguments(Room(), folder, 7), arguments(Room(network=True), folder, 7)
    assert "--unshare-net" in alone
    assert "/etc/resolv.conf" not in alone
    assert "--unshare-net" not in open_
    assert "/etc/resolv.conf" in open_


def test_what_is_hidden_stays_hidden_below_what_is_shown() -> None:
    room = Room(
        readable=[Path("/srv"), Path("/srv/node/packages/a")],
        hidden=[Path("/srv/node"), Path("/elsewhere")],
        sockets=[Path("/srv/node/link")],
    )
    text = " ".join(arguments(room, Path("/node/isolation"), 7))
    steps = [
        "--ro-bind /srv /srv",
        "--perms 0711 --tmpfs /srv/node",
        "--ro-bind /srv/node/packages/a /srv/node/packages/a --bind /srv/node/link /srv/node/link",
        "--remount-ro /srv/node",
    ]
    places = [text.rindex(step) for step in steps]
    assert places == sorted(places)
    assert "--tmpfs /elsewhere" not in text


def test_the_program_is_run_by_bubblewrap() -> None:
    wrapped = Sandboxes("/usr/bin/bwrap", Path("/node")).wrap(
        Program("/bin/a", ["a", "b"], {"X": "1"}, "/w"),
        Room(),
        NO_LIMITS,
        Launch("e", "t", types_pb2.ApplicationSpec(), shim_pb2.SessionContext()),
    )
    assert wrapped.path == wrapped.argv[0] == "/usr/bin/bwrap"
    assert wrapped.argv[-5:] == ["--chdir", "/tmp", "--", "/bin/a", "b"]
    assert (wrapped.boxed, wrapped.opened, wrapped.env, wrapped.cwd) == (True, ["/node/filter"], {"X": "1"}, "/w")


@pytest.mark.parametrize("path", ["/", "/proc", "/proc/1", "/dev/shm", "/etc", "/run", "relative"])
def test_folders_that_would_take_a_sandbox_apart(path: str) -> None:
    assert forbidden(Path(path))
    assert readable([Path(path)]) == []


def test_only_what_is_there_and_not_shown_anyway_is_shown(tmp_path: Path) -> None:
    inside = tmp_path / "inside"
    inside.mkdir()
    paths = [tmp_path, inside, tmp_path / "missing", Path("/usr/lib"), Path(sys.prefix) / "bin"]
    assert readable(paths) == [tmp_path]


def test_a_python_comes_with_what_it_belongs_to(tmp_path: Path) -> None:
    base, made = tmp_path / "python", tmp_path / "venv"
    (base / "bin").mkdir(parents=True)
    (base / "lib/python3.11").mkdir(parents=True)
    (base / "lib/python3.11/os.py").touch()
    (base / "bin/python3.11").touch()
    (made / "bin").mkdir(parents=True)
    (made / "pyvenv.cfg").write_text(f"home = {base}/bin\n")
    (made / "bin/python").symlink_to(base / "bin/python3.11")
    assert set(folders_of_interpreter(made / "bin/python")) == {made, base}
    tool = tmp_path / "tool"
    tool.touch()
    assert folders_of_interpreter(tool) == [tool]


@pytest.mark.parametrize(
    ("status", "boxed", "number", "words"),
    [
        (9, False, 9, "was killed by SIGKILL"),
        (137 << 8, False, 0, "exited with status 137"),
        (137 << 8, True, 9, "was killed by SIGKILL"),
        (128 << 8, True, 0, "exited with status 128"),
        (3 << 8, True, 0, "exited with status 3"),
    ],
)
def test_what_watches_over_a_sandbox_says_how_the_service_ended(
    status: int, boxed: bool, number: int, words: str
) -> None:
    assert signal_of(status, boxed=boxed) == number
    assert describe_status(status, boxed=boxed) == words


def test_a_machine_without_bubblewrap_says_so(tmp_path: Path) -> None:
    found = Sandboxes.find(tmp_path, {"PATH": str(tmp_path)})
    assert found.missing == "bubblewrap (bwrap) is not installed"


def test_a_bubblewrap_that_can_make_no_sandbox_says_why(tmp_path: Path) -> None:
    broken = tmp_path / "bwrap"
    broken.write_text("#!/bin/sh\necho 'bwrap: No permissions to create new namespace' >&2; exit 1\n")
    broken.chmod(0o755)
    found = Sandboxes.find(tmp_path / "shared", {"PATH": str(tmp_path)})
    assert found.missing == "bubblewrap can't make a sandbox here: bwrap: No permissions to create new namespace"


# --- GPUs -------------------------------------------------------------------------------------------------------------


def a_machine_with_gpus(root: Path, *gpus: tuple[str, str, int]) -> None:
    """Each by its place on the bus, its UUID and the number of its device file."""
    (root / "dev").mkdir()
    for name in ("nvidiactl", "nvidia-uvm", "null"):
        (root / "dev" / name).touch()
    for place, uuid, minor in gpus:
        folder = root / "proc/driver/nvidia/gpus" / place
        folder.mkdir(parents=True)
        (folder / "information").write_text(f"Model: \t Some GPU\nGPU UUID: \t {uuid}\nDevice Minor: \t {minor}\n")
        (root / "dev" / f"nvidia{minor}").touch()


TWO = (("0000:65:00.0", "GPU-b", 0), ("0000:17:00.0", "GPU-a", 1))


@pytest.mark.parametrize(
    ("names", "files", "inside"),
    [
        ("0", ["nvidia1"], "0"),  # the first on the bus
        ("1", ["nvidia0"], "0"),  # CUDA counts those that it can open
        ("0,1", ["nvidia1", "nvidia0"], "0,1"),
        ("GPU-b", ["nvidia0"], "GPU-b"),
    ],
)
def test_a_sandbox_gets_the_files_of_its_gpus_only(tmp_path: Path, names: str, files: list[str], inside: str) -> None:
    a_machine_with_gpus(tmp_path, *TWO)
    found = device_files(names, tmp_path)
    assert [file.name for file in found] == [*files, "nvidiactl", "nvidia-uvm"]
    assert names_inside(names) == inside


def test_without_what_the_driver_tells_a_gpu_has_the_number_of_its_file(tmp_path: Path) -> None:
    a_machine_with_gpus(tmp_path)
    (tmp_path / "dev/nvidia3").touch()
    assert [file.name for file in device_files("3", tmp_path)] == ["nvidia3", "nvidiactl", "nvidia-uvm"]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ("2", "GPU 2 of this node can't be found"),
        ("GPU-c", "GPU GPU-c of this node can't be found"),
        ("ctl", "GPU ctl of this node can't be found"),
        ("0,MIG-1", "isolation process can't give a part of a GPU to an instance: MIG-1"),
    ],
)
def test_gpus_that_can_not_be_given_are_refused(tmp_path: Path, names: str, message: str) -> None:
    a_machine_with_gpus(tmp_path, *TWO)
    with pytest.raises(BindError) as caught:
        device_files(names, tmp_path)
    assert caught.value.message.startswith(message)


def test_devices_come_before_what_is_made_read_only() -> None:
    text = " ".join(arguments(Room(devices=[Path("/dev/nvidia0")]), Path("/node/isolation"), 7))
    steps = ["--dev /dev", "--dev-bind /dev/nvidia0 /dev/nvidia0", "--remount-ro /dev"]
    places = [text.index(step) for step in steps]
    assert places == sorted(places)
