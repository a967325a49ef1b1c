"""Deploying an application: its package goes to where nodes fetch it, then its registration names it.

Beside each package lies a manifest: the registration that it was deployed with, and which package it replaced. That is
what a rollback goes back to.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable
from pathlib import Path

import msgspec

from flame.cli.api import Api
from flame.model.errors import InvalidStateError, NotFoundError
from flame.model.specs import ApplicationSpec
from flame.packages.building import Built
from flame.packages.storage import PackageStorage, Progress, store
from flame.packages.url import parse_package_url
from flame.proto import types_pb2 as ty
from flame.proto.values import application_spec_message

CREATED, UPDATED, UNCHANGED = "created", "updated", "unchanged"


class Manifest(msgspec.Struct, frozen=True, omit_defaults=True):
    """How a package was deployed. `previous` is the digest of the one before it; `name` that of its file."""

    digest: str
    name: str
    size: int
    spec: ApplicationSpec
    previous: str = ""


class Deployment(msgspec.Struct, frozen=True):
    """What is done, or would be: `action` to the application; `sent` whether its package had to be."""

    action: str
    spec: ApplicationSpec
    digest: str
    name: str
    sent: bool


def package_name(application: str, digest: str) -> str:
    """Of a package's file in the storage."""
    return f"{application}-{digest[:16]}.tar.gz"


