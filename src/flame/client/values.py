"""What the SDK hands out and takes in: plain values under the names and with the fields that `flamepy` has."""

from __future__ import annotations

import os
import string
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Protocol

from flame.model.errors import FlameError, InvalidArgumentError
from flame.model.isolation import Limits
from flame.model.resources import parse_resources, parse_size
from flame.model.specs import Gang, TaskOptions
from flame.model.states import ApplicationState, ExecutorState, NodeState, SessionState, Shim, TaskState

TaskID = str
SessionID = str
ApplicationID = str
Message = bytes
TaskInput = Message
TaskOutput = Message
CommonData = Message

DEFAULT_FLAME_CONF = "flame.yaml"
DEFAULT_FLAME_ENDPOINT = "http://127.0.0.1:8080"
DEFAULT_FLAME_CACHE_ENDPOINT = "grpc://127.0.0.1:9090"
DEFAULT_FLAME_RUNNER_TEMPLATE = "flmrun"
FLAME_INSTANCE_ENDPOINT = "FLAME_INSTANCE_ENDPOINT"

_ALPHABET = string.ascii_letters + string.digits


def short_name(prefix: str, length: int = 6) -> str:
    """`<prefix>-<length random letters and digits>`."""
    return f"{prefix}-{''.join(_ALPHABET[byte % len(_ALPHABET)] for byte in os.urandom(length))}"


class Located(Protocol):
    """What lies in an object cache, such as an ObjectRef; `endpoint` is the cache's address."""

    @property
    def endpoint(self) -> str:
        """A URL."""
        ...


@dataclass
class Event:
    """Something that happened to a task or a session. Codes 0 to 4 are task states, 1001 and up concern sessions."""

    code: int
    message: str | None = None
    creation_time: datetime | None = None


@dataclass
class ResourceRequirement:
    """What one executor needs: whole cores, bytes of memory, whole GPUs."""

    cpu: int = 0
    memory: int = 0
    gpu: int = 0

    @classmethod
    def from_string(cls, s: str) -> ResourceRequirement:
        """From text such as `cpu=2,mem=4Gi,gpu=1`. Raises ValueError."""
        try:
            amounts = parse_resources(s)
        except InvalidArgumentError as error:
            raise ValueError(str(error.message)) from error
        return cls(amounts.cpu, amounts.memory, amounts.gpu)

    @staticmethod
    def _parse_memory(s: str) -> int:
        try:
            return parse_size(s) if s.strip() else 0
        except InvalidArgumentError as error:
            raise ValueError(str(error.message)) from error


@dataclass
class SessionAttributes:
    """What a new session shall be. `batch_size` is kept for programs that give it; it is always 1.

    `resreq` may also be text such as `cpu=1,mem=2Gi`. `retention` is in seconds: how long the closed session stays
    readable. `task_defaults` are the options of all tasks that do not set their own. Of the tasks with the same `key`,
    at most `max_running_per_key` run at a time (0 means one).

    `tenant` is whose share of the cluster it uses. A `gang` gets `min_instances` executors at once or none, placed by
    `topology`: "" (anywhere), "same-node", "spread" (all on different nodes) or "same:LABEL"; when one of them is lost,
    `on_member_loss` says whether all start again ("restart", the default) or the running tasks "fail". `selector` are
    the labels that a node must have, `tolerations` the taints that it may have ("key=value", or "key" for every value),
    `prefer_nodes` the nodes to try first, by name, host or address, or as references to objects (`flame.put`): then the
    nodes beside the caches that hold them. `isolation`, `limits` and `network` may be stricter than those of the
    application. `readable_objects` are what its instances may read of the object cache besides, when they are isolated:
    keys, `APPLICATION/SESSION` or `APPLICATION/*`; they are added to those of the application. The session is closed
    when it has had no unfinished task for `idle_timeout` seconds (None = never).
    """

    application: str
    id: str | None = None
    common_data: bytes | None = None
    min_instances: int = 0
    max_instances: int | None = None
    batch_size: int = 1
    resreq: ResourceRequirement | str | None = None
    priority: int = 0
    labels: dict[str, str] = field(default_factory=dict[str, str])
    task_defaults: TaskOptions | None = None
    retention: int | None = None
    max_running_per_key: int = 0
    tenant: str = ""
    gang: bool = False
    topology: str = ""
    on_member_loss: str = ""
    selector: dict[str, str] = field(default_factory=dict[str, str])
    tolerations: Sequence[str] = ()
    prefer_nodes: Sequence[str | Located] = ()
    isolation: str = ""
    limits: Limits | None = None
    network: str | Sequence[str] = ""
    idle_timeout: int | None = None
    readable_objects: Sequence[str] = ()


