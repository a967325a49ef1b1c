"""The packages that are installed on a node: each once, whoever wants it, kept until there are too many.

A package is known by its content, its installer and its version of Python. Its folder is complete when the file
`ready` is in it, which is written last: what lacks it is of an installation that was killed, and is made anew. A lock
file for each makes it safe between processes that share the store: exclusive while it is installed or removed, shared
while instances use it.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import hashlib
import logging
import os
import secrets
import shutil
import time
from collections.abc import AsyncGenerator, Callable, Coroutine, Mapping
from pathlib import Path

import msgspec

from flame.model.errors import FlameError, InternalError, InvalidArgumentError, TimedOutError, TooLargeError
from flame.packages.archive import unpack
from flame.packages.fetch import Fetched, fetch
from flame.packages.files import appending, end_of, remove_tree, settle, write_whole
from flame.packages.installers import (
    BUILD_FILES,
    InstallerFailedError,
    Job,
    Tools,
    as_flame_error,
    install_python,
    variables,
)
from flame.packages.limits import StoreLimits
from flame.packages.url import PackageUrl
from flame.packages.wishes import Wish, identity_of, wish_of
from flame.proto import types_pb2

logger = logging.getLogger("flame.node")

_READY = "ready"
_POLL_S = 0.1
_KEEP_LOGS_S = 7 * 86_400.0


class Ready(msgspec.Struct, frozen=True):
    """What stands in the file `ready`. `size` in bytes."""

    size: int
    digest: str


class Known(msgspec.Struct, frozen=True):
    """What an address named when it was fetched last."""

    digest: str
    validator: str


class Package:
    """What an application's instances need of their package. `identity` is the same for the same content, installed
    in the same way."""

    def __init__(self, identity: str, variables: Mapping[str, str], store: Store | None = None) -> None:
        self.identity = identity
        self.variables = variables
        self._store = store

    def hold(self) -> None:
        """An instance is about to use it: it stays until `release`. Raises InternalError when it is gone."""
        if self._store is not None:
            self._store.hold(self.identity)

    def release(self) -> None:
        """The instance is gone."""
        if self._store is not None:
            self._store.release(self.identity)


class Store:
    """A folder with packages. `provide` may be called for many executors at once; all calls are made in one loop."""

    def __init__(self, folder: Path, tools: Tools, limits: StoreLimits, ca_file: str = "") -> None:
        """Raises OSError when the folder can't be used."""
        self._folder = folder
        self._tools = tools
        self._limits = limits
        self._ca_file = ca_file
        self._work: dict[tuple[str, str], asyncio.Task[str]] = {}
        self._used: dict[str, tuple[int, int]] = {}  # by identity: descriptor of the lock, how many hold it
        self._hopeless: dict[str, tuple[float, FlameError]] = {}  # what hung or was refused, and until when that counts
        for name in ("releases", "incoming", "locks", "logs", "urls"):
            (folder / name).mkdir(parents=True, exist_ok=True, mode=0o700)
        self._clean()

    async def provide(self, name: str, application: types_pb2.ApplicationSpec) -> Package | None:
        """Fetch and install the application's package unless it is there; None when it asks for none.

        Raises FlameError whose message says what failed, with the end of the installer's output.
        """
        wish = wish_of(name, application)
        if wish is None:
            return None
        if wish.url is None:
            return Package(f"none {wish.installer} {wish.python}", self._variables(wish, None))
        digest = wish.url.digest
        if not digest or not self._complete(identity_of(wish, digest)):
            digest = await self._once(("fetch", f"{wish.installer} {wish.python} {wish.url.pinned}"), self._get, wish)
        identity = identity_of(wish, digest)
        self._touch(identity)
        return Package(identity, self._variables(wish, self._release(identity)), self)

    async def close(self) -> None:
        """End what is being installed; returns when nothing of it runs any more."""
        tasks = list(self._work.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # --- who uses what -----------------------------------------------------------------------------------------------

    def hold(self, identity: str) -> None:
        """See Package.hold."""
        lock, count = self._used.get(identity, (-1, 0))
        if not count:
            lock = self._open_lock(identity)
            try:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(lock)
                raise InternalError(f"package {identity[:16]} is being removed", remedy="start again") from None
            if not self._complete(identity):
                os.close(lock)
                raise InternalError(f"package {identity[:16]} was removed from this node", remedy="start again")
        self._used[identity] = (lock, count + 1)

    def release(self, identity: str) -> None:
        """See Package.release."""
        lock, count = self._used[identity]
        if count > 1:
            self._used[identity] = (lock, count - 1)
            return
        del self._used[identity]
        self._touch(identity)
        os.close(lock)

    # --- getting it --------------------------------------------------------------------------------------------------

    async def _once(self, key: tuple[str, str], work: Callable[[Wish], Coroutine[None, None, str]], wish: Wish) -> str:
        """One of several that want the same at the same time does it. It goes on when who wanted it gave up: it is
        limited in time, and the next one to ask has it."""
        task = self._work.get(key)
        if task is None:
            task = self._work[key] = asyncio.get_running_loop().create_task(work(wish))
            task.add_done_callback(lambda _: self._work.pop(key, None))
            task.add_done_callback(_retrieve)
        return await asyncio.shield(task)

    async def _get(self, wish: Wish) -> str:
        """Fetch what the address names now and install it if that is new. The digest of the content."""
        url = wish.url
        assert url is not None
        known = None if url.digest else self._recall(url)  # what the address says of its content is looked at each time
        validator = known.validator if known is not None and self._complete(identity_of(wish, known.digest)) else ""
        log = self._folder / "logs" / f"{secrets.token_hex(8)}.log"
        file = self._folder / "incoming" / log.stem
        try:
            with appending(log) as say, file.open("xb") as into:
                fcntl.flock(into, fcntl.LOCK_EX)  # as long as somebody is at it
                found = await fetch(url, into, self._limits, say, validator=validator, ca_file=self._ca_file)
                if found.unchanged and known is not None:
                    return known.digest
                await self._installed(wish, url, found, file, log)
            self._remember(url, Known(found.digest, found.validator))
            return found.digest
        except OSError as error:
            raise as_flame_error(error, f"package {url.shown} can't be kept in {self._folder}") from error
        finally:
            file.unlink(missing_ok=True)
            log.unlink(missing_ok=True)

    async def _installed(self, wish: Wish, url: PackageUrl, found: Fetched, file: Path, log: Path) -> None:
        """Install it from its file, unless it is there. `log` becomes the release's own."""
        identity = identity_of(wish, found.digest)
        until, error = self._hopeless.get(identity, (0.0, None))
        if error is not None and until > time.monotonic():
            raise error
        if self._complete(identity):
            return
        async with self._exclusive(identity):
            if self._complete(identity):
                return  # another process was quicker
            logger.info("installing package=%s identity=%s installer=%s", url.shown, identity[:16], wish.installer)
            kept = log.with_name(f"{identity}.log")
            await asyncio.to_thread(log.replace, kept)
            try:
                await self._install(wish, url, identity, found.digest, file, kept)
            except InstallerFailedError as failed:
                logger.warning("package %s can't be installed: the installer %s; see %s", url.shown, failed, kept)
                text = f"installing package {url.shown} failed: the installer {failed}{end_of(kept)}"
                raise InvalidArgumentError(text) from None
            except TimeoutError:
                seconds = self._limits.install_timeout
                text = f"installing package {url.shown} took more than {seconds:g} s and was ended{end_of(kept)}"
                logger.warning("package %s can't be installed within %g s; see %s", url.shown, seconds, kept)
                hung = TimedOutError(text)
                # Who asks again at once would only wait as long again.
                self._hopeless[identity] = (time.monotonic() + seconds, hung)
                raise hung from None
            except Exception as failed:
                raise as_flame_error(failed, f"installing package {url.shown} failed") from failed
        logger.info("installed package=%s identity=%s installer=%s", url.shown, identity[:16], wish.installer)
        await self._collect()

    async def _install(self, wish: Wish, url: PackageUrl, identity: str, digest: str, file: Path, log: Path) -> None:
        release = self._release(identity)
        await asyncio.to_thread(remove_tree, release)
        release.mkdir(mode=0o700)
        try:
            wheel = None
            if wish.installer == "python" and url.name.endswith(".whl"):
                wheel = release / url.name
                await asyncio.to_thread(shutil.copyfile, file, wheel)
            else:
                try:
                    await asyncio.to_thread(self._unpack, file, url.shown, release, wish.installer)
                except (InvalidArgumentError, TooLargeError) as refused:  # the next attempt would say the same
                    self._hopeless[identity] = (time.monotonic() + self._limits.install_timeout, refused)
                    raise
            if wish.installer == "python":
                with log.open("ab") as output:
                    job = Job(url.shown, wish.installer, release, wheel, wish.python, output.fileno())
                    async with asyncio.timeout(self._limits.install_timeout):
                        await install_python(job, self._tools)
            size = await asyncio.to_thread(settle, release)
            write_whole(release / _READY, msgspec.json.encode(Ready(size, digest)))
        except BaseException:
            await asyncio.shield(asyncio.to_thread(remove_tree, release))
            raise

    def _unpack(self, file: Path, name: str, release: Path, installer: str) -> None:
        beside = release / "unpacking"
        unpack(file, name, beside, self._limits.archive)
        root = beside
        entries = list(beside.iterdir())
        # Archives of a project's source hold it in one folder.
        if installer == "python" and len(entries) == 1 and any((entries[0] / name).is_file() for name in BUILD_FILES):
            root = entries[0]
        root.rename(release / "src")

    @contextlib.asynccontextmanager
    async def _exclusive(self, identity: str) -> AsyncGenerator[None]:
        lock = self._open_lock(identity)
        patience = time.monotonic() + 2 * self._limits.install_timeout
        try:
            while not self._complete(identity):
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() > patience:
                        raise TimedOutError(
                            f"another process installs or uses package {identity[:16]} and does not end"
                        ) from None
                    await asyncio.sleep(_POLL_S)  # nobody tells another process when it is done
            yield
        finally:
            os.close(lock)

    # --- what is there -----------------------------------------------------------------------------------------------

    def _release(self, identity: str) -> Path:
        return self._folder / "releases" / identity

    def _open_lock(self, identity: str) -> int:
        return os.open(self._folder / "locks" / identity, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def _complete(self, identity: str) -> bool:
        release = self._release(identity)
        if not (release / _READY).exists():
            return False
        environment = release / "env"
        # The Python that it was made with may be gone by now.
        return not environment.is_dir() or (environment / "bin" / "python").exists()

    def _touch(self, identity: str) -> None:
        with contextlib.suppress(OSError):
            os.utime(self._release(identity) / _READY)

    def _variables(self, wish: Wish, release: Path | None) -> dict[str, str]:
        return variables(wish.installer, release, wish.python, self._tools)

    def _recall(self, url: PackageUrl) -> Known | None:
        try:
            return msgspec.json.decode(self._note(url).read_bytes(), type=Known)
        except (OSError, msgspec.DecodeError):
            return None

    def _remember(self, url: PackageUrl, known: Known) -> None:
        if known.validator and not url.digest:
            write_whole(self._note(url), msgspec.json.encode(known))

    def _note(self, url: PackageUrl) -> Path:
        return self._folder / "urls" / hashlib.sha256(url.location.encode()).hexdigest()

    # --- what goes ---------------------------------------------------------------------------------------------------

    def _clean(self) -> None:
        """Remove what an earlier process left that was killed while it was at it."""
        for file in (self._folder / "incoming").iterdir():
            with contextlib.suppress(OSError), file.open("rb") as stream:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
                file.unlink()
                (self._folder / "logs" / f"{file.name}.log").unlink(missing_ok=True)
        for release in (self._folder / "releases").iterdir():
            if not self._complete(release.name):
                self._drop(release.name)
        oldest = time.time() - _KEEP_LOGS_S
        for log in (self._folder / "logs").iterdir():  # of installations that failed
            with contextlib.suppress(OSError):
                if log.stat().st_mtime < oldest and not self._release(log.stem).exists():
                    log.unlink()

    async def _collect(self) -> None:
        """Remove what was not used for the longest time, until what is kept is within the limits."""
        await asyncio.to_thread(self._drop_surplus)

    def _drop_surplus(self) -> None:
        found: list[tuple[float, int, str]] = []
        for release in (self._folder / "releases").iterdir():
            with contextlib.suppress(OSError, msgspec.DecodeError):
                ready = release / _READY
                size = msgspec.json.decode(ready.read_bytes(), type=Ready).size
                found.append((ready.stat().st_mtime, size, release.name))
        found.sort()
        count, total = len(found), sum(size for _, size, _ in found)
        for last_use, size, identity in found:
            if count <= self._limits.keep_count and total <= self._limits.keep_bytes:
                return
            if time.time() - last_use >= self._limits.keep_recent and self._drop(identity):
                count, total = count - 1, total - size
                logger.info("removed package identity=%s bytes=%d", identity[:16], size)

    def _drop(self, identity: str) -> bool:
        """Remove it unless somebody uses or installs it."""
        lock = self._open_lock(identity)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            remove_tree(self._release(identity))
            (self._folder / "logs" / f"{identity}.log").unlink(missing_ok=True)
        except OSError:
            return False
        else:
            return True
        finally:
            os.close(lock)


def _retrieve(task: asyncio.Task[str]) -> None:
    """Its error was told to who waits; nobody may."""
    if not task.cancelled():
        task.exception()
