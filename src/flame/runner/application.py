"""The application that a Runner or an Executor makes for itself, and what becomes of it."""

from __future__ import annotations

import logging
import os
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

from flame.client.values import Application, ApplicationAttributes
from flame.config import load_context
from flame.config.context import DEFAULT_RUNNER_TEMPLATE
from flame.model.errors import AlreadyExistsError, FlameError, InvalidStateError, NotFoundError
from flame.objects.nearby import cache_of
from flame.packages.installers import PYTHON_LABEL, PYTHON_VERSION
from flame.runner.code import local_attributes, ship_local_modules, with_environments
from flame.runner.owners import RUNNER as LABEL
from flame.runner.owners import close_abandoned, close_children
from flame.runner.packing import project_folder, send
from flame.runner.storage import Storage
from flame.runner.versions import check_nodes

if TYPE_CHECKING:
    from flame.client.synchronous import Connection

logger = logging.getLogger("flame.runner")

T = TypeVar("T")
_TRIES = 5


class RunnerApplication:
    """See above. It exists from `open` to `close`."""

    def __init__(
        self,
        name: str,
        *,
        dependencies: Sequence[str] = (),
        python_version: str | None = None,
        package: str | os.PathLike[str] | None = None,
        environments: Mapping[str, str] | None = None,
        connection: Connection | None = None,
    ) -> None:
        self.name = name
        self._context = load_context()
        self._dependencies = dependencies
        self._python_version = python_version
        self._package = package
        self._environments = environments or {}
        self.connection = connection or connection_of_user()
        self.cache = cache_of(self.connection.addr)  # the endpoint of the object cache, empty: there is none
        self.by_value = False  # modules of the working directory travel inside of pickles
        self._seen = 0
        self.shared = Storage(f"{name}/shared", self.cache, self.connection.max_payload)

    def open(self, *, fail_if_exists: bool = False) -> None:
        """Register it, or use the one that is there. Raises AlreadyExistsError, InvalidStateError, FlameError."""
        if os.environ.get("FLAME_INSTANCE_ID"):
            # Of the instance that had this session's task before, and was killed.
            close_children(self.connection, os.environ.get("FLAME_SESSION_ID", ""), abandoned=True)
        known = self.connection.get_application(self.name)
        if known is not None and fail_if_exists:
            raise AlreadyExistsError(
                f"the application {self.name!r} exists already", remedy="choose another name, or close its Runner"
            )
        if known is not None and (
            LABEL not in (known.labels or ()) or self.name == os.environ.get("FLAME_APPLICATION")
        ):
            return  # somebody prepared it, or it is our own
        if known is not None:
            close_abandoned(self.connection, self.name)
        attributes = replace(self._attributes(), labels=[LABEL], description=f"Runner application: {self.name}")
        if known is None:
            try:
                self.connection.register_application(self.name, attributes)
                return
            except AlreadyExistsError:
                known = self.connection.get_application(self.name)  # somebody else was quicker
                if fail_if_exists or known is None:
                    raise
        if not _same(known, attributes):
            try:
                self.connection.update_application(self.name, attributes)
            except InvalidStateError as error:
                raise InvalidStateError(
                    f"the application {self.name!r} is in use with other code",
                    remedy=f"choose another name, or close its sessions (flmctl list session); {error.message}",
                ) from error

    def _attributes(self) -> ApplicationAttributes:
        own = os.environ.get("FLAME_APPLICATION") if os.environ.get("FLAME_INSTANCE_ID") else None
        if own:
            return with_environments(self._copy_of(own), self._environments)
        template = self._context.runner.template
        installed = self._dependencies or self._python_version or self._package
        if template == DEFAULT_RUNNER_TEMPLATE and not installed and self._all_here():
            return local_attributes(self._environments)
        attributes = with_environments(self._copy_of(template), self._environments)
        if self._python_version:
            attributes = with_environments(attributes, {PYTHON_VERSION: self._python_version})
        elif template == DEFAULT_RUNNER_TEMPLATE:
            check_nodes(node.labels.get(PYTHON_LABEL) for node in self.connection.list_nodes())
        folder = project_folder(self._package)
        if folder is not None or self._dependencies or self._python_version:
            local = self.connection.addr.startswith("unix:")
            attributes = replace(attributes, url=send(folder, self._dependencies, self._context, local=local))
        self.by_value = folder is None
        return attributes

    def while_there(self, make: Callable[[], T]) -> T:
        """Make something of the application, which another one that used it may just have removed."""
        for _ in range(_TRIES):
            self.look_around()
            try:
                return make()
            except NotFoundError:
                self.open()
        return make()

    def look_around(self) -> None:
        """Note modules that were loaded since and shall travel inside of pickles."""
        if self.by_value and len(sys.modules) != self._seen:
            self._seen = len(sys.modules)
            ship_local_modules()

    def _all_here(self) -> bool:
        """Whether the cluster is one of this user on this machine, and has no nodes elsewhere."""
        own = os.uname().nodename
        nodes = self.connection.list_nodes() if self.connection.addr.startswith("unix:") else []
        return bool(nodes) and all(node.hostname == own for node in nodes)

    def _copy_of(self, name: str) -> ApplicationAttributes:
        known = self.connection.get_application(name)
        if known is None:
            raise NotFoundError(
                f"there is no application {name!r} to make {self.name!r} from",
                remedy="register it, or set runner.template in ~/.flame/flame.yaml",
            )
        return _attributes_of(known)

    def close(self) -> None:
        """Forget the application unless others use it, and its objects. What fails is logged."""
        try:
            known = self.connection.get_application(self.name)
            if known is None or LABEL not in (known.labels or ()):
                return
            try:
                self.connection.unregister_application(self.name)
            except InvalidStateError:
                return  # others have sessions of it: it goes with the last of them
            self.shared.clear()
        except FlameError as error:
            logger.warning("the application %s can't be cleaned up: %s", self.name, error)


def connection_of_user() -> Connection:
    """The connection of this process. Inside of an instance it is one that may do more than serve its own session."""
    if not os.environ.get("FLAME_INSTANCE_ID"):
        from flame.client.default import ConnectionInstance

        return ConnectionInstance.instance()
    global _nested
    with _lock:
        if _nested is None:
            from flame.client.synchronous import connect

            # As the user, not as the instance: that may touch its own session only.
            _nested = connect(instance_token=False)
        return _nested


_nested: Connection | None = None
_lock = threading.Lock()


def _attributes_of(application: Application) -> ApplicationAttributes:
    values = {name: getattr(application, name) for name in ApplicationAttributes.__dataclass_fields__}
    return ApplicationAttributes(**values)


def _same(known: Application, wanted: ApplicationAttributes) -> bool:
    """Whether the registered application runs what is wanted."""
    names = ("command", "arguments", "environments", "working_directory", "url", "installer", "image")
    return all((getattr(known, name) or None) == (getattr(wanted, name) or None) for name in names)
