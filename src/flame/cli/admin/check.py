"""flmadm check."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from flame.model.errors import FlameError, InvalidConfigError, NotFoundError

if TYPE_CHECKING:
    from flame.config import CacheSection


@click.command()
@click.argument("files", nargs=-1, metavar="[FILE]...", type=click.Path(path_type=Path))
def check(files: tuple[Path, ...]) -> int:
    """Check settings files: a cluster's, a client's, or application documents.

    Without FILE the default ones in ~/.flame are checked. The exit code is 2 when one is wrong.
    """
    from flame.config import default_cluster_file, default_context_file

    chosen = files or tuple(file for file in (default_cluster_file(), default_context_file()) if file.exists())
    if not chosen:
        raise NotFoundError(
            f"neither {default_cluster_file()} nor {default_context_file()} exists", remedy="name a file"
        )
    wrong = False
    for file in chosen:
        try:
            kind, notes = examine(file)
        except FlameError as error:
            wrong = True
            print(f"{error.message}{f' ({error.remedy})' if error.remedy else ''}")
            continue
        remarks = f", with {_count(len(notes), 'note')}" if notes else ""
        print(f"{file}: {kind}, valid{remarks}")
        for note in notes:
            print(f"  {note}")
    return 2 if wrong else 0


def examine(file: Path) -> tuple[str, list[str]]:
    """What kind of file it is, and notes about it. Raises InvalidConfigError when it is wrong."""
    from flame.config.application import parse_applications
    from flame.config.document import parse_documents, read_text

    text = read_text(file)
    documents = parse_documents(file, text)
    if documents and ("contexts" in documents[0] or "current-context" in documents[0]):
        return _client(file)
    if documents and "metadata" in documents[0]:
        names = ", ".join(name for name, _ in parse_applications(file, text))
        return f"applications {names}", []
    return _cluster(file)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _client(file: Path) -> tuple[str, list[str]]:
    from flame.config import read_contexts

    current, contexts, found = read_contexts(file)
    notes = [f"{note.where}: {note.text}" for note in found]
    for context in contexts:
        if context.tls is not None:
            tls = context.tls
            _readable(f"{file}: context {context.name}", tls.cert_file, tls.key_file, tls.ca_file)
        if context.tls is not None and context.endpoint is not None and context.endpoint.startswith("http:"):
            notes.append(f"context {context.name}: tls has no effect, the endpoint is http")
    if current is None:
        notes.append("current-context is not set: a context has to be chosen with --context or FLAME_CONTEXT")
    return f"client settings with {_count(len(contexts), 'context')}", notes


def _cluster(file: Path) -> tuple[str, list[str]]:
    from flame.config import read_cluster
    from flame.manager.policies import load_policies
    from flame.manager.tenants import check_tenants

    config, found = read_cluster(file)
    cluster = config.cluster
    try:
        load_policies(cluster.policies)
        check_tenants(cluster.tenants)
    except InvalidConfigError as error:
        raise InvalidConfigError(f"{file}: {error.message}", remedy=error.remedy) from None
    notes = [f"{note.where}: {note.text}" for note in found]
    if cluster.tls is not None:
        _readable(f"{file}: cluster.tls", cluster.tls.cert_file, cluster.tls.key_file, cluster.tls.ca_file)
    elif not is_loopback(cluster.host):
        text = f"{file}: cluster.endpoint: {cluster.host} is not this machine and there is no cluster.tls"
        if not cluster.insecure:
            raise InvalidConfigError(f"{text}; the session manager would refuse to start", remedy="add cluster.tls")
        notes.append(f"{text}; cluster.insecure allows it: anybody who reaches the ports may do everything")
    if cluster.storage == "none":
        notes.append("cluster.storage: none keeps nothing: all sessions are lost when the session manager ends")
    else:
        _writable(file, cluster.storage)
    if config.cache is not None:
        notes += _cache_notes(config.cache, insecure=cluster.insecure)
    return f"cluster settings of {cluster.name!r}", notes


def _cache_notes(cache: CacheSection, *, insecure: bool) -> list[str]:
    """What to know of the object cache; where it listens depends on the machine, so that is no mistake of the file."""
    from flame.cache.addresses import place

    notes: list[str] = []
    try:
        place(cache, insecure=insecure)
    except InvalidConfigError as error:
        remedy = f"; {error.remedy}" if error.remedy else ""
        notes.append(f"cache: flame-object-cache would not start here: {error.message}{remedy}")
    if cache.storage is None:
        notes.append("cache.storage: none keeps nothing: all objects are lost when the object cache ends")
    return notes


def is_loopback(host: str) -> bool:
    """Whether a listener on this host can be reached from this machine only."""
    import ipaddress

    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _readable(where: str, *files: Path | None) -> None:
    for file in files:
        if file is not None and not os.access(file, os.R_OK):
            raise InvalidConfigError(f"{where}: {file} can't be read")


def _writable(file: Path, storage: str) -> None:
    """The nearest folder that exists has to let us make the rest."""
    scheme, _, path = storage.partition("://")
    folder = Path(path).parent if scheme == "sqlite" else Path(path)
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    if not os.access(folder, os.W_OK):
        raise InvalidConfigError(f"{file}: cluster.storage: {folder} can't be written")
