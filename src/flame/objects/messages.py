"""What clients of this package and the cache say to each other, beyond the contract with foreign clients.

On a node both sides speak these messages over a unix socket (`shared.py`); elsewhere the same requests travel as
Flight descriptors, tickets and actions in JSON.
"""

from __future__ import annotations

import math
from pathlib import Path

import msgspec

from flame.model.errors import FlameError, InvalidArgumentError

INLINE = 64 * 1024  # bytes up to which a payload travels in its message instead of through shared memory
CHUNK = 256 * 1024  # bytes of one record batch of a stream: small enough for the processor's cache
LEAD = 60  # a payload begins so far behind a multiple of 64: its four bytes of tag end where Arrow's alignment begins
UNIX = "unix:"  # begins endpoints of caches for clients of one user on their node: the path of a socket follows
# Begins endpoints in a sandbox: the path of a socket follows at which the executor manager passes on what is allowed.
RELAY = "relay:"
RELAY_LINK = f"{RELAY}link"  # the same where no socket reaches: the link of a service carries it (service/switch.py)
RELAY_IDLE = 5.0  # seconds; a connection that is idle for so long is ended there
MAX_LISTED = 10_000  # objects in one answer to LIST
TICKET = b"\x01"  # begins tickets and commands of our own; no key does

ACTIONS = {
    "DELETE": "delete a key, a prefix or APPLICATION/*",
    "DELETE_MANY": "delete keys",
    "EXISTS": "whether a key exists: version and size",
    "LIST": "the objects under a prefix",
    "TTL": "let an object go away after a time",
    "END_SESSION": "let all objects of a session go away after a time",
    "STAT": "what the cache holds",
    "LOCAL": "where clients of this node connect",
}


def flight_beside(path: Path) -> Path:
    """The socket for Flight of the cache whose door is at a path."""
    return path.with_name(f"{path.name}.flight")


