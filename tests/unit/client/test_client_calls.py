"""Calls of the synchronous connection, values in and out, errors with their codes; the functions of the module."""

from __future__ import annotations

import concurrent.futures
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast

import pytest

import flame
from flame.client import wire
from flame.client.default import ConnectionInstance
from flame.client.endpoints import parse_endpoint
from flame.client.snapshot import SessionSnapshot
from flame.link import tcp, unix
from flame.model.errors import (
    AlreadyExistsError,
    InvalidArgumentError,
    InvalidConfigError,
    NotFoundError,
    TimedOutError,
    UnavailableError,
)
from flame.objects.keys import ObjectRef
from flame.proto import frontend_pb2 as fe
from flame.proto import types_pb2 as ty

# --- sessions --------------------------------------------------------------------------------------------------------


def test_a_session_has_what_it_was_made_with(connection: flame.Connection, cluster: Any) -> None:
    session = connection.create_session(
        flame.SessionAttributes(
            application="app",
            id="mine",
            common_data=b"",
            min_instances=1,
            max_instances=3,
            resreq="cpu=2,mem=1Gi",
            priority=5,
            labels={"k": "v"},
            retention=60,
            task_defaults=flame.TaskOptions(max_retries=2),
            tenant="research",
            gang=True,
            topology="same:rack",
            on_member_loss="fail",
            selector={"gpu": "a100"},
            tolerations=["dedicated=ml"],
            prefer_nodes=["n1", "n2"],
        )
    )
    assert (session.id, session.application, session.state) == ("mine", "app", flame.SessionState.OPEN)
    assert session.common_data() == b""
    assert session.creation_time == datetime(2023, 11, 14, 22, 13, 20, tzinfo=UTC)
    assert (session.min_instances, session.max_instances, session.priority) == (1, 3, 5)
    assert session.resreq == flame.ResourceRequirement(2, 1 << 30, 0)
    spec = cluster.manager.sessions["mine"].spec
    assert (spec.retention_s, spec.batch_size, spec.task_defaults.max_retries) == (60, 1, 2)
    assert (spec.tenant, spec.gang, spec.topology, spec.on_member_loss) == ("research", True, "same:rack", "fail")
    assert (dict(spec.selector), [*spec.tolerations]) == ({"gpu": "a100"}, ["dedicated=ml"])
    assert [*spec.prefer_nodes] == ["n1", "n2"]
    assert (session.tenant, session.gang) == ("research", True)
    other = connection.create_session("app", session_id="plain", common_data=None)
    assert other.common_data() is None
    assert repr(other) == "<Session plain of app, open>"
    assert connection.create_session("app").id.startswith("app-")


@pytest.mark.parametrize(
    "attributes",
    [
        {"common_data": "text"},
        {"resreq": "cpu=x"},
        {"resreq": 3},
        {"min_instances": -1},
        {"priority": "high"},
        {"unknown": 1},
        {"task_defaults": flame.TaskOptions(max_retries=-1)},
        {"tolerations": "dedicated=ml"},
        {"prefer_nodes": "n1"},
        {"selector": ["gpu"]},
        {"selector": {"gpus": 4}},
        {"gang": "yes"},
    ],
)
def test_bad_attributes_are_errors_of_the_argument(connection: flame.Connection, attributes: Any) -> None:
    with pytest.raises(InvalidArgumentError):
        connection.create_session("app", **attributes)


def test_errors_keep_their_codes(connection: flame.Connection) -> None:
    connection.create_session("app", session_id="s")
    with pytest.raises(AlreadyExistsError) as caught:
        connection.create_session("app", session_id="s")
    assert caught.value.code == flame.FlameErrorCode.ALREADY_EXISTS
    with pytest.raises(NotFoundError):
        connection.get_session("none")
    with pytest.raises(NotFoundError):
        connection.open_session("none")
    assert connection.open_session("made", flame.SessionAttributes("app")).id == "made"
    assert connection.get_application("none") is None
    with pytest.raises(NotFoundError):
        connection.get_cluster()  # this manager has no such call


def test_lists_are_read_page_by_page(connection: flame.Connection) -> None:
    for number in range(5):
        connection.create_session("app", session_id=f"s{number}")
    assert [session.id for session in connection.list_sessions()] == [f"s{number}" for number in range(5)]


