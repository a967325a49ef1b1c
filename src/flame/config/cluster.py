"""The settings of a cluster: `flame-cluster.yaml`, one file for session manager, executor managers and cache.

All keys of the reference's file are accepted. Those that have no meaning here are reported by `read_cluster` as notes
(`flmadm check` prints them); unknown ones are errors.
"""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlsplit

import msgspec

from flame.config.addresses import TlsConfig, read_url
from flame.config.cache import CacheSection, read_cache
from flame.config.document import Note, Section, parse_documents, read_text
from flame.config.executors import ExecutorsSection, read_executors
from flame.config.tenants import read_tenants
from flame.model.resources import Resources
from flame.model.specs import UNIT
from flame.model.tenants import TenantSpec

DEFAULT_ENDPOINT = "http://127.0.0.1:8080"
DEFAULT_POLICIES = ("drf", "priority", "gang", "locality", "binpack")
DEFAULT_MAX_PAYLOAD = 64 * 1024 * 1024
MAX_PAYLOAD = 1024**3  # a frame's length is 32 bits and its body is protobuf, which ends at 2 GiB


class LimitsSection(msgspec.Struct, frozen=True):
    """`max_payload` in bytes, of one task's input or output; `max_pending` tasks of one session, 0 = no limit.

    `max_executors` is for nodes whose own section says nothing, None = as many as fit.
    """

    max_sessions: int | None = None
    max_executors: int | None = None
    max_payload: int = DEFAULT_MAX_PAYLOAD
    max_pending: int = 0


class SchedulingSection(msgspec.Struct, frozen=True):
    """Times in seconds. `preemption_grace`: for running tasks of an executor that is taken back; `unsatisfiable`: after
    so long, tasks fail that no node could ever run; `gang_ports`: first and last port handed out to members of gangs.
    """

    preemption_grace: float = 30.0
    unsatisfiable: float = 60.0
    gang_ports: tuple[int, int] = (29_500, 30_499)


class SessionRecovery(msgspec.Struct, frozen=True):
    """`retry_limits`: failed attempts to bind an executor before the session is paused."""

    retry_limits: int = 5


class TaskRecovery(msgspec.Struct, frozen=True):
    """`max_kills`: instances that one task may take down before it fails."""

    max_kills: int = 3


class NodeRecovery(msgspec.Struct, frozen=True):
    """`drain`: seconds that a node may be away before its executors count as lost."""

    drain: int = 30


class RecoverySection(msgspec.Struct, frozen=True):
    session: SessionRecovery = SessionRecovery()
    task: TaskRecovery = TaskRecovery()
    node: NodeRecovery = NodeRecovery()


class ClusterSection(msgspec.Struct, frozen=True):
    """`endpoint` names host and port P; `storage` is `none`, `sqlite://FILE` or `fs://FOLDER` with absolute paths.

    `retention`: seconds that a closed session stays readable, unless it says otherwise. `policies` are names in their
    order; which ones exist is known to the session manager, since others may be installed. `tenants` has parents before
    their children.
    """

    name: str = "flame"
    endpoint: str = DEFAULT_ENDPOINT
    resreq: Resources = UNIT
    policies: tuple[str, ...] = DEFAULT_POLICIES
    storage: str = "sqlite://flame.db"
    schedule_interval: int = 100
    scheduling: SchedulingSection = SchedulingSection()
    tenants: tuple[tuple[str, TenantSpec], ...] = ()
    executors: ExecutorsSection = ExecutorsSection()
    limits: LimitsSection = LimitsSection()
    recovery: RecoverySection = RecoverySection()
    retention: int = 86_400
    tls: TlsConfig | None = None
    insecure: bool = False

    @property
    def host(self) -> str:
        """The host of the endpoint, without brackets."""
        return urlsplit(self.endpoint).hostname or "127.0.0.1"

    @property
    def port(self) -> int:
        """Port P of the endpoint."""
        return urlsplit(self.endpoint).port or 8080


class ClusterConfig(msgspec.Struct, frozen=True):
    """Everything of one `flame-cluster.yaml`."""

    cluster: ClusterSection = ClusterSection()
    cache: CacheSection | None = None


def default_cluster_file() -> Path:
    """`~/.flame/flame-cluster.yaml` of the user who runs this now."""
    return Path.home() / ".flame" / "flame-cluster.yaml"


def load_cluster(path: Path | None = None) -> ClusterConfig:
    """The settings in `path`, or in the default file, or the built-in ones when that does not exist.

    Raises InvalidConfigError with file, line, key, value and the nearest known key.
    """
    return read_cluster(path)[0]


