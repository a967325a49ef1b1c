from flame.proto import types_pb2 as _types_pb2
from flame.proto import shim_pb2 as _shim_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class FrameKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    FRAME_UNSPECIFIED: _ClassVar[FrameKind]
    HELLO: _ClassVar[FrameKind]
    WELCOME: _ClassVar[FrameKind]
    ERROR: _ClassVar[FrameKind]
    PING: _ClassVar[FrameKind]
    PONG: _ClassVar[FrameKind]
    CALL: _ClassVar[FrameKind]
    REPLY: _ClassVar[FrameKind]
    HANGUP: _ClassVar[FrameKind]
    TAKEN: _ClassVar[FrameKind]
    ATTACH: _ClassVar[FrameKind]
    ATTACHED: _ClassVar[FrameKind]
    SUBMIT: _ClassVar[FrameKind]
    ACCEPTED: _ClassVar[FrameKind]
    RESULTS: _ClassVar[FrameKind]
    CANCEL: _ClassVar[FrameKind]
    DETACH: _ClassVar[FrameKind]
    NOTICE: _ClassVar[FrameKind]
    START: _ClassVar[FrameKind]
    REPORT: _ClassVar[FrameKind]
    TASKS: _ClassVar[FrameKind]
    RETRACT: _ClassVar[FrameKind]
    RETRACTED: _ClassVar[FrameKind]
    STOP: _ClassVar[FrameKind]
    NODE_STATUS: _ClassVar[FrameKind]
    ENTER: _ClassVar[FrameKind]
    ENTERED: _ClassVar[FrameKind]
    LEAVE: _ClassVar[FrameKind]
    LEFT: _ClassVar[FrameKind]
    OBJECTS: _ClassVar[FrameKind]
    OBJECTS_TAKEN: _ClassVar[FrameKind]
FRAME_UNSPECIFIED: FrameKind
HELLO: FrameKind
WELCOME: FrameKind
ERROR: FrameKind
PING: FrameKind
PONG: FrameKind
CALL: FrameKind
REPLY: FrameKind
HANGUP: FrameKind
TAKEN: FrameKind
ATTACH: FrameKind
ATTACHED: FrameKind
SUBMIT: FrameKind
ACCEPTED: FrameKind
RESULTS: FrameKind
CANCEL: FrameKind
DETACH: FrameKind
NOTICE: FrameKind
START: FrameKind
REPORT: FrameKind
TASKS: FrameKind
RETRACT: FrameKind
RETRACTED: FrameKind
STOP: FrameKind
NODE_STATUS: FrameKind
ENTER: FrameKind
ENTERED: FrameKind
LEAVE: FrameKind
LEFT: FrameKind
OBJECTS: FrameKind
OBJECTS_TAKEN: FrameKind

class Frame(_message.Message):
    __slots__ = ("kind", "flags", "channel", "body")
    KIND_FIELD_NUMBER: _ClassVar[int]
    FLAGS_FIELD_NUMBER: _ClassVar[int]
    CHANNEL_FIELD_NUMBER: _ClassVar[int]
    BODY_FIELD_NUMBER: _ClassVar[int]
    kind: FrameKind
    flags: int
    channel: int
    body: bytes
    def __init__(self, kind: _Optional[_Union[FrameKind, str]] = ..., flags: _Optional[int] = ..., channel: _Optional[int] = ..., body: _Optional[bytes] = ...) -> None: ...

class Error(_message.Message):
    __slots__ = ("code", "message", "remedy", "retryable")
    CODE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    REMEDY_FIELD_NUMBER: _ClassVar[int]
    RETRYABLE_FIELD_NUMBER: _ClassVar[int]
    code: int
    message: str
    remedy: str
    retryable: bool
    def __init__(self, code: _Optional[int] = ..., message: _Optional[str] = ..., remedy: _Optional[str] = ..., retryable: _Optional[bool] = ...) -> None: ...

