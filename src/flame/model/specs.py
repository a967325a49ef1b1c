"""What users ask for: applications, sessions, tasks. Plain values; defaults are those of the wire contract."""

from __future__ import annotations

import msgspec

from flame.model.isolation import NO_LIMITS, Limits
from flame.model.resources import Resources
from flame.model.states import Shim

DEFAULT_MAX_INSTANCES = 1_000_000
DEFAULT_DELAY_RELEASE = 60
TOPOLOGIES = ("", "same-node", "spread")  # and same:LABEL
UNIT = Resources(cpu=1, memory=1024**3, gpu=0)


class ApplicationSchema(msgspec.Struct, frozen=True, omit_defaults=True):
    """JSON Schema texts of a task's input and output and of a session's common data; they describe, nothing checks."""

    input: str | None = None
    output: str | None = None
    common_data: str | None = None


class ApplicationSpec(msgspec.Struct, frozen=True, omit_defaults=True):
    """How instances of an application are started. `delay_release` is in seconds, `start_timeout_ms` 0 = default."""

    shim: Shim = Shim.HOST
    description: str | None = None
    labels: tuple[str, ...] = ()
    image: str | None = None
    command: str | None = None
    arguments: tuple[str, ...] = ()
    environments: dict[str, str] = {}
    working_directory: str | None = None
    max_instances: int = DEFAULT_MAX_INSTANCES
    delay_release: int = DEFAULT_DELAY_RELEASE
    schema: ApplicationSchema | None = None
    url: str | None = None
    installer: str | None = None
    start_timeout_ms: int = 0
    warm_instances: int = 0  # started ahead on each node that ran one, within the node's budget
    isolation: str = ""  # one of isolation.LEVELS
    limits: Limits = NO_LIMITS  # of each instance
    network: str = ""  # none, host, or a list as in network.py; "" is none above level none, which has the node's
    readable_objects: tuple[str, ...] = ()  # what instances above level none may read besides, as in object_keys.py


class TaskOptions(msgspec.Struct, frozen=True, omit_defaults=True):
    """How tasks of one submission are treated. `timeout_ms` 0 = none; `max_retries` None = the session's default.

    `deadline_ms` counts from submission to the end, over all attempts (0 = none). `retry_delay_ms` is the pause before
    the first further attempt; it doubles with each one up to `retry_max_delay_ms` (0 = one minute). Of the tasks with
    one `key`, at most `SessionSpec.max_running_per_key` run at a time.
    """

    timeout_ms: int = 0
    max_retries: int | None = None
    priority: int = 0
    idempotency_key: str = ""
    labels: dict[str, str] = {}
    deadline_ms: int = 0
    retry_delay_ms: int = 0
    retry_max_delay_ms: int = 0
    key: str = ""


NO_OPTIONS = TaskOptions()


class SessionSpec(msgspec.Struct, frozen=True, omit_defaults=True):
    """One session: its application, what one executor of it needs, how many it wants. `retention_s` None = default.

    A `gang` gets `min_instances` executors at once or none, placed by `topology` (one of TOPOLOGIES, or
    `same:LABEL`); when it loses one, all of it starts again or its tasks fail (`on_member_loss`). `selector` names the
    labels that a node must have, `tolerations` the taints it may have, `prefer_nodes` those that hold its data.
    `isolation`, `limits` and `network` may be stricter than those of the application; `readable_objects` are added to
    its. It is closed when it had no unfinished task for `idle_timeout_s` (0 = never).
    """

    application: str
    common_data: bytes | None = None
    min_instances: int = 0
    max_instances: int | None = None
    priority: int = 0
    resreq: Resources | None = None
    tenant: str = ""
    labels: dict[str, str] = {}
    task_defaults: TaskOptions = NO_OPTIONS
    retention_s: int | None = None
    gang: bool = False
    topology: str = ""
    on_member_loss: str = ""
    selector: dict[str, str] = {}
    tolerations: tuple[str, ...] = ()
    prefer_nodes: tuple[str, ...] = ()
    max_running_per_key: int = 0
    isolation: str = ""
    limits: Limits = NO_LIMITS
    network: str = ""
    idle_timeout_s: int = 0
    readable_objects: tuple[str, ...] = ()


class Gang(msgspec.Struct, frozen=True, gc=False):
    """A member of a gang. `addresses` are host:port of each member by rank; the port is kept free for that member."""

    rank: int
    world_size: int
    addresses: tuple[str, ...] = ()


class RecordedEvent(msgspec.Struct, frozen=True, gc=False):
    """Something that happened to a session or a task. `time` in Unix milliseconds."""

    code: int
    message: str
    time: int