def test_the_handle_is_a_snapshot(connection: flame.Connection) -> None:
    session = connection.create_session("app")
    session.invoke(b"", 5)
    assert session.succeed == 0
    session.refresh()
    assert session.succeed == 1
    session.close()
    assert session.state == flame.SessionState.CLOSED
    assert connection.close_session(session.id).state == flame.SessionState.CLOSED


# --- tasks -----------------------------------------------------------------------------------------------------------


def test_tasks_can_be_created_got_listed_and_watched(connection: flame.Connection, cluster: Any, hold: Any) -> None:
    session = connection.create_session("app")
    task = session.create_task(b"in")
    assert (task.id, task.session_id, task.input, task.state) == ("1", session.id, b"in", flame.TaskState.SUCCEED)
    cluster.manager.service = lambda payload: hold
    assert session.create_task(None).state == flame.TaskState.PENDING
    got = session.get_task("1")
    assert (got.input, got.output, got.is_completed(), got.is_failed()) == (b"in", b"in", True, False)
    with pytest.raises(NotFoundError):
        session.get_task(99)
    assert [task.id for task in session.list_tasks()] == ["1", "2"]
    watcher = session.watch_task(2)
    assert next(watcher).state == flame.TaskState.PENDING
    assert session.cancel([2], reason="enough") == ["2"]
    cluster.run(cluster.manager.arrived.set)
    (last,) = watcher
    assert last.is_cancelled()
    assert last.events is not None
    assert last.events[0].message == "cancelled by the client"


def test_watching_has_a_limit(connection: flame.Connection, cluster: Any, hold: Any) -> None:
    cluster.manager.service = lambda payload: hold
    session = connection.create_session("app")
    task = session.create_task(b"")
    watcher = session.watch_task(task.id, timeout=0.02)
    next(watcher)
    with pytest.raises(TimedOutError):
        next(watcher)
    with session.watch_task(task.id) as left_early:
        next(left_early)
    with pytest.raises(StopIteration):
        next(left_early)


def test_as_completed_gives_futures_as_they_end(connection: flame.Connection, cluster: Any, hold: Any) -> None:
    cluster.manager.service = lambda payload: hold
    session = connection.create_session("app")
    futures = [session.submit(b"") for _ in range(3)]
    cluster.until(lambda: len(cluster.manager.sessions[session.id].tasks) == 3)
    ended = session.as_completed(futures, timeout=5)
    for task_id in (2, 3, 1):
        cluster.run(lambda task_id=task_id: cluster.manager.finish(session.id, {task_id: b""}))
        assert next(ended).task_id == str(task_id)
    assert list(ended) == []
    with pytest.raises(TimedOutError):
        list(flame.as_completed([session.submit(b"")], timeout=0.01))


# --- applications ----------------------------------------------------------------------------------------------------


def test_applications_survive_the_wire() -> None:
    attributes = flame.ApplicationAttributes(
        shim=flame.Shim.STDIO,
        image="i",
        description="",
        labels=["a"],
        command="c",
        arguments=["x", "y"],
        environments={"K": "V"},
        working_directory="/w",
        max_instances=3,
        delay_release=7,
        schema=flame.ApplicationSchema(input="{}", output=""),
        url="file:///p",
        installer="python",
        start_timeout=1.5,
        warm_instances=2,
    )
    message = ty.Application(metadata=ty.Metadata(id="n", name="n"), spec=wire.application_to(attributes))
    back = wire.application_from(message)
    for name, value in vars(attributes).items():
        expected = flame.ApplicationSchema(input="{}") if name == "schema" else value
        assert getattr(back, name) == expected, name
    bare = wire.application_from(ty.Application(spec=wire.application_to({"command": "c"})))
    assert (bare.shim, bare.url, bare.schema, bare.delay_release) == (flame.Shim.HOST, None, None, None)
    assert bare.warm_instances == 0


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"comand": "c"}, "unknown attributes of an application: comand; did you mean 'command'?"),
        ({"start_timeout_ms": 9}, "did you mean 'start_timeout'?"),
        ({"labels": 7}, "labels"),
        ({"labels": "one"}, "labels must be a list of texts, not 'one'"),
        ({"arguments": "-c x"}, "arguments must be a list of texts, not '-c x'"),
        ({"max_instances": -1}, "max_instances can't be -1"),
        ({"start_timeout": -1}, "start_timeout_ms can't be -1000"),
        ({"command": 5}, "command can't be 5"),
        ({"isolation": 5}, "isolation can't be 5"),
        ({"environments": 1}, "environments"),
        ({"limits": {"memory": 1}}, "limits can't be {'memory': 1}; write flame.Limits(memory=..., pids=...)"),
        ({"limits": flame.Limits(memory=-1)}, "limits.memory can't be -1, only a whole number"),
        ({"limits": flame.Limits(pids=True)}, "limits.pids can't be True"),
        ({"limits": flame.Limits(cpu_millis=cast(Any, None))}, "limits.cpu_millis can't be None"),
        ({"limits": flame.Limits(wall_ms=2**32)}, "limits.wall_ms can't be 4294967296"),
    ],
)
def test_bad_applications_are_errors_that_name_the_attribute(attributes: Any, message: str) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        wire.application_to(attributes)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"isolation": 5}, "isolation can't be 5"),
        ({"min_instances": -1}, "min_instances can't be -1"),
        ({"limits": "memory=1"}, "limits can't be 'memory=1'; write flame.Limits"),
    ],
)
def test_bad_sessions_are_errors_that_name_the_attribute(attributes: Any, message: str) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        wire.session_to(flame.SessionAttributes("app", **attributes))
    assert message in str(caught.value)