class Hello(_message.Message):
    __slots__ = ("version", "role", "id", "token", "software", "node", "instance")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    ROLE_FIELD_NUMBER: _ClassVar[int]
    ID_FIELD_NUMBER: _ClassVar[int]
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    SOFTWARE_FIELD_NUMBER: _ClassVar[int]
    NODE_FIELD_NUMBER: _ClassVar[int]
    INSTANCE_FIELD_NUMBER: _ClassVar[int]
    version: int
    role: str
    id: str
    token: str
    software: str
    node: NodeHello
    instance: InstanceHello
    def __init__(self, version: _Optional[int] = ..., role: _Optional[str] = ..., id: _Optional[str] = ..., token: _Optional[str] = ..., software: _Optional[str] = ..., node: _Optional[_Union[NodeHello, _Mapping]] = ..., instance: _Optional[_Union[InstanceHello, _Mapping]] = ...) -> None: ...

class NodeHello(_message.Message):
    __slots__ = ("node", "boot_id", "executors")
    NODE_FIELD_NUMBER: _ClassVar[int]
    BOOT_ID_FIELD_NUMBER: _ClassVar[int]
    EXECUTORS_FIELD_NUMBER: _ClassVar[int]
    node: _types_pb2.Node
    boot_id: str
    executors: _containers.RepeatedCompositeFieldContainer[HeldExecutor]
    def __init__(self, node: _Optional[_Union[_types_pb2.Node, _Mapping]] = ..., boot_id: _Optional[str] = ..., executors: _Optional[_Iterable[_Union[HeldExecutor, _Mapping]]] = ...) -> None: ...

class HeldExecutor(_message.Message):
    __slots__ = ("executor_id", "channel", "session_id", "resreq", "state", "concurrency", "task_ids", "attempts", "pid", "gpus", "gang")
    EXECUTOR_ID_FIELD_NUMBER: _ClassVar[int]
    CHANNEL_FIELD_NUMBER: _ClassVar[int]
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    RESREQ_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    CONCURRENCY_FIELD_NUMBER: _ClassVar[int]
    TASK_IDS_FIELD_NUMBER: _ClassVar[int]
    ATTEMPTS_FIELD_NUMBER: _ClassVar[int]
    PID_FIELD_NUMBER: _ClassVar[int]
    GPUS_FIELD_NUMBER: _ClassVar[int]
    GANG_FIELD_NUMBER: _ClassVar[int]
    executor_id: str
    channel: int
    session_id: str
    resreq: _types_pb2.ResourceRequirement
    state: _types_pb2.ExecutorState
    concurrency: int
    task_ids: _containers.RepeatedScalarFieldContainer[int]
    attempts: _containers.RepeatedScalarFieldContainer[int]
    pid: int
    gpus: _containers.RepeatedScalarFieldContainer[int]
    gang: _types_pb2.Gang
    def __init__(self, executor_id: _Optional[str] = ..., channel: _Optional[int] = ..., session_id: _Optional[str] = ..., resreq: _Optional[_Union[_types_pb2.ResourceRequirement, _Mapping]] = ..., state: _Optional[_Union[_types_pb2.ExecutorState, str]] = ..., concurrency: _Optional[int] = ..., task_ids: _Optional[_Iterable[int]] = ..., attempts: _Optional[_Iterable[int]] = ..., pid: _Optional[int] = ..., gpus: _Optional[_Iterable[int]] = ..., gang: _Optional[_Union[_types_pb2.Gang, _Mapping]] = ...) -> None: ...

class InstanceHello(_message.Message):
    __slots__ = ("concurrency", "pid")
    CONCURRENCY_FIELD_NUMBER: _ClassVar[int]
    PID_FIELD_NUMBER: _ClassVar[int]
    concurrency: int
    pid: int
    def __init__(self, concurrency: _Optional[int] = ..., pid: _Optional[int] = ...) -> None: ...

class Welcome(_message.Message):
    __slots__ = ("version", "server_id", "generation", "max_payload", "heartbeat_ms", "discard")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    SERVER_ID_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    MAX_PAYLOAD_FIELD_NUMBER: _ClassVar[int]
    HEARTBEAT_MS_FIELD_NUMBER: _ClassVar[int]
    DISCARD_FIELD_NUMBER: _ClassVar[int]
    version: int
    server_id: str
    generation: int
    max_payload: int
    heartbeat_ms: int
    discard: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, version: _Optional[int] = ..., server_id: _Optional[str] = ..., generation: _Optional[int] = ..., max_payload: _Optional[int] = ..., heartbeat_ms: _Optional[int] = ..., discard: _Optional[_Iterable[int]] = ...) -> None: ...

