"""Copies of a sandbox of gVisor that was saved when the service in it was prepared, before it knew of any session. Only
the standard library: the runner uses it.

The second launch of its kind starts the program without any identity, with a socket as its descriptor 3. There it says
that it is prepared (service/snapshot.py), and the sandbox is saved. This launch and all later ones alike restore it,
each with a socket of its own in that place, and tell the copy who it is.
"""

from __future__ import annotations

import ctypes
import json
import os
import select
import signal
import socket
import time
from collections.abc import Iterable
from contextlib import closing, suppress
from functools import partial
from io import FileIO

from flame.shims.build_cache import Cache, digest, fingerprints, room_state, system_state
from flame.shims.gvisor_processes import Ended, Signals, complain, end, exit_status, reaped
from flame.shims.gvisor_sandbox import LINK, Sandbox
from flame.shims.snapshots import REFUSED, RESUME_S, SEEN, SNAPSHOT, boot_id, common, fresh, mark, saved

_IMAGE = "checkpoint.img"  # as runsc calls it
_LAYOUT = 1  # grows when what is saved is to be used in another way
_NAME = "flame"
_SNAPSHOT_FD = "3"
_STDIN_IS_3 = ("/bin/sh", "-c", 'exec "$0" "$@" 3<&0 </dev/null')
_PREPARED, _RESUMED = b"prepared\n", b"resumed\n"
_IN_CREATE, _IN_MOVED_TO = 0x100, 0x80
_SYSTEM = ("/var/lib/dpkg/status", "/var/lib/rpm", "/lib/apk/db/installed")  # changed by whoever changes /usr
_LAST_CHARACTERS = 1000
_REMEDY = "make room there, or name another folder in FLAME_GVISOR_CACHE, or set FLAME_GVISOR_SNAPSHOTS=0"
_FULL = ("no space left", "quota exceeded")
_LIBC = ctypes.CDLL(None, use_errno=True)

TYPE_CHECKING = False  # like typing's, without its import
if TYPE_CHECKING:
    from typing import Any


class CopyError(Exception):
    """There can be no copy; the text says why. `lasting`: nor can there be one for the next launch."""

    def __init__(self, why: str, *, lasting: bool = False) -> None:
        super().__init__(why)
        self.lasting = lasting


