"""The settings of a client: `~/.flame/flame.yaml` with its contexts, and the environment, which goes over the file."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import msgspec

from flame.config.addresses import TlsConfig, read_client_tls, read_url
from flame.config.document import Note, Section, nearest, parse_documents, read_text
from flame.model.errors import InvalidConfigError

DEFAULT_CLIENT_CACHE_ENDPOINT = "grpc://127.0.0.1:9090"
DEFAULT_RUNNER_TEMPLATE = "flmrun"
DEFAULT_EXCLUDES = (".venv", "__pycache__", ".gitignore", "*.pyc")
ENVIRONMENT = "environment"


class ClientCache(msgspec.Struct, frozen=True):
    """The object cache as a client sees it. `storage`: a folder shared with the cache server."""

    endpoint: str = DEFAULT_CLIENT_CACHE_ENDPOINT
    tls: TlsConfig | None = None
    storage: Path | None = None


class ClientPackage(msgspec.Struct, frozen=True):
    """Where packages go (None = the cache) and what is left out of them (patterns)."""

    storage: str | None = None
    excludes: tuple[str, ...] = DEFAULT_EXCLUDES


class ClientRunner(msgspec.Struct, frozen=True):
    """The application that a Runner makes its own from."""

    template: str = DEFAULT_RUNNER_TEMPLATE


class ClientContext(msgspec.Struct, frozen=True):
    """Where a client's cluster is. `endpoint` None: nothing is configured, the local cluster is meant."""

    name: str
    endpoint: str | None = None
    tls: TlsConfig | None = None
    cache: ClientCache | None = None
    package: ClientPackage | None = None
    runner: ClientRunner = ClientRunner()


def default_context_file() -> Path:
    """`~/.flame/flame.yaml` of the user who runs this now."""
    return Path.home() / ".flame" / "flame.yaml"


def load_context(
    path: Path | None = None, *, context: str | None = None, environ: Mapping[str, str] | None = None
) -> ClientContext:
    """The context `context` (default: the file's `current-context`) of the file, with the environment's changes.

    The file is `path`, or $FLAME_CONFIG, or the default one, which need not exist. The context's name may also come
    from $FLAME_CONTEXT. FLAME_ENDPOINT and FLAME_CACHE_ENDPOINT replace the addresses; FLAME_CA_FILE, and together
    FLAME_CERT_FILE and FLAME_KEY_FILE, fill what the file left open. Raises InvalidConfigError.
    """
    variables = os.environ if environ is None else environ
    file = path or (Path(variables["FLAME_CONFIG"]).expanduser() if variables.get("FLAME_CONFIG") else None)
    wanted = context or variables.get("FLAME_CONTEXT") or None
    return _with_environment(_from_file(file, wanted), variables)


def read_contexts(path: Path) -> tuple[str | None, list[ClientContext], list[Note]]:
    """The current context's name and all contexts of a file. Raises InvalidConfigError."""
    documents = parse_documents(path, read_text(path))
    root = documents[0] if documents else Section(path, "", None, [])
    if len(documents) > 1:
        raise documents[1].error("", "a client's file has one document only")
    current = root.text("current-context")
    contexts: list[ClientContext] = []
    for section in root.sections("contexts"):
        entry = _context(section)
        if any(entry.name == other.name for other in contexts):
            raise section.error("name", f"there is another context {entry.name!r}")
        contexts.append(entry)
    root.finish()
    if current is not None and all(entry.name != current for entry in contexts):
        raise root.error("current-context", *_unknown_context(current, contexts))
    return current, contexts, root.notes


def _from_file(file: Path | None, wanted: str | None) -> ClientContext:
    path = file or default_context_file()
    if file is None and not path.exists():
        if wanted is not None:
            raise InvalidConfigError(f"context {wanted!r} not found: {path} does not exist")
        return ClientContext(name=ENVIRONMENT)
    current, contexts, _ = read_contexts(path)
    name = wanted or current
    if name is None:
        known = ", ".join(entry.name for entry in contexts) or "none"
        raise InvalidConfigError(
            f"{path}: current-context is not set", remedy=f"set it or choose one with --context (there are: {known})"
        )
    for entry in contexts:
        if entry.name == name:
            return entry
    text, remedy = _unknown_context(name, contexts)
    raise InvalidConfigError(f"{path}: {text}", remedy=remedy)


def _unknown_context(name: str, contexts: list[ClientContext]) -> tuple[str, str]:
    return f"context {name!r} not found", nearest(name, [entry.name for entry in contexts])


def _context(section: Section) -> ClientContext:
    name = section.required("name")
    cluster = section.section_or_empty("cluster")
    endpoint = cluster.text("endpoint")
    if endpoint is not None and not endpoint.startswith("unix:"):
        read_url(cluster, "endpoint", ("http", "https"), endpoint)
    return ClientContext(
        name=name,
        endpoint=endpoint,
        tls=_tls(cluster),
        cache=_cache(section.section("cache")),
        package=_package(section.section("package")),
        runner=ClientRunner(template=section.section_or_empty("runner").text("template", DEFAULT_RUNNER_TEMPLATE)),
    )


def _tls(section: Section) -> TlsConfig | None:
    tls = section.section("tls")
    return None if tls is None else read_client_tls(tls)


def _cache(section: Section | None) -> ClientCache | None:
    if section is None:
        return None
    endpoint = section.text("endpoint", DEFAULT_CLIENT_CACHE_ENDPOINT)
    return ClientCache(
        endpoint=read_url(section, "endpoint", ("grpc", "grpcs"), endpoint),
        tls=_tls(section),
        storage=section.file_path("storage"),
    )


def _package(section: Section | None) -> ClientPackage | None:
    if section is None:
        return None
    excludes = section.texts("excludes")
    return ClientPackage(storage=section.text("storage"), excludes=tuple(dict.fromkeys((*DEFAULT_EXCLUDES, *excludes))))


def _with_environment(context: ClientContext, variables: Mapping[str, str]) -> ClientContext:
    endpoint = variables.get("FLAME_ENDPOINT") or context.endpoint
    tls = _fill_tls(context.tls, variables)
    cache = context.cache
    cache_endpoint = variables.get("FLAME_CACHE_ENDPOINT")
    cache_storage = variables.get("FLAME_CACHE_STORAGE")
    if cache_endpoint or cache_storage:
        # A cache that only the environment knows is trusted like the cluster.
        cache = cache or ClientCache(tls=context.tls)
        cache = msgspec.structs.replace(
            cache,
            endpoint=cache_endpoint or cache.endpoint,
            storage=Path(cache_storage) if cache_storage else cache.storage,
        )
    if cache is not None:
        cache = msgspec.structs.replace(cache, tls=_fill_tls(cache.tls, variables))
    return msgspec.structs.replace(context, endpoint=endpoint, tls=tls, cache=cache)


def _fill_tls(tls: TlsConfig | None, variables: Mapping[str, str]) -> TlsConfig | None:
    """What the file left open, from the environment; a certificate and its key come from the same place."""
    filled = tls or TlsConfig()
    if filled.ca_file is None and variables.get("FLAME_CA_FILE"):
        filled = msgspec.structs.replace(filled, ca_file=Path(variables["FLAME_CA_FILE"]))
    certificate, key = variables.get("FLAME_CERT_FILE"), variables.get("FLAME_KEY_FILE")
    if filled.cert_file is None and certificate and key:
        filled = msgspec.structs.replace(filled, cert_file=Path(certificate), key_file=Path(key))
    return filled if filled != TlsConfig() else tls
