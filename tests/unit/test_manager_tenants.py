"""Tenants and marked nodes over a link: calls, quotas, those of the settings, and restarts."""

from __future__ import annotations

import logging
import math
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from flame.config.cluster import ClusterConfig, ClusterSection, LimitsSection, SchedulingSection
from flame.link import Kind, unix
from flame.manager.daemon import settings_of
from flame.manager.manager import SessionManager
from flame.model.errors import (
    AlreadyExistsError,
    ExhaustedError,
    FlameErrorCode,
    InvalidArgumentError,
    InvalidConfigError,
    InvalidStateError,
    NotFoundError,
)
from flame.model.resources import Resources
from flame.model.tenants import Quota, TenantSpec
from flame.proto import frontend_pb2 as pb
from flame.proto import link_pb2, types_pb2
from manager_harness import Client, Node, World, a_world


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with a_world(tmp_path, storage=f"sqlite://{tmp_path}/flame.db") as world:
        yield world


async def make(client: Client, name: str, **spec: Any) -> types_pb2.Tenant:
    request = pb.CreateTenantRequest(name=name, tenant=types_pb2.TenantSpec(**spec))
    return await client.call("CreateTenant", request, types_pb2.Tenant)


async def update(client: Client, name: str, **spec: Any) -> types_pb2.Tenant:
    request = pb.UpdateTenantRequest(name=name, tenant=types_pb2.TenantSpec(**spec))
    return await client.call("UpdateTenant", request, types_pb2.Tenant)


async def listed(client: Client) -> dict[str, types_pb2.Tenant]:
    answer = await client.call("ListTenants", pb.ListTenantsRequest(), types_pb2.TenantList)
    return {tenant.metadata.name: tenant for tenant in answer.tenants}


async def mark(client: Client, name: str, what: str, **more: Any) -> types_pb2.Node:
    return await client.call("MarkNode", pb.MarkNodeRequest(name=name, mark=what, **more), types_pb2.Node)


async def nodes(client: Client) -> dict[str, types_pb2.Node]:
    answer = await client.call("ListNodes", pb.ListNodesRequest(), types_pb2.NodeList)
    return {node.metadata.name: node for node in answer.nodes}


# --- calls -----------------------------------------------------------------------------------------------------------


async def test_a_tenant_comes_back_as_it_was_made(world: World) -> None:
    client = await world.client()
    quota = types_pb2.TenantQuota(cpu=8, memory=1 << 40, gpu=2, sessions=0, pending=2**40)
    amount = types_pb2.ResourceRequirement(cpu=2, memory=1 << 30, gpu=1)
    made = await make(client, "web", weight=2.5, quota=quota, guarantee=amount, description="the shop")
    assert made.spec == types_pb2.TenantSpec(weight=2.5, quota=quota, guarantee=amount, description="the shop")
    assert made.status.creation_time
    got = await client.call("GetTenant", pb.GetTenantRequest(name="web"), types_pb2.Tenant)
    assert got == made
    assert list(await listed(client)) == ["default", "web"]


async def test_a_weight_of_zero_is_one_and_an_empty_quota_limits_nothing(world: World) -> None:
    client = await world.client()
    made = await make(client, "web", quota=types_pb2.TenantQuota())
    assert made.spec.weight == 1.0
    assert not made.spec.quota.HasField("cpu")
    assert not made.spec.quota.HasField("pending")


async def test_changes_and_ends_of_a_tenant(world: World) -> None:
    client = await world.client()
    await make(client, "web")
    changed = await update(client, "web", weight=4.0)
    assert changed.spec.weight == 4.0
    gone = await client.call("DeleteTenant", pb.DeleteTenantRequest(name="web"), types_pb2.Tenant)
    assert gone.spec == changed.spec
    assert list(await listed(client)) == ["default"]