class _Exited(Exception):  # noqa: N818 - the caller knows whether it is
    """The sandbox has ended, with this exit status."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


class Copies:
    """One launch of an instance that may be a copy. `plan` is a Plan of gvisor_root.py with its `copied`."""

    def __init__(self, sandbox: Sandbox, plan: dict[str, Any], arguments: list[str], env: dict[str, str]) -> None:
        self._sandbox = sandbox
        self._plan = plan
        self._env = env
        self._cache = Cache(plan["copied"]["cache"], plan["copied"]["kept"])
        self._program = [*_STDIN_IS_3, *arguments]
        self._saved_env = {**common(env), "FLAME_SNAPSHOT_FD": _SNAPSHOT_FD}
        self._signals = Signals()
        self._made = False  # it was saved by this launch

    def begin(self) -> int:
        """Start a copy, of what is saved now if need be; gives the number of the process that ends as it does; 0 =
        there is none, and the program is to be started. Raises Ended and OSError."""
        try:
            key = self._key()
            found = saved(self._cache, key, [_IMAGE], partial(self._make, key), wanted=partial(self._is_another, key))
            if found is None:
                return 0
            [image] = found
            try:
                return self._restored(image)
            except CopyError:
                with self._cache.locked(f"{SNAPSHOT}-{key}"):
                    self._cache.remove(SNAPSHOT, key)
                    if self._made:  # or it would be made again and again
                        mark(self._cache, REFUSED, key)
                raise
            finally:
                os.close(image)
        except (CopyError, OSError) as error:
            complain(f"flame: no snapshot is used, the instance is started: {self._why(error)}")
            self._sandbox.forget_panic()
            return 0
        finally:
            self._signals.close()

    def _why(self, error: CopyError | OSError) -> str:
        """What to say of it."""
        if isinstance(error, CopyError):
            return str(error)
        path = str(error.filename or "")
        if not path.startswith(self._cache.folder):
            return f"{path}: {error.strerror}" if path else str(error)
        return f"they can't be kept: {path}: {error.strerror}; {_REMEDY}"

    def _key(self) -> str:
        """Changes with everything that went into what is saved."""
        own, plan = self._plan["copied"], self._plan
        text = json.dumps((plan["command"], plan["configuration"], plan["tree"], self._program, self._saved_env))
        text = text.replace(os.path.dirname(plan["folder"]), "")  # which is another one for each node
        system = [fingerprints(path) for path in (plan["command"][0], *_SYSTEM) if os.path.exists(path)]
        room = room_state(own["readable"], frozenset(own["hidden"]))
        return digest(_LAYOUT, text, own["memory"], system, system_state(own["prefixes"]), room, boot_id())

    def _make(self, key: str) -> None:
        """Save it. Raises CopyError, Ended, OSError."""
        try:
            with self._cache.making(SNAPSHOT, key) as folder:
                self._save(folder)
        except CopyError as error:
            if error.lasting:
                mark(self._cache, REFUSED, key)
            raise
        self._made = True

    def _is_another(self, key: str) -> bool:
        """Whether there was such a launch before: the first may be the only one, and to save takes longer than to
        start."""
        if self._cache.open(SEEN, key, []) is not None:
            return True
        with self._cache.locked(f"{SEEN}-{key}"):
            mark(self._cache, SEEN, key)
        return False

    # --- saving ----------------------------------------------------------------------------------------------------

    def _save(self, folder: str) -> None:
        """Start the program without any identity, and save it there when it is prepared. Raises CopyError, Ended,
        OSError."""
        sandbox = self._sandbox
        door = f"{sandbox.folder}/door"
        os.mkdir(door, 0o700)
        sandbox.configure(self._program, self._saved_env, door, name=_NAME)
        ours, theirs = socket.socketpair()
        with ours, theirs, _listening(f"{sandbox.root}{LINK}") as link, closing(_watched(door)) as knocks:
            pid = sandbox.run([theirs.fileno(), 1])
            try:
                said = self._said(pid, ours, others=(link.fileno(), knocks.fileno()))
                if said != _PREPARED:
                    raise CopyError("the program takes no part in snapshots", lasting=True)
                self._checkpoint(pid, folder)
            except _Exited as exited:
                # Perhaps for want of something that only a session has.
                why = f"the program ended with exit status {exited.status} before it was prepared"
                raise CopyError(why, lasting=True) from None
            except BaseException:
                end(pid)
                raise
            finally:
                os.unlink(f"{sandbox.root}{LINK}")  # the launch has another one there

    def _checkpoint(self, pid: int, folder: str) -> None:
        """Raises CopyError and OSError."""
        with open(os.memfd_create("words"), "w+b") as words:
            _, status = os.waitpid(self._sandbox.checkpoint(folder, words.fileno()), 0)
            words.seek(0)
            text = words.read(_LAST_CHARACTERS).decode(errors="replace").strip() or f"exit status {exit_status(status)}"
        if status:
            full = any(sign in text.lower() for sign in _FULL)
            remedy = f"; {_REMEDY}" if full else ""
            raise CopyError(f"runsc can't save the instance in {self._cache.folder}: {text}{remedy}", lasting=not full)
        os.waitpid(pid, 0)

    # --- restoring -------------------------------------------------------------------------------------------------

    def _restored(self, image: int) -> int:
        """A copy that goes on. Raises CopyError, Ended, OSError."""
        sandbox, own = self._sandbox, self._plan["copied"]
        folder = f"{sandbox.folder}/image"
        os.mkdir(folder)
        os.symlink(f"/proc/{os.getpid()}/fd/{image}", f"{folder}/{_IMAGE}")  # which may be removed at any time
        sandbox.furnish(own["added"])
        sandbox.configure(self._program, self._saved_env, own["door"], name=_NAME)
        ours, theirs = socket.socketpair()
        with ours, theirs:
            told = json.dumps({"env": self._env, **fresh()}).encode() + b"\n"
            pid = sandbox.restore(folder, [theirs.fileno(), 1])
            try:
                said = self._said(pid, ours, unsent=told, seconds=RESUME_S)
                if said != _RESUMED:
                    raise CopyError(f"a copy did not go on within {RESUME_S:g} s")
            except _Exited as exited:
                raise CopyError(f"runsc can't restore it: exit status {exited.status}") from None
            except BaseException:
                end(pid)
                raise
        return pid

    def _said(
        self, pid: int, sock: socket.socket, *, others: Iterable[int] = (), unsent: bytes = b"",
        seconds: float | None = None,
    ) -> bytes:  # fmt: skip
        """What the program says on this socket, which gets `unsent` meanwhile; empty when something happens to one of
        the `others` before, or the time is over. Raises Ended when this process is told to end, and _Exited."""
        sock.setblocking(False)
        poll = select.poll()
        poll.register(sock, select.POLLIN | (select.POLLOUT if unsent else 0))
        for descriptor in (self._signals.descriptor, *others):
            poll.register(descriptor, select.POLLIN)
        deadline = None if seconds is None else time.monotonic() + seconds
        while True:
            ready = dict(poll.poll(None if deadline is None else max(0.0, deadline - time.monotonic()) * 1000))
            happened = ready.get(sock.fileno(), 0)
            if happened & ~select.POLLOUT:
                with suppress(ConnectionError):
                    said = sock.recv(64)
                    if said:
                        return said
                poll.unregister(sock)  # nobody is there any more: its end will be told
                continue
            if happened & select.POLLOUT:
                with suppress(OSError):
                    unsent = unsent[sock.send(unsent) :]
                poll.modify(sock, select.POLLIN | (select.POLLOUT if unsent else 0))
            if self._signals.descriptor in ready:
                self._heed(pid)
            if not ready or any(each in ready for each in others):
                return b""

    def _heed(self, pid: int) -> None:
        for number in self._signals.taken():
            if number != signal.SIGCHLD:
                raise Ended(128 + number)
        status = reaped(pid)
        if status is not None:
            raise _Exited(status)


def _listening(path: str) -> socket.socket:
    """A socket at this path, which may be longer than paths of sockets may be. Raises OSError."""
    found = socket.socket(socket.AF_UNIX)
    folder = os.open(os.path.dirname(path), os.O_PATH | os.O_CLOEXEC)
    found.bind(f"/proc/self/fd/{folder}/{os.path.basename(path)}")
    os.close(folder)
    found.listen()
    return found


def _watched(folder: str) -> FileIO:
    """What can be read from when something is made in this folder. Raises OSError."""
    descriptor = _LIBC.inotify_init1(os.O_CLOEXEC)
    if descriptor < 0 or _LIBC.inotify_add_watch(descriptor, folder.encode(), _IN_CREATE | _IN_MOVED_TO) < 0:
        raise OSError(ctypes.get_errno(), f"can't watch {folder}: {os.strerror(ctypes.get_errno())}")
    return FileIO(descriptor)
