"""OCI images for tests, made by podman without a registry: of busybox, and of the Python that runs the tests."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import re
import subprocess
import sys
import tarfile
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import google.protobuf

import flame

BUSYBOX = Path("/bin/busybox")
NEEDED = ("google", "grpc", "msgspec", "typing_extensions.py")  # by the SDK
LEFT_OUT = {
    "ensurepip", "idlelib", "lib2to3", "pydoc_data", "site-packages", "test", "tests", "tkinter", "turtledemo",
    "unittest",
}  # fmt: skip
_NUMBERS = count(1)


def podman(*arguments: str) -> str:
    return subprocess.run(["podman", *arguments], check=True, capture_output=True, text=True).stdout


@contextmanager
def imported(archive: Path, *changes: str) -> Generator[str]:
    """An image of what is in the archive, with these lines of a Dockerfile; its name. It is removed at the end."""
    name = f"localhost/flame-test-{os.getpid()}-{next(_NUMBERS)}:1"
    podman("import", "--quiet", *(word for change in changes for word in ("--change", change)), str(archive), name)
    try:
        yield name
    finally:
        podman("rmi", "--force", name)


def oci_layout(folder: Path, layers: Sequence[bytes], architecture: str = "", **config: Any) -> str:
    """An image in a folder, of layers that are archives; its name for podman. Nothing is unpacked to make it."""
    blobs = folder / "blobs/sha256"
    blobs.mkdir(parents=True)

    def blob(data: bytes) -> dict[str, Any]:
        digest = hashlib.sha256(data).hexdigest()
        (blobs / digest).write_bytes(data)
        return {"digest": f"sha256:{digest}", "size": len(data)}

    kind = "application/vnd.oci.image"
    digests = [f"sha256:{hashlib.sha256(layer).hexdigest()}" for layer in layers]
    described: dict[str, Any] = {
        "architecture": architecture or ("amd64" if os.uname().machine == "x86_64" else "arm64"),
        "os": "linux",
        "config": config,
        "rootfs": {"type": "layers", "diff_ids": digests},
    }
    manifest = {
        "schemaVersion": 2,
        "config": {"mediaType": f"{kind}.config.v1+json", **blob(json.dumps(described).encode())},
        "layers": [{"mediaType": f"{kind}.layer.v1.tar+gzip", **blob(gzip.compress(layer, 1))} for layer in layers],
    }
    found = {"mediaType": f"{kind}.manifest.v1+json", **blob(json.dumps(manifest).encode())}
    (folder / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [found]}))
    (folder / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    return f"oci:{folder}"


def layer(sizes: Mapping[str, int]) -> bytes:
    """An archive of files that are all zeros, by name and size."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        for name, size in sizes.items():
            member = tarfile.TarInfo(name)
            member.size = size
            tar.addfile(member, io.BytesIO(bytes(size)))
    return stream.getvalue()


def add_busybox(tar: tarfile.TarFile, names: Sequence[str]) -> None:
    """Busybox in /bin, with these names."""
    tar.add(BUSYBOX, "bin/busybox")
    for name in names:
        link = tarfile.TarInfo(f"bin/{name}")
        link.type, link.linkname = tarfile.SYMTYPE, "busybox"
        tar.addfile(link)


@contextmanager
def python_image(archive: Path, programs: Mapping[str, Path], *changes: str) -> Generator[str]:
    """An image with Python in /python, the SDK in /sdk, these programs in /app, and a shell."""
    version = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    interpreter = Path(sys.base_prefix, "bin", version).resolve()
    with tarfile.open(archive, "w") as tar:
        tar.add(interpreter, "python/bin/python")
        tar.add(Path(sys.base_prefix, "lib", version), f"python/lib/{version}", filter=_kept)
        packages = Path(google.protobuf.__file__).parents[2]
        modules = [Path(sys.base_prefix, "lib", version, "lib-dynload"), *(packages / name for name in NEEDED)]
        for library in _libraries(interpreter, *(file for folder in modules for file in folder.rglob("*.so"))):
            tar.add(library.resolve(), str(library).lstrip("/"))
        tar.add(Path(flame.__file__).parent, "sdk/flame", filter=_kept)
        for name in NEEDED:
            tar.add(packages / name, f"sdk/{name}", filter=_kept)
        add_busybox(tar, ("sh", "sleep"))
        for name, file in programs.items():
            tar.add(file, f"app/{name}")
    loader = f"ENV LD_LIBRARY_PATH={Path(sys.base_prefix, 'lib')}"
    with imported(
        archive, "ENV PATH=/python/bin:/bin", "ENV PYTHONPATH=/sdk", loader, "WORKDIR /app", *changes
    ) as name:
        yield name


def _kept(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
    left_out = set(Path(member.name).parts) & LEFT_OUT or any(part in member.name for part in ("/config-", ".opt-"))
    return None if left_out else member


def _libraries(*files: Path) -> set[Path]:
    """What the loader needs for these, by the paths that it looks at."""
    listed = subprocess.run(["ldd", *map(str, files)], capture_output=True, text=True, check=True).stdout
    return {Path(path) for path in re.findall(r"(/\S+) \(0x", listed)}
