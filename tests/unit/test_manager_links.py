"""Clients and nodes of the session manager: what goes out and comes in over their links."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from flame.link import Kind
from flame.model.errors import (
    FlameErrorCode,
    NotFoundError,
    PermissionDeniedError,
    ProtocolError,
    UnauthenticatedError,
    UnavailableError,
)
from flame.proto import frontend_pb2, link_pb2, types_pb2
from manager_harness import Client, Node, World, a_world


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with a_world(tmp_path, max_payload=100_000) as world:
        yield world


async def running(world: World, **spec: object) -> tuple[Client, Node, int]:
    """A client with an attached session, a node, and the channel of the session's executor."""
    client, node = await world.client(), await world.node()
    await client.create(**spec)
    await client.attach()
    client.submit(1, b"first")
    channel, _ = await node.start()
    tasks = await node.tasks(channel)
    node.answer(channel, tasks.task_ids, [b"done"])
    await client.accepted()
    await client.results()
    return client, node, channel


# --- the way of a task ---------------------------------------------------------------------------------------------


async def test_tasks_go_out_and_results_come_back(world: World) -> None:
    client, node = await world.client(), await world.node()
    await client.create(common_data=b"shared")
    assert (await client.attach()).state == types_pb2.Open
    client.submit(1, b"one", b"", b"three", absent=[1])
    channel, start = await node.start()
    assert start.context.session_id == "s1"
    assert start.context.common_data == b"shared"
    assert start.application.command == "/bin/true"
    assert start.resreq.cpu == 1
    assert start.token
    got = [await node.tasks(channel)]
    while sum(len(tasks.task_ids) for tasks in got) < 3:
        tasks = got[-1]
        node.answer(channel, tasks.task_ids, [b"<" + item + b">" for item in tasks.inputs])
        got.append(await node.tasks(channel))
    node.answer(channel, got[-1].task_ids, [b"<" + item + b">" for item in got[-1].inputs])
    accepted = await client.accepted()
    assert (accepted.first_seq, accepted.count, accepted.first_task_id) == (1, 3, 1)
    inputs = {task_id: item for tasks in got for task_id, item in zip(tasks.task_ids, tasks.inputs, strict=True)}
    absent = [tasks.task_ids[index] for tasks in got for index in tasks.absent]
    assert (inputs, absent) == ({1: b"one", 2: b"", 3: b"three"}, [2])
    outputs: dict[int, bytes] = {}
    while len(outputs) < 3:
        results = await client.results()
        outputs.update(zip(results.task_ids, results.outputs, strict=True))
    assert outputs == {1: b"<one>", 2: b"<>", 3: b"<three>"}


async def test_a_whole_batch_of_results_reaches_its_client_as_it_is(world: World) -> None:
    client, node, channel = await running(world)
    client.submit(2, b"x")
    (task_id,) = (await node.tasks(channel)).task_ids
    body = link_pb2.Results(task_ids=[task_id], outputs=[b""], absent=[0], busy_us=77).SerializeToString()
    node.send(Kind.RESULTS, channel, body)
    assert (await client.take(Kind.RESULTS)).body == body


async def test_failures_come_with_their_text(world: World) -> None:
    client, node, channel = await running(world)
    client.submit(2, b"x")
    (task_id,) = (await node.tasks(channel)).task_ids
    failure = link_pb2.Failure(index=0, state=types_pb2.Failed, code=-1, message="no luck", traceback="here")
    node.answer(channel, [task_id], [b""], absent=[0], failures=[failure])
    results = await client.results()
    assert (list(results.task_ids), list(results.failures)) == ([task_id], [failure])


async def test_a_repeated_submission_is_accepted_once(world: World) -> None:
    client, node, channel = await running(world)
    client.submit(2, b"a")
    first = await client.accepted()
    client.submit(2, b"a")
    assert await client.accepted() == first
    await node.tasks(channel)
    assert (await client.session()).running == 1
    assert (await client.session()).pending == 0


async def test_a_gap_in_the_sequence_is_refused(world: World) -> None:
    client, _, _ = await running(world)
    client.submit(5, b"a")
    refused = await client.accepted()
    assert refused.error.code == FlameErrorCode.PROTOCOL
    assert "does not continue" in refused.error.message


async def test_an_input_over_the_limit_is_refused_by_name(world: World) -> None:
    client, _, _ = await running(world)
    client.submit(2, b"small", bytes(100_001))
    refused = await client.accepted()
    assert refused.error.code == FlameErrorCode.TOO_LARGE
    assert refused.error.message == "the input of column 1 has 100001 bytes, the limit is 100000"
    client.submit(2, b"small", bytes(100_000))
    assert not (await client.accepted()).HasField("error")