class Failure(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """A FlameError."""

    code: int
    message: str
    remedy: str = ""
    retryable: bool = False

    @classmethod
    def of(cls, error: FlameError) -> Failure:
        """An error as it is said."""
        return cls(int(error.code), error.message, error.remedy, error.retryable)


class InvalidTimeError(InvalidArgumentError, ValueError):
    """No number of seconds. As a ValueError it is a malformed message where it comes from elsewhere."""


def _check_seconds(what: str, seconds: float | None, remedy: str) -> None:
    try:
        good = seconds is None or 0 <= seconds < math.inf  # NaN is neither
    except TypeError:  # who checks no types may give anything
        good = False
    if not good:
        raise InvalidTimeError(f"{what} {seconds!r} is no number of seconds from 0 on", remedy=remedy)


class Options(msgspec.Struct, frozen=True, array_like=True):
    """How something is stored.

    `expected`: store only if this is the current version (0: only if there is no such object); None: in any case.
    `ttl`: seconds until it goes away. `tenant`: whose quota it counts in. `table`: the payload is an Arrow IPC stream.
    `patch`: it is appended to the object. `size`: bytes of the payload, -1 when unknown. `isolated`: an instance that
    can't reach the cache stores it through its executor manager, so the quota of its session counts.
    """

    expected: int | None = None
    ttl: float | None = None
    tenant: str = ""
    table: bool = False
    patch: bool = False
    size: int = -1
    isolated: bool = False

    def __post_init__(self) -> None:
        _check_seconds("ttl", self.ttl, "leave it out for an object that stays")


class Part(msgspec.Struct, frozen=True, array_like=True):
    """A base or a patch of an object. `data` when it is inline; else it lies at `offset` and `lease` keeps it there."""

    version: int
    size: int
    data: bytes | None = None
    offset: int = 0
    lease: int = 0


class Answer(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """What there is of an object. `born` tells objects of the same key apart.

    `full`: the parts begin with the base; else they are the patches that the asker lacks, perhaps none. `streamed`: it
    is too large for the memory of the cache and has to be fetched through Flight.
    """

    version: int
    born: int
    table: bool
    full: bool
    parts: tuple[Part, ...] = ()
    streamed: bool = False


class Hello(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """First request on a unix socket: the token that the action LOCAL gave."""

    token: str


class Welcome(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Answer to it; the descriptor of the shared memory comes along."""

    size: int
    endpoint: str


class Put(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Store a small payload. Answer: Stored."""

    key: str
    data: bytes
    options: Options


class Reserve(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Lend shared memory to write a payload into. Answer: Reserved. What could not be stored under this key with these
    options is refused before it is written."""

    size: int
    table: bool = False
    key: str = ""
    options: Options | None = None


class Reserved(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Room at `offset` of the shared memory; `number` names it. `offset` -1: too large, stream it."""

    number: int
    offset: int


class Commit(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Store what was written into lent memory. Answer: Stored."""

    number: int
    key: str
    options: Options


class Cancel(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Give lent memory back unused. Answer: Stored of version 0."""

    number: int


class Send(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Over TCP: store a payload of `options.size` bytes. Answer: Reserved, then the bytes follow, then Stored."""

    key: str
    options: Options


class Stored(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Where a payload is now."""

    key: str
    version: int


class Get(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Read an object. The asker has `version` of the object `born` already (0: nothing). Answer: Answer.

    `origin`: the endpoint of the cache that has it, if that is another one.
    """

    key: str
    version: int = 0
    born: int = 0
    origin: str = ""


class Release(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Leases that are over. No answer."""

    leases: tuple[int, ...]


class Call(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """One of ACTIONS. Answer: Result."""

    action: str
    body: bytes


class Result(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """What an action answers, in JSON."""

    body: bytes


Request = Hello | Put | Reserve | Commit | Cancel | Send | Get | Release | Call
Reply = Failure | Welcome | Reserved | Stored | Answer | Result


# --- bodies of Flight commands, tickets and actions, in JSON ---------------------------------------------------------


class PutCommand(msgspec.Struct, frozen=True):
    """Descriptor of a put with options."""

    key: str
    options: Options


class GetTicket(msgspec.Struct, frozen=True):
    """Ticket of a get that is answered in chunks."""

    key: str
    version: int = 0
    born: int = 0
    origin: str = ""


class KeyRequest(msgspec.Struct, frozen=True):
    """EXISTS (a key) and LIST (a prefix). `after`, `limit`: which part of a long list."""

    key: str
    after: str = ""
    limit: int = 1000


class ObjectInfo(msgspec.Struct, frozen=True):
    """An object as EXISTS and LIST tell of it. `expires`: seconds left, None = it stays."""

    key: str
    version: int
    size: int
    table: bool = False
    expires: float | None = None
    patches: int = 0


class KeysRequest(msgspec.Struct, frozen=True):
    """DELETE_MANY."""

    keys: list[str]


class TtlRequest(msgspec.Struct, frozen=True):
    """TTL (a key) and END_SESSION (a prefix). `after` seconds; None: the cache's retention, for TTL: it stays."""

    key: str
    after: float | None = None

    def __post_init__(self) -> None:
        _check_seconds("after", self.after, "leave it out for what the cache is told")


class CacheStatus(msgspec.Struct, frozen=True):
    """What a cache holds. Sizes in bytes."""

    endpoint: str
    objects: int
    bytes: int
    memory: int
    max_memory: int
    leased: int
    disk: int
    stored_objects: int
    tenants: dict[str, int] = {}
    peers: tuple[str, ...] = ()


class LocalDoor(msgspec.Struct, frozen=True):
    """Where clients of the same node and user connect, and what to say there. `path` empty: nowhere.

    `port`: where others connect for plain TCP; 0: nowhere.
    """

    path: str = ""
    token: str = ""
    uid: int = -1
    port: int = 0
    peers: tuple[str, ...] = ()