class Call(_message.Message):
    __slots__ = ("method", "request", "timeout_ms")
    METHOD_FIELD_NUMBER: _ClassVar[int]
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_MS_FIELD_NUMBER: _ClassVar[int]
    method: str
    request: bytes
    timeout_ms: int
    def __init__(self, method: _Optional[str] = ..., request: _Optional[bytes] = ..., timeout_ms: _Optional[int] = ...) -> None: ...

class Reply(_message.Message):
    __slots__ = ("response", "error")
    RESPONSE_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    response: bytes
    error: Error
    def __init__(self, response: _Optional[bytes] = ..., error: _Optional[_Union[Error, _Mapping]] = ...) -> None: ...

class Taken(_message.Message):
    __slots__ = ("bytes",)
    BYTES_FIELD_NUMBER: _ClassVar[int]
    bytes: int
    def __init__(self, bytes: _Optional[int] = ...) -> None: ...

class Range(_message.Message):
    __slots__ = ("first", "last")
    FIRST_FIELD_NUMBER: _ClassVar[int]
    LAST_FIELD_NUMBER: _ClassVar[int]
    first: int
    last: int
    def __init__(self, first: _Optional[int] = ..., last: _Optional[int] = ...) -> None: ...

class Attach(_message.Message):
    __slots__ = ("session_id", "next_seq", "unresolved")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    NEXT_SEQ_FIELD_NUMBER: _ClassVar[int]
    UNRESOLVED_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    next_seq: int
    unresolved: _containers.RepeatedCompositeFieldContainer[Range]
    def __init__(self, session_id: _Optional[str] = ..., next_seq: _Optional[int] = ..., unresolved: _Optional[_Iterable[_Union[Range, _Mapping]]] = ...) -> None: ...

class Attached(_message.Message):
    __slots__ = ("session_id", "accepted", "state")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    ACCEPTED_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    accepted: _containers.RepeatedCompositeFieldContainer[Accepted]
    state: _types_pb2.SessionState
    def __init__(self, session_id: _Optional[str] = ..., accepted: _Optional[_Iterable[_Union[Accepted, _Mapping]]] = ..., state: _Optional[_Union[_types_pb2.SessionState, str]] = ...) -> None: ...

class Submit(_message.Message):
    __slots__ = ("first_seq", "inputs", "absent", "options")
    FIRST_SEQ_FIELD_NUMBER: _ClassVar[int]
    INPUTS_FIELD_NUMBER: _ClassVar[int]
    ABSENT_FIELD_NUMBER: _ClassVar[int]
    OPTIONS_FIELD_NUMBER: _ClassVar[int]
    first_seq: int
    inputs: _containers.RepeatedScalarFieldContainer[bytes]
    absent: _containers.RepeatedScalarFieldContainer[int]
    options: _types_pb2.TaskOptions
    def __init__(self, first_seq: _Optional[int] = ..., inputs: _Optional[_Iterable[bytes]] = ..., absent: _Optional[_Iterable[int]] = ..., options: _Optional[_Union[_types_pb2.TaskOptions, _Mapping]] = ...) -> None: ...

class Accepted(_message.Message):
    __slots__ = ("first_seq", "count", "first_task_id", "error")
    FIRST_SEQ_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    FIRST_TASK_ID_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    first_seq: int
    count: int
    first_task_id: int
    error: Error
    def __init__(self, first_seq: _Optional[int] = ..., count: _Optional[int] = ..., first_task_id: _Optional[int] = ..., error: _Optional[_Union[Error, _Mapping]] = ...) -> None: ...

class Failure(_message.Message):
    __slots__ = ("index", "state", "code", "message", "traceback", "retryable", "details")
    INDEX_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    CODE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    TRACEBACK_FIELD_NUMBER: _ClassVar[int]
    RETRYABLE_FIELD_NUMBER: _ClassVar[int]
    DETAILS_FIELD_NUMBER: _ClassVar[int]
    index: int
    state: _types_pb2.TaskState
    code: int
    message: str
    traceback: str
    retryable: bool
    details: bytes
    def __init__(self, index: _Optional[int] = ..., state: _Optional[_Union[_types_pb2.TaskState, str]] = ..., code: _Optional[int] = ..., message: _Optional[str] = ..., traceback: _Optional[str] = ..., retryable: _Optional[bool] = ..., details: _Optional[bytes] = ...) -> None: ...

