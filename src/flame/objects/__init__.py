"""Objects in the cache of a cluster, by reference.

`put`, `get`, `update`, `patch`, `upload`, `download`, `delete`, `exists`, `list_objects` and `end_session` use one
client of this process; the names with `_object` are the same functions for programs written for `flamepy`. An
`ObjectClient` of your own, or its twin for asyncio, `AsyncObjectClient`, talks to a cache of your choice.
"""

from __future__ import annotations

TYPE_CHECKING = False  # as typing's, without its import
if TYPE_CHECKING:
    from typing import Any

    from flame.objects.aio import AsyncObjectClient
    from flame.objects.client import ObjectClient
    from flame.objects.default import (
        close,
        default_client,
        delete,
        delete_objects,
        download,
        download_object,
        end_session,
        exists,
        get,
        get_object,
        list_objects,
        patch,
        patch_object,
        put,
        put_object,
        update,
        update_object,
        upload,
        upload_object,
    )
    from flame.objects.keys import WILDCARD_SESSION, InvalidKeyError, ObjectKey, ObjectRef
    from flame.objects.messages import CacheStatus, ObjectInfo

__all__ = [
    "WILDCARD_SESSION",
    "AsyncObjectClient",
    "CacheStatus",
    "InvalidKeyError",
    "ObjectClient",
    "ObjectInfo",
    "ObjectKey",
    "ObjectRef",
    "close",
    "default_client",
    "delete",
    "delete_objects",
    "download",
    "download_object",
    "end_session",
    "exists",
    "get",
    "get_object",
    "list_objects",
    "patch",
    "patch_object",
    "put",
    "put_object",
    "update",
    "update_object",
    "upload",
    "upload_object",
]

_SOURCES = {
    "flame.objects.aio": "AsyncObjectClient",
    "flame.objects.client": "ObjectClient",
    "flame.objects.default": (
        "close default_client delete delete_objects download download_object end_session exists get get_object "
        "list_objects patch patch_object put put_object update update_object upload upload_object"
    ),
    "flame.objects.keys": "WILDCARD_SESSION InvalidKeyError ObjectKey ObjectRef",
    "flame.objects.messages": "CacheStatus ObjectInfo",
}
_SOURCE_OF = {name: module for module, names in _SOURCES.items() for name in names.split()}


def __getattr__(name: str) -> Any:
    if name not in _SOURCE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    try:
        module = importlib.import_module(_SOURCE_OF[name])
    except ModuleNotFoundError as error:
        if error.name not in ("pyarrow", "cloudpickle"):
            raise
        from flame.model.errors import InvalidConfigError

        raise InvalidConfigError(
            f"objects need the package {error.name}", remedy="pip install flame-engine[cache]"
        ) from error
    value = getattr(module, name)
    globals()[name] = value
    return value
