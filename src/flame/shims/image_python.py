"""The node's Python for the root of an image: with its own loader and libraries, since the image may have no Python,
another one, or another C library. It runs what belongs to the node in there: the bridge of its network, and process 1
of a virtual machine."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
import sysconfig
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path

import msgspec

FOLDER = "/.flame"  # of images; nothing else is there
# What these two import, where that is no part of the program.
_MODULES = ("_asyncio", "_ctypes", "_socket", "fcntl", "math", "resource", "select")
_LOADER = re.compile(r" (/\S*/ld-\S*\.so\S*)$", re.MULTILINE)
_LIBRARY = re.compile(r"^\s*(\S+) => (/\S+) ", re.MULTILINE)
_LIST_S = 10.0


class ImagePython(msgspec.Struct, frozen=True):
    """`command` starts it there; `files` are what it needs, by the path inside."""

    command: Sequence[str]
    files: Mapping[str, Path]


@cache
def find() -> ImagePython:
    """Look what this process is made of. Blocks a moment. Raises OSError when it can't be moved elsewhere."""
    loader = _LOADER.search(Path("/proc/self/maps").read_text())
    if loader is None:
        raise OSError("this node's Python has no loader of its own")
    program = Path(sys.executable).resolve()
    modules = (spec.origin for name in _MODULES if (spec := importlib.util.find_spec(name)) is not None)
    libraries = _libraries(loader[1], [program, *(Path(file) for file in modules if file and file.startswith("/"))])
    version = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    files = {
        f"{FOLDER}/loader": Path(loader[1]),
        f"{FOLDER}/bin/{version}": program,
        f"{FOLDER}/{sys.platlibdir}/{version}": Path(sysconfig.get_path("stdlib")),
        **{f"{FOLDER}/libraries/{name}": path for name, path in libraries.items()},
    }
    return ImagePython([f"{FOLDER}/loader", "--library-path", f"{FOLDER}/libraries", f"{FOLDER}/bin/{version}"], files)


def _libraries(loader: str, files: Iterable[Path]) -> dict[str, Path]:
    """What these are linked with, by the names that they look for."""
    found: dict[str, Path] = {}
    for file in files:
        try:
            listed = subprocess.run(
                [loader, "--list", str(file)], capture_output=True, text=True, check=True, timeout=_LIST_S
            )
        except subprocess.SubprocessError as error:
            raise OSError(f"the loader of this node's Python does not list {file}: {error}") from error
        found.update((Path(name).name, Path(path)) for name, path in _LIBRARY.findall(listed.stdout))
    return found
