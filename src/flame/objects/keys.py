"""Names of objects and references to them.

A key is `<application>/<session>/<object>`, a prefix `<application>/<session>`. The session `shared` is for objects of
all sessions, `pkg` for packages; `*` means all sessions and occurs only where something is deleted or listed.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass

from flame.model.object_keys import MAX_PART, WILDCARD_SESSION, InvalidKeyError, check_key, check_parts, parts_of
from flame.objects import bson

__all__ = ["MAX_PART", "SHARED_SESSION", "WILDCARD_SESSION", "InvalidKeyError", "ObjectKey", "ObjectRef"]

SHARED_SESSION = "shared"


@dataclass(frozen=True)
class ObjectKey:
    """A key or, without `object_id`, a prefix. Raises InvalidKeyError for parts that could be paths."""

    app_name: str
    session_id: str
    object_id: str | None = None

    def __post_init__(self) -> None:
        check_parts(self.app_name, self.session_id, self.object_id)

    @classmethod
    def from_path(cls, path: str) -> ObjectKey:
        """The key or prefix in a text of two or three parts."""
        return cls(*parts_of(path))

    @classmethod
    def from_prefix(cls, prefix: str) -> ObjectKey:
        """The prefix in a text of two parts."""
        key = cls.from_path(prefix)
        if key.object_id is not None:
            raise InvalidKeyError(f"{prefix!r} is a key, not a prefix", remedy="write APPLICATION/SESSION")
        return key

    @classmethod
    def from_key(cls, key: str) -> ObjectKey:
        """The key in a text of three parts."""
        check_key(key)
        return cls(*parts_of(key))

    @classmethod
    def for_shared(cls, app_name: str) -> ObjectKey:
        """The prefix of the objects that all sessions of an application share."""
        return cls(app_name, SHARED_SESSION)

    @classmethod
    def for_all_sessions(cls, app_name: str) -> ObjectKey:
        """All objects of an application."""
        return cls(app_name, WILDCARD_SESSION)

    def is_all_sessions(self) -> bool:
        """Whether this means all sessions of the application."""
        return self.session_id == WILDCARD_SESSION

    def with_generated_id(self) -> ObjectKey:
        """A new key with this prefix."""
        return ObjectKey(self.app_name, self.session_id, str(uuid.uuid4()))

    def to_prefix(self) -> str:
        """`<application>/<session>`."""
        return f"{self.app_name}/{self.session_id}"

    def to_key(self) -> str | None:
        """`<application>/<session>/<object>`, None for a prefix."""
        return None if self.object_id is None else f"{self.app_name}/{self.session_id}/{self.object_id}"

    def matches_key(self, key: str) -> bool:
        """Whether a full key is this one, or lies under this prefix."""
        parts = key.split("/")
        if len(parts) != 3 or not all(parts) or parts[0] != self.app_name:
            return False
        if self.is_all_sessions():
            return True
        return parts[1] == self.session_id and self.object_id in (None, parts[2])

    def __str__(self) -> str:
        return self.to_key() or self.to_prefix()


@dataclass
class ObjectRef:
    """Where an object is. `version` 0 asks for everything anew; caches count versions from 1."""

    endpoint: str
    key: str
    version: int = 0

    def encode(self) -> bytes:
        """The reference as BSON, as task inputs and outputs carry it."""
        return bson.encode({"endpoint": self.endpoint, "key": self.key, "version": self.version})

    @classmethod
    def decode(cls, data: bytes) -> ObjectRef:
        """The reference in a BSON document. Raises ValueError when it is none."""
        document = bson.decode(bytes(data))
        endpoint, key, version = (document.get(name) for name in ("endpoint", "key", "version"))
        if not isinstance(endpoint, str) or not isinstance(key, str) or not isinstance(version, int):
            raise ValueError(f"not a reference to an object: {sorted(document)}")
        return cls(endpoint, key, version)
