"""Between model and messages: nothing is lost on the way, absent stays absent, nonsense is refused."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flame.engine import views
from flame.engine.records import Finish
from flame.manager import cluster_wire, wire
from flame.manager.json_schema import check_json_schema
from flame.manager.nodes import split_tasks
from flame.model.errors import InvalidArgumentError, ProtocolError
from flame.model.isolation import Limits
from flame.model.resources import Resources
from flame.model.specs import NO_OPTIONS, ApplicationSchema, ApplicationSpec, Gang, SessionSpec, TaskOptions
from flame.model.states import ExecutorState, SessionState, Shim, TaskState
from flame.model.tenants import Quota, TenantSpec
from flame.proto import link_pb2, types_pb2, values

texts = st.none() | st.text(max_size=5)
uint32 = st.integers(0, 2**32 - 1)
uint64 = st.integers(0, 2**64 - 1)
apart = {
    "isolation": st.text(max_size=5),
    "limits": st.builds(Limits, uint64, uint32, uint32, uint64, uint32, uint64),
    "network": st.text(max_size=5),
    "readable_objects": st.lists(st.text(max_size=5), max_size=3).map(tuple),
}
specs = st.builds(
    ApplicationSpec,
    shim=st.sampled_from(Shim),
    description=texts,
    labels=st.lists(st.text(max_size=3), max_size=3).map(tuple),
    image=texts,
    command=texts,
    arguments=st.lists(st.text(max_size=3), max_size=3).map(tuple),
    environments=st.dictionaries(st.text(max_size=3), st.text(max_size=3), max_size=3),
    working_directory=st.none() | st.text(min_size=1, max_size=5),
    max_instances=uint32,
    delay_release=st.integers(-(2**63), 2**63 - 1),
    schema=st.none() | st.builds(ApplicationSchema, input=texts, output=texts, common_data=texts),
    url=texts,
    installer=texts,
    start_timeout_ms=uint32,
    warm_instances=uint32,
    **apart,
)
options = st.builds(
    TaskOptions,
    timeout_ms=uint32,
    max_retries=st.none() | uint32,
    priority=st.integers(-(2**31), 2**31 - 1),
    idempotency_key=st.text(max_size=5),
    labels=st.dictionaries(st.text(max_size=3), st.text(max_size=3), max_size=3),
    deadline_ms=uint32,
    retry_delay_ms=uint32,
    retry_max_delay_ms=uint32,
    key=st.text(max_size=3),
)
amounts = st.builds(Resources, st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1), st.integers(-(2**31), 2**31 - 1))
words = st.lists(st.text(max_size=3), max_size=3).map(tuple)
pairs = st.dictionaries(st.text(max_size=3), st.text(max_size=3), max_size=3)
sessions = st.builds(
    SessionSpec,
    st.text(max_size=5),
    common_data=st.none() | st.binary(max_size=3),
    min_instances=uint32,
    max_instances=st.none() | uint32,
    priority=uint32,
    resreq=amounts,
    tenant=st.text(min_size=1, max_size=5),
    labels=pairs,
    task_defaults=options,
    retention_s=st.none() | uint32,
    gang=st.booleans(),
    topology=st.text(max_size=3),
    on_member_loss=st.text(max_size=3),
    selector=pairs,
    tolerations=words,
    prefer_nodes=words,
    max_running_per_key=uint32,
    **apart,
)
tenants = st.builds(
    TenantSpec,
    parent=st.text(max_size=3),
    weight=st.floats(allow_nan=False).filter(bool),
    guarantee=amounts,
    quota=st.builds(
        Quota,
        cpu=st.none() | st.integers(0, 2**64 - 1),
        memory=st.none() | st.integers(0, 2**64 - 1),
        gpu=st.none() | st.integers(-(2**31), 2**31 - 1),
        sessions=st.none() | uint32,
        pending=st.none() | st.integers(0, 2**64 - 1),
    ),
    description=st.text(max_size=5),
)


@given(sessions)
def test_sessions_come_back_as_they_were(spec: SessionSpec) -> None:
    view = views.SessionView(
        "s", spec, spec.resreq or Resources(), SessionState.OPEN, 1, None, 0, 0, 0, 0, 0, 0, (), "why", 5, 7
    )
    body = wire.session_message(view).SerializeToString()
    message = types_pb2.Session.FromString(body)
    assert wire.session_spec_of(message.spec) == spec
    status = message.status
    assert (status.pending_reason, status.pending_since, status.wanted) == ("why", 5, 7)


@given(tenants)
def test_tenants_come_back_as_they_were(spec: TenantSpec) -> None:
    body = cluster_wire.tenant_spec_message(spec).SerializeToString()
    assert cluster_wire.tenant_spec_of(types_pb2.TenantSpec.FromString(body)) == spec


def test_a_weight_that_is_left_out_is_one() -> None:
    assert cluster_wire.tenant_spec_of(types_pb2.TenantSpec()) == TenantSpec()


@given(specs)
def test_applications_come_back_as_they_were(spec: ApplicationSpec) -> None:
    body = values.application_spec_message(spec).SerializeToString()
    assert values.application_spec_of(types_pb2.ApplicationSpec.FromString(body)) == spec


@given(options)
def test_options_come_back_as_they_were(value: TaskOptions) -> None:
    body = values.options_message(value).SerializeToString()
    assert values.options_of(types_pb2.TaskOptions.FromString(body)) == value


def test_no_options_are_one_object() -> None:
    assert values.options_of(types_pb2.TaskOptions()) is NO_OPTIONS


def test_an_unknown_shim_is_refused() -> None:
    message = types_pb2.ApplicationSpec()
    message.shim = 99  # type: ignore[assignment]
    with pytest.raises(InvalidArgumentError, match="unknown shim 99"):
        values.application_spec_of(message)


@pytest.mark.parametrize(
    ("ranges", "merged"),
    [
        ([], []),
        ([(5, 9)], [(5, 9)]),
        ([(5, 9), (1, 2)], [(1, 2), (5, 9)]),
        ([(1, 5), (2, 3), (6, 6), (8, 9)], [(1, 6), (8, 9)]),
        ([(1, 2**64 - 1)] * 1000, [(1, 2**64 - 1)]),
        ([(9, 3), (4, 4)], [(4, 4)]),
    ],
)
def test_ranges_are_merged(ranges: list[tuple[int, int]], merged: list[tuple[int, int]]) -> None:
    assert wire.ranges_of([link_pb2.Range(first=first, last=last) for first, last in ranges]) == merged


@given(st.lists(st.integers(1, 60), unique=True))
def test_range_messages_cover_the_ids(ids: list[int]) -> None:
    ranges = [(item.first, item.last) for item in wire.range_messages(ids)]
    assert [task_id for first, last in ranges for task_id in range(first, last + 1)] == sorted(ids)
    assert all(before[1] + 1 < after[0] for before, after in itertools.pairwise(ranges))


def test_a_subset_keeps_each_tasks_own() -> None:
    results = link_pb2.Results(
        task_ids=[7, 3, 5, 9],
        outputs=[b"seven", b"", b"", b"nine"],
        absent=[1, 2],
        attempts=[1, 2, 3, 4],
        failures=[link_pb2.Failure(index=2, state=types_pb2.Failed, message="five failed")],
    )
    subset = wire.subset_of(results, [9, 5, 3])
    assert list(subset.task_ids) == [3, 5, 9]
    assert list(subset.outputs) == [b"", b"", b"nine"]
    assert list(subset.absent) == [0, 1]
    assert list(subset.attempts) == [2, 3, 4]
    (failure,) = subset.failures
    assert (failure.index, failure.message) == (1, "five failed")


def test_ends_decided_by_the_engine_are_failures() -> None:
    results = wire.results_of_finishes(
        [Finish(4, TaskState.CANCELLED, 0, "enough"), Finish(6, TaskState.FAILED, -1, "timed out", True)]
    )
    assert (list(results.task_ids), list(results.outputs), list(results.absent)) == ([4, 6], [b"", b""], [0, 1])
    told = [(f.index, f.state, f.code, f.message, f.retryable) for f in results.failures]
    assert told == [(0, 4, 0, "enough", False), (1, 3, -1, "timed out", True)]


@pytest.mark.parametrize(("index", "state"), [(1, types_pb2.Failed), (0, types_pb2.Succeed), (0, types_pb2.Pending)])
def test_failures_of_nothing_are_refused(index: int, state: types_pb2.TaskState) -> None:
    results = link_pb2.Results(task_ids=[1], outputs=[b""], failures=[link_pb2.Failure(index=index, state=state)])
    with pytest.raises(ProtocolError, match="a failure names column"):
        wire.failures_of(results)


def test_what_a_node_holds() -> None:
    held = link_pb2.HeldExecutor(
        executor_id="e", channel=4, session_id="s", state=types_pb2.ExecutorBound, task_ids=[1, 2], attempts=[1, 3],
        gpus=[0, 3], gang=types_pb2.Gang(rank=1, world_size=2, addresses=["a:1", "[::1]:65535"]),
    )  # fmt: skip
    status = types_pb2.NodeStatus(capacity=types_pb2.ResourceRequirement(cpu=2, memory=3, gpu=1))
    joined = cluster_wire.node_joined(
        "n", link_pb2.NodeHello(node=types_pb2.Node(status=status), boot_id="b", executors=[held])
    )
    assert (joined.name, joined.hostname, joined.boot_id, joined.capacity) == ("n", "n", "b", Resources(2, 3, 1))
    (item,) = joined.held
    assert (item.channel, item.state, item.task_ids, item.attempts) == (4, ExecutorState.BOUND, [1, 2], [1, 3])
    assert (item.gpus, item.gang, item.concurrency) == ((0, 3), Gang(1, 2, ("a:1", "[::1]:65535")), 1)
    assert values.gang_message(item.gang) == held.gang
    assert values.gang_message(None) is None
    held.attempts.append(9)
    with pytest.raises(ProtocolError, match="2 tasks and 3 attempts"):
        cluster_wire.node_joined("n", link_pb2.NodeHello(executors=[held]))
    with pytest.raises(ProtocolError, match="unknown executor state 77"):
        cluster_wire.executor_state_of(77)


def test_large_tasks_are_split_by_bytes() -> None:
    tasks = link_pb2.Tasks(
        task_ids=[1, 2, 3, 4, 5],
        inputs=[b"a" * 6, b"", b"b" * 6, b"c" * 50, b"d"],
        absent=[1],
        attempts=[1, 2, 3, 4, 5],
        timeout_ms=9,
    )
    pieces = split_tasks(tasks, 10)
    assert [list(piece.task_ids) for piece in pieces] == [[1, 2], [3], [4], [5]]
    assert [list(piece.attempts) for piece in pieces] == [[1, 2], [3], [4], [5]]
    assert [list(piece.absent) for piece in pieces] == [[1], [], [], []]
    assert b"".join(item for piece in pieces for item in piece.inputs) == b"".join(tasks.inputs)
    assert {piece.timeout_ms for piece in pieces} == {9}


@pytest.mark.parametrize(
    "text",
    [
        "{}",
        "true",
        '{"type": ["string", "null"], "minLength": 1, "pattern": "a"}',
        '{"type": "object", "properties": {"a": {"items": [{}, true]}}, "required": ["a"], "x-own": 5}',
        '{"$defs": {"n": {"multipleOf": 0.5}}, "anyOf": [{"$ref": "#/$defs/n"}]}',
        '{"dependencies": {"a": ["b"], "c": {}}}',
    ],
)
def test_schemas(text: str) -> None:
    check_json_schema(text)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("no json", "Expecting value"),
        ("[]", "must be an object or a boolean at #$"),
        ('{"type": "text"}', '"text" is no type at #/type'),
        ('{"type": []}', "is no type"),
        ('{"type": [{}]}', "is no type"),
        ('{"properties": {"a": {"minimum": "1"}}}', "a number is expected at #/properties/a/minimum"),
        ('{"required": ["a", "a"]}', "the same string stands twice at #/required"),
        ('{"required": "a"}', "a list is expected"),
        ('{"allOf": []}', "at least one schema"),
        ('{"multipleOf": 0}', "above 0"),
        ('{"maxItems": 1.5}', "whole number"),
        ('{"maxItems": 1e999}', "whole number"),
        ('{"uniqueItems": 1}', "true or false"),
        ('{"title": 1}', "a string is expected"),
        ('{"properties": []}', "an object is expected"),
        ("[" * 100_000, "nested too deeply"),
    ],
)
def test_no_schemas(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        check_json_schema(text)
