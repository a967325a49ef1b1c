"""Disks of machines whose root is an image: nothing of the node's system is mixed with it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any, cast

import pytest

from flame.shims import image_python
from flame.shims.build_cache import Cache
from flame.shims.gvisor_root import NOBODY, plan
from flame.shims.isolation_sandbox import Room
from flame.shims.microvm_disks import IMAGE, python_disk, room_disk

KEPT = {"room": 2, "python": 2}


def listed(image: str, folder: str) -> set[str]:
    """What a folder of a disk has."""
    done = subprocess.run(["/sbin/debugfs", "-R", f"ls -p {folder}", image], capture_output=True, text=True, check=True)
    return {line.split("/")[5] for line in done.stdout.splitlines() if line} - {".", "..", "lost+found"}


def test_beside_an_image_there_is_only_what_is_shown(tmp_path: Path) -> None:
    shown = tmp_path / "shown"
    shown.write_text("x")
    cache = Cache(str(tmp_path / "cache"), KEPT)
    key, disk = room_disk(cache, [str(shown)], [], "")
    assert disk is not None
    os.close(disk)
    image = f"{cache.place('room', key)}/{IMAGE}"
    assert listed(image, "/") == {tmp_path.parts[1]}
    assert listed(image, str(tmp_path)) == {"shown"}
    assert room_disk(cache, [], [], "") == ("", None)
    other, disk = room_disk(cache, [str(shown)], [], "/nowhere/program")  # with the system's libraries
    assert disk is not None
    os.close(disk)
    assert other != key


def test_process_1_has_a_python_with_its_library_and_no_packages(tmp_path: Path) -> None:
    files = {path: str(file) for path, file in image_python.find().files.items()}
    cache = Cache(str(tmp_path / "cache"), KEPT)
    key, disk = python_disk(cache, files)
    os.close(disk)
    image = f"{cache.place('python', key)}/{IMAGE}"
    version = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    assert listed(image, image_python.FOLDER) == {"loader", "bin", sys.platlibdir, "libraries"}
    library = listed(image, f"{image_python.FOLDER}/{sys.platlibdir}/{version}")
    assert {"os.py", "json", "ctypes", "encodings"} <= library
    assert not {"site-packages", "dist-packages", "test", "ensurepip"} & library
    assert python_disk(cache, files)[0] == key


@pytest.mark.skipif(os.getuid() != 0, reason="only root may say who is who")
@pytest.mark.parametrize(
    ("room", "user", "groups"),
    [
        (Room(user=(5, 7)), {"uid": 0, "gid": 0}, None),
        (Room(root=Path("/"), user=(5, 7), network=True), {"uid": 0, "gid": 0}, None),
        (Room(root=Path("/"), user=(5, 7)), {"uid": 5, "gid": 7}, {0: NOBODY, 7: 0}),
        (Room(root=Path("/"), user=(5, 0)), {"uid": 5, "gid": 0}, {0: 0}),
    ],
    ids=["no image", "in the node's network", "an image", "an image, in group 0"],
)
def test_whom_gvisor_runs_programs_as(
    tmp_path: Path, room: Room, user: dict[str, int], groups: dict[int, int] | None
) -> None:
    found = plan(room, 0, tmp_path, ["runsc"]).configuration
    process, linux = (cast("dict[str, Any]", found[name]) for name in ("process", "linux"))
    assert process["user"] == user
    assert ({"type": "user"} in linux["namespaces"]) == (groups is not None)
    mapped: list[dict[str, int]] | None = linux.get("gidMappings")
    assert (mapped and {each["containerID"]: each["hostID"] for each in mapped}) == groups