def test_nodes_and_executors_are_values_and_messages() -> None:
    message = ty.Node(metadata=ty.Metadata(id="n", name="n"), spec=ty.NodeSpec(hostname="h"))
    message.status.state = 1  # type: ignore[assignment]
    message.status.capacity.cpu = 4
    message.status.last_heartbeat_time = 1_700_000_000
    node = wire.node_from(message)
    assert (node.name, node.state, node.capacity.cpu) == ("n", flame.NodeState.READY, 4)
    assert node.last_heartbeat == datetime(2023, 11, 14, 22, 13, 20, tzinfo=UTC)
    assert node.spec.hostname == "h"  # as flamepy shows it
    assert (node.labels, node.taints, node.max_executors, node.executors) == ({}, [], 0, 0)
    executor = wire.executor_from(ty.Executor(metadata=ty.Metadata(id="e"), status=ty.ExecutorStatus(session_id="s")))
    assert (executor.id, executor.session_id, executor.since) == ("e", "s", None)
    assert (executor.gpus, executor.gang) == ([], None)
    assert executor.status.session_id == "s"


def test_answers_about_the_cluster_are_read() -> None:
    info = wire.cluster_from(fe.ClusterInfo(name="c", read_only=True, read_only_reason="full", max_payload=5))
    assert (info.name, info.read_only, info.read_only_reason, info.max_payload) == ("c", True, "full", 5)
    explained = wire.explanation_from(fe.Explanation(summary="s", reasons=[fe.Reason(rule="r", remedy="do")]))
    assert (explained.summary, explained.reasons[0].remedy, explained.reasons[0].since) == ("s", "do", None)
    assert info.policies == []
    update = wire.update_from(fe.SessionUpdate(tasks=[fe.TaskChange(task_id=3, attempt=2)]))
    assert update.tasks == [("3", flame.TaskState.PENDING, 2)]
    chunk = wire.log_from(fe.LogChunk(executor_id="e", data=b"x", truncated=True))
    assert (chunk.executor_id, chunk.data, chunk.truncated) == ("e", b"x", True)


def test_what_the_scheduler_knows_of_nodes_executors_and_sessions_is_read() -> None:
    spec = ty.NodeSpec(hostname="h", labels={"gpu": "a100"}, taints=["dedicated=ml"], max_executors=4)
    status = ty.NodeStatus(cordoned=True, draining=True, executors=3)
    node = wire.node_from(ty.Node(spec=spec, status=status))
    assert (node.labels, node.taints, node.max_executors) == ({"gpu": "a100"}, ["dedicated=ml"], 4)
    assert (node.cordoned, node.draining, node.executors) == (True, True, 3)
    gang = ty.Gang(rank=1, world_size=2, addresses=["a:1", "b:2"])
    executor = wire.executor_from(ty.Executor(status=ty.ExecutorStatus(gpus=[0, 2], gang=gang)))
    assert (executor.gpus, executor.gang) == ([0, 2], flame.Gang(1, 2, ("a:1", "b:2")))
    waiting = ty.SessionStatus(pending_reason="no room", pending_since=1_700_000_000_000, wanted=5)
    session = SessionSnapshot(ty.Session(status=waiting))
    update = wire.update_from(fe.SessionUpdate(session=ty.Session(status=waiting)))
    since = datetime(2023, 11, 14, 22, 13, 20, tzinfo=UTC)
    for value in (session, update):
        assert (value.pending_reason, value.pending_since, value.wanted) == ("no room", since, 5)
    assert SessionSnapshot(ty.Session()).pending_since is None