def read_cluster(path: Path | None = None) -> tuple[ClusterConfig, list[Note]]:
    """Like `load_cluster`, with the notes about settings that are accepted and have no effect."""
    file = path if path is not None else default_cluster_file()
    if path is None and not file.exists():
        storage = f"sqlite://{file.parent / 'flame.db'}"
        return ClusterConfig(cluster=ClusterSection(storage=storage)), []
    documents = parse_documents(file, read_text(file))
    root = documents[0] if documents else Section(file, "", None, [])
    if len(documents) > 1:
        raise documents[1].error("", "a cluster file has one document only")
    if "cluster" not in root:
        raise root.error("", "cluster is required", "write a section cluster: with name and endpoint")
    cluster = _cluster(root.section_or_empty("cluster"))
    cache = root.section("cache")
    if cache is not None:
        _pprof(cache)
    config = ClusterConfig(cluster=cluster, cache=read_cache(cache) if cache is not None else None)
    root.finish()
    return config, root.notes


def _cluster(section: Section) -> ClusterSection:
    name = section.required("name")
    endpoint = read_url(section, "endpoint", ("http", "https"), section.required("endpoint"))
    tls = _server_tls(section)
    if (endpoint.split(":", 1)[0] == "https") != (tls is not None):
        if tls is None:
            raise section.error("endpoint", "is https but there is no cluster.tls", "add cluster.tls or write http://")
        raise section.error("endpoint", "is http but there is cluster.tls", "write https://, clients decide by it")
    interval = section.integer("schedule_interval", 100)
    section.note("schedule_interval", "has no effect: the scheduler acts on events, not at intervals")
    _pprof(section)
    return ClusterSection(
        name=name,
        endpoint=endpoint,
        resreq=section.resources("resreq") or UNIT,
        policies=_policies(section),
        storage=_storage(section),
        schedule_interval=interval,
        scheduling=_scheduling(section.section_or_empty("scheduling")),
        tenants=read_tenants(section.section_or_empty("tenants")),
        executors=read_executors(section.section_or_empty("executors")),
        limits=_limits(section.section_or_empty("limits")),
        recovery=_recovery(section.section_or_empty("recovery")),
        retention=section.integer("retention", 86_400),
        tls=tls,
        insecure=section.flag("insecure"),
    )


def _policies(section: Section) -> tuple[str, ...]:
    names = section.texts("policies", DEFAULT_POLICIES)
    for index, name in enumerate(names):
        if name in names[:index]:
            raise section.error("policies", f"{name!r} stands twice")
    return names


def _scheduling(section: Section) -> SchedulingSection:
    return SchedulingSection(
        preemption_grace=section.number("preemption_grace", 30.0, maximum=86_400),
        unsatisfiable=section.number("unsatisfiable", 60.0, positive=True),
        gang_ports=_ports(section, "gang_ports", (29_500, 30_499)),
    )


def _ports(section: Section, key: str, default: tuple[int, int]) -> tuple[int, int]:
    texts = section.texts(key)
    if not texts:
        return default
    valid = len(texts) == 2 and all(text.isascii() and text.isdigit() for text in texts)
    if not valid or not 1024 <= int(texts[0]) <= int(texts[1]) <= 65_535:
        raise section.error(key, f"invalid range {list(texts)}", "write [FIRST, LAST], ports from 1024 to 65535")
    return int(texts[0]), int(texts[1])


def _limits(section: Section) -> LimitsSection:
    return LimitsSection(
        max_sessions=section.integer("max_sessions", minimum=1),
        max_executors=section.integer("max_executors", minimum=1),
        max_payload=_max_payload(section),
        max_pending=section.integer("max_pending", 0),
    )


def _max_payload(section: Section) -> int:
    value = section.size("max_payload", DEFAULT_MAX_PAYLOAD)
    if not 0 < value <= MAX_PAYLOAD:
        raise section.error("max_payload", f"{value} is out of range", "it may be up to 1Gi")
    return value


def _recovery(section: Section) -> RecoverySection:
    session, task, node = (section.section_or_empty(key) for key in ("session", "task", "node"))
    return RecoverySection(
        session=SessionRecovery(retry_limits=session.integer("retry_limits", 5)),
        task=TaskRecovery(max_kills=task.integer("max_kills", 3, minimum=1)),
        node=NodeRecovery(drain=node.integer("drain", 30, maximum=86_400)),
    )


def _storage(section: Section) -> str:
    text = section.text("storage", "sqlite://flame.db")
    if text == "none":
        return text
    scheme, separator, rest = text.partition("://")
    if not separator or scheme not in ("sqlite", "fs", "file", "filesystem"):
        raise section.error("storage", f"unknown storage {text!r}", "write none, sqlite://FILE or fs://FOLDER")
    if not rest:
        raise section.error("storage", f"{text!r} names no path", "write none, sqlite://FILE or fs://FOLDER")
    return f"{scheme}://{section.resolve('storage', rest)}"


def _server_tls(section: Section) -> TlsConfig | None:
    tls = section.section("tls")
    if tls is None:
        return None
    files = {key: tls.file_path(key) for key in ("cert_file", "key_file", "ca_file")}
    for key, file in files.items():
        if file is None:
            raise tls.error(
                "", f"{key} is required", "every listener shows a certificate and checks that of its clients"
            )
    return TlsConfig(**files)


def _pprof(section: Section) -> None:
    pprof = section.section("pprof")
    if pprof is not None:
        pprof.integer("port", minimum=1, maximum=65535)
        section.note("pprof", "has no effect: there is no profiler to serve")
