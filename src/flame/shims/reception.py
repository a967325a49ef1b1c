"""Where instances come in: one socket per node for those that speak the link, and a watch for the sockets that gRPC
services make. All of it lies in one private folder with a short path, because a socket's path has 107 bytes at most."""

from __future__ import annotations

import asyncio
import hmac
import os
from pathlib import Path

from asyncinotify import Inotify, Mask

from flame.link import FRAME_SLACK, Link, LinkServer, serve, unix
from flame.model.errors import InvalidConfigError, PermissionDeniedError, UnauthenticatedError
from flame.proto import link_pb2

_LINK = "link"
_LONGEST_NAME = len("ffffffff.sock")


class Reception:
    """Waits for instances. `folder` is made and removed by the caller."""

    def __init__(self, folder: Path, max_payload: int) -> None:
        self.folder = folder
        self.link_path = folder / _LINK
        self._max_payload = max_payload
        self._server: LinkServer | None = None
        self._inotify: Inotify | None = None
        self._watching: asyncio.Task[None] | None = None
        self._links: dict[str, tuple[str, asyncio.Future[Link]]] = {}  # executor id: token, who waits
        self._sockets: dict[str, asyncio.Future[Path]] = {}  # by file name

    async def open(self) -> None:
        """Listen. Raises InvalidConfigError when the folder's path is too long."""
        unix(self.folder / ("x" * _LONGEST_NAME))
        # No pings: an instance that is busy in C code can't answer them, and that is no fault. One that hangs is
        # found by the deadlines of what it shall do.
        limit = self._max_payload + FRAME_SLACK
        self._server = await serve(unix(self.link_path), self._accept, max_frame=limit, heartbeat=None)
        self._inotify = Inotify()
        self._inotify.add_watch(self.folder, Mask.CREATE | Mask.MOVED_TO)  # pyright: ignore[reportUnknownMemberType]
        self._watching = asyncio.get_running_loop().create_task(self._watch(self._inotify))

    def expect(self, executor_id: str, token: str, socket: Path) -> tuple[asyncio.Future[Link], asyncio.Future[Path]]:
        """Two futures for an instance that is about to start: its link, and its gRPC socket."""
        loop = asyncio.get_running_loop()
        link: asyncio.Future[Link] = loop.create_future()
        file: asyncio.Future[Path] = loop.create_future()
        self._links[executor_id] = (token, link)
        self._sockets[socket.name] = file
        return link, file

    def forget(self, executor_id: str, socket: Path) -> None:
        """Nobody waits for this instance any more."""
        self._links.pop(executor_id, None)
        self._sockets.pop(socket.name, None)

    async def close(self) -> None:
        """Close all links of instances too."""
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.gather(self._watching, return_exceptions=True)
        if self._inotify is not None:
            self._inotify.close()
        if self._server is not None:
            self._server.close()
            await self._server.wait_closed()

    async def _accept(self, link: Link) -> link_pb2.Welcome:
        hello = link.hello
        if hello.role != "instance":
            raise PermissionDeniedError(f"this socket is for instances, not for a {hello.role!r}")
        if link.peer.uid not in (os.getuid(), 0):
            raise PermissionDeniedError(f"this socket is not for user {link.peer.uid}")
        token, waiter = self._links.get(hello.id, ("", None))
        if waiter is None or waiter.done() or not hmac.compare_digest(token.encode(), hello.token.encode()):
            raise UnauthenticatedError("no instance with this id and token is expected")
        waiter.set_result(link)
        return link_pb2.Welcome(max_payload=self._max_payload)

    async def _watch(self, inotify: Inotify) -> None:
        async for event in inotify:
            waiter = self._sockets.get(str(event.name)) if event.name is not None else None
            if waiter is not None and not waiter.done():
                waiter.set_result(self.folder / str(event.name))


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