async def test_refusals_name_the_value(world: World) -> None:
    client = await world.client()
    await make(client, "web")
    with pytest.raises(AlreadyExistsError, match="tenant web already exists"):
        await make(client, "web")
    with pytest.raises(NotFoundError, match="did you mean web"):
        await update(client, "wep")
    with pytest.raises(InvalidArgumentError, match="tenant spec is missed"):
        await client.call("UpdateTenant", pb.UpdateTenantRequest(name="web"), types_pb2.Tenant)
    with pytest.raises(InvalidArgumentError, match="exists always"):
        await client.call("DeleteTenant", pb.DeleteTenantRequest(name="default"), types_pb2.Tenant)
    with pytest.raises(NotFoundError, match="tenant <x> not found"):
        await client.call("GetTenant", pb.GetTenantRequest(name="x"), types_pb2.Tenant)
    for spec, words in (
        ({"weight": math.nan}, "weight nan"),
        ({"weight": -math.inf}, "weight -inf"),
        ({"guarantee": types_pb2.ResourceRequirement(cpu=2**64 - 1)}, "guarantee cpu 18446744073709551615"),
        ({"guarantee": types_pb2.ResourceRequirement(gpu=-1)}, "guarantee gpu -1"),
        ({"quota": types_pb2.TenantQuota(gpu=-2)}, "quota gpu -2"),
        ({"quota": types_pb2.TenantQuota(pending=2**63)}, "quota pending 9223372036854775808"),
    ):
        with pytest.raises(InvalidArgumentError, match=words):
            await make(client, "bad", **spec)
    assert list(await listed(client)) == ["default", "web"]


async def test_an_inner_tenant_takes_no_sessions(world: World) -> None:
    client = await world.client()
    await make(client, "research")
    await make(client, "vision", parent="research")
    with pytest.raises(InvalidArgumentError, match="name one of vision"):
        await client.create(tenant="research")
    with pytest.raises(NotFoundError, match="did you mean vision"):
        await client.create(tenant="visoin")
    await client.create(tenant="vision")
    with pytest.raises(InvalidStateError, match="vision has 1 open session of its own"):
        await make(client, "german", parent="vision")
    tenants = await listed(client)
    assert [tenants[name].status.sessions for name in ("default", "research", "vision")] == [0, 1, 1]


async def test_a_session_shows_the_default_tenant(world: World) -> None:
    client = await world.client()
    assert (await client.create()).spec.tenant == "default"


async def test_quotas_refuse_until_there_is_room_again(world: World) -> None:
    client = await world.client()
    await make(client, "web", quota=types_pb2.TenantQuota(sessions=1, pending=2))
    await client.create(tenant="web")
    with pytest.raises(ExhaustedError, match="tenant web has 1 open session, its quota is 1") as caught:
        await client.create("s2", tenant="web")
    assert caught.value.retryable
    await client.attach()
    client.submit(1, b"a", b"b")
    assert not (await client.accepted()).HasField("error")
    client.submit(3, b"c")
    refused = (await client.accepted()).error
    assert (refused.code, refused.retryable) == (FlameErrorCode.EXHAUSTED, True)
    assert "tenant web has 2 tasks that have not ended" in refused.message
    assert (await listed(client))["web"].status.pending == 2
    await client.call("CancelTask", pb.CancelTaskRequest(session_id="s1", task_ids=[1]), pb.CancelTaskResponse)
    client.submit(3, b"c")
    assert not (await client.accepted()).HasField("error")


async def test_the_tree_and_its_counts_outlive_a_restart(world: World) -> None:
    client = await world.client()
    await make(client, "research", weight=3.0)
    await make(client, "vision", parent="research")
    await make(client, "gone")
    await client.call("DeleteTenant", pb.DeleteTenantRequest(name="gone"), types_pb2.Tenant)
    await client.create(tenant="vision")
    await client.attach()
    client.submit(1, b"a", b"b", b"c")
    await client.accepted()
    before = await listed(client)
    await world.stop()
    await world.start()
    client = await world.client("client-2")
    after = await listed(client)
    assert list(after) == ["default", "research", "vision"]
    assert after == before
    assert after["research"].status.pending == 3