@dataclass
class ApplicationSchema:
    """JSON Schema texts that describe inputs, outputs and common data."""

    input: str | None = None
    output: str | None = None
    common_data: str | None = None


@dataclass
class ApplicationAttributes:
    """How instances of an application are started. `delay_release` and `start_timeout` are in seconds.

    `warm_instances` are started ahead on each node that ran one, so that the next session need not wait for them.
    `isolation` is "none", "process", "gvisor" or "microvm"; `network` "none", "host", or a list of what may be reached,
    such as ["pypi.org", "*.example.com:443", "10.1.2.0/24"]; `limits` are of each instance. `readable_objects` are
    what isolated instances may read of the object cache beside what is their session's: keys, `APPLICATION/SESSION` or
    `APPLICATION/*`.
    """

    shim: Shim | None = None
    image: str | None = None
    description: str | None = None
    labels: list[str] | None = None
    command: str | None = None
    arguments: list[str] | None = None
    environments: dict[str, str] | None = None
    working_directory: str | None = None
    max_instances: int | None = None
    delay_release: int | None = None
    schema: ApplicationSchema | None = None
    url: str | None = None
    installer: str | None = None
    start_timeout: float | None = None
    warm_instances: int = 0
    isolation: str = ""
    limits: Limits | None = None
    network: str | Sequence[str] = ""
    readable_objects: Sequence[str] = ()


@dataclass
class Task:
    """A task as it was when it was asked for. `cpu_seconds` is its processor time, `peak_memory` the most bytes of
    memory that its instance had until it ended, `sent` and `received` are bytes of its network where that is a list; 0
    where nobody counted."""

    id: TaskID
    session_id: SessionID
    state: TaskState
    creation_time: datetime
    input: bytes | None = None
    output: bytes | None = None
    completion_time: datetime | None = None
    events: list[Event] | None = None
    attempt: int = 0
    executor_id: str = ""
    cpu_seconds: float = 0.0
    peak_memory: int = 0
    sent: int = 0
    received: int = 0

    def is_completed(self) -> bool:
        """Whether it has ended, in whatever way."""
        return self.state.terminal

    def is_failed(self) -> bool:
        """Whether it ended with a failure."""
        return self.state is TaskState.FAILED

    def is_cancelled(self) -> bool:
        """Whether it was cancelled."""
        return self.state is TaskState.CANCELLED


@dataclass
class Application:
    """A registered application."""

    id: ApplicationID
    name: str
    state: ApplicationState
    creation_time: datetime
    shim: Shim | None = None
    image: str | None = None
    description: str | None = None
    labels: list[str] | None = None
    command: str | None = None
    arguments: list[str] | None = None
    environments: dict[str, str] | None = None
    working_directory: str | None = None
    max_instances: int | None = None
    delay_release: int | None = None
    schema: ApplicationSchema | None = None
    url: str | None = None
    installer: str | None = None
    start_timeout: float | None = None
    warm_instances: int = 0
    isolation: str = ""
    limits: Limits | None = None
    network: str = ""
    readable_objects: Sequence[str] = ()


class _OfMessage:
    """Also readable as the `flame.v1` message that it was made from, which is what `flamepy` hands out."""

    message: Any

    @property
    def metadata(self) -> Any:
        return self.message.metadata

    @property
    def spec(self) -> Any:
        return self.message.spec

    @property
    def status(self) -> Any:
        return self.message.status


