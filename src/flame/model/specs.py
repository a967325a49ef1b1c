"""What users ask for: applications, sessions, tasks. Plain values; defaults are those of the wire contract."""

from __future__ import annotations

import msgspec

from flame.model.resources import Resources
from flame.model.states import Shim

DEFAULT_MAX_INSTANCES = 1_000_000
DEFAULT_DELAY_RELEASE = 60
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


class TaskOptions(msgspec.Struct, frozen=True, omit_defaults=True):
    """How tasks of one submission are treated. `timeout_ms` 0 = none; `max_retries` None = the session's default."""

    timeout_ms: int = 0
    max_retries: int | None = None
    priority: int = 0
    idempotency_key: str = ""
    labels: dict[str, str] = {}


NO_OPTIONS = TaskOptions()


class SessionSpec(msgspec.Struct, frozen=True, omit_defaults=True):
    """One session: its application, what one executor of it needs, how many it wants. `retention_s` None = default."""

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


class RecordedEvent(msgspec.Struct, frozen=True, gc=False):
    """Something that happened to a session or a task. `time` in Unix milliseconds."""

    code: int
    message: str
    time: int
