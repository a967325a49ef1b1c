"""The side of the client: `Session`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Self, Unpack, cast

from flame.client.snapshot import TaskArguments
from flame.client.values import ResourceRequirement, SessionAttributes, short_name
from flame.model.resources import parse_size
from flame.objects.nearby import cache_of, on_demand
from flame.runner.application import connection_of_user
from flame.runner.futures import ObjectFuture
from flame.runner.lane import Lane
from flame.runner.payloads import dumps
from flame.runner.storage import Storage
from flame.typed.context import SharedContext, common_data_of

if TYPE_CHECKING:
    from flame.client.synchronous import Connection


class Session:
    """A session of an application that is served by a FlameInstance: requests and answers are Python objects.

    `name` is the application of a new session, `session_id` an open session to use; give one of them. `ctx` is the
    session's context. `resreq` is the size of an instance, also as a dict of cpu, memory (or mem) and gpu or a text.
    `attributes` are further ones of the session (SessionAttributes). Closed at the end of a `with` block.
    """

    def __init__(
        self,
        name: str | None = None,
        ctx: Any = None,
        session_id: str | None = None,
        resreq: ResourceRequirement | Mapping[str, Any] | str | None = None,
        *,
        connection: Connection | None = None,
        **attributes: Any,
    ) -> None:
        if name is None and session_id is None:
            raise ValueError("Either 'name' or 'session_id' must be provided")
        if name is not None and session_id is not None:
            raise ValueError("Cannot provide both 'name' and 'session_id' at the same time")
        connected = connection or connection_of_user()
        if name is None:
            assert session_id is not None
            session = connected.open_session(session_id)
        else:
            chosen = attributes.pop("id", None) or short_name(name)
            cache = cache_of(connected.addr)
            # Instances in a sandbox could not reach the cluster's own cache.
            data = (
                common_data_of(ctx, f"{name}/{chosen}", "" if on_demand(cache) else cache) if ctx is not None else None
            )
            needs = _requirement(resreq)
            session = connected.create_session(
                SessionAttributes(name, id=chosen, common_data=data, resreq=needs, **attributes)
            )
        self._context = SharedContext(session.common_data())
        # Instances that know nothing of this client's cache read the whole request from the task.
        self._lane = Lane(session, Storage(f"{session.application}/{session.id}", ""))
        self._closed = False

    def id(self) -> str:
        """The session's id."""
        return self._lane.session.id

    def submit(self, req: Any = None, **options: Unpack[TaskArguments]) -> ObjectFuture:
        """Send a request; the future can be awaited. `options` are those of the task. Raises RuntimeError after close,
        InvalidArgumentError, TooLargeError."""
        if self._closed:
            raise RuntimeError("the session is closed")
        return self._lane.send(dumps(req, "the request"), self._lane.session.options(**options))

    def invoke(self, req: Any = None, timeout: float | None = None) -> Any:
        """Send a request and wait up to `timeout` seconds for the answer. Raises what the entrypoint raised."""
        return self.submit(req).result(timeout)

    def context(self) -> Any:
        """The context as it is now, None when there is none."""
        return self._context.get()

    def close(self) -> None:
        """Close the session. Raises InvalidStateError while a request is answered; harmless when repeated."""
        if not self._closed:
            self._lane.session.close()
            self._closed = True
            self._context.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if not self._closed:
            if kind is None:
                self._lane.wait()
            self._lane.session.close(force=kind is not None)
            self._closed = True
            self._context.close()


def _requirement(resreq: Any) -> ResourceRequirement | str | None:
    if not isinstance(resreq, Mapping):
        return resreq
    amounts = cast("Mapping[str, Any]", resreq)
    memory = amounts.get("memory", amounts.get("mem", 0))
    size = parse_size(memory) if isinstance(memory, str) else int(memory)
    return ResourceRequirement(int(amounts.get("cpu", 0)), size, int(amounts.get("gpu", 0)))
