"""Payloads of tasks that are too large for a task: they lie in the object cache, and a parcel stands for them.

Who makes and who reads a payload sees nothing of it: the SDK puts what is over the limit into the cache and sends a
parcel, a mark and a reference; the SDK on the other side fetches what a parcel stands for. Instances load this module,
so it imports nothing that costs time.
"""

from __future__ import annotations

import os

from flame.objects.nearby import cache_of, configured

TYPE_CHECKING = False  # like typing's, without its import
if TYPE_CHECKING:
    from collections.abc import Iterable

    from flame.objects.client import ObjectClient

MARK = b"\0flame-parcel\0"
SIZE = len(MARK)
VARIABLE = "FLAME_PARCEL_FROM"
# What to do about a payload that is too large where there is no object cache.
REMEDY = (
    "raise cluster.limits.max_payload, or set up an object cache: flmadm up --cache HOST:PORT, or "
    "flame-object-cache and FLAME_CACHE_ENDPOINT"
)
APPLICATION = "parcels"  # what their keys begin with; then comes the session

_sessions: dict[str, ObjectClient] = {}  # whose parcels this process made or opened, and where they are


def limit_of(max_payload: int) -> int:
    """Bytes from which on payloads are sent as parcels: the cluster's limit, or what $FLAME_PARCEL_FROM says if that
    is less. 0 = no limit is known."""
    text = os.environ.get(VARIABLE)
    if not text:
        return max_payload
    from flame.model.resources import parse_size

    chosen = parse_size(text)
    return min(chosen, max_payload) if max_payload else chosen


def possible(address: str) -> bool:
    """Whether there is an object cache for this process, which talks to the cluster at an address.

    Raises InvalidConfigError."""
    return bool(os.environ.get("FLAME_CACHE_ENDPOINT") or cache_of(address))


def wanted(size: int, max_payload: int, address: str) -> bool:
    """Whether a payload of so many bytes goes into the cache. `max_payload` is the cluster's limit, `address` where it
    is. Raises InvalidConfigError."""
    return size > limit_of(max_payload) > 0 and possible(address)


def pack(session_id: str, payload: bytes, address: str) -> bytes:
    """Put a payload for the cluster at an address into the cache; its parcel. Raises FlameError."""
    client = _client_at(cache_of(address))
    _sessions.setdefault(session_id, client)
    return MARK + client.put(f"{APPLICATION}/{session_id}", payload).encode()


def opened(payload: bytes) -> bytes:
    """What a parcel stands for; other payloads as they are. Raises FlameError."""
    if payload[:SIZE] != MARK:
        return payload
    from flame.objects.keys import ObjectRef

    ref = ObjectRef.decode(payload[SIZE:])
    client = _client_at(configured() or ref.endpoint)
    _sessions.setdefault(ref.key.split("/")[1], client)
    return client.get(ref)


def free(payloads: Iterable[bytes]) -> None:
    """Delete what these parcels stand for. Raises FlameError."""
    from flame.objects.keys import ObjectRef

    refs = [ObjectRef.decode(payload[SIZE:]) for payload in payloads]
    _client_at(configured() or refs[0].endpoint).delete_many(refs)


def had(session_id: str) -> bool:
    """Whether this process made or opened parcels of a session that it has not closed."""
    return session_id in _sessions


def session_closed(session_id: str) -> None:
    """Let the parcels of a session go when the cache's retention is over. What fails is no harm: they stay."""
    from flame.model.errors import FlameError

    client = _sessions.pop(session_id, None)
    if client is None:
        return
    try:
        client.end_session(f"{APPLICATION}/{session_id}")
    except FlameError:
        pass


def _client_at(endpoint: str) -> ObjectClient:
    from flame.objects.default import client_at

    return client_at(endpoint)
