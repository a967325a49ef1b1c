"""Objects without a client at hand: one client for the process, made when it is first used."""

from __future__ import annotations

import os
import threading
from typing import Any

from flame.objects.client import Deserializer, ObjectClient
from flame.objects.keys import ObjectKey, ObjectRef
from flame.objects.messages import ObjectInfo
from flame.objects.nearby import configured

_lock = threading.Lock()
_client: ObjectClient | None = None
_others: dict[str, ObjectClient] = {}  # of caches that are not the configured one, by endpoint


def default_client() -> ObjectClient:
    """The client of this process, for the cache of this user's context. Raises InvalidConfigError."""
    global _client
    with _lock:
        if _client is None:
            _client = ObjectClient()
        return _client


def client_at(endpoint: str) -> ObjectClient:
    """The client of this process for the cache at an endpoint. Raises InvalidConfigError."""
    if endpoint == configured():
        return default_client()
    with _lock:
        client = _others.get(endpoint)
        if client is None:
            client = _others[endpoint] = ObjectClient(endpoint)
        return client


def close() -> None:
    """End the clients of this process. The next use makes others, for the settings of that time."""
    global _client
    with _lock:
        clients = [*_others.values(), *([_client] if _client is not None else [])]
        _others.clear()
        _client = None
    for client in clients:
        client.close()


def put(
    key_or_prefix: str, value: Any, *, expected: int | None = None, ttl: float | None = None, tenant: str = ""
) -> ObjectRef:
    """Store an object under a key or below `APPLICATION/SESSION`; see ObjectClient.put."""
    return default_client().put(key_or_prefix, value, expected=expected, ttl=ttl, tenant=tenant)


def put_object(key_prefix: str, obj: Any) -> ObjectRef:
    """Store an object below `APPLICATION/SESSION`. Raises ValueError for anything else."""
    ObjectKey.from_prefix(key_prefix)
    return default_client().put(key_prefix, obj)


def get(ref: ObjectRef, deserializer: Deserializer | None = None) -> Any:
    """The object of a reference; see ObjectClient.get."""
    return default_client().get(ref, deserializer)


def update(ref: ObjectRef, value: Any, *, expected: int | None = None, ttl: float | None = None) -> ObjectRef:
    """Replace an object and its patches; see ObjectClient.update."""
    return default_client().update(ref, value, expected=expected, ttl=ttl)


def patch(ref: ObjectRef, delta: Any, *, expected: int | None = None) -> ObjectRef:
    """Append a patch to an object."""
    return default_client().patch(ref, delta, expected=expected)


def upload(key_or_prefix: str, file_path: str | os.PathLike[str], *, ttl: float | None = None) -> ObjectRef:
    """Store a file as it is. Raises FileNotFoundError."""
    return default_client().upload(key_or_prefix, file_path, ttl=ttl)


def download(ref: ObjectRef, dest_path: str | os.PathLike[str]) -> None:
    """Write an object's payload to a file."""
    default_client().download(ref, dest_path)


def delete(target: ObjectRef | str) -> None:
    """Delete an object by reference or key, or all of `APPLICATION/SESSION` or `APPLICATION/*`."""
    default_client().delete(target)


def exists(target: ObjectRef | str) -> ObjectInfo | None:
    """Version and size of an object, None when there is none."""
    return default_client().exists(target)


def list_objects(prefix: str) -> list[ObjectInfo]:
    """The objects of `APPLICATION/SESSION` or `APPLICATION/*`."""
    return list(default_client().list(prefix))


def end_session(prefix: str, after: float | None = None) -> None:
    """Let all objects of a session go away after so many seconds (None: the cache's `session_retention`)."""
    default_client().end_session(prefix, after)


get_object, update_object, patch_object = get, update, patch
upload_object, download_object, delete_objects = upload, download, delete