async def test_large_inputs_leave_in_several_frames(tmp_path: Path) -> None:
    async with a_world(tmp_path) as world:
        client, node = await world.client(), await world.node()
        await client.create()
        await client.attach()
        client.submit(1, b"x")
        channel, _ = await node.start()
        node.answer(channel, (await node.tasks(channel)).task_ids, [b""])
        inputs = [bytes([number]) * 3_000_000 for number in range(5)]
        client.submit(2, *inputs, absent=[])
        got: dict[int, bytes] = {}
        while len(got) < 5:
            tasks = await node.tasks(channel)
            assert sum(map(len, tasks.inputs)) <= 4 * 1024 * 1024
            got.update(zip(tasks.task_ids, tasks.inputs, strict=True))
            node.answer(channel, tasks.task_ids, [b""] * len(tasks.task_ids))
        assert got == dict(enumerate(inputs, 2))


async def test_several_clients_of_one_session_get_their_own_results(world: World) -> None:
    client, node, channel = await running(world)
    other = await world.client("client-2")
    await other.attach()
    client.submit(2, b"mine")
    await client.accepted()
    other.submit(1, b"theirs")
    await other.accepted()
    seen: list[int] = []
    while len(seen) < 2:
        ids = list((await node.tasks(channel)).task_ids)
        seen += ids
        node.answer(channel, ids, [b"%d" % task_id for task_id in ids])
    assert list((await client.results()).outputs) == [b"2"]
    assert list((await other.results()).outputs) == [b"3"]


async def test_cancelling_tells_the_node_and_the_client(world: World) -> None:
    client, node, channel = await running(world)
    client.submit(2, b"long")
    (task_id,) = (await node.tasks(channel)).task_ids
    ranges = [link_pb2.Range(first=2, last=2), link_pb2.Range(first=1, last=900)]
    client.send(Kind.CANCEL, 1, link_pb2.Cancel(seqs=ranges, reason="enough"))
    cancel = link_pb2.Cancel.FromString((await node.take(Kind.CANCEL, channel)).body)
    assert [(item.first, item.last) for item in cancel.task_ids] == [(task_id, task_id)]
    assert cancel.reason == "enough"
    (failure,) = (await client.results()).failures
    assert (failure.state, failure.message) == (types_pb2.Cancelled, "enough")


async def test_many_cancelled_tasks_come_in_frames_of_a_bounded_size(world: World) -> None:
    client = await world.client()
    await client.create()
    await client.attach()
    client.submit(1, *[b""] * 10_000)
    await client.accepted()
    client.send(Kind.CANCEL, 1, link_pb2.Cancel(task_ids=[link_pb2.Range(first=1, last=10_000)]))
    counts: list[int] = []
    while sum(counts) < 10_000:
        results = await client.results()
        assert len(results.failures) == len(results.task_ids) == len(results.absent)
        counts.append(len(results.task_ids))
    assert max(counts) <= 4096


async def test_closing_a_session_is_noticed(world: World) -> None:
    client, node, channel = await running(world)
    await client.call("CloseSession", frontend_pb2.CloseSessionRequest(session_id="s1"), types_pb2.Session)
    notice = link_pb2.Notice.FromString((await client.take(Kind.NOTICE, 1)).body)
    assert notice.state == types_pb2.Closed
    stop = link_pb2.Stop.FromString((await node.take(Kind.STOP, channel)).body)
    assert stop.reason == "the session was closed"
    client.submit(2, b"late")
    assert isinstance((await client.accepted()).error.message, str)


async def test_a_bind_failure_is_noticed(world: World) -> None:
    client, node = await world.client(), await world.node()
    await client.create()
    await client.attach()
    client.submit(1, b"x")
    frame = await node.take(Kind.START)
    node.released(frame.channel, code=11, message="no such file")
    notice = link_pb2.Notice.FromString((await client.take(Kind.NOTICE, 1)).body)
    (event,) = notice.events
    assert event.code == 1001
    assert "failed to bind session with return_code <11>: <no such file>" in event.message


# --- clients that come back ------------------------------------------------------------------------------------------


async def test_a_client_that_comes_back_gets_what_it_missed(world: World) -> None:
    client, node, channel = await running(world)
    client.submit(2, b"a", b"b")
    await client.accepted()
    await client.close()
    ids: list[int] = []
    while len(ids) < 2:
        tasks = await node.tasks(channel)
        ids += tasks.task_ids
        node.answer(channel, tasks.task_ids, [b"out"] * len(tasks.task_ids))
    again = await world.client()
    attached = await again.attach(next_seq=3, unresolved=[link_pb2.Range(first=2, last=3)])
    assert [(known.first_seq, known.count, known.first_task_id) for known in attached.accepted] == [(2, 2, 2)]
    got: dict[int, bytes] = {}
    while len(got) < 2:
        results = await again.results()
        got.update(zip(results.task_ids, results.outputs, strict=True))
    assert got == {2: b"out", 3: b"out"}


