"""Where instances come in: for each a socket of ours, if it may speak the link, and a folder where it may make a socket
of its own. All of it has short paths, because a socket's path has 107 bytes at most.

What an instance makes in its folder is not trusted: a link there could name any socket of this machine. Neither is who
connects: our socket is there until the instance has said who it is, and takes a few connections only, so that nobody
can keep this loop busy with them, or use up its descriptors.
"""

from __future__ import annotations

import asyncio
import errno
import hmac
import os
import stat
from collections.abc import Collection
from functools import partial
from pathlib import Path

from asyncinotify import Inotify, Mask, Watch

from flame.link import FRAME_SLACK, Link, LinkServer, serve_few, unix
from flame.model.errors import FlameError, InvalidConfigError, PermissionDeniedError, UnauthenticatedError
from flame.model.states import BindCode
from flame.proto import link_pb2
from flame.shims.removal import remove_tree
from flame.shims.shim import BindError

SOCKET = "s.sock"
_LONGEST_NAME = len(f"ffffffff/{SOCKET}")
_POLL_S = 0.05  # between looks for a socket that the kernel won't tell of
_CONNECTIONS = 4  # one is enough; the others are for programs that look first whether somebody listens


class Arrival:
    """How one instance may come in: over the link, at our socket `link_path`, or at the one that it makes. `folder` is
    its own. To us it is one of `users`."""

    def __init__(self, executor_id: str, token: str, folder: Path, link_path: Path, users: Collection[int]) -> None:
        loop = asyncio.get_running_loop()
        self.executor_id = executor_id
        self.token = token
        self.folder = folder
        self.link_path = link_path
        self.users = users
        self.socket = folder / SOCKET
        self.link: asyncio.Future[Link] = loop.create_future()
        self.file: asyncio.Future[None] = loop.create_future()  # done when something is at `socket`
        self.watch: Watch | None = None
        self.server: LinkServer | None = None
        self.hint = ""  # a clause that tells why nobody has come in
        self._descriptor = -1

    def address(self) -> Path:
        """Another path of what is at `socket` now, which stays what it is. Raises BindError when that is no socket, and
        FileNotFoundError."""
        self.close()
        self._descriptor = os.open(self.socket, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
        if not stat.S_ISSOCK(os.fstat(self._descriptor).st_mode):
            raise BindError(BindCode.START, f"what the instance made at {self.socket} is no socket")
        return Path(f"/proc/self/fd/{self._descriptor}")

    def crowded(self) -> None:
        """It connects again and again."""
        if not self.link.done():
            why = f"the instance connected more than {_CONNECTIONS} times without saying who it is"
            self.link.set_exception(BindError(BindCode.START, why))

    def refused(self, error: FlameError) -> None:
        """It connected to our socket and did not say who it is."""
        self.hint = f"; what connected to its link was sent away: {error.message[:200]}"

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


class Reception:
    """Waits for instances. `folder` is for our sockets, `doors` for their folders; both are made and removed by the
    caller."""

    def __init__(self, folder: Path, max_payload: int, doors: Path) -> None:
        self.folder = folder
        self._doors = doors
        self._max_payload = max_payload
        self._inotify: Inotify | None = None
        self._watching: asyncio.Task[None] | None = None
        self._number = 0
        self._expected: dict[str, Arrival] = {}  # by executor id
        self._watched: dict[Path, Arrival] = {}  # by folder
        self._unwatched: set[Arrival] = set()  # those of them that the kernel does not tell of
        self._polling: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Begin. Raises InvalidConfigError when a folder's path is too long."""
        for folder in (self.folder, self._doors):
            unix(folder / ("x" * _LONGEST_NAME))
        self._inotify = Inotify()
        self._watching = asyncio.get_running_loop().create_task(self._watch(self._inotify))

    def expect(self, executor_id: str, token: str, *, link: bool, guests: Collection[int] = ()) -> Arrival:
        """An instance is about to start, which may speak the link if `link`, as our user, as root, or as one of
        `guests`. Raises OSError."""
        if self._inotify is None:
            raise OSError(errno.ESHUTDOWN, "the executor manager is stopping")
        self._number += 1
        folder = self._doors / f"{self._number:x}"
        folder.mkdir(mode=0o700)
        users = {os.getuid(), 0, *guests}
        arrival = Arrival(executor_id, token, folder, self.folder / f"{self._number:x}.link", users)
        try:
            if link:
                self._listen(arrival)
            self._begin_to_watch(self._inotify, arrival)
        except OSError:
            if arrival.server is not None:
                arrival.server.close()
            folder.rmdir()
            raise
        self._expected[executor_id] = self._watched[folder] = arrival
        return arrival

    def _begin_to_watch(self, inotify: Inotify, arrival: Arrival) -> None:
        mask = Mask.CREATE | Mask.MOVED_TO
        try:
            arrival.watch = inotify.add_watch(arrival.folder, mask)  # pyright: ignore[reportUnknownMemberType]
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            # They are counted for each user: an instance can take all that there are.
            self._unwatched.add(arrival)
            if self._polling is None or self._polling.done():
                self._polling = asyncio.get_running_loop().create_task(self._poll())

    def _listen(self, arrival: Arrival) -> None:
        # No pings: an instance that is busy in C code can't answer them, and that is no fault. One that hangs is found
        # by the deadlines of what it shall do.
        arrival.server = serve_few(
            arrival.link_path,
            partial(self._accept, arrival),
            max_frame=self._max_payload + FRAME_SLACK,
            most=_CONNECTIONS,
            crowded=arrival.crowded,
            refused=arrival.refused,
        )

    def settled(self, arrival: Arrival) -> None:
        """It has come in: nothing else that it does there matters."""
        if arrival.server is not None:
            arrival.server.stop_listening()
        self._unwatched.discard(arrival)
        watched = self._watched.pop(arrival.folder, None) is not None
        if watched and arrival.watch is not None and self._inotify is not None:
            self._inotify.rm_watch(arrival.watch)

    async def forget(self, arrival: Arrival) -> None:
        """Nobody waits for this instance any more: its folder goes."""
        self._expected.pop(arrival.executor_id, None)
        self.settled(arrival)
        arrival.close()
        if arrival.server is not None:
            arrival.server.close()
        await asyncio.to_thread(remove_tree, arrival.folder)

    async def close(self) -> None:
        """Close all links of instances too."""
        looking = [task for task in (self._watching, self._polling) if task is not None]
        for task in looking:
            task.cancel()
        await asyncio.gather(*looking, return_exceptions=True)
        if self._inotify is not None:
            self._inotify.close()
            self._inotify = None  # instances that are forgotten from now on have no watch
        for arrival in list(self._expected.values()):
            if arrival.server is not None:
                arrival.server.close()
                await arrival.server.wait_closed()

    async def _accept(self, arrival: Arrival, link: Link) -> link_pb2.Welcome:
        hello = link.hello
        if hello.role != "instance":
            raise PermissionDeniedError(f"this socket is for instances, not for a {hello.role!r}")
        if link.peer.uid not in arrival.users:
            raise PermissionDeniedError(f"this socket is not for user {link.peer.uid}")
        known = hello.id == arrival.executor_id and hmac.compare_digest(arrival.token.encode(), hello.token.encode())
        if not known or arrival.link.done():
            raise UnauthenticatedError("no instance with this id and token is expected")
        arrival.link.set_result(link)
        return link_pb2.Welcome(max_payload=self._max_payload)

    async def _watch(self, inotify: Inotify) -> None:
        async for event in inotify:
            if Mask.Q_OVERFLOW in event.mask:  # somebody makes files without end; what others made may be lost
                for arrival in self._watched.values():
                    self._look(arrival)
            elif event.name is not None and event.name.name == SOCKET and event.watch is not None:
                found = self._watched.get(event.watch.path)
                if found is not None:
                    self._look(found)

    async def _poll(self) -> None:
        while self._unwatched:
            for arrival in self._unwatched:
                self._look(arrival)
            await asyncio.sleep(_POLL_S)

    def _look(self, arrival: Arrival) -> None:
        if not arrival.file.done() and os.path.lexists(arrival.socket):
            arrival.file.set_result(None)


def default_socket_root() -> Path:
    """A folder with a short path that only this user can look into; made if it is missing.

    FLAME_SOCKET_DIR, else XDG_RUNTIME_DIR/flame, else /tmp/flame-<uid>. Raises InvalidConfigError when somebody else
    made it.
    """
    named, runtime = os.environ.get("FLAME_SOCKET_DIR"), os.environ.get("XDG_RUNTIME_DIR")
    if named:
        root = Path(named)
    else:
        root = Path(runtime, "flame") if runtime else Path(f"/tmp/flame-{os.getuid()}")
    try:
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = root.stat()
    except OSError as error:
        raise InvalidConfigError(f"can't make {root}: {error.strerror}", remedy="set FLAME_SOCKET_DIR") from error
    if status.st_uid != os.getuid() or status.st_mode & 0o022:
        raise InvalidConfigError(f"{root} is open to others", remedy="remove it, or set FLAME_SOCKET_DIR")
    return root
