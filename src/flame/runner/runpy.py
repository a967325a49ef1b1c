"""The service behind Runner, Executor and remote functions: `python -m flame.runner.runpy`, or `flmrun-service`.

The common data of its session says what it serves; tasks are calls of that. It also serves sessions of the Runner of
`flamepy`, whose pickles name that package: it must be installed beside Flame then.
"""

from __future__ import annotations

import os
import pickle
import sys
from typing import Any

from flame.model.errors import InvalidArgumentError, TooLargeError
from flame.objects.parcels import REMEDY
from flame.runner import payloads
from flame.runner.payloads import PICKLE, SERVED, STATE, STATE_ID, TAG, Served
from flame.runner.storage import here
from flame.runner.versions import check_libraries, check_versions
from flame.service.api import FlameService, SessionContext, TaskCancelled, TaskContext
from flame.service.runtime import run

TYPE_CHECKING = False  # like typing's, without its import
if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from flame.runner.foreign import ForeignRunner

_KNOWN_FUNCTIONS = 256  # of an Executor; each submission brings its function's pickle


class FlameRunpyService(FlameService):
    """Serves one function, class or object; or, for an Executor, whatever functions its calls bring."""

    def __init__(self) -> None:
        self._target: Any = None
        self._fault: BaseException | None = None  # why nothing can be served
        self._calls = False
        self._state = b""  # the name of the state of a stateful service
        self._durable = False  # its state is saved after each call
        self._home = ""  # where
        self._body = b""
        self._libraries: dict[str, str] = {}  # the client's, with their versions
        self._seen = 0  # modules that were loaded when those were compared last
        self._foreign: ForeignRunner | None = None  # what is served in its place
        self._functions: dict[bytes, Callable[..., Any]] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._max_payload = int(os.environ.get("FLAME_MAX_PAYLOAD") or sys.maxsize)

    def on_session_enter(self, context: SessionContext) -> None:
        """Load what is to be served. When that fails, each call fails with the reason."""
        data = context.common_data() or b""
        try:
            if data[:TAG] == SERVED:
                self._serve(Served.decode(data))
            elif _is_foreign(data):
                from flame.runner.foreign import ForeignRunner

                self._foreign = ForeignRunner(data, context.application.name, context.session_id)
            else:
                raise InvalidArgumentError(
                    "the session's common data says nothing that a Runner could serve",
                    remedy="make sessions of this application with flame.Runner",
                )
        except (Exception, SystemExit) as error:
            self._fault = error

    def _serve(self, served: Served) -> None:
        check_versions(served)
        self._libraries = served.libraries
        self._calls = served.calls
        self._durable, self._home, self._body = served.durable, served.home, here().payload(served.body)
        if served.calls:
            initializer, args = self._load(self._body, "the initializer")
            if initializer is not None:
                initializer(*args)
            return
        if served.stateful and not served.durable:
            self._state = os.urandom(STATE_ID)
        self._restore()

    def _restore(self) -> None:
        """Make what is served: as it was saved, or anew."""
        saved = here().load_state(self._home) if self._durable else None
        if saved is not None:
            self._target = self._load(saved, "the saved state")
            return
        body = self._load(self._body, "what this session serves")
        if isinstance(body.execution_object, type):
            self._target = body.execution_object(*body.args, **body.kwargs)
        else:
            self._target = body.execution_object

    def _load(self, data: bytes, what: str) -> Any:
        """Unpickle. Raises InvalidArgumentError that says what is missing here, or which library differs."""
        try:
            loaded = pickle.loads(data)
        except (Exception, SystemExit) as error:
            check_libraries(self._libraries)
            missing = (
                "install that there, or give the Runner dependencies=[...] or package=FOLDER "
                "(what .gitignore or .flameignore name in it is not sent)"
            )
            raise InvalidArgumentError(
                f"{what} can't be loaded by the executor: {type(error).__name__}: {error}",
                remedy=missing if isinstance(error, ImportError) else "",
            ) from error
        if len(sys.modules) != self._seen:  # it brought some
            self._seen = len(sys.modules)
            check_libraries(self._libraries)
        return loaded

    def on_task_invoke(self, context: TaskContext) -> bytes:
        """Make the call. Raises TaskFailure with the exception that it raised."""
        try:
            if self._fault is not None:
                raise self._fault
            result = self._invoke(context.input or b"")
            if self._durable:
                here().save_state(self._target, self._home)
            return result
        except (TaskCancelled, KeyboardInterrupt):
            raise
        except BaseException as error:  # what else ends a program, such as sys.exit, ends the call only
            if self._durable and self._fault is None:
                self._restore()
            from flame.runner.failures import failure_of

            raise failure_of(error, hidden=3) from None

    def _invoke(self, data: bytes) -> bytes:
        if self._foreign is not None:
            made, changed = self._foreign.call(data)
            return self._foreign.output(self._awaited(made), changed=changed)
        if data[:1] == PICKLE and not self._state:
            return self._encode(self._call(*pickle.loads(data)))
        if data[:TAG] == STATE:
            known = data[TAG : TAG + STATE_ID]
            if known not in (self._state, bytes(STATE_ID)):
                from flame.runner.lane import lost_state

                raise lost_state(os.environ.get("FLAME_APPLICATION", ""))
            return STATE + self._state + self._encode(self._call(*here().call(data[TAG + STATE_ID :])))
        return self._encode(self._call(*here().call(data)))

    def _call(self, method: str | None, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self._calls:
            function, *args = args  # pyright: ignore[reportAssignmentType]
            made = self._function(function)(*args, **kwargs)
        elif (references := sys.modules.get("flame.objects.keys")) is not None:
            made = self._call_with_objects(method, args, kwargs, references.ObjectRef)
        elif method is None:
            made = self._target(*args, **kwargs)
        else:
            made = getattr(self._target, method)(*args, **kwargs)
        return self._awaited(made)

    def _call_with_objects(self, method: str | None, args: Any, kwargs: dict[str, Any], kind: type) -> Any:
        """Call it with the objects of references among the arguments."""
        args = [here().get(value) if isinstance(value, kind) else value for value in args]
        kwargs = {name: here().get(value) if isinstance(value, kind) else value for name, value in kwargs.items()}
        return (self._target if method is None else getattr(self._target, method))(*args, **kwargs)

    def _function(self, pickled: Any) -> Callable[..., Any]:
        function = self._functions.get(pickled)
        if function is None:
            if len(self._functions) >= _KNOWN_FUNCTIONS:
                self._functions.clear()
            function = self._functions[pickled] = self._load(pickled, "the function")
        return function

    def _awaited(self, made: Any) -> Any:
        return self._wait_for(made) if hasattr(made, "__await__") else made

    def _wait_for(self, awaitable: Any) -> Any:
        import asyncio

        async def wait() -> Any:
            return await awaitable

        if self._loop is None:
            self._loop = asyncio.new_event_loop()
        return self._loop.run_until_complete(wait())

    def _encode(self, value: Any) -> bytes:
        storage = here()
        stored = storage.keep_value(value) if storage.configured else None
        if stored is not None:
            return stored
        result = payloads.dumps(value, f"the result, a {type(value).__name__},")
        if len(result) > storage.threshold:
            return storage.keep(result)
        if len(result) > self._max_payload:
            raise TooLargeError(
                f"the result has {len(result)} bytes, a task's output may have {self._max_payload}",
                remedy=REMEDY,
            )
        return result

    def on_session_leave(self) -> None:
        """Close what this service itself opened."""
        if self._foreign is not None:
            self._foreign.close()
        if self._loop is not None:
            self._loop.close()


def _is_foreign(data: bytes) -> bool:
    """Whether the session is one of the Runner of flamepy."""
    if not data:
        return False
    from flame.runner.foreign import is_reference

    return is_reference(data)


def main() -> None:
    """The console script `flmrun-service`."""
    run(FlameRunpyService())


if __name__ == "__main__":
    # Pickles name this module as it is imported, not as it is run.
    from flame.runner.runpy import main as imported_main

    imported_main()