async def test_a_newer_connection_of_a_client_takes_over(world: World) -> None:
    client, node, channel = await running(world)
    client.submit(2, b"a")
    (task_id,) = (await node.tasks(channel)).task_ids
    again = await world.client()
    assert isinstance(await client.ended(), UnavailableError)
    await again.attach(channel=9, next_seq=3, unresolved=[link_pb2.Range(first=task_id, last=task_id)])
    await again.round_trip()
    node.answer(channel, [task_id], [b"for the new one"])
    assert list((await again.results(9)).outputs) == [b"for the new one"]


async def test_after_detaching_nothing_comes(world: World) -> None:
    client, node, channel = await running(world)
    client.submit(2, b"a")
    (task_id,) = (await node.tasks(channel)).task_ids
    client.send(Kind.DETACH, 1)
    await client.round_trip()
    node.answer(channel, [task_id], [b"out"])
    while (await client.session()).succeed < 2:
        await client.round_trip()
    assert not [frame for frame in client.frames if frame.kind == Kind.RESULTS]
    client.submit(3, b"a")
    assert isinstance(await client.refused(), ProtocolError)


async def test_a_client_that_does_not_read_holds_up_nobody(world: World) -> None:
    slow, node, channel = await running(world)
    fast = await world.client("client-2")
    await fast.attach()
    slow.link.pause_reading()
    outputs = [bytes([65 + number % 26]) * 90_000 for number in range(200)]
    for number in range(200):
        slow.submit(2 + number, b"x")
    expected: dict[int, bytes] = {}
    while len(expected) < 200:
        tasks = await node.tasks(channel)
        for task_id in tasks.task_ids:
            expected[task_id] = outputs[task_id % 200]
            node.answer(channel, [task_id], [expected[task_id]])
    fast.submit(1, b"x")
    (task_id,) = (await node.tasks(channel)).task_ids
    node.answer(channel, [task_id], [b"quick"])
    assert list((await fast.results()).outputs) == [b"quick"]
    slow.link.resume_reading()
    got: dict[int, bytes] = {}
    while len(got) < 200:
        results = await slow.results()
        got.update(zip(results.task_ids, results.outputs, strict=True))
    assert got == expected


# --- nodes that come back --------------------------------------------------------------------------------------------


async def test_a_newer_connection_of_a_node_takes_over(world: World) -> None:
    client, node, channel = await running(world)
    client.submit(2, b"a")
    tasks = await node.tasks(channel)
    executor = (await client.call("ListExecutor", frontend_pb2.ListExecutorRequest(), types_pb2.ExecutorList)).executors
    held = link_pb2.HeldExecutor(
        executor_id=executor[0].metadata.id,
        channel=channel,
        session_id="s1",
        resreq=executor[0].spec.resreq,
        state=types_pb2.ExecutorBound,
        concurrency=1,
        task_ids=tasks.task_ids,
    )
    again = await world.node(held=[held])
    assert isinstance(await node.ended(), UnavailableError)
    again.answer(channel, tasks.task_ids, [b"after all"])
    assert list((await client.results()).outputs) == [b"after all"]
    (listed,) = (await client.call("ListNodes", frontend_pb2.ListNodesRequest(), types_pb2.NodeList)).nodes
    assert listed.status.state == types_pb2.Ready


async def test_a_node_that_starts_anew_gets_its_tasks_again(world: World) -> None:
    client, node, channel = await running(world)
    client.submit(2, b"a")
    tasks = await node.tasks(channel)
    await node.close()
    again = await world.node(boot_id="another")
    second, _ = await again.start()
    repeated = await again.tasks(second)
    assert list(repeated.task_ids) == list(tasks.task_ids)
    assert list(repeated.attempts) == [2]
    again.answer(second, repeated.task_ids, [b"second"], attempts=[2])
    assert list((await client.results()).outputs) == [b"second"]


async def test_a_lost_node_is_shown_as_unknown(world: World) -> None:
    client, node, _ = await running(world)
    await node.close()
    await client.round_trip()
    (listed,) = (await client.call("ListNodes", frontend_pb2.ListNodesRequest(), types_pb2.NodeList)).nodes
    assert listed.status.state == types_pb2.Unknown


# --- those who break the rules ---------------------------------------------------------------------------------------