# --- tenants and nodes -----------------------------------------------------------------------------------------------


def test_a_tenant_is_created_changed_listed_and_removed(connection: flame.Connection) -> None:
    quota = flame.TenantQuota(cpu=16, pending=0)
    made = connection.create_tenant("ml", parent="all", weight=2.5, guarantee="cpu=4,mem=8g", quota=quota)
    assert (made.name, made.parent, made.weight, made.description) == ("ml", "all", 2.5, "")
    assert made.guarantee == flame.ResourceRequirement(4, 8 << 30, 0)
    assert made.quota == quota  # no limit and a limit of nothing are two things
    assert made.creation_time == datetime(2023, 11, 14, 22, 13, 20, tzinfo=UTC)
    changed = connection.update_tenant("ml", weight=3.0, description="models")
    assert (changed.parent, changed.weight, changed.description) == ("all", 3.0, "models")
    assert (changed.guarantee, changed.quota) == (made.guarantee, quota)  # what was not named stays
    lifted = connection.update_tenant("ml", parent="", quota=flame.TenantQuota())
    assert (lifted.parent, lifted.quota) == ("", flame.TenantQuota())
    assert connection.get_tenant("ml") == lifted
    connection.create_tenant("web")
    assert [(tenant.name, tenant.weight) for tenant in connection.list_tenants()] == [("ml", 3.0), ("web", 1.0)]
    connection.delete_tenant("ml")
    with pytest.raises(NotFoundError):
        connection.get_tenant("ml")


def test_what_a_tenant_uses_is_read() -> None:
    used = ty.ResourceRequirement(cpu=3)
    status = ty.TenantStatus(
        used=used, share=0.5, fair_share=0.25, sessions=2, pending=7, executors=3, wanted=4, creation_time=1
    )
    tenant = wire.tenant_from(ty.Tenant(metadata=ty.Metadata(name="ml"), status=status))
    assert (tenant.used.cpu, tenant.share, tenant.fair_share) == (3, 0.5, 0.25)
    assert (tenant.sessions, tenant.pending, tenant.executors, tenant.wanted) == (2, 7, 3, 4)
    assert tenant.weight == 1.0  # absent means this
    assert tenant.status.pending == 7


@pytest.mark.parametrize(
    "attributes",
    [
        {"weight": 0},
        {"weight": float("nan")},
        {"weight": -1},
        {"guarantee": "cpu"},
        {"quota": flame.TenantQuota(cpu=-1)},
        {"description": 3},
    ],
)
def test_bad_tenants_are_errors_of_the_argument(attributes: Any) -> None:
    with pytest.raises(InvalidArgumentError):
        wire.tenant_to(ty.TenantSpec(), **attributes)


def test_nodes_are_marked(connection: flame.Connection, cluster: Any) -> None:
    assert connection.cordon_node("n").cordoned
    drained = [
        connection.drain_node("n"),
        connection.drain_node("n", timedelta(seconds=2)),
        connection.drain_node("n", 0),
    ]
    assert all(node.draining for node in drained)
    connection.drain_node("n", None)
    assert not connection.uncordon_node("n").cordoned
    marks = [(mark.name, mark.mark, mark.grace_ms) for mark in cluster.manager.marks]
    assert marks == [
        ("n", "cordon", 0),
        ("n", "drain", 30_000),
        ("n", "drain", 2_000),
        ("n", "drain", 0),
        ("n", "drain", 0),
        ("n", "uncordon", 0),
    ]
    assert [mark.HasField("grace_ms") for mark in cluster.manager.marks] == [False, True, True, True, False, False]
    with pytest.raises(InvalidArgumentError, match="grace"):
        connection.drain_node("n", -1)


def test_resource_text_is_read_as_flamepy_reads_it() -> None:
    assert flame.ResourceRequirement.from_string("cpu=1,mem=16g,gpu=2") == flame.ResourceRequirement(1, 16 << 30, 2)
    for text in ("", "cpu", "cpu=", "cpu=1,,mem=1g", "disk=1"):
        with pytest.raises(ValueError, match=r"\w"):
            flame.ResourceRequirement.from_string(text)


