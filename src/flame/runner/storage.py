"""Where large arguments and results go: into the object cache if there is one, else with the task itself."""

from __future__ import annotations

import contextlib
import os
import pickle
import queue
import sys
import threading
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from flame.model.errors import FlameError, InvalidArgumentError, InvalidConfigError, TooLargeError
from flame.objects.nearby import on_demand
from flame.objects.parcels import opened
from flame.runner.payloads import (
    PICKLE,
    PLAIN,
    STORED,
    STORED_VALUE,
    TAG,
    VALUES,
    Call,
    Served,
    dumps,
    is_stored,
    load_call,
    parts_of,
)

if TYPE_CHECKING:
    from flame.objects.client import ObjectClient
    from flame.objects.keys import ObjectRef

# Below, a task carries it as quickly as the cache would, and keeps it as safe as itself.
THRESHOLD = 1 << 20  # bytes
_STATE = "state"  # the object that has a service's state
_NATIVE = frozenset({"numpy", "torch", "pyarrow", "pandas", "polars"})  # whose objects the cache keeps without a pickle


class Storage:
    """The objects of one session. `cache` is the endpoint of the object cache that they go to, empty: there is none;
    `max_payload` is what a task carries at most, in bytes."""

    def __init__(self, prefix: str, cache: str, max_payload: int = 0) -> None:
        self._prefix = prefix
        self._endpoint = cache
        self.configured = bool(cache)
        self.threshold = THRESHOLD if cache else sys.maxsize
        if on_demand(cache):
            self.threshold = max_payload or sys.maxsize
        self._client: ObjectClient | None = None  # made when the first object is written or read
        self._cleared = False
        self._freed: deque[bytes] = deque()

    def _cache(self, ref: ObjectRef | None = None) -> ObjectClient:
        """The client of the configured cache; where none is, that of the cache which a reference names."""
        if self._client is None:
            from flame.objects.client import ObjectClient

            if not self.configured and ref is None:
                raise no_cache("this")
            self._client = ObjectClient(self._endpoint or (ref.endpoint if ref else None))
        return self._client

    # --- writing ---------------------------------------------------------------------------------------------------

    def keep(self, payload: bytes) -> bytes:
        """Put a payload into the cache; what stands for it."""
        return STORED + self.put(payload).encode()

    def put(self, value: Any) -> ObjectRef:
        """Put a value into the cache."""
        return self._cache().put(self._prefix, value)

    def common_data(self, served: Served) -> bytes:
        """The common data of a session that serves this. Raises TooLargeError."""
        if len(served.body) > self.threshold:
            served = served._replace(body=self.keep(served.body))
        return served.encode()

    def keep_value(self, value: Any) -> bytes | None:
        """Put a value into the cache as it is, if it is large and needs no pickle there; what stands for it."""
        if type(value) in PLAIN or not self.configured or _native_size(value) <= self.threshold:
            return None
        return STORED_VALUE + self.put(value).encode()

    # --- reading ---------------------------------------------------------------------------------------------------

    def payload(self, stored: bytes) -> bytes:
        """The payload that `keep`, or the SDK below, put away; others as they are."""
        if stored[:TAG] != STORED:
            return opened(stored)
        ref = _ref_of(stored)
        return self._cache(ref).get(ref)

    def call(self, data: bytes) -> Call:
        """The call in a task's input. Raises whatever loading its arguments raises."""
        data = self.payload(data)
        if data[:TAG] == VALUES:
            call, results = parts_of(data)
            return load_call(self.payload(call), [self.value(result) for result in results])
        if data[:1] == PICKLE:
            return pickle.loads(data)
        raise InvalidArgumentError("the input of this task is no call of a Runner")

    def value(self, result: bytes) -> Any:
        """The value of a result."""
        if result[:TAG] == STORED_VALUE:
            ref = _ref_of(result)
            return self._cache(ref).get(ref)
        payload = self.payload(result)
        if payload[:1] != PICKLE:
            raise pickle.UnpicklingError("what the task returned is no result of a Runner")
        return pickle.loads(payload)

    def get(self, ref: ObjectRef) -> Any:
        """The object of a reference."""
        return self._cache(ref).get(ref)

    def reference(self, result: bytes) -> ObjectRef:
        """A reference to the value of a result, which is put into the cache if only its pickle or nothing is there."""
        if result[:TAG] == STORED_VALUE:
            return _ref_of(result)
        return self.put(self.value(result))

    # --- the state of a service -------------------------------------------------------------------------------------

    def home(self) -> str:
        """Where the states of services that are made here shall be: at this program's cache, since each node may have
        another one. Empty where there is but one, which has no address for all. Raises FlameError."""
        from flame.objects.messages import RELAY

        one = on_demand(self._endpoint) or self._endpoint.startswith(RELAY)
        return "" if one else self._cache().status().endpoint

    def save_state(self, target: Any, home: str) -> None:
        """Keep the state of what is served. Raises InvalidArgumentError when it can't be pickled."""
        self._cache().update(self._state(home), dumps(target, "the state of the service"))

    def load_state(self, home: str) -> bytes | None:
        """The pickle of the state that was kept last; None before the first."""
        ref = self._state(home)
        return None if self._cache().exists(ref) is None else self._cache().get(ref)

    def _state(self, home: str) -> ObjectRef:
        from flame.objects.keys import ObjectRef

        return ObjectRef(home or self._cache().endpoint, f"{self._prefix}/{_STATE}")

    # --- deleting --------------------------------------------------------------------------------------------------

    def free(self, stored: bytes) -> None:
        """Delete what stands for something in the cache, soon and in the background."""
        if not self._cleared and is_stored(stored):
            self._freed.append(stored)
            background.do(self._delete_freed)

    def _delete_freed(self) -> None:
        """All that came meanwhile, in one request."""
        refs = [_ref_of(self._freed.popleft()) for _ in range(len(self._freed))]
        if refs and not self._cleared:
            with contextlib.suppress(FlameError):  # as below
                self._cache(refs[0]).delete_many(refs)

    @property
    def _runs(self) -> bool:
        """Whether there is a cache that need not be started to be asked."""
        return self.configured and (self._client is not None or not on_demand(self._endpoint))

    def end(self) -> None:
        """The session is over: let its objects go when the cache's retention is. It may be forgotten before the cache
        looks how its sessions fare."""
        if self._runs:
            with contextlib.suppress(FlameError):  # as below
                self._cache().end_session(self._prefix)

    def clear(self) -> None:
        """Delete all that is left of the session's objects."""
        self._cleared = True
        if self._runs:  # else: what instances left there goes with the session
            self._delete(self._prefix)

    def _delete(self, what: ObjectRef | str) -> None:
        try:
            self._cache(None if isinstance(what, str) else what).delete(what)
        except FlameError:
            pass  # it goes when the cache is told that the session is over, or with the cache

    def too_large(self, error: TooLargeError) -> TooLargeError:
        """The error for a call that is over the limit of a task's input."""
        return TooLargeError(error.message, remedy=error.remedy)


