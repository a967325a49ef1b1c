"""Payloads of tasks that are too large for a task: they lie in the object cache, and a parcel stands for them.

Who makes and who reads a payload sees nothing of it: the SDK puts what is over the limit into the cache and sends a
parcel, a mark and a reference; the SDK on the other side fetches what a parcel stands for. Instances load this module,
so it imports nothing that costs time.
"""

from __future__ import annotations

import os

TYPE_CHECKING = False  # like typing's, without its import
if TYPE_CHECKING:
    from flame.objects.client import ObjectClient
    from flame.objects.keys import ObjectRef

MARK = b"\0flame-parcel\0"
SIZE = len(MARK)
VARIABLE = "FLAME_PARCEL_FROM"
_APPLICATION = "parcels"  # what their keys begin with; then comes the session

_sessions: set[str] = set()  # whose parcels this process made or opened


def limit_of(max_payload: int) -> int:
    """Bytes from which on payloads are sent as parcels: the cluster's limit, or what $FLAME_PARCEL_FROM says if that
    is less. 0 = no limit is known."""
    text = os.environ.get(VARIABLE)
    if not text:
        return max_payload
    from flame.model.resources import parse_size

    chosen = parse_size(text)
    return min(chosen, max_payload) if max_payload else chosen


def possible() -> bool:
    """Whether an object cache is configured for this process. Raises InvalidConfigError."""
    if os.environ.get("FLAME_CACHE_ENDPOINT"):
        return True
    from flame.config import load_context

    return load_context().cache is not None


def pack(session_id: str, payload: bytes) -> bytes:
    """Put a payload into the cache; its parcel. Raises FlameError."""
    from flame.objects.default import default_client

    _sessions.add(session_id)
    return MARK + default_client().put(f"{_APPLICATION}/{session_id}", payload).encode()


def opened(payload: bytes) -> bytes:
    """What a parcel stands for; other payloads as they are. Raises FlameError."""
    if payload[:SIZE] != MARK:
        return payload
    from flame.objects.keys import ObjectRef

    ref = ObjectRef.decode(payload[SIZE:])
    _sessions.add(ref.key.split("/")[1])
    return _client(ref).get(ref)


def had(session_id: str) -> bool:
    """Whether this process made or opened parcels of a session that it has not closed."""
    return session_id in _sessions


def session_closed(session_id: str) -> None:
    """Let the parcels of a session go when the cache's retention is over. What fails is no harm: they stay."""
    _sessions.discard(session_id)
    from flame.model.errors import FlameError
    from flame.objects.default import default_client

    try:
        if possible():
            default_client().end_session(f"{_APPLICATION}/{session_id}")
    except FlameError:
        pass


def _client(ref: ObjectRef) -> ObjectClient:
    from flame.objects.default import default_client

    if possible():
        return default_client()
    from flame.objects.client import ObjectClient

    client = _others.get(ref.endpoint)
    if client is None:
        client = _others[ref.endpoint] = ObjectClient(ref.endpoint)
    return client


_others: dict[str, ObjectClient] = {}