class Deployer:
    """Deploys one application. Nothing is changed with `dry_run`. Methods raise FlameError.

    The registration changes last, so that whatever fails before leaves the application as it was.
    """

    def __init__(self, api: Api, storage: PackageStorage, application: str, *, dry_run: bool) -> None:
        self._api = api
        self._storage = storage
        self._application = application
        self._dry_run = dry_run

    def deploy(self, spec: ApplicationSpec, built: Built, progress: Progress) -> Deployment:
        """Deploy a package; `spec` says everything but its address."""
        name = package_name(self._application, built.digest)
        current = self._current()
        found = self._storage.find(self._application, name, built.size)
        if self._dry_run:
            url = found or f"{name} in the storage"
            planned = _with_url(spec, url, built.digest) if found else spec
            return Deployment(self._action(current, planned), planned, built.digest, name, sent=found is None)
        if found is not None and self._action(current, _with_url(spec, found, built.digest)) == UNCHANGED:
            return Deployment(UNCHANGED, _with_url(spec, found, built.digest), built.digest, name, sent=False)
        self._check_unused(current)
        stored = store(self._storage, self._application, name, built.file, progress)
        spec = _with_url(spec, stored.url, built.digest)
        previous = self._previous(current, built.digest)
        self._write(Manifest(built.digest, name, built.size, spec, previous))
        action = self._change(current, spec)
        return Deployment(action, spec, built.digest, name, sent=stored.sent)

    def roll_back(self) -> Deployment:
        """Go back to the package before the current one, with the registration that it had."""
        current = self._current()
        if current is None:
            raise NotFoundError(f"application {self._application} not found", remedy="deploy it first")
        digest = _digest_of(current)
        manifest = self._read(digest) if digest else None
        if manifest is None or not manifest.previous:
            raise InvalidStateError(
                f"application {self._application} has no earlier package in this storage",
                remedy="deploy the package that you want, or name the storage that it was deployed with (--storage)",
            )
        wanted = self._read(manifest.previous)
        if wanted is None or self._storage.find(self._application, wanted.name, wanted.size) is None:
            raise NotFoundError(
                f"the package {manifest.previous[:16]} of application {self._application} is gone from the storage",
                remedy="deploy it again",
            )
        if not self._dry_run:
            self._check_unused(current)
            self._write(msgspec.structs.replace(wanted, previous=digest))
            self._change(current, wanted.spec)
        return Deployment(UPDATED, wanted.spec, wanted.digest, wanted.name, sent=False)

    def clean(self, keep: int, done: Deployment | None = None) -> list[str]:
        """Remove packages but for the `keep` youngest; the names of those that went.

        What stays in any case is the package that is registered, the one that a rollback leads to, and what another
        application is registered with. `done` is what was deployed just now, if something was. Where the storage can't
        say what it has, only those go that the line of deployments leads to.
        """
        current = self._current()
        before = _digest_of(current) if current is not None else ""
        registered = done.digest if done is not None else before
        if not registered:
            raise NotFoundError(
                f"application {self._application} has no package in this storage", remedy="deploy it, or choose another"
            )
        line = list(dict.fromkeys([*self._line(registered), *self._line(before)]))
        used = {_digest_of(one.spec)[:16] for one in self._api.applications()}
        kept = used | {digest[:16] for digest in line[: max(keep, 2)]}
        known = {_short_digest(self._application, name) for name in self._storage.names(self._application)}
        gone = sorted(({digest[:16] for digest in line} | known) - kept - {""})
        names = [package_name(self._application, digest) for digest in gone]
        if not self._dry_run:
            for digest, name in zip(gone, names, strict=True):
                self._storage.delete(self._application, name)
                self._storage.delete(self._application, self._manifest_name(digest))
        return names

    def _line(self, digest: str) -> list[str]:
        """The digests of a package and of those before it, as far as manifests tell."""
        line: list[str] = []
        while digest and digest not in line:
            manifest = self._read(digest)
            if manifest is None and line:
                break  # it was removed before
            line.append(digest)
            digest = manifest.previous if manifest is not None else ""
        return line

    # --- the application ---------------------------------------------------------------------------------------------

    def _current(self) -> ty.ApplicationSpec | None:
        try:
            return self._api.application(self._application).spec
        except NotFoundError:
            return None

    def _action(self, current: ty.ApplicationSpec | None, spec: ApplicationSpec) -> str:
        if current is None:
            return CREATED
        return UNCHANGED if current == application_spec_message(spec) else UPDATED

    def _check_unused(self, current: ty.ApplicationSpec | None) -> None:
        """Before anything is sent: the cluster changes no application that is in use."""
        if current is None:
            return
        session = next(self._api.sessions([ty.SessionState.Open], self._application), None)
        if session is not None:
            raise InvalidStateError(
                f"application {self._application} has open sessions, such as {session.metadata.id}",
                remedy="close them first (flmctl close), or deploy under another name",
            )

    def _change(self, current: ty.ApplicationSpec | None, spec: ApplicationSpec) -> str:
        call: Callable[[str, ty.ApplicationSpec], None] = self._api.register if current is None else self._api.update
        call(self._application, application_spec_message(spec))
        return CREATED if current is None else UPDATED

    # --- manifests ---------------------------------------------------------------------------------------------------

    def _previous(self, current: ty.ApplicationSpec | None, digest: str) -> str:
        """The digest that a rollback from `digest` leads to."""
        replaced = _digest_of(current) if current is not None else ""
        if replaced != digest:
            return replaced
        manifest = self._read(digest)  # only the registration changes
        return manifest.previous if manifest is not None else ""

    def _manifest_name(self, digest: str) -> str:
        return f"{self._application}-{digest[:16]}.json"

    def _read(self, digest: str) -> Manifest | None:
        content = self._storage.read(self._application, self._manifest_name(digest))
        if content is None:
            return None
        try:
            return msgspec.json.decode(content, type=Manifest)
        except msgspec.DecodeError as error:
            raise InvalidStateError(
                f"the manifest {self._manifest_name(digest)} in the storage can't be read: {error}",
                remedy="deploy the package that you want",
            ) from None

    def _write(self, manifest: Manifest) -> None:
        with tempfile.NamedTemporaryFile(prefix="flame-", suffix=".json") as file:
            file.write(msgspec.json.encode(manifest))
            file.flush()
            name = self._manifest_name(manifest.digest)
            self._storage.put(self._application, name, Path(file.name), lambda sent: None)


def _with_url(spec: ApplicationSpec, url: str, digest: str) -> ApplicationSpec:
    return msgspec.structs.replace(spec, url=f"{url}#sha256={digest}")


def _short_digest(application: str, name: str) -> str:
    """The beginning of the digest in a package's or a manifest's name, empty for other files."""
    match = re.fullmatch(r"-([0-9a-f]{16})\.(tar\.gz|json)", name.removeprefix(application))
    return match[1] if match is not None else ""


def _digest_of(spec: ty.ApplicationSpec) -> str:
    """The digest in the application's address, empty when it has none."""
    return parse_package_url(spec.url).digest if spec.url else ""
