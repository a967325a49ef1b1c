"""The calls of the frontend, as our own clients make them over a link."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from flame.link import Kind
from flame.model.errors import (
    AlreadyExistsError,
    InvalidArgumentError,
    InvalidStateError,
    NotFoundError,
    TooLargeError,
)
from flame.proto import frontend_pb2 as pb
from flame.proto import link_pb2, types_pb2
from manager_harness import Client, Node, World, a_world


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with a_world(tmp_path, max_payload=100_000, name="here", endpoint="http://h:1") as world:
        yield world


async def create_task(client: Client, task_input: bytes | None = b"x", session_id: str = "s1", **more: object) -> str:
    spec = types_pb2.TaskSpec(session_id=session_id, input=task_input, **more)
    return (await client.call("CreateTask", pb.CreateTaskRequest(task=spec), types_pb2.Task)).metadata.id


async def get_task(client: Client, task_id: str) -> types_pb2.Task:
    return await client.call("GetTask", pb.GetTaskRequest(task_id=task_id, session_id="s1"), types_pb2.Task)


async def list_tasks(client: Client, **request: object) -> list[types_pb2.Task]:
    return await client.call_stream("ListTask", pb.ListTaskRequest(session_id="s1", **request), types_pb2.Task)


async def worked_off(client: Client, node: Node, outputs: list[bytes]) -> int:
    """Session s1 with as many tasks as outputs, all succeeded; the channel of their executor."""
    await client.create()
    for number in range(len(outputs)):
        await create_task(client, b"in-%d" % (number + 1))
    channel, _ = await node.start()
    done = 0
    while done < len(outputs):
        tasks = await node.tasks(channel)
        node.answer(channel, tasks.task_ids, [outputs[task_id - 1] for task_id in tasks.task_ids])
        done += len(tasks.task_ids)
    while (await client.session()).succeed < len(outputs):
        await node.round_trip()
    return channel


# --- the cluster -----------------------------------------------------------------------------------------------------


async def test_the_cluster_describes_itself(world: World) -> None:
    client = await world.client()
    info = await client.call("GetCluster", pb.GetClusterRequest(), pb.ClusterInfo)
    assert (info.name, info.endpoint, info.storage, info.read_only) == ("here", "http://h:1", "none", False)
    assert (info.generation, info.max_payload, info.unit.cpu, info.unit.memory) == (1, 100_000, 1, 1 << 30)
    assert info.version


async def test_an_unknown_call_is_an_error(world: World) -> None:
    client = await world.client()
    with pytest.raises(NotFoundError, match="no method 'Shutdown' here"):
        await client.link.call("Shutdown", b"")


async def test_a_request_that_is_no_message_is_an_error(world: World) -> None:
    client = await world.client()
    with pytest.raises(InvalidArgumentError, match="is no GetSessionRequest"):
        await client.link.call("GetSession", b"\xff\xff\xff")


async def test_nodes_and_executors(world: World) -> None:
    client, node = await world.client(), await world.node(cpu=3)
    await client.create()
    await create_task(client)
    channel, start = await node.start()
    await node.tasks(channel)
    found = await client.call("GetNode", pb.GetNodeRequest(name="node-1"), pb.GetNodeResponse)
    assert (found.node.status.capacity.cpu, found.node.status.allocated.cpu) == (3, 1)
    (executor,) = (await client.call("ListExecutor", pb.ListExecutorRequest(), types_pb2.ExecutorList)).executors
    assert executor.metadata.id == start.executor_id
    assert (executor.spec.node, executor.status.session_id, executor.status.pid) == ("node-1", "s1", 7)
    assert (executor.status.state, executor.status.outstanding) == (types_pb2.ExecutorBound, 1)
    request = pb.GetExecutorRequest(executor_id=start.executor_id)
    assert await client.call("GetExecutor", request, types_pb2.Executor) == executor
    none = await client.call("ListExecutor", pb.ListExecutorRequest(node="other"), types_pb2.ExecutorList)
    assert not none.executors
    with pytest.raises(NotFoundError, match="node <x> not found"):
        await client.call("GetNode", pb.GetNodeRequest(name="x"), pb.GetNodeResponse)
    with pytest.raises(NotFoundError, match="executor <x> not found"):
        await client.call("GetExecutor", pb.GetExecutorRequest(executor_id="x"), types_pb2.Executor)


# --- sessions --------------------------------------------------------------------------------------------------------


async def test_our_additions_to_a_session_come_back(world: World) -> None:
    client = await world.client()
    await client.call("CreateTenant", pb.CreateTenantRequest(name="blue"), types_pb2.Tenant)
    defaults = types_pb2.TaskOptions(timeout_ms=50, max_retries=0, priority=2, labels={"k": "v"})
    made = await client.create(
        tenant="blue", labels={"a": "1"}, task_defaults=defaults, retention_s=7, priority=3, min_instances=0
    )
    got = await client.call("GetSession", pb.GetSessionRequest(session_id="s1"), types_pb2.Session)
    assert got.spec == made.spec
    assert (got.spec.tenant, dict(got.spec.labels), got.spec.retention_s) == ("blue", {"a": "1"}, 7)
    assert got.spec.task_defaults == defaults


async def test_sessions_are_told_apart(world: World) -> None:
    client = await world.client()
    await client.create()
    with pytest.raises(AlreadyExistsError, match="'s1' already exists"):
        await client.create()
    with pytest.raises(NotFoundError, match="application <none> not found"):
        await client.create("s2", application="none")
    with pytest.raises(InvalidArgumentError, match="session spec is missed"):
        await client.call("CreateSession", pb.CreateSessionRequest(session_id="s2"), types_pb2.Session)
    with pytest.raises(TooLargeError, match="the common data has 100001 bytes"):
        await client.create("s2", common_data=bytes(100_001))


async def test_delete_needs_a_closed_session(world: World) -> None:
    client = await world.client()
    await client.create()
    with pytest.raises(Exception, match="Cannot delete open session"):
        await client.call("DeleteSession", pb.DeleteSessionRequest(session_id="s1"), types_pb2.Session)
    await client.call("CloseSession", pb.CloseSessionRequest(session_id="s1"), types_pb2.Session)
    await client.call("DeleteSession", pb.DeleteSessionRequest(session_id="s1"), types_pb2.Session)
    with pytest.raises(NotFoundError):
        await client.session()


async def test_listing_filters_and_pages(world: World) -> None:
    client = await world.client()
    await client.register("other")
    for number in range(5):
        labels = {"parity": "even" if number % 2 == 0 else "odd"}
        await client.create(f"s{number}", common_data=b"data", labels=labels)
    await client.create("other-1", application="other")
    await client.call("CloseSession", pb.CloseSessionRequest(session_id="s0"), types_pb2.Session)

    async def ids(**request: object) -> list[str]:
        answer = await client.call("ListSession", pb.ListSessionRequest(**request), types_pb2.SessionList)
        return [session.metadata.id for session in answer.sessions]

    assert await ids(application="other") == ["other-1"]
    assert await ids(labels={"parity": "even"}) == ["s2", "s4", "s0"]
    assert await ids(states=[types_pb2.Closed]) == ["s0"]
    assert await ids(labels={"parity": "even"}, states=[types_pb2.Open]) == ["s2", "s4"]
    pages: list[str] = []
    token = ""
    while True:
        request = pb.ListSessionRequest(page_size=4, page_token=token, without_common_data=True)
        answer = await client.call("ListSession", request, types_pb2.SessionList)
        assert not any(session.spec.HasField("common_data") for session in answer.sessions)
        pages += [session.metadata.id for session in answer.sessions]
        token = answer.next_page_token
        if not token:
            break
    assert pages == await ids()
    assert len(pages) == 6
    with pytest.raises(InvalidArgumentError, match="page token"):
        await ids(page_token="made up")


async def test_watching_a_session_until_it_is_closed(world: World) -> None:
    client, node = await world.client(), await world.node()
    await client.create()
    updates = client.link.stream("WatchSession", pb.WatchSessionRequest(session_id="s1").SerializeToString())
    first = pb.SessionUpdate.FromString(await anext(updates))
    assert (first.session.metadata.id, first.session.status.succeed) == ("s1", 0)
    await create_task(client)
    channel, _ = await node.start()
    (task_id,) = (await node.tasks(channel)).task_ids
    node.answer(channel, [task_id], [b"out"])
    changes: list[pb.TaskChange] = []
    while not any(change.state == types_pb2.Succeed for change in changes):
        changes += pb.SessionUpdate.FromString(await anext(updates)).tasks
    assert {change.task_id for change in changes} == {1}
    await client.call("CloseSession", pb.CloseSessionRequest(session_id="s1"), types_pb2.Session)
    rest = [pb.SessionUpdate.FromString(body) async for body in updates]
    assert rest[-1].session.status.state == types_pb2.Closed
    with pytest.raises(NotFoundError):
        await client.call_stream("WatchSession", pb.WatchSessionRequest(session_id="nope"), pb.SessionUpdate)


async def test_watchers_of_a_deleted_session_are_let_go(world: World) -> None:
    client, other = await world.client(), await world.client("client-2")
    await client.create()
    task_id = await create_task(client)
    watching = asyncio.create_task(
        other.call_stream("WatchTask", pb.WatchTaskRequest(session_id="s1", task_id=task_id), types_pb2.Task)
    )
    await other.round_trip()
    await client.call("CloseSession", pb.CloseSessionRequest(session_id="s1"), types_pb2.Session)
    await client.call("DeleteSession", pb.DeleteSessionRequest(session_id="s1"), types_pb2.Session)
    assert [task.status.state for task in await watching] in ([], [types_pb2.Cancelled])


async def test_explain_says_what_is_wanting(world: World) -> None:
    client = await world.client()
    await client.create(resreq=types_pb2.ResourceRequirement(cpu=1, memory=1 << 30))
    await create_task(client)
    explained = await client.call("Explain", pb.ExplainRequest(session_id="s1"), pb.Explanation)
    assert "1 pending" in explained.summary
    assert explained.reasons[0].message
    assert explained.story[0].message == "created"
    of_task = await client.call("Explain", pb.ExplainRequest(session_id="s1", task_id="1"), pb.Explanation)
    assert "task 1 is Pending" in of_task.summary
    with pytest.raises(NotFoundError):
        await client.call("Explain", pb.ExplainRequest(session_id="s1", task_id="9"), pb.Explanation)


# --- tasks -----------------------------------------------------------------------------------------------------------


async def test_options_of_a_task_reach_the_node(world: World) -> None:
    client, node = await world.client(), await world.node()
    await client.create()
    options = types_pb2.TaskOptions(timeout_ms=1234, idempotency_key="once")
    assert await create_task(client, b"x", options=options) == "1"
    assert await create_task(client, b"x", options=options) == "1"
    channel, _ = await node.start()
    assert (await node.tasks(channel)).timeout_ms == 1234


async def test_a_task_over_the_limit_is_refused_by_name(world: World) -> None:
    client = await world.client()
    await client.create()
    with pytest.raises(TooLargeError, match="the input has 100001 bytes, the limit is 100000"):
        await create_task(client, bytes(100_001))


async def test_tasks_of_a_closed_session_are_refused(world: World) -> None:
    client = await world.client()
    await client.create()
    await client.call("CloseSession", pb.CloseSessionRequest(session_id="s1"), types_pb2.Session)
    with pytest.raises(InvalidStateError, match="is not open"):
        await create_task(client)


async def test_listing_tasks_by_state_id_and_number(world: World) -> None:
    client, node = await world.client(), await world.node()
    await worked_off(client, node, [b"a", b"b", b"c"])
    await create_task(client, None)
    every = await list_tasks(client)
    assert [(task.metadata.id, task.spec.input, task.spec.output) for task in every] == [
        ("1", b"in-1", b"a"),
        ("2", b"in-2", b"b"),
        ("3", b"in-3", b"c"),
        ("4", b"", b""),
    ]
    assert [task.spec.HasField("input") for task in every] == [True, True, True, False]
    assert [task.spec.HasField("output") for task in every] == [True, True, True, False]
    assert [task.metadata.id for task in await list_tasks(client, states=[types_pb2.Succeed], limit=2)] == ["1", "2"]
    assert [task.metadata.id for task in await list_tasks(client, after_task_id=2)] == ["3", "4"]
    bare = await list_tasks(client, without_payloads=True)
    assert not any(task.spec.HasField("input") or task.spec.HasField("output") for task in bare)


async def test_many_tasks_are_listed_in_order(world: World) -> None:
    client, node = await world.client(), await world.node()
    await client.create()
    await client.attach()
    inputs = [b"%d" % number for number in range(1500)]
    client.submit(1, *inputs, absent=[1234])
    await client.accepted()
    channel, _ = await node.start()
    done = 0
    while done < 1500:
        tasks = await node.tasks(channel)
        node.answer(channel, tasks.task_ids, tasks.inputs)
        done += len(tasks.task_ids)
    while (await client.session()).succeed < 1500:
        await node.round_trip()
    listed = await list_tasks(client)
    assert [task.metadata.id for task in listed] == [str(number) for number in range(1, 1501)]
    assert [task.spec.output for task in listed] == inputs
    assert [task.metadata.id for task in listed if not task.spec.HasField("input")] == ["1235"]


async def test_a_failed_task_keeps_its_text(world: World) -> None:
    client, node = await world.client(), await world.node()
    channel = await worked_off(client, node, [b"a"])
    await create_task(client, b"bad")
    tasks = await node.tasks(channel)
    failure = link_pb2.Failure(index=0, state=types_pb2.Failed, code=-1, message="no luck")
    node.answer(channel, tasks.task_ids, [b""], absent=[0], failures=[failure])
    while not (await client.session()).failed:
        await node.round_trip()
    for task in (await get_task(client, "2"), (await list_tasks(client, without_payloads=True))[1]):
        assert [event.message for event in task.status.events if event.code == 3] == ["no luck"]
    assert (await get_task(client, "2")).status.executor_id


async def test_cancelling_answers_what_had_not_ended(world: World) -> None:
    client, node = await world.client(), await world.node()
    channel = await worked_off(client, node, [b"a"])
    await create_task(client)
    await node.tasks(channel)
    request = pb.CancelTaskRequest(session_id="s1", task_ids=[1, 2, 2, 77], reason="enough")
    assert list((await client.call("CancelTask", request, pb.CancelTaskResponse)).task_ids) == [2]
    await node.take(Kind.CANCEL, channel)
    task = await get_task(client, "2")
    assert (task.status.state, task.status.events[-1].message) == (types_pb2.Cancelled, "enough")


async def test_a_watcher_that_hangs_up_leaves_nothing(world: World) -> None:
    client = await world.client()
    await client.create()
    await create_task(client)
    request = pb.WatchTaskRequest(session_id="s1", task_id="1").SerializeToString()
    stream = client.link.stream("WatchTask", request)
    waiting = asyncio.ensure_future(anext(stream))
    await client.round_trip()
    engine_session = world.manager._turns.engine.sessions["s1"]
    assert engine_session.watched == {1: 1}
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    await stream.aclose()
    await client.round_trip()
    await create_task(client)
    assert engine_session.watched == {}


async def test_a_task_that_still_runs_is_shown_so_and_then_ended(world: World) -> None:
    client, node = await world.client(), await world.node()
    await client.create()
    await create_task(client)
    request = pb.WatchTaskRequest(session_id="s1", task_id="1").SerializeToString()
    stream = client.link.stream("WatchTask", request)
    channel, _ = await node.start()
    (task_id,) = (await node.tasks(channel)).task_ids
    running = types_pb2.Task.FromString(await anext(stream))
    assert (running.status.state, running.spec.input) == (types_pb2.Running, b"x")
    node.answer(channel, [task_id], [b"out"])
    ended = types_pb2.Task.FromString(await anext(stream))
    assert (ended.status.state, ended.spec.output) == (types_pb2.Succeed, b"out")
    with pytest.raises(StopAsyncIteration):
        await anext(stream)


# --- logs ------------------------------------------------------------------------------------------------------------


async def test_logs_of_several_nodes_become_one_stream(world: World) -> None:
    client = await world.client()
    await client.create()
    asked: list[pb.GetLogsRequest] = []

    def serve(node: Node, *chunks: bytes) -> None:
        async def answer(body: bytes) -> AsyncIterator[bytes]:
            asked.append(pb.GetLogsRequest.FromString(body))
            offset = 0
            for chunk in chunks:
                yield pb.LogChunk(executor_id=node.hello.id, data=chunk, offset=offset).SerializeToString()
                offset += len(chunk)

        def on_call(link: object, method: str, body: bytes) -> AsyncIterator[bytes]:
            if not chunks:
                raise NotFoundError("no logs of it here")
            return answer(body)

        node.link.on_call = on_call

    serve(await world.node("node-1"), b"one", b"two")
    serve(await world.node("node-2"), b"three")
    serve(await world.node("node-3"))
    request = pb.GetLogsRequest(session_id="s1", stream="stdout", tail_bytes=9)
    chunks = await client.call_stream("GetLogs", request, pb.LogChunk)
    assert [chunk.data for chunk in chunks if chunk.executor_id == "node-1"] == [b"one", b"two"]
    assert [chunk.data for chunk in chunks if chunk.executor_id == "node-2"] == [b"three"]
    assert asked == [request, request]


async def test_logs_that_nobody_has(world: World) -> None:
    client, node = await world.client(), await world.node()

    def on_call(link: object, method: str, body: bytes) -> AsyncIterator[bytes]:
        raise NotFoundError("no logs of executor x here")

    node.link.on_call = on_call
    with pytest.raises(NotFoundError, match="no logs of executor x"):
        await client.call_stream("GetLogs", pb.GetLogsRequest(executor_id="x"), pb.LogChunk)
    with pytest.raises(NotFoundError):
        await client.call_stream("GetLogs", pb.GetLogsRequest(session_id="none"), pb.LogChunk)
    with pytest.raises(InvalidArgumentError, match="name a session or an executor"):
        await client.call_stream("GetLogs", pb.GetLogsRequest(), pb.LogChunk)