class Results(_message.Message):
    __slots__ = ("task_ids", "outputs", "absent", "failures", "attempts", "busy_us", "cpu_us", "peak_memory", "sent", "received")
    TASK_IDS_FIELD_NUMBER: _ClassVar[int]
    OUTPUTS_FIELD_NUMBER: _ClassVar[int]
    ABSENT_FIELD_NUMBER: _ClassVar[int]
    FAILURES_FIELD_NUMBER: _ClassVar[int]
    ATTEMPTS_FIELD_NUMBER: _ClassVar[int]
    BUSY_US_FIELD_NUMBER: _ClassVar[int]
    CPU_US_FIELD_NUMBER: _ClassVar[int]
    PEAK_MEMORY_FIELD_NUMBER: _ClassVar[int]
    SENT_FIELD_NUMBER: _ClassVar[int]
    RECEIVED_FIELD_NUMBER: _ClassVar[int]
    task_ids: _containers.RepeatedScalarFieldContainer[int]
    outputs: _containers.RepeatedScalarFieldContainer[bytes]
    absent: _containers.RepeatedScalarFieldContainer[int]
    failures: _containers.RepeatedCompositeFieldContainer[Failure]
    attempts: _containers.RepeatedScalarFieldContainer[int]
    busy_us: int
    cpu_us: int
    peak_memory: int
    sent: int
    received: int
    def __init__(self, task_ids: _Optional[_Iterable[int]] = ..., outputs: _Optional[_Iterable[bytes]] = ..., absent: _Optional[_Iterable[int]] = ..., failures: _Optional[_Iterable[_Union[Failure, _Mapping]]] = ..., attempts: _Optional[_Iterable[int]] = ..., busy_us: _Optional[int] = ..., cpu_us: _Optional[int] = ..., peak_memory: _Optional[int] = ..., sent: _Optional[int] = ..., received: _Optional[int] = ...) -> None: ...

class Cancel(_message.Message):
    __slots__ = ("task_ids", "seqs", "reason", "timed_out")
    TASK_IDS_FIELD_NUMBER: _ClassVar[int]
    SEQS_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    TIMED_OUT_FIELD_NUMBER: _ClassVar[int]
    task_ids: _containers.RepeatedCompositeFieldContainer[Range]
    seqs: _containers.RepeatedCompositeFieldContainer[Range]
    reason: str
    timed_out: bool
    def __init__(self, task_ids: _Optional[_Iterable[_Union[Range, _Mapping]]] = ..., seqs: _Optional[_Iterable[_Union[Range, _Mapping]]] = ..., reason: _Optional[str] = ..., timed_out: _Optional[bool] = ...) -> None: ...

class Notice(_message.Message):
    __slots__ = ("state", "events", "pending_reason")
    STATE_FIELD_NUMBER: _ClassVar[int]
    EVENTS_FIELD_NUMBER: _ClassVar[int]
    PENDING_REASON_FIELD_NUMBER: _ClassVar[int]
    state: _types_pb2.SessionState
    events: _containers.RepeatedCompositeFieldContainer[_types_pb2.Event]
    pending_reason: str
    def __init__(self, state: _Optional[_Union[_types_pb2.SessionState, str]] = ..., events: _Optional[_Iterable[_Union[_types_pb2.Event, _Mapping]]] = ..., pending_reason: _Optional[str] = ...) -> None: ...