# --- those of the settings -------------------------------------------------------------------------------------------


TREE = (("research", TenantSpec(weight=2.0)), ("vision", TenantSpec(parent="research", quota=Quota(sessions=1))))


async def test_configured_tenants_are_there_from_the_start_and_win_at_the_next(tmp_path: Path) -> None:
    async with a_world(tmp_path, storage=f"sqlite://{tmp_path}/flame.db", tenants=TREE) as world:
        client = await world.client()
        assert (await listed(client))["vision"].spec.quota.sessions == 1
        await update(client, "research", weight=9.0)
        await make(client, "web")
        await world.stop()
        await world.start()
        tenants = await listed(await world.client("client-2"))
        assert list(tenants) == ["default", "research", "vision", "web"]
        assert tenants["research"].spec.weight == 2.0


async def test_what_the_journal_forbids_is_named_in_the_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    storage = f"sqlite://{tmp_path}/flame.db"
    async with a_world(tmp_path, storage=storage, tenants=(("vision", TenantSpec()),)) as world:
        await (await world.client()).create(tenant="vision")
    wanted = (
        ("vision", TenantSpec(guarantee=Resources(cpu=1))),
        ("german", TenantSpec(parent="vision", guarantee=Resources(cpu=1))),
        ("berlin", TenantSpec(parent="german")),
    )
    with caplog.at_level(logging.WARNING, "flame.manager"):
        async with a_world(tmp_path, storage=storage, tenants=wanted) as world:
            assert list(await listed(await world.client())) == ["default", "vision"]
    said = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    assert [text.split(" reason")[0] for text in said] == [
        "tenant_not_set_up name=german",
        "tenant_not_set_up name=berlin",
    ]
    assert "1 open session of its own" in said[0]


@pytest.mark.parametrize(
    ("tenants", "words"),
    [
        ((("a b", TenantSpec()),), "cluster.tenants: tenant name 'a b' holds ' '"),
        ((("a", TenantSpec(parent="b")),), "cluster.tenants: tenant <b> not found"),
        (
            (("a", TenantSpec(quota=Quota(cpu=1))), ("b", TenantSpec(parent="a", guarantee=Resources(cpu=2)))),
            "the tenants below a are guaranteed 2 cpu together, its quota is 1 cpu",
        ),
    ],
)
async def test_tenants_that_can_not_be_keep_the_manager_from_starting(
    tmp_path: Path, tenants: tuple[tuple[str, TenantSpec], ...], words: str
) -> None:
    world = World(tmp_path, {"tenants": tenants, "storage": f"sqlite://{tmp_path}/flame.db"})
    with pytest.raises(InvalidConfigError, match=words):
        await world.start()
    assert not (tmp_path / "flame.db").exists()


async def test_the_daemons_settings_reach_the_engine(tmp_path: Path) -> None:
    section = ClusterSection(
        policies=("priority", "drf"),
        tenants=TREE,
        scheduling=SchedulingSection(preemption_grace=0.5, unsatisfiable=7.25, gang_ports=(4000, 4001)),
        limits=LimitsSection(max_pending=12),
        storage="none",
    )
    settings = settings_of(ClusterConfig(cluster=section))
    here = replace(settings, links=(unix(tmp_path / "m.sock"),), frontend=None, backend=None, http=None)
    manager = SessionManager(here)
    await manager.start()
    engine = manager._turns.engine
    await manager.stop()
    got = engine.settings
    assert (got.preemption_grace_ms, got.unsatisfiable_ms, got.gang_ports) == (500, 7250, (4000, 4001))
    assert (got.max_pending, got.policies) == (12, ("priority", "drf"))
    assert [policy.name for policy in engine.scheduler.policies.policies] == ["priority", "drf"]
    assert list(engine.tenants) == ["default", "research", "vision"]


