"""Which object cache is meant where nobody names one: the configured one, else that of the cluster on this machine."""

from __future__ import annotations

import os

_RECORD = "cluster.json"  # beside the socket of a local cluster, by its daemon


def configured() -> str:
    """The endpoint in this user's context or environment; empty when there is none. Raises InvalidConfigError."""
    endpoint = os.environ.get("FLAME_CACHE_ENDPOINT")
    if endpoint:
        return endpoint
    from flame.config import load_context

    cache = load_context().cache
    return cache.endpoint if cache is not None else ""


def cache_of(address: str) -> str:
    """The endpoint of the cache for a client of the cluster at an address: the configured one, else the cluster's own,
    if it is on this machine and has one; else empty. Raises InvalidConfigError."""
    return configured() or _beside(address)


def cache_of_user() -> str:
    """The same where no cluster is named: that of this user's context is meant, or the local one, which is started when
    none runs. Raises FlameError."""
    found = configured()
    if found:
        return found
    from flame.config import load_context

    address = load_context().endpoint
    if address is None:
        from flame.local import default_endpoint

        address = default_endpoint()
    return _beside(address)


def on_demand(cache: str) -> bool:
    """Whether this is a cache that nobody asked for, and that is started for what can't go without: the local cluster's
    own."""
    return cache.startswith("unix:")


def _beside(address: str) -> str:
    if not address.startswith("unix:"):
        return ""
    import json
    from pathlib import Path

    try:
        record = json.loads(Path(address.removeprefix("unix:")).with_name(_RECORD).read_bytes())
    except (OSError, ValueError):
        return ""
    return str(record.get("cache") or "")
