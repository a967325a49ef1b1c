"""The state of a cluster: what the functions of the engine read and change. By itself it decides nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from heapq import heappush

from flame.engine.executors import Executor, Node
from flame.engine.records import NodeMarkMeta
from flame.engine.sessions import Session
from flame.engine.settings import EngineSettings
from flame.engine.tenant_tree import first_tenants
from flame.model.specs import ApplicationSpec
from flame.model.states import ApplicationState
from flame.scheduler.policies import BUILT_IN
from flame.scheduler.policy import Policy
from flame.scheduler.scheduler import Scheduler

CHANNEL_SPACE = 1 << 20  # executors of one generation before numbers of the next one are reached


class Application:
    """A registered application."""

    __slots__ = ("created", "name", "spec", "state", "version")

    def __init__(self, name: str, spec: ApplicationSpec, created: int, version: int = 1) -> None:
        self.name = name
        self.spec = spec
        self.created = created
        self.version = version
        self.state = ApplicationState.ENABLED


class Settling:
    """`known` nodes are in the journal; `absent` are those of them that have not come back since the restart."""

    __slots__ = ("absent", "began", "known", "until")

    def __init__(self) -> None:
        self.known: set[str] = set()
        self.absent: set[str] = set()
        self.began = 0  # Unix ms
        self.until = 0


class Cluster:
    """All sessions, tasks, executors and nodes of one cluster."""

    def __init__(
        self, settings: EngineSettings, make_id: Callable[[], str], policies: Sequence[Policy] | None = None
    ) -> None:
        """`policies` None = the built-in ones that the settings name."""
        self.settings = settings
        self.scheduler = Scheduler([BUILT_IN[name]() for name in settings.policies] if policies is None else policies)
        self.now = 0  # of the turn under way
        self.make_id = make_id
        self.generation = 0
        self.births: dict[int, int] = {}  # by generation, the number of its first record
        self.seq = 0  # of the last record
        self.applications: dict[str, Application] = {}
        self.sessions: dict[str, Session] = {}
        self.nodes: dict[str, Node] = {}
        self.executors: dict[int, Executor] = {}  # by channel
        self.next_channel = 1
        self.next_gang_port = -1
        self.tenants = first_tenants()  # by name
        self.marks: dict[str, NodeMarkMeta] = {}  # cordoned and draining nodes, also those that are away
        self.read_only = ""  # why, while the journal can't be written
        self.read_only_since = 0
        self.settling = Settling()
        self.stale = 0  # answers for attempts that nobody waits for any more
        self.purged = [0, 0, 0]  # tasks of sessions purged since the start: succeeded, failed, cancelled
        self.hungry: dict[str, Session] = {}  # what they want has to be worked out again
        self.touched: dict[str, Session] = {}  # sessions whose executors may get tasks at the end of this turn
        self.alarms: list[tuple[int, str, str]] = []  # (time, kind, key)
        self.alarm_set: set[tuple[int, str, str]] = set()

    def touch(self, session: Session) -> None:
        """The session's executors may get tasks at the end of this turn."""
        self.touched[session.id] = session

    def changed(self, session: Session) -> None:
        """How many executors the session wants or has may have changed."""
        self.hungry[session.id] = session

    def load(self, channel: int) -> int:
        """How many tasks the executor holds."""
        executor = self.executors.get(channel)
        return len(executor.outstanding) if executor is not None else 0

    def last_seq_of(self, channel: int) -> int:
        """The last record that could be durable when the executor of this channel was started."""
        made_in = self.generation - (self.generation - channel // CHANNEL_SPACE) % ((1 << 32) // CHANNEL_SPACE)
        return self.births.get(made_in + 1, 1 << 63) - 1

    def new_channel(self) -> int:
        """A number for a new executor."""
        held = self.scheduler.books.holdings
        while self.next_channel in held or self.next_channel == 0:
            self.next_channel = (self.next_channel + 1) % (1 << 32)
        channel = self.next_channel
        self.next_channel = (channel + 1) % (1 << 32)
        return channel

    def alarm(self, when: int, kind: str, key: str) -> None:
        """Look at (kind, key) again at `when`; the same alarm twice counts once."""
        entry = (when, kind, key)
        if entry not in self.alarm_set:
            self.alarm_set.add(entry)
            heappush(self.alarms, entry)