# --- marks -----------------------------------------------------------------------------------------------------------


async def test_a_node_shows_its_labels_and_marks(world: World) -> None:
    client = await world.client()
    node = Node("node-1", cpu=2)
    node.hello.node.node.spec.MergeFrom(
        types_pb2.NodeSpec(hostname="h", labels={"zone": "a"}, taints=["gpu=only"], max_executors=9)
    )
    await world._open(node)
    await client.create(min_instances=1, tolerations=["gpu"], selector={"zone": "a"})
    await node.start()
    shown = await mark(client, "node-1", "cordon")
    assert shown.spec == node.hello.node.node.spec
    assert (shown.status.cordoned, shown.status.draining, shown.status.executors) == (True, False, 1)
    assert (await nodes(client))["node-1"] == shown
    shown = await mark(client, "node-1", "uncordon")
    assert (shown.status.cordoned, shown.status.draining) == (False, False)
    with pytest.raises(NotFoundError, match="node <node-7> not found"):
        await mark(client, "node-7", "cordon")
    with pytest.raises(InvalidArgumentError, match="unknown mark 'paint'"):
        await mark(client, "node-1", "paint")


async def test_draining_gives_running_tasks_the_grace_time_that_is_asked_for(tmp_path: Path) -> None:
    async with a_world(tmp_path, preemption_grace_ms=100) as world:
        client, node = await world.client(), await world.node(cpu=1)
        await client.create()
        await client.attach()
        client.submit(1, b"a")
        channel, _ = await node.start()
        await node.tasks(channel)
        shown = await mark(client, "node-1", "drain", grace_ms=600_000)
        assert shown.status.draining
        await mark(client, "node-1", "uncordon")
        node.answer(channel, [1], [b"done"])
        await node.take(Kind.STOP, channel)
        node.released(channel)
        client.submit(2, b"b")
        channel, _ = await node.start()
        await node.tasks(channel)
        await mark(client, "node-1", "drain")  # without a time: that of preemption, which is short here
        stop = link_pb2.Stop.FromString((await node.take(Kind.STOP, channel)).body)
        assert "its grace time is over" in stop.reason
        await mark(client, "node-1", "uncordon")
        node.released(channel)
        channel, _ = await node.start()
        await node.tasks(channel)
        await mark(client, "node-1", "drain", grace_ms=0)
        await node.take(Kind.STOP, channel)


async def test_a_marked_node_is_listed_while_it_is_away_also_after_a_restart(world: World) -> None:
    client = await world.client()
    await world.node()
    await mark(client, "node-1", "drain")
    await world.stop()
    await world.start()
    client = await world.client("client-2")
    away = (await nodes(client))["node-1"]
    assert away.status.state == types_pb2.Unknown
    assert (away.status.cordoned, away.status.draining) == (True, True)
    assert (await mark(client, "node-1", "cordon")).status.draining is False
    await mark(client, "node-1", "uncordon")
    assert await nodes(client) == {}


# --- what a node says of itself ------------------------------------------------------------------------------------


async def test_a_gangs_members_are_told_and_shown(world: World) -> None:
    client, node = await world.client(), Node("node-1", cpu=2)
    node.hello.node.node.status.capacity.gpu = 2
    await world._open(node)
    resreq = types_pb2.ResourceRequirement(cpu=1, memory=1 << 30, gpu=1)
    await client.create(gang=True, min_instances=2, topology="same-node", on_member_loss="fail", resreq=resreq)
    starts = [await node.start() for _ in range(2)]
    assert [start.gang.rank for _, start in starts] == [0, 1]
    assert {start.gang.world_size for _, start in starts} == {2}
    assert len(set(starts[0][1].gang.addresses)) == 2
    assert [list(start.gpus) for _, start in starts] == [[0], [1]]
    shown = (await client.call("ListExecutor", pb.ListExecutorRequest(), types_pb2.ExecutorList)).executors
    assert [executor.status.gang for executor in shown] == [start.gang for _, start in starts]
    assert [list(executor.status.gpus) for executor in shown] == [[0], [1]]


