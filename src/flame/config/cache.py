"""The section `cache` of `flame-cluster.yaml`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

import msgspec

from flame.config.addresses import TlsConfig, read_client_tls, read_url
from flame.config.document import Section
from flame.model.errors import FlameError, InvalidConfigError
from flame.model.resources import parse_size

DEFAULT_CACHE_ENDPOINT = "http://127.0.0.1:9090"
SCHEMES = ("http", "https", "grpc", "grpcs")
POLICIES = ("lru", "none")
DEFAULT_MEMORY = 1024**3


class EvictionSection(msgspec.Struct, frozen=True):
    """What may be in memory: `max_memory` bytes, `max_objects`. Policy `none`: nothing leaves it for others."""

    policy: str = "lru"
    max_memory: int = DEFAULT_MEMORY
    max_objects: int | None = None


class CacheSection(msgspec.Struct, frozen=True):
    """The object cache.

    `storage`: folder for objects; None: memory only. `object_store`: `s3://BUCKET/PREFIX` for what goes beyond
    `max_disk` bytes of that folder. `quotas`: bytes by tenant. `session_quota`: bytes that isolated instances may store
    for one session; None: half of the memory, or of the disk. `session_retention`: seconds that objects outlive their
    session. `peers`: endpoints of other caches whose objects this one fetches for clients near it. `verify_clients`:
    clients must show certificates of the authority.
    """

    endpoint: str = DEFAULT_CACHE_ENDPOINT
    network_interface: str = "eth0"
    storage: Path | None = None
    eviction: EvictionSection = EvictionSection()
    tls: TlsConfig | None = None
    verify_clients: bool = False
    max_disk: int | None = None
    object_store: str = ""
    quotas: tuple[tuple[str, int], ...] = ()
    session_quota: int | None = None
    session_retention: float = 3600.0
    peers: tuple[str, ...] = ()


def read_cache(section: Section) -> CacheSection:
    """The settings in that section. Raises InvalidConfigError."""
    eviction = section.section_or_empty("eviction")
    tls = section.section("tls")
    verify = tls.flag("verify_clients") if tls is not None else False
    storage = section.text("storage", "")
    max_disk = section.size("max_disk")
    object_store = section.text("object_store", "")
    if object_store and not object_store.startswith(("s3://", "file://")):
        raise section.error("object_store", f"unknown object store {object_store!r}", "write s3://BUCKET/PREFIX")
    if (max_disk is not None or object_store) and storage in ("", "none"):
        raise section.error("max_disk" if max_disk is not None else "object_store", "needs cache.storage")
    if bool(object_store) != (max_disk is not None):
        raise section.error("", "max_disk and object_store belong together")
    return CacheSection(
        endpoint=read_url(section, "endpoint", SCHEMES, section.text("endpoint", DEFAULT_CACHE_ENDPOINT)),
        network_interface=section.text("network_interface", "eth0"),
        storage=None if storage in ("", "none") else section.resolve("storage", _path(storage)),
        eviction=EvictionSection(
            policy=eviction.choice("policy", POLICIES, "lru"),
            max_memory=eviction.size("max_memory", DEFAULT_MEMORY),
            max_objects=eviction.integer("max_objects", minimum=1),
        ),
        tls=read_client_tls(tls) if tls is not None else None,
        verify_clients=verify,
        max_disk=max_disk,
        object_store=object_store,
        quotas=_quotas(section.section_or_empty("quotas")),
        session_quota=section.size("session_quota"),
        session_retention=section.number("session_retention", 3600.0),
        peers=tuple(read_url(section, "peers", ("grpc", "grpcs"), peer) for peer in section.texts("peers")),
    )


def with_environment(section: CacheSection, environ: Mapping[str, str]) -> CacheSection:
    """The section with what the environment replaces. Raises InvalidConfigError."""
    storage = environ.get("FLAME_CACHE_STORAGE")
    if storage:
        path = None if storage == "none" else Path(_path(storage)).expanduser().absolute()
        section = msgspec.structs.replace(section, storage=path)
    eviction = section.eviction
    policy = environ.get("FLAME_CACHE_EVICTION_POLICY")
    if policy:
        if policy not in POLICIES:
            raise InvalidConfigError(f"FLAME_CACHE_EVICTION_POLICY {policy!r} is unknown", remedy="use lru or none")
        eviction = msgspec.structs.replace(eviction, policy=policy)
    memory = environ.get("FLAME_CACHE_EVICTION_MAX_MEMORY")
    if memory:
        try:
            eviction = msgspec.structs.replace(eviction, max_memory=parse_size(memory))
        except FlameError as error:
            raise InvalidConfigError(f"FLAME_CACHE_EVICTION_MAX_MEMORY: {error.message}") from None
    count = environ.get("FLAME_CACHE_EVICTION_MAX_OBJECTS")
    if count:
        if not (count.isascii() and count.isdigit() and int(count) > 0):
            raise InvalidConfigError(f"FLAME_CACHE_EVICTION_MAX_OBJECTS {count!r} is not a whole number above 0")
        eviction = msgspec.structs.replace(eviction, max_objects=int(count))
    return msgspec.structs.replace(section, eviction=eviction)


def _quotas(section: Section) -> tuple[tuple[str, int], ...]:
    return tuple((name, section.size(name, 0)) for name in section.names())


def _path(storage: str) -> str:
    """The path in `fs://PATH`, `file://PATH` or PATH."""
    parts = urlsplit(storage)
    return storage.split("://", 1)[1] if parts.scheme in ("fs", "file") else storage
