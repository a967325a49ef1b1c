"""The section `cluster.executors`: what a node offers, says of itself, and keeps ready."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec

from flame.config.document import Section
from flame.model.errors import InvalidConfigError
from flame.model.resources import Resources
from flame.model.states import Shim

SHIMS = {"host": Shim.HOST, "wasm": Shim.WASM, "rest": Shim.REST, "stdio": Shim.STDIO, "container": Shim.CONTAINER}
OWN_LABELS = "flame."  # how labels begin that a node gives itself
MAX_LABEL = 256  # characters of a label's name or value, and of a taint
MAX_SHARES = 1024

_NAME = re.compile(r"[^\s=,]+")
_VALUE = re.compile(r"[^\s,]*")


class ExecutorLimits(msgspec.Struct, frozen=True):
    """`max_executors` None = as many as fit."""

    max_executors: int | None = None


class WarmSection(msgspec.Struct, frozen=True):
    """Instances that are started before a session needs them: at most so many on a node, ended after `idle` seconds."""

    max_instances: int = 8
    idle: float = 600.0


class PackagesSection(msgspec.Struct, frozen=True):
    """Packages of applications: where they are installed (None = in the node's own folder), how many seconds that may
    take, how many are kept and how many bytes of them."""

    folder: Path | None = None
    install_timeout: float = 900.0
    keep_count: int = 50
    keep_size: int = 20 * 1024**3


class ImagesSection(msgspec.Struct, frozen=True):
    """Images: how many bytes and files one may have when it is unpacked, how many seconds it may take to fetch or to
    unpack one, how many are kept and how many bytes of them."""

    max_size: int = 20 * 1024**3
    max_files: int = 1_000_000
    timeout: float = 900.0
    keep_count: int = 10
    keep_size: int = 50 * 1024**3


class ExecutorsSection(msgspec.Struct, frozen=True):
    """How a node runs instances. `capacity` None = what the machine has.

    `taints` are `key=value` or `key`. `devices` None = the GPUs that are found, as CUDA_VISIBLE_DEVICES names them;
    `gpu_fraction` executors may share one of them.
    """

    shim: Shim = Shim.HOST
    limits: ExecutorLimits = ExecutorLimits()
    capacity: Resources | None = None
    labels: dict[str, str] = {}
    taints: tuple[str, ...] = ()
    warm: WarmSection = WarmSection()
    packages: PackagesSection = PackagesSection()
    images: ImagesSection = ImagesSection()
    devices: tuple[str, ...] | None = None
    gpu_fraction: int = 1


def read_executors(section: Section) -> ExecutorsSection:
    """Raises InvalidConfigError."""
    limits, warm, packages, images = (section.section_or_empty(key) for key in ("limits", "warm", "packages", "images"))
    found = ExecutorsSection(
        shim=SHIMS[section.choice("shim", tuple(SHIMS), "host")],
        limits=ExecutorLimits(max_executors=limits.integer("max_executors", minimum=1)),
        capacity=section.resources("capacity"),
        labels=_labels(section),
        taints=_taints(section),
        warm=WarmSection(
            max_instances=warm.integer("max_instances", 8, maximum=10_000),
            idle=warm.number("idle", 600.0),
        ),
        packages=PackagesSection(
            folder=packages.file_path("folder"),
            install_timeout=packages.number("install_timeout", 900.0, positive=True),
            keep_count=packages.integer("keep_count", 50),
            keep_size=packages.size("keep_size", 20 * 1024**3),
        ),
        images=ImagesSection(
            max_size=images.size("max_size", 20 * 1024**3),
            max_files=images.integer("max_files", 1_000_000, minimum=1),
            timeout=images.number("timeout", 900.0, positive=True),
            keep_count=images.integer("keep_count", 10),
            keep_size=images.size("keep_size", 50 * 1024**3),
        ),
        devices=_devices(section),
        gpu_fraction=section.integer("gpu_fraction", 1, minimum=1, maximum=MAX_SHARES),
    )
    if found.devices is not None and found.capacity is not None:
        shares = len(found.devices) * found.gpu_fraction
        if found.capacity.gpu > shares:
            raise section.error(
                "capacity", f"gpu={found.capacity.gpu} is more than the {shares} that devices and gpu_fraction make"
            )
    return found


def label_problem(name: str, value: str) -> str:
    """What is wrong with a label of a node, empty = nothing."""
    if not _NAME.fullmatch(name) or not _VALUE.fullmatch(value):
        return f"invalid label {name + '=' + value!r}: no spaces, no commas, and no = in the name"
    if max(len(name), len(value)) > MAX_LABEL:
        return f"label {name[:32]!r}... is longer than {MAX_LABEL} characters"
    if name.startswith(OWN_LABELS):
        return f"label {name!r}: names that begin with {OWN_LABELS!r} are given by the node itself"
    return ""


def taint_problem(text: str) -> str:
    """What is wrong with a taint, empty = nothing."""
    name, _, value = text.partition("=")
    if not _NAME.fullmatch(name) or not _VALUE.fullmatch(value):
        return f"invalid taint {text!r}: write KEY=VALUE or KEY, without spaces and commas"
    return f"taint {text[:32]!r}... is longer than {MAX_LABEL} characters" if len(text) > MAX_LABEL else ""


def parse_label(text: str) -> tuple[str, str]:
    """Name and value of `NAME=VALUE`. Raises InvalidConfigError."""
    name, separator, value = text.partition("=")
    problem = label_problem(name, value) if separator else f"invalid label {text!r}"
    if problem:
        raise InvalidConfigError(problem, remedy="write NAME=VALUE")
    return name, value


def parse_taint(text: str) -> str:
    """A taint as it was written. Raises InvalidConfigError."""
    problem = taint_problem(text)
    if problem:
        raise InvalidConfigError(problem)
    return text


def _labels(section: Section) -> dict[str, str]:
    labels = section.section_or_empty("labels")
    found = {name: labels.text(name, "") for name in labels.names()}
    for name, value in found.items():
        problem = label_problem(name, value)
        if problem:
            raise labels.error(name, problem)
    return found


def _taints(section: Section) -> tuple[str, ...]:
    taints = section.texts("taints")
    for index, taint in enumerate(taints):
        problem = taint_problem(taint) or (f"{taint!r} stands twice" if taint in taints[:index] else "")
        if problem:
            raise section.error("taints", problem)
    return taints


def _devices(section: Section) -> tuple[str, ...] | None:
    if "devices" not in section:
        return None
    devices = section.texts("devices")
    for index, device in enumerate(devices):
        if not _NAME.fullmatch(device) or device.startswith("-"):
            raise section.error("devices", f"invalid GPU {device!r}", "write an index, GPU-... or MIG-...")
        if device in devices[:index]:
            raise section.error("devices", f"GPU {device!r} stands twice", "gpu_fraction lets executors share GPUs")
    return devices
