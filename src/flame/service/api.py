"""What an author of a service sees: the class to derive from and what its handlers are given.

This module is the first thing every instance loads, so it imports nothing that costs time.
"""

from __future__ import annotations

from flame.objects.parcels import MARK, SIZE, opened

TYPE_CHECKING = False  # like typing's, without its import
if TYPE_CHECKING:
    from collections.abc import Awaitable


class TaskCancelled(BaseException):
    """Raised inside a running task that shall stop: it was cancelled, or its time is over.

    Clean up in `finally`, and let it pass. An instance whose task does not end within the executor manager's grace
    time (2 s unless set otherwise) is killed. It is no `Exception`, so that `except Exception` does not swallow it.
    In `async def` handlers `asyncio.CancelledError` is raised instead.
    """


class TaskFailure(Exception):  # noqa: N818 - it is raised to say what clients are told, and never handled
    """Raised by a handler that words the failure of its task itself.

    `message` and `traceback` are what clients see; `details` goes with them, uninterpreted, for a client that knows the
    service. More than 256 KiB of them are left out.
    """

    def __init__(self, message: str, traceback: str = "", details: bytes = b"") -> None:
        super().__init__(message)
        self.message = message
        self.traceback = traceback
        self.details = details


class ApplicationContext:
    """The application that this instance belongs to; fields that its registration left out are None."""

    __slots__ = ("command", "image", "installer", "name", "shim", "url", "working_directory")

    def __init__(
        self,
        name: str,
        image: str | None = None,
        command: str | None = None,
        working_directory: str | None = None,
        url: str | None = None,
        installer: str | None = None,
        shim: int = 0,
    ) -> None:
        self.name = name
        self.image = image
        self.command = command
        self.working_directory = working_directory
        self.url = url
        self.installer = installer
        self.shim = shim

    def __repr__(self) -> str:
        return f"ApplicationContext(name={self.name!r})"


class GangContext:
    """A member of a gang: its `rank` from 0, how many they are, and their `addresses`.

    `addresses` has host:port of each member, by rank. Flame gives the port of a member to nobody else on its node.
    """

    __slots__ = ("addresses", "rank", "world_size")

    def __init__(self, rank: int, world_size: int, addresses: tuple[str, ...] = ()) -> None:
        self.rank = rank
        self.world_size = world_size
        self.addresses = addresses

    def __repr__(self) -> str:
        return f"GangContext(rank={self.rank}, world_size={self.world_size}, addresses={self.addresses!r})"


class SessionContext:
    """The one session that this instance serves. `gang` is None unless the session's instances are a gang.

    In `on_session_enter` a service may set `concurrency`, how many tasks of this session it wants at once (0 = as `run`
    was told), and `service`, another one that gets the session's tasks and its end in its place.
    """

    __slots__ = ("_common_data", "application", "concurrency", "gang", "service", "session_id")

    def __init__(
        self,
        _common_data: bytes | None,
        session_id: str,
        application: ApplicationContext,
        gang: GangContext | None = None,
    ) -> None:
        self._common_data = _common_data
        self.session_id = session_id
        self.application = application
        self.gang = gang
        self.concurrency = 0
        self.service: FlameService | None = None

    def common_data(self) -> bytes | None:
        """The session's common data as the client gave it, None when it gave none."""
        data = self._common_data
        if data is not None and data[:SIZE] == MARK:
            data = self._common_data = opened(data)
        return data

    def __repr__(self) -> str:
        return f"SessionContext(session_id={self.session_id!r}, application={self.application!r})"


class TaskContext:
    """One task: its id in the session (decimal text), its input (None when it has none), and the attempt, from 1."""

    __slots__ = ("_input", "attempt", "session_id", "task_id")

    def __init__(self, task_id: str, session_id: str, input: bytes | None = None, attempt: int = 1) -> None:  # noqa: A002
        self.task_id = task_id
        self.session_id = session_id
        self._input = input
        self.attempt = attempt

    @property
    def input(self) -> bytes | None:
        """What the client gave. Raises FlameError when it is in the object cache and can't be had."""
        data = self._input
        if data is not None and data[:SIZE] == MARK:
            data = self._input = opened(data)
        return data

    def __repr__(self) -> str:
        return f"TaskContext(task_id={self.task_id!r}, session_id={self.session_id!r}, attempt={self.attempt})"


class FlameService:
    """Derive from this, override what you need, and give an object of it to `run`. Handlers may be `async def`.

    An instance serves one session: `on_session_enter` once, then tasks, then `on_session_leave` once. A handler that
    raises fails its task (or the binding of its session) with the exception's text; the instance goes on.
    """

    def on_prepare(self) -> Awaitable[None] | None:
        """Do what takes long and is the same for every session: load a model, import libraries. Called once, before
        anything of a session is known; an exception ends the instance.

        At isolation `microvm` the machine may be saved behind it, and others go on from there: open no connection
        and keep nothing secret here. What it returns is ignored.
        """

    def on_session_enter(self, context: SessionContext) -> Awaitable[None] | None:
        """Prepare for the session, before its first task. What it returns is ignored."""

    def on_task_invoke(self, context: TaskContext) -> Awaitable[bytes | None] | bytes | None:
        """Run one task and return its output; None means no output, which clients can tell from empty bytes."""

    def on_session_leave(self) -> Awaitable[None] | None:
        """Clean up after the last task. What it returns is ignored."""