class Start(_message.Message):
    __slots__ = ("executor_id", "context", "application", "resreq", "gpus", "token", "gang")
    EXECUTOR_ID_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_FIELD_NUMBER: _ClassVar[int]
    APPLICATION_FIELD_NUMBER: _ClassVar[int]
    RESREQ_FIELD_NUMBER: _ClassVar[int]
    GPUS_FIELD_NUMBER: _ClassVar[int]
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    GANG_FIELD_NUMBER: _ClassVar[int]
    executor_id: str
    context: _shim_pb2.SessionContext
    application: _types_pb2.ApplicationSpec
    resreq: _types_pb2.ResourceRequirement
    gpus: _containers.RepeatedScalarFieldContainer[int]
    token: str
    gang: _types_pb2.Gang
    def __init__(self, executor_id: _Optional[str] = ..., context: _Optional[_Union[_shim_pb2.SessionContext, _Mapping]] = ..., application: _Optional[_Union[_types_pb2.ApplicationSpec, _Mapping]] = ..., resreq: _Optional[_Union[_types_pb2.ResourceRequirement, _Mapping]] = ..., gpus: _Optional[_Iterable[int]] = ..., token: _Optional[str] = ..., gang: _Optional[_Union[_types_pb2.Gang, _Mapping]] = ...) -> None: ...

class Report(_message.Message):
    __slots__ = ("state", "code", "message", "pid", "concurrency", "crashed", "cpu_ms", "peak_memory", "written", "sent", "received")
    STATE_FIELD_NUMBER: _ClassVar[int]
    CODE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    PID_FIELD_NUMBER: _ClassVar[int]
    CONCURRENCY_FIELD_NUMBER: _ClassVar[int]
    CRASHED_FIELD_NUMBER: _ClassVar[int]
    CPU_MS_FIELD_NUMBER: _ClassVar[int]
    PEAK_MEMORY_FIELD_NUMBER: _ClassVar[int]
    WRITTEN_FIELD_NUMBER: _ClassVar[int]
    SENT_FIELD_NUMBER: _ClassVar[int]
    RECEIVED_FIELD_NUMBER: _ClassVar[int]
    state: _types_pb2.ExecutorState
    code: int
    message: str
    pid: int
    concurrency: int
    crashed: bool
    cpu_ms: int
    peak_memory: int
    written: int
    sent: int
    received: int
    def __init__(self, state: _Optional[_Union[_types_pb2.ExecutorState, str]] = ..., code: _Optional[int] = ..., message: _Optional[str] = ..., pid: _Optional[int] = ..., concurrency: _Optional[int] = ..., crashed: _Optional[bool] = ..., cpu_ms: _Optional[int] = ..., peak_memory: _Optional[int] = ..., written: _Optional[int] = ..., sent: _Optional[int] = ..., received: _Optional[int] = ...) -> None: ...

class Tasks(_message.Message):
    __slots__ = ("task_ids", "inputs", "absent", "attempts", "timeout_ms")
    TASK_IDS_FIELD_NUMBER: _ClassVar[int]
    INPUTS_FIELD_NUMBER: _ClassVar[int]
    ABSENT_FIELD_NUMBER: _ClassVar[int]
    ATTEMPTS_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_MS_FIELD_NUMBER: _ClassVar[int]
    task_ids: _containers.RepeatedScalarFieldContainer[int]
    inputs: _containers.RepeatedScalarFieldContainer[bytes]
    absent: _containers.RepeatedScalarFieldContainer[int]
    attempts: _containers.RepeatedScalarFieldContainer[int]
    timeout_ms: int
    def __init__(self, task_ids: _Optional[_Iterable[int]] = ..., inputs: _Optional[_Iterable[bytes]] = ..., absent: _Optional[_Iterable[int]] = ..., attempts: _Optional[_Iterable[int]] = ..., timeout_ms: _Optional[int] = ...) -> None: ...

class Retract(_message.Message):
    __slots__ = ("keep",)
    KEEP_FIELD_NUMBER: _ClassVar[int]
    keep: int
    def __init__(self, keep: _Optional[int] = ...) -> None: ...

class Retracted(_message.Message):
    __slots__ = ("task_ids",)
    TASK_IDS_FIELD_NUMBER: _ClassVar[int]
    task_ids: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, task_ids: _Optional[_Iterable[int]] = ...) -> None: ...

class Stop(_message.Message):
    __slots__ = ("grace_ms", "reason")
    GRACE_MS_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    grace_ms: int
    reason: str
    def __init__(self, grace_ms: _Optional[int] = ..., reason: _Optional[str] = ...) -> None: ...