@dataclass
class Node(_OfMessage):
    """A machine that runs executors. `last_heartbeat` is None when it never sent one.

    `taints` keep sessions away that do not tolerate them. `max_executors` 0 = as many as fit; `executors` hold a place
    on it now. A node that is `cordoned` gets no new ones; when it is `draining`, those that it has leave.
    """

    name: str
    hostname: str
    state: NodeState
    capacity: ResourceRequirement
    allocated: ResourceRequirement
    arch: str = ""
    os: str = ""
    addresses: list[str] = field(default_factory=list[str])
    last_heartbeat: datetime | None = None
    labels: dict[str, str] = field(default_factory=dict[str, str])
    taints: list[str] = field(default_factory=list[str])
    max_executors: int = 0
    executors: int = 0
    cordoned: bool = False
    draining: bool = False
    message: Any = field(default=None, repr=False, compare=False)


@dataclass
class Executor(_OfMessage):
    """One place on a node that runs an instance for one session.

    `gpus` are the indexes that it was given on its node; `gang` is set for a member of a gang.
    """

    id: str
    node: str
    state: ExecutorState
    session_id: str | None
    resreq: ResourceRequirement
    shim: Shim
    since: datetime | None = None
    outstanding: int = 0
    pid: int = 0
    gpus: list[int] = field(default_factory=list[int])
    gang: Gang | None = None
    message: Any = field(default=None, repr=False, compare=False)


@dataclass(frozen=True)
class TenantQuota:
    """What a tenant and those below it never exceed; None = not limited.

    `cpu` in cores, `memory` in bytes, `gpu` in devices; `sessions` are open ones, `pending` tasks that have not ended.
    """

    cpu: int | None = None
    memory: int | None = None
    gpu: int | None = None
    sessions: int | None = None
    pending: int | None = None


@dataclass
class Tenant(_OfMessage):
    """Who shares the cluster, and what it has of it now. `parent` is empty for one at the top.

    `weight` counts among its siblings; `guarantee` is taken back from whoever borrowed it. `used`, `sessions` (open),
    `pending` (tasks that have not ended) and `executors` include the tenants below it; `wanted` are the executors that
    its sessions could use further. `share` is its dominant share of the cluster, `fair_share` what its weight gives it
    while all siblings have work; both from 0 to 1.
    """

    name: str
    parent: str
    weight: float
    guarantee: ResourceRequirement
    quota: TenantQuota
    description: str
    creation_time: datetime
    used: ResourceRequirement
    share: float
    fair_share: float
    sessions: int
    pending: int
    executors: int
    wanted: int
    message: Any = field(default=None, repr=False, compare=False)


@dataclass
class ClusterInfo:
    """The cluster that a connection is to."""

    name: str
    version: str
    generation: int
    start_time: datetime
    unit: ResourceRequirement
    storage: str
    read_only: bool
    read_only_reason: str
    max_payload: int
    endpoint: str
    policies: list[str] = field(default_factory=list[str])


@dataclass
class SessionUpdate:
    """One change of a session that is watched: its counters, and the tasks that changed (id, state, attempt)."""

    session_id: str
    state: SessionState
    pending: int
    running: int
    succeed: int
    failed: int
    cancelled: int
    executors: int
    pending_reason: str
    events: list[Event]
    tasks: list[tuple[TaskID, TaskState, int]]
    pending_since: datetime | None = None
    wanted: int = 0


@dataclass
class LogChunk:
    """A piece of what an instance printed. `truncated`: what came before it was dropped."""

    executor_id: str
    stream: str
    offset: int
    data: bytes
    truncated: bool


@dataclass
class Reason:
    """Why something does not happen: the rule that says no, about which object, and what to do."""

    rule: str
    object: str
    message: str
    remedy: str
    since: datetime | None


@dataclass
class Explanation:
    """Why a session or a task is where it is, and what happened to it."""

    summary: str
    reasons: list[Reason]
    story: list[Event]


class TaskInformer:
    """Callbacks for somebody who follows a task. Nothing in the SDK calls them; programs that derive from it load."""

    def on_update(self, task: Task) -> None:
        """The task changed."""

    def on_error(self, error: FlameError) -> None:
        """Following it failed."""


@dataclass
class FlameClientTls:
    """PEM files for connecting: the authority that signed the server's certificate, and the own certificate."""

    ca_file: str | None = None
    cert_file: str | None = None
    key_file: str | None = None