async def test_an_unknown_session_ends_the_channel_only(world: World) -> None:
    client = await world.client()
    client.send(Kind.ATTACH, 3, link_pb2.Attach(session_id="../../etc", next_seq=1))
    error = await client.refused(3)
    assert isinstance(error, NotFoundError)
    assert "session <../../etc> not found" in error.message
    await client.create()
    await client.attach(channel=3)


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        (Kind.START, b""),
        (Kind.RESULTS, b""),
        (Kind.SUBMIT, b"\xff\xff"),
        (Kind.SUBMIT, link_pb2.Submit(first_seq=0, inputs=[b""]).SerializeToString()),
        (Kind.SUBMIT, link_pb2.Submit(first_seq=2, inputs=[b""], absent=[1]).SerializeToString()),
        (Kind.ATTACH, b"garbage"),
        (Kind.CANCEL, b"\x0a\xff"),
    ],
)
async def test_a_client_that_breaks_the_rules_is_sent_away(world: World, kind: Kind, body: bytes) -> None:
    client, _, _ = await running(world)
    client.send(kind, 1, body)
    assert isinstance(await client.ended(), ProtocolError)
    other = await world.client("client-2")
    assert (await other.session()).succeed == 1


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        (Kind.SUBMIT, b""),
        (Kind.RESULTS, b"\xff"),
        (Kind.RESULTS, link_pb2.Results(task_ids=[1, 2], outputs=[b""]).SerializeToString()),
        (Kind.RESULTS, link_pb2.Results(task_ids=[1], outputs=[b""], attempts=[1, 1]).SerializeToString()),
        (Kind.RESULTS, link_pb2.Results(task_ids=[1], outputs=[b""], absent=[1]).SerializeToString()),
        (
            Kind.RESULTS,
            link_pb2.Results(task_ids=[1], outputs=[b""], failures=[link_pb2.Failure(index=4)]).SerializeToString(),
        ),
    ],
)
async def test_a_node_that_breaks_the_rules_is_sent_away(world: World, kind: Kind, body: bytes) -> None:
    client, node, channel = await running(world)
    node.send(kind, channel, body)
    assert isinstance(await node.ended(), ProtocolError)
    assert (await client.session()).succeed == 1


async def test_a_node_speaks_for_its_own_executors_only(world: World) -> None:
    client, node, channel = await running(world)
    client.submit(2, b"a")
    (task_id,) = (await node.tasks(channel)).task_ids
    thief = await world.node("node-2")
    thief.answer(channel, [task_id], [b"forged"])
    error = await thief.ended()
    assert isinstance(error, ProtocolError)
    assert "belongs to an executor of node node-1" in error.message
    assert (await client.session()).succeed == 1


async def test_results_that_nobody_waits_for_are_dropped(world: World) -> None:
    client, node, channel = await running(world)
    node.answer(channel, [1], [b"again"])
    node.answer(4711, [1], [b"from nowhere"])
    node.answer(channel, [999], [b"no such task"])
    await node.round_trip()
    await client.round_trip()
    assert not [frame for frame in client.frames if frame.kind == Kind.RESULTS]
    assert (await client.session()).succeed == 1


@pytest.mark.parametrize("role", ["", "instance", "admin"])
async def test_other_roles_have_no_place(world: World, role: str) -> None:
    client = Client()
    client.hello.role = role
    with pytest.raises(ProtocolError, match="has no place here"):
        await client.open(world.path)


async def test_a_client_needs_an_id(world: World) -> None:
    for client_id in ("", "x" * 300):
        with pytest.raises(ProtocolError, match="needs an id"):
            await Client(client_id).open(world.path)


async def test_a_node_needs_a_name(world: World) -> None:
    with pytest.raises(ProtocolError, match="needs its name"):
        await Node("").open(world.path)


async def test_a_session_can_not_be_attached_twice_on_a_link(world: World) -> None:
    client, _, _ = await running(world)
    client.send(Kind.ATTACH, 2, link_pb2.Attach(session_id="s1"))
    assert "is attached to channel 1" in (await client.refused(2)).message


# --- instances -------------------------------------------------------------------------------------------------------


async def test_an_instance_sees_its_own_session_only(world: World) -> None:
    client, node = await world.client(), await world.node(cpu=2)
    await client.create("s1")
    await client.create("s2")
    await client.attach("s1")
    client.submit(1, b"x")
    channel, start = await node.start()
    instance = await world.client("from-inside", token=start.token)
    assert (await instance.session("s1")).state == types_pb2.Open
    with pytest.raises(PermissionDeniedError, match="its own session 's1'"):
        await instance.session("s2")
    with pytest.raises(PermissionDeniedError, match="may not call CreateSession"):
        await instance.create("s3", application="flmping")
    instance.send(Kind.ATTACH, 1, link_pb2.Attach(session_id="s2"))
    assert isinstance(await instance.refused(), PermissionDeniedError)
    await instance.attach("s1", channel=2)
    instance.submit(1, b"recursive", channel=2)
    assert (await instance.accepted(2)).first_task_id == 2
    node.released(channel)
    assert isinstance(await instance.ended(), UnavailableError)
    with pytest.raises(UnauthenticatedError):
        await Client("again", token=start.token).open(world.path)
