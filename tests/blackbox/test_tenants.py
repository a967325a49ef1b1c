"""Tenants and marked nodes through the real daemons, with the calls as they are on the wire."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TypeVar

import grpc
import pytest
from google.protobuf.message import Message

from blackbox.trouble import ask, connect, register, until
from cluster import Cluster
from flame.link import connect as dial
from flame.link import tcp
from flame.model.errors import ExhaustedError, InvalidArgumentError, NotFoundError
from flame.proto import frontend_pb2 as pb
from flame.proto import link_pb2, types_pb2

M = TypeVar("M", bound=Message)


def call(cluster: Cluster, method: str, request: Message, answer: type[M]) -> M:
    """One call on a link of its own."""

    async def once() -> bytes:
        hello = link_pb2.Hello(version=1, role="client", id="raw")
        ignored = {"on_frames": lambda link, frames: None, "on_closed": lambda link, error: None}
        link = await dial(tcp("127.0.0.1", cluster.port + 2), hello, **ignored)
        try:
            return await link.call(method, request.SerializeToString())
        finally:
            link.close()
            await link.wait_closed()

    return answer.FromString(asyncio.run(once()))


def create(cluster: Cluster, name: str, **spec: object) -> types_pb2.Tenant:
    request = pb.CreateTenantRequest(name=name, tenant=types_pb2.TenantSpec(**spec))
    return call(cluster, "CreateTenant", request, types_pb2.Tenant)


def tenants(cluster: Cluster) -> dict[str, types_pb2.Tenant]:
    found = call(cluster, "ListTenants", pb.ListTenantsRequest(), types_pb2.TenantList)
    return {tenant.metadata.name: tenant for tenant in found.tenants}


def mark(cluster: Cluster, what: str, **more: int) -> types_pb2.NodeStatus:
    request = pb.MarkNodeRequest(name="node-1", mark=what, **more)
    return call(cluster, "MarkNode", request, types_pb2.Node).status


def test_a_tree_of_tenants_outlives_a_kill_of_the_session_manager(tmp_path: Path) -> None:
    with Cluster(tmp_path, nodes=0) as cluster, connect(cluster) as connection:
        register(connection)
        create(cluster, "research", weight=3, quota=types_pb2.TenantQuota(sessions=2, pending=10))
        create(cluster, "vision", parent="research", guarantee=types_pb2.ResourceRequirement(cpu=1))
        create(cluster, "speech", parent="research", description="talks")
        create(cluster, "gone")
        call(cluster, "DeleteTenant", pb.DeleteTenantRequest(name="gone"), types_pb2.Tenant)
        session = types_pb2.SessionSpec(application="trouble", tenant="vision")
        made = pb.CreateSessionRequest(session_id="s", session=session)
        call(cluster, "CreateSession", made, types_pb2.Session)
        task = types_pb2.TaskSpec(session_id="s", input=ask())
        for _ in range(3):
            call(cluster, "CreateTask", pb.CreateTaskRequest(task=task), types_pb2.Task)
        before = tenants(cluster)
        assert list(before) == ["default", "research", "speech", "vision"]
        counted = before["research"].status
        assert (counted.sessions, counted.pending, counted.wanted) == (1, 3, 3)
        cluster.manager.kill()
        cluster.start_manager()
        assert tenants(cluster) == before
        with pytest.raises(InvalidArgumentError, match="name one of speech, vision"):
            connection.create_session("trouble", tenant="research")
        with pytest.raises(NotFoundError, match="did you mean speech"):
            connection.create_session("trouble", tenant="speach")


def test_a_quota_of_tasks_is_there_again_when_some_have_ended(tmp_path: Path) -> None:
    with Cluster(tmp_path) as cluster, connect(cluster) as connection:
        register(connection)
        create(cluster, "small", quota=types_pb2.TenantQuota(pending=2, cpu=1))
        with connection.create_session("trouble", tenant="small") as session:
            running = [session.submit(ask("sleep", seconds=60)) for _ in range(2)]
            until(lambda: tenants(cluster)["small"].status.pending == 2, "both tasks to be accepted")
            with pytest.raises(ExhaustedError, match="over its quota of 2 pending"):
                session.invoke(ask())
            until(lambda: tenants(cluster)["small"].status.executors == 1, "the executor that its quota allows")
            assert "tenant small is at its quota of 1 cpu" in session.explain().summary
            running[0].cancel()
            until(lambda: tenants(cluster)["small"].status.pending == 1, "one task to end")
            assert session.submit(ask(n=1)) is not None
            for future in running:
                future.cancel()


def test_configured_tenants_and_policies_are_there_from_the_start(tmp_path: Path) -> None:
    settings = {
        "policies": ["priority", "drf"],
        "tenants": {"research": {"weight": 2, "tenants": {"vision": {"quota": {"sessions": 1}}}}},
    }
    with Cluster(tmp_path, nodes=0, settings=settings) as cluster:
        found = tenants(cluster)
        assert list(found) == ["default", "research", "vision"]
        assert (found["research"].spec.weight, found["vision"].spec.quota.sessions) == (2.0, 1)
        info = call(cluster, "GetCluster", pb.GetClusterRequest(), pb.ClusterInfo)
        assert list(info.policies) == ["priority", "drf"]


def test_a_mark_is_kept_while_the_node_and_the_session_manager_are_away(tmp_path: Path) -> None:
    with Cluster(tmp_path) as cluster, connect(cluster) as connection:
        register(connection)
        session = connection.create_session("trouble")
        assert session.invoke(ask("echo", n=1))
        mark(cluster, "drain", grace_ms=60_000)
        until(lambda: not connection.list_executors(), "the node to be empty")
        waiting = session.submit(ask("echo", n=2))
        until(lambda: "it is cordoned" in [reason.message for reason in session.explain().reasons], "the reason")
        (reason,) = [reason for reason in session.explain().reasons if reason.object == "node-1"]
        assert reason.remedy == "flmctl node uncordon node-1"
        cluster.nodes["node-1"].stop()
        cluster.manager.kill()
        cluster.start_manager()
        (node,) = call(cluster, "ListNodes", pb.ListNodesRequest(), types_pb2.NodeList).nodes
        assert (node.metadata.name, node.status.state) == ("node-1", types_pb2.Unknown)
        assert (node.status.cordoned, node.status.draining) == (True, True)
        cluster.start_node("node-1")
        assert not mark(cluster, "uncordon").cordoned
        assert waiting.result(60)
        session.close()


def test_the_same_calls_over_grpc(tmp_path: Path) -> None:
    with Cluster(tmp_path, nodes=0) as cluster, grpc.insecure_channel(f"127.0.0.1:{cluster.port}") as channel:
        make = channel.unary_unary(
            "/flame.v1.Frontend/CreateTenant",
            request_serializer=pb.CreateTenantRequest.SerializeToString,
            response_deserializer=types_pb2.Tenant.FromString,
        )
        assert make(pb.CreateTenantRequest(name="web")).spec.weight == 1.0
        with pytest.raises(grpc.RpcError) as caught:
            make(pb.CreateTenantRequest(name="web"))
        assert caught.value.code() is grpc.StatusCode.ALREADY_EXISTS
        assert list(tenants(cluster)) == ["default", "web"]
