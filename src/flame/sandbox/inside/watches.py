"""Files and folders that are watched for changes."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import TYPE_CHECKING

from flame.model.errors import InvalidStateError, NotFoundError
from flame.sandbox.inside.files import DRAFT
from flame.sandbox.inside.waiting import Bell
from flame.sandbox.wire import POLL_S, Change, Changes

if TYPE_CHECKING:
    from asyncinotify import Event, Inotify

MAX_CHANGES = 10_000  # that wait to be told; then the older ones are lost
MAX_FOLDERS = 10_000  # of one watch
_ANSWER = 1000
_PATIENCE_S = POLL_S + 40  # after which a client that does not come back has gone


class Watching:
    """One watch. Paths are told as the user named what is watched."""

    def __init__(self, name: str, path: Path, *, recursive: bool) -> None:
        """Raises OSError."""
        from asyncinotify import Inotify, Mask

        self.bell = Bell()
        self.changes: list[Change] = []
        self.patience: asyncio.TimerHandle | None = None
        self._mask = (
            Mask.CREATE | Mask.MODIFY | Mask.CLOSE_WRITE | Mask.ATTRIB | Mask.DELETE | Mask.MOVED_FROM | Mask.MOVED_TO
        )  # fmt: skip
        self._name = name
        self._root = path if path.is_dir() else path.parent
        self._only = "" if path.is_dir() else path.name
        self._recursive = recursive and not self._only
        self._folders = 0
        self._left: tuple[int, Change] | None = None  # something that was renamed, until its new name is told
        self._inotify: Inotify = Inotify()
        try:
            self._add(self._root)
        except BaseException:
            self._inotify.close()
            raise
        self._reading = asyncio.get_running_loop().create_task(self._read())

    def close(self) -> None:
        self._reading.cancel()
        self._inotify.close()
        if self.patience is not None:
            self.patience.cancel()
        self.bell.ring()

    @property
    def closed(self) -> bool:
        return self._reading.done() or self._reading.cancelling() > 0

    def _add(self, folder: Path) -> None:
        """Watch a folder, and those in it. Links to folders are not followed."""
        self._folders += 1
        if self._folders > MAX_FOLDERS:
            raise InvalidStateError(f"{self._name} has more than {MAX_FOLDERS} folders", remedy="watch fewer of them")
        self._inotify.add_watch(folder, self._mask)  # pyright: ignore[reportUnknownMemberType]
        if self._recursive:
            with os.scandir(folder) as entries:
                below = [entry.path for entry in entries if entry.is_dir(follow_symlinks=False)]
            for each in below:
                try:
                    self._add(Path(each))
                except FileNotFoundError:
                    continue

    async def _read(self) -> None:
        async for event in self._inotify:
            self._take(event)
            self.bell.ring()

    def _take(self, event: Event) -> None:
        from asyncinotify import Mask

        mask, path = event.mask, event.path
        if mask & Mask.Q_OVERFLOW:
            self._note(Change("lost", self._name))
            return
        if path is None or event.name is None or event.name.name.startswith(DRAFT):
            return
        if self._only and event.name.name != self._only:
            return
        folder, told = bool(mask & Mask.ISDIR), self._told(path)
        left, self._left = self._left, None
        if left is not None and not (mask & Mask.MOVED_TO and event.cookie == left[0]):
            self._note(left[1])  # it was moved out of what is watched
            left = None
        if mask & Mask.MOVED_FROM:
            self._left = (event.cookie, Change("removed", told, folder))
            asyncio.get_running_loop().call_later(0.05, self._moved_away, self._left)
        elif mask & Mask.MOVED_TO:
            self._note(
                Change("created", told, folder) if left is None else Change("renamed", told, folder, left[1].path)
            )
            self._new_folder(path, folder=folder)
        elif mask & Mask.CREATE:
            self._note(Change("created", told, folder))
            self._new_folder(path, folder=folder)
        elif mask & Mask.DELETE:
            self._note(Change("removed", told, folder))
        elif mask & (Mask.MODIFY | Mask.CLOSE_WRITE | Mask.ATTRIB):
            change = Change("changed", told, folder)
            if not self.changes or self.changes[-1] != change:
                self._note(change)

    def _moved_away(self, left: tuple[int, Change]) -> None:
        if self._left is left:
            self._left = None
            self._note(left[1])
            self.bell.ring()

    def _new_folder(self, path: Path, *, folder: bool) -> None:
        """What was made in it before it was watched is told as well."""
        if not folder or not self._recursive:
            return
        try:
            self._add(path)
            for found in sorted(path.rglob("*")):
                self._note(Change("created", self._told(found), found.is_dir()))
        except (OSError, InvalidStateError):
            self._note(Change("lost", self._told(path), folder=True))

    def _told(self, path: Path) -> str:
        if self._only:
            return self._name
        return str(Path(self._name, path.relative_to(self._root)))

    def _note(self, change: Change) -> None:
        self.changes.append(change)
        if len(self.changes) > MAX_CHANGES:
            del self.changes[: MAX_CHANGES // 2]
            self.changes.insert(0, Change("lost", self._name))


class Watches:
    """All watches of the sandbox, by id."""

    def __init__(self) -> None:
        self._watches: dict[str, Watching] = {}

    def begin(self, name: str, path: Path, told: str, *, recursive: bool) -> None:
        """Raises NotFoundError, InvalidStateError, OSError."""
        if not path.exists():
            raise NotFoundError(f"there is no {told}")
        watching = self._watches[name] = Watching(told, path, recursive=recursive)
        self._expect(name, watching)

    async def follow(self, name: str, patience: float) -> Changes:
        """What changed since. Raises NotFoundError when it is watched no more."""
        watching = self._watches.get(name)
        if watching is None:
            raise NotFoundError(f"{name} is watched no more")
        self._expect(name, watching)
        await watching.bell.wait_until(lambda: watching.changes or watching.closed, min(patience, POLL_S))
        told, watching.changes = watching.changes[:_ANSWER], watching.changes[_ANSWER:]
        self._expect(name, watching)
        return Changes(told)

    def end(self, name: str) -> None:
        """One that has ended is no error."""
        watching = self._watches.pop(name, None)
        if watching is not None:
            watching.close()

    def close(self) -> None:
        for name in list(self._watches):
            self.end(name)

    def _expect(self, name: str, watching: Watching) -> None:
        """Somebody follows, and is going to come back."""
        if watching.patience is not None:
            watching.patience.cancel()
        watching.patience = asyncio.get_running_loop().call_later(_PATIENCE_S, self.end, name)
