"""A service with a state that moves into the process that waits for it, since the cluster has no room for its instance.

That is sound as long as no instance has answered: the session is closed first, so none ever will. If one was quicker,
the state that it had is lost, as when it dies.
"""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from flame.client.futures import CancelledTaskError, Settled, TaskFuture, settle
from flame.model.errors import FlameError, TaskCancelledError
from flame.runner.payloads import STATE, STATE_ID

if TYPE_CHECKING:
    from flame.client.stream import TaskStream
    from flame.client.synchronous_session import Session
    from flame.runner.futures import ObjectFuture


class Host:
    """Answers the calls of a session one after another in a thread, first those that wait for the cluster. `answer`
    makes a call, or says how it failed; `lost` is what calls get when an instance had the state."""

    def __init__(
        self,
        session: Session,
        stream: TaskStream,
        waiting: Mapping[ObjectFuture, bytes],
        answer: Callable[[bytes], bytes | FlameError],
        lost: FlameError,
    ) -> None:
        self.stream = stream  # that of all futures, also of those to come
        self._session = session
        self._answer = answer
        self._lost = lost
        self._had_state = False
        self._closed = False
        self._state = os.urandom(STATE_ID)
        self._calls: queue.SimpleQueue[tuple[ObjectFuture, bytes] | None] = queue.SimpleQueue()
        threading.Thread(target=self._run, args=(waiting,), name="flame-host", daemon=True).start()

    def submit(self, future: ObjectFuture, call: bytes) -> None:
        """One more call."""
        self._calls.put((future, call))

    def close(self) -> None:
        """Cancel the calls whose turn has not come."""
        self._closed = True
        self._calls.put(None)

    def _run(self, waiting: Mapping[ObjectFuture, bytes]) -> None:
        for future, value in self._take_over(waiting):
            if isinstance(value, TaskCancelledError):
                self._serve(future, waiting[future])
            elif not future.done():
                self._give(future, value)
        while (entry := self._calls.get()) is not None:
            self._serve(*entry)

    def _take_over(self, waiting: Mapping[ObjectFuture, bytes]) -> list[tuple[ObjectFuture, Settled]]:
        """Close the session. What becomes of its tasks goes to other futures; the answer says what that was."""
        stand_ins = [(future, TaskFuture(self.stream)) for future in waiting]

        async def hand_over() -> None:
            for future, stand_in in stand_ins:
                self.stream.hand_over(future, stand_in)

        self._session.connection.thread.run(hand_over())
        self._session.close(force=True)
        outcomes = [(future, _outcome(future, stand_in)) for future, stand_in in stand_ins]
        self._had_state = not all(isinstance(value, TaskCancelledError) for _, value in outcomes)
        return outcomes

    def _serve(self, future: ObjectFuture, call: bytes) -> None:
        if self._had_state:
            self._give(future, self._lost)
        elif self._closed or future._cancel_wanted:  # pyright: ignore[reportPrivateUsage]
            self._give(future, CancelledTaskError("cancelled before its turn came"))
        else:
            result = self._answer(call)
            self._give(future, STATE + self._state + result if isinstance(result, bytes) else result)

    def _give(self, future: ObjectFuture, value: Settled) -> None:
        async def give() -> None:
            settle(self.stream.lock, (future,), (value,), plain=False)

        self._session.connection.thread.run(give())


def _outcome(future: ObjectFuture, stand_in: TaskFuture) -> Settled:
    """What the task of a call came to, which may have been before anything was handed over."""
    if future.done():
        return future.outcome
    try:
        return stand_in.result()
    except FlameError as error:
        return error