class StoredArgument:
    """Stands in a call for an argument that is in the cache."""

    def __init__(self, stored: bytes) -> None:
        self.stored = stored

    def __reduce__(self) -> Any:
        return fetched, (self.stored,)


def fetched(stored: bytes) -> Any:
    """Stands in pickles, under this name, where a large argument was."""
    return here().value(stored)


_here: Storage | None = None


def here() -> Storage:
    """The storage of the session that this process serves."""
    global _here
    if _here is None:
        prefix = f"{os.environ.get('FLAME_APPLICATION', 'flmrun')}/{os.environ.get('FLAME_SESSION_ID', 'shared')}"
        limit = int(os.environ.get("FLAME_MAX_PAYLOAD") or 0)
        _here = Storage(prefix, os.environ.get("FLAME_CACHE_ENDPOINT", ""), limit)
    return _here


def no_cache(what: str) -> InvalidConfigError:
    """Something needs the object cache where none is configured."""
    return InvalidConfigError(
        f"{what} needs the object cache, and none is configured here",
        remedy="flmadm up --cache HOST:PORT, or flame-object-cache and FLAME_CACHE_ENDPOINT",
    )


def _ref_of(stored: bytes) -> ObjectRef:
    from flame.objects.keys import ObjectRef

    return ObjectRef.decode(stored[TAG:])


def _native_size(value: Any) -> int:
    """Bytes of an array, a tensor or a table; 0 for everything else."""
    if type(value).__module__.partition(".")[0] not in _NATIVE:
        return 0
    size: Any = getattr(value, "nbytes", None)
    if size is not None:
        return int(size)
    if hasattr(value, "estimated_size"):  # polars
        return int(value.estimated_size())
    return int(value.memory_usage(index=True).sum()) if hasattr(value, "memory_usage") else 0


class _Background:
    """A thread that does small things one after another, as long as there are any."""

    def __init__(self) -> None:
        # Futures come here from wherever they happen to go, also while this very thread is in here.
        self._lock = threading.RLock()
        self._work: queue.SimpleQueue[Callable[[], object]] = queue.SimpleQueue()
        self._process = 0

    def do(self, what: Callable[[], object]) -> None:
        """Do it soon."""
        with self._lock:
            if self._process != os.getpid():
                self._process, self._work = os.getpid(), queue.SimpleQueue()
                threading.Thread(target=self._run, name="flame-objects", daemon=True).start()
        self._work.put(what)

    def _run(self) -> None:
        while True:
            self._work.get()()


background = _Background()