async def test_a_session_shows_what_it_asks_for_and_since_when_it_waits(world: World) -> None:
    client = await world.client()
    wish = types_pb2.SessionSpec(
        selector={"zone": "a"}, tolerations=["gpu=only"], prefer_nodes=["node-1"], min_instances=2, gang=True,
        topology="spread", on_member_loss="restart",
    )  # fmt: skip
    names = [field.name for field, _ in wish.ListFields()]
    made = await client.create(**{name: getattr(wish, name) for name in names})
    assert {name: getattr(made.spec, name) for name in names} == {name: getattr(wish, name) for name in names}
    status = await client.session()
    assert (status.wanted, status.executors) == (2, 0)
    assert status.pending_since >= status.creation_time > 0
    node = Node("node-1", cpu=2)
    node.hello.node.node.spec.labels["zone"] = "a"
    other = Node("node-2", cpu=2)
    other.hello.node.node.spec.labels["zone"] = "a"
    await world._open(node)
    await world._open(other)
    await node.start()
    await other.start()
    status = await client.session()
    assert (status.wanted, status.executors, status.pending_since) == (2, 2, 0)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda hello: hello.node.status.capacity.MergeFrom(types_pb2.ResourceRequirement(gpu=-1)), "no node has"),
        (lambda hello: hello.node.status.capacity.MergeFrom(types_pb2.ResourceRequirement(gpu=2**31 - 1)), "no node"),
        (lambda hello: hello.node.status.capacity.MergeFrom(types_pb2.ResourceRequirement(cpu=2**63)), "no node has"),
        (lambda hello: hello.node.spec.labels.update({"": "x"}), "the label ''"),
        (lambda hello: hello.node.spec.labels.update({"k": "x" * 300}), "the label 'k'"),
        (lambda hello: hello.node.spec.labels.update({f"k{n}": "" for n in range(300)}), "300 labels"),
        (lambda hello: hello.node.spec.taints.append("=x"), "the taint '=x'"),
        (lambda hello: hello.node.spec.taints.extend(["a"] * 300), "300 taints"),
        (lambda hello: hello.executors.add(executor_id="e", gpus=[1, 1]), "can't hold the GPUs"),
        (lambda hello: hello.executors.add(executor_id="e", gpus=[2**32 - 1]), "can't hold the GPUs"),
        (lambda hello: hello.executors.add(resreq=types_pb2.ResourceRequirement(gpu=-3)), "no node has"),
        (lambda hello: hello.executors.add(gang=types_pb2.Gang(rank=2, world_size=2)), "member 2 of 2"),
        (
            lambda hello: hello.executors.add(gang=types_pb2.Gang(rank=0, world_size=1, addresses=["h:x"])),
            "at the addresses 'h:x'",
        ),
        (
            lambda hello: hello.executors.add(gang=types_pb2.Gang(rank=0, world_size=2, addresses=["h:1"])),
            "member 0 of 2",
        ),
    ],
)
async def test_a_node_that_says_what_can_not_be_is_refused(world: World, spoil: Any, words: str) -> None:
    node = Node("node-1")
    spoil(node.hello.node)
    with pytest.raises(Exception, match=words):
        await world._open(node)
    assert await nodes(await world.client()) == {}


async def test_a_heartbeat_with_an_impossible_capacity_ends_the_connection(world: World) -> None:
    node = await world.node()
    capacity = types_pb2.ResourceRequirement(cpu=1, gpu=2**31 - 1)
    node.send(Kind.NODE_STATUS, 0, types_pb2.NodeStatus(capacity=capacity))
    assert "no node has a capacity of" in str(await node.ended())