# --- endpoints -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "framed", "grpc", "tls"),
    [
        ("http://h:80", tcp("h", 82), "h:80", False),
        ("https://h", tcp("h", 8082), "h:8080", True),
        ("h:9000", tcp("h", 9002), "h:9000", False),
        ("h", tcp("h", 8082), "h:8080", False),
        ("http://[::1]:80/", tcp("::1", 82), "[::1]:80", False),
        ("unix:/a/b", unix("/a/b"), "", False),
        ("tcp:h:1", tcp("h", 1), "", False),
    ],
)
def test_addresses_have_these_forms(text: str, framed: Any, grpc: str, tls: bool) -> None:
    endpoint = parse_endpoint(text)
    assert (endpoint.framed, endpoint.grpc, endpoint.tls is not None) == (framed, grpc, tls)


@pytest.mark.parametrize("text", ["", "ftp://h", "http://", "http://h:x", "http://h/path", "unix:"])
def test_other_addresses_are_errors_of_the_configuration(text: str) -> None:
    with pytest.raises(InvalidConfigError):
        parse_endpoint(text)


def test_nobody_at_the_address_is_unavailable(tmp_path: Path) -> None:
    with pytest.raises(UnavailableError):
        flame.connect(f"unix:{tmp_path}/none", timeout=1)
    with pytest.raises(UnavailableError):
        flame.connect("http://127.0.0.1:1", timeout=3)


# --- the functions of the module -------------------------------------------------------------------------------------


def test_the_functions_use_one_connection_to_the_configured_cluster(
    cluster: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("FLAME_ENDPOINT", str(cluster.manager.address))
    try:
        session = flame.create_session("app", b"data", "one", resreq=flame.ResourceRequirement(cpu=1))
        assert session.invoke(b"x", 5) == b"x"
        assert flame.get_session("one").common_data() == b"data"
        assert [session.id for session in flame.list_sessions()] == ["one"]
        assert flame.open_session("one").id == "one"
        flame.register_application("a", flame.ApplicationAttributes(command="c"))
        application = flame.get_application("a")
        assert application is not None
        assert application.command == "c"
        flame.unregister_application("a")
        assert flame.create_tenant("ml").weight == 1.0
        assert flame.update_tenant("ml", weight=2).weight == 2.0
        assert flame.get_tenant("ml") == flame.list_tenants()[0]
        flame.delete_tenant("ml")
        nodes = flame.cordon_node("n"), flame.drain_node("n", 1), flame.uncordon_node("n")
        assert [node.draining for node in nodes] == [False, True, False]
        assert flame.close_session("one").state == flame.SessionState.CLOSED
        assert len(cluster.manager.links) == 1
    finally:
        ConnectionInstance.close()


FORKING = """
import os, sys
import flame

connection = flame.connect(sys.argv[1])
session = connection.create_session("app")
assert session.invoke(b"parent", 5) == b"parent"
reader, writer = os.pipe()
child = os.fork()
if child == 0:
    code = 1
    try:
        with flame.connect(sys.argv[1]) as own:
            os.write(writer, own.open_session(session.id).invoke(b"child", 5) or b"")
        code = 0
    finally:
        os._exit(code)
os.close(writer)
with os.fdopen(reader, "rb") as answer:
    assert answer.read() == b"child"
assert os.waitpid(child, 0)[1] == 0
assert session.invoke(b"parent still", 5) == b"parent still"
connection.close()
"""


def test_a_forked_child_connects_anew(cluster: Any) -> None:
    # In a process of its own: the threads that other tests' gRPC leaves here make any fork a gamble.
    command = [sys.executable, "-c", FORKING, str(cluster.manager.address)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


def test_connections_live_side_by_side(cluster: Any, connection: flame.Connection) -> None:
    with flame.connect(str(cluster.manager.address)) as other, concurrent.futures.ThreadPoolExecutor(2) as pool:
        sessions = [connection.create_session("app"), other.create_session("app")]
        outputs = pool.map(lambda session: list(session.map([session.id.encode()] * 100)), sessions)
        assert list(outputs) == [[session.id.encode()] * 100 for session in sessions]


def test_nodes_beside_the_cache_of_an_object_may_be_preferred() -> None:
    ref = ObjectRef("grpc://10.0.0.7:9090", "app/shared/one", 1)
    spec = wire.session_to(flame.SessionAttributes("app", prefer_nodes=["node-1", ref]))
    assert list(spec.prefer_nodes) == ["node-1", "10.0.0.7"]
    with pytest.raises(InvalidArgumentError, match="names no host"):
        wire.session_to(flame.SessionAttributes("app", prefer_nodes=[ObjectRef("nowhere", "app/shared/one")]))
