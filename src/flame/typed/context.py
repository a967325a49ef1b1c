"""The context of a session: an object that its client gives and its instances see and replace.

With an object cache the common data of the session are a reference to it, and everybody sees the newest one; it is
there as the pickle of the object. Without a cache the common data are that pickle, and it can't be replaced.
"""

from __future__ import annotations

import pickle
from typing import TYPE_CHECKING, Any

from flame.objects.keys import ObjectRef
from flame.runner.payloads import PICKLE, dumps
from flame.runner.storage import no_cache

if TYPE_CHECKING:
    from flame.objects.client import ObjectClient


class SharedContext:
    """It, as common data tell where it is; None = there is none."""

    def __init__(self, common_data: bytes | None) -> None:
        self._inline = common_data if common_data and common_data[:1] == PICKLE else None
        self._ref = ObjectRef.decode(common_data) if common_data and self._inline is None else None
        self._client: ObjectClient | None = None

    def _cache(self, ref: ObjectRef) -> ObjectClient:
        if self._client is None:
            from flame.objects.client import ObjectClient

            self._client = ObjectClient(ref.endpoint)
        return self._client

    def get(self) -> Any:
        """The newest one, the caller's own."""
        if self._inline is not None:
            return pickle.loads(self._inline)
        return None if self._ref is None else pickle.loads(self._cache(self._ref).get(self._ref))

    def update(self, value: Any) -> None:
        """Replace it. Does nothing when there is none. Raises InvalidConfigError without a cache."""
        if self._inline is not None:
            raise no_cache("replacing the context of a session")
        if self._ref is not None:
            self._ref = self._cache(self._ref).update(self._ref, dumps(value, "the context"))

    def close(self) -> None:
        """End the connection to the cache."""
        if self._client is not None:
            self._client.close()


def common_data_of(value: Any, prefix: str, cache: str) -> bytes:
    """Common data for a session with this context. `cache`: endpoint of the object cache, if there is one. Raises
    InvalidArgumentError when it can't be pickled."""
    pickled = dumps(value, "the context")
    if not cache:
        return pickled
    from flame.objects.client import ObjectClient

    with ObjectClient(cache) as client:
        return client.put(prefix, pickled).encode()
