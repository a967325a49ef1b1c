"""The GPUs of this machine, by the names that CUDA_VISIBLE_DEVICES has for them."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

LISTING_TIMEOUT = 20.0  # seconds; a driver that is not kept loaded takes some

_NAME = re.compile(r"\d+|GPU-\S+|MIG-\S+")
_LISTED = re.compile(r"(?P<kind>GPU|\s+MIG)\s.*\(UUID:\s*(?P<name>\S+?)\)\s*")


def find(environ: Mapping[str, str], root: Path) -> tuple[str, ...]:
    """Those that CUDA_VISIBLE_DEVICES names, else those that the NVIDIA driver has. `root` is where /dev and /proc are.

    The driver's device files tell how many there are. Only parts of a GPU (MIG) have to be asked for by name.
    """
    named = environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return parse_visible(named)
    files = [file for file in (root / "dev").glob("nvidia*") if file.name.removeprefix("nvidia").isdigit()]
    driver = root / "proc/driver/nvidia"
    parted = any((driver / "capabilities").glob("gpu*/mig/gi*"))
    # The driver makes the files when it is first asked.
    if parted or (not files and any((driver / "gpus").glob("*"))):
        listed = parse_listing(listing(environ))
        if listed or not files:
            return listed
    return tuple(str(index) for index in range(len(files)))


def parse_visible(text: str) -> tuple[str, ...]:
    """The names in a value of CUDA_VISIBLE_DEVICES; CUDA itself ignores what comes after an invalid one."""
    names: list[str] = []
    for item in (item.strip() for item in text.split(",")):
        if not _NAME.fullmatch(item) or item in names:
            break
        names.append(item)
    return tuple(names)


def parse_listing(text: str) -> tuple[str, ...]:
    """The names of GPUs in the output of `nvidia-smi -L`, and of their MIG devices in place of GPUs that have some.

        GPU 0: NVIDIA H100 80GB HBM3 (UUID: GPU-5fd2...)
          MIG 1g.10gb     Device  0: (UUID: MIG-0c75...)

    Where no GPU is divided their names are their indexes.
    """
    found = [(match["kind"].strip(), match["name"]) for line in text.splitlines() if (match := _LISTED.fullmatch(line))]
    if all(kind == "GPU" for kind, _ in found):
        return tuple(str(index) for index in range(len(found)))
    names: list[str] = []
    for index, (kind, name) in enumerate(found):
        divided = kind == "GPU" and index + 1 < len(found) and found[index + 1][0] == "MIG"
        if not divided:
            names.append(name)
    return tuple(names)


def listing(environ: Mapping[str, str], timeout: float = LISTING_TIMEOUT) -> str:
    """What `nvidia-smi -L` says within so many seconds; empty when it is missing, fails or hangs."""
    program = shutil.which("nvidia-smi", path=environ.get("PATH"))
    if program is None:
        return ""
    try:
        done = subprocess.run([program, "-L"], capture_output=True, text=True, timeout=timeout, check=False)
    except (OSError, subprocess.TimeoutExpired, UnicodeDecodeError):
        return ""
    return done.stdout if done.returncode == 0 else ""
