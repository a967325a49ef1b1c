"""The settings of this user's client, in the shape that `flamepy` gives them."""

from __future__ import annotations

from dataclasses import dataclass, field

from flame.client.values import DEFAULT_FLAME_CACHE_ENDPOINT, DEFAULT_FLAME_ENDPOINT, FlameClientTls
from flame.config import TlsConfig, load_context


@dataclass
class FlameClientCache:
    """Where the object cache is."""

    endpoint: str | None = None
    tls: FlameClientTls | None = None
    storage: str | None = None


@dataclass
class FlamePackage:
    """Where packages go, and the patterns of what is left out of them."""

    storage: str | None
    excludes: list[str] = field(default_factory=lambda: [".venv", "__pycache__", ".gitignore", "*.pyc"])


@dataclass
class FlameContextRunner:
    """The application that a Runner makes its own from."""

    template: str | None = None


@dataclass
class FlameClusterConfig:
    """Where the cluster is."""

    endpoint: str = ""
    tls: FlameClientTls | None = None


class FlameContext:
    """The settings of this user's client: `~/.flame/flame.yaml` with the environment's changes.

    Reads both when it is made. Raises InvalidConfigError.
    """

    def __init__(self, context: str | None = None) -> None:
        loaded = load_context(context=context)
        self.name = loaded.name
        self.configured_endpoint = loaded.endpoint
        self.tls = _tls(loaded.tls)
        self.package = (
            FlamePackage(loaded.package.storage, list(loaded.package.excludes)) if loaded.package is not None else None
        )
        cache = loaded.cache
        self.cache = (
            FlameClientCache(DEFAULT_FLAME_CACHE_ENDPOINT)
            if cache is None
            else FlameClientCache(cache.endpoint, _tls(cache.tls), str(cache.storage) if cache.storage else None)
        )
        self.runner = FlameContextRunner(loaded.runner.template)

    @property
    def endpoint(self) -> str:
        """Where the cluster is said to be, or the default address when nothing says it."""
        return self.configured_endpoint or DEFAULT_FLAME_ENDPOINT

    @property
    def cache_endpoint(self) -> str:
        """Where the object cache is."""
        return self.cache.endpoint or DEFAULT_FLAME_CACHE_ENDPOINT

    @property
    def cache_tls(self) -> FlameClientTls | None:
        """How to verify the object cache."""
        return self.cache.tls


def _tls(tls: TlsConfig | None) -> FlameClientTls | None:
    if tls is None:
        return None
    files = (tls.ca_file, tls.cert_file, tls.key_file)
    return FlameClientTls(*(str(file) if file is not None else None for file in files))
