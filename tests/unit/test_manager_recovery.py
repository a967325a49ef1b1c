"""What survives a restart, and what happens while the journal can't be written."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest

from flame.engine.effects import Record, RecordKind
from flame.journal import JournalError, SqliteJournal
from flame.model.errors import FlameErrorCode, InvalidConfigError, ReadOnlyError
from flame.proto import frontend_pb2 as pb
from flame.proto import link_pb2, types_pb2
from flame.testing.journal import drain
from manager_harness import Client, World, a_world


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with a_world(tmp_path, storage=f"sqlite://{tmp_path}/flame.db") as world:
        yield world


async def restart(world: World) -> None:
    await world.stop()
    await world.start()


async def test_what_was_deleted_last_is_not_in_the_way_of_new_records(world: World) -> None:
    client = await world.client()
    await client.create()
    await client.call("CloseSession", pb.CloseSessionRequest(session_id="s1"), types_pb2.Session)
    await client.call("DeleteSession", pb.DeleteSessionRequest(session_id="s1"), types_pb2.Session)
    await restart(world)  # before its records were removed
    client = await world.client()
    await client.create("s2")
    assert (await client.session("s2")).state == types_pb2.SessionState.Open


async def one_done_two_waiting(world: World) -> None:
    """Session s1: task 1 succeeded, 2 and 3 wait."""
    client, node = await world.client(), await world.node()
    await client.create(common_data=b"shared", labels={"a": "1"})
    await client.attach()
    client.submit(1, b"one", b"two", b"", absent=[2])
    await client.accepted()
    channel, _ = await node.start()
    node.answer(channel, (await node.tasks(channel)).task_ids[:1], [b"done"])
    await client.results()


async def listed(client: Client) -> list[types_pb2.Task]:
    return await client.call_stream("ListTask", pb.ListTaskRequest(session_id="s1"), types_pb2.Task)


async def test_everything_is_there_after_a_restart(world: World) -> None:
    await one_done_two_waiting(world)
    await restart(world)
    client = await world.client()
    got = await client.call("GetSession", pb.GetSessionRequest(session_id="s1"), types_pb2.Session)
    assert (got.spec.common_data, dict(got.spec.labels)) == (b"shared", {"a": "1"})
    assert (got.status.succeed, got.status.pending, got.status.running) == (1, 2, 0)
    tasks = await listed(client)
    assert [task.status.state for task in tasks] == [types_pb2.Succeed, types_pb2.Pending, types_pb2.Pending]
    assert [task.spec.input for task in tasks] == [b"one", b"two", b""]
    assert tasks[0].spec.output == b"done"
    assert not tasks[2].spec.HasField("input")
    applications = await client.call("ListApplication", pb.ListApplicationRequest(), types_pb2.ApplicationList)
    assert [item.metadata.name for item in applications.applications] == ["app", "flmexec", "flmping", "flmrun"]
    info = await client.call("GetCluster", pb.GetClusterRequest(), pb.ClusterInfo)
    assert info.generation == 2


async def test_waiting_tasks_go_on_after_a_restart(world: World) -> None:
    await one_done_two_waiting(world)
    await restart(world)
    client, node = await world.client(), await world.node(boot_id="another")
    attached = await client.attach(next_seq=4, unresolved=[link_pb2.Range(first=2, last=3)])
    assert not attached.accepted
    channel, _ = await node.start()
    inputs: dict[int, bytes] = {}
    while len(inputs) < 2:
        tasks = await node.tasks(channel)
        inputs.update(zip(tasks.task_ids, tasks.inputs, strict=True))
        node.answer(channel, tasks.task_ids, [b"late"] * len(tasks.task_ids))
    assert inputs == {2: b"two", 3: b""}
    outputs: dict[int, bytes] = {}
    while len(outputs) < 2:
        results = await client.results()
        outputs.update(zip(results.task_ids, results.outputs, strict=True))
    assert outputs == {2: b"late", 3: b"late"}
    client.submit(4, b"next")
    assert (await client.accepted()).first_task_id == 4


async def test_a_client_gets_results_of_the_time_before(world: World) -> None:
    await one_done_two_waiting(world)
    await restart(world)
    client = await world.client()
    attached = await client.attach(next_seq=1)
    assert [(known.first_seq, known.count) for known in attached.accepted] == [(1, 3)]
    results = await client.results()
    assert (list(results.task_ids), list(results.outputs)) == ([1], [b"done"])


async def test_an_executor_that_went_on_is_found_again(world: World) -> None:
    client, node = await world.client(), await world.node()
    await client.create()
    await client.attach()
    client.submit(1, b"x")
    channel, start = await node.start()
    await node.tasks(channel)
    await client.accepted()
    await restart(world)
    held = link_pb2.HeldExecutor(
        executor_id=start.executor_id,
        channel=channel,
        session_id="s1",
        resreq=start.resreq,
        state=types_pb2.ExecutorBound,
        concurrency=1,
        task_ids=[1],
    )
    client, node = await world.client(), await world.node(held=[held])
    # Its instance may go on calling, with the credential of the time before.
    instance = await world.client("from-inside", token=start.token)
    assert (await instance.session()).running == 1
    await client.attach(unresolved=[link_pb2.Range(first=1, last=1)])
    node.answer(channel, [1], [b"went on"])
    assert list((await client.results()).outputs) == [b"went on"]


async def test_a_deleted_session_leaves_the_journal(world: World, tmp_path: Path) -> None:
    await one_done_two_waiting(world)
    client = await world.client()
    await client.create("s2")
    await client.call("CloseSession", pb.CloseSessionRequest(session_id="s1", force=True), types_pb2.Session)
    await client.call("DeleteSession", pb.DeleteSessionRequest(session_id="s1"), types_pb2.Session)
    await client.create("s1", application="flmping")
    await restart(world)
    client = await world.client()
    got = await client.call("GetSession", pb.GetSessionRequest(session_id="s1"), types_pb2.Session)
    assert (got.spec.application, got.status.succeed) == ("flmping", 0)
    await world.stop()
    journal = SqliteJournal(tmp_path / "flame.db")
    journal.open()
    drain(journal)
    journal.close()
    connection = sqlite3.connect(tmp_path / "flame.db")
    rows = connection.execute("SELECT kind FROM records WHERE session='s1'").fetchall()
    connection.close()
    await world.start()
    assert rows == [(RecordKind.SESSION,)]


async def test_two_managers_can_not_share_a_journal(world: World, tmp_path: Path) -> None:
    (tmp_path / "second").mkdir()
    with pytest.raises(JournalError, match="in use by another session manager"):
        async with a_world(tmp_path / "second", storage=f"sqlite://{tmp_path}/flame.db"):
            pass


async def test_an_address_in_use_gives_the_journal_free_again(world: World, tmp_path: Path) -> None:
    from flame.link import tcp
    from flame.manager.manager import SessionManager
    from flame.manager.settings import ManagerSettings

    listener = await asyncio.start_server(lambda reader, writer: None, "127.0.0.1", 0)
    address = tcp("127.0.0.1", listener.sockets[0].getsockname()[1])
    settings = ManagerSettings(links=(address,), storage=f"sqlite://{tmp_path}/other.db")
    with pytest.raises(InvalidConfigError, match="can't listen at tcp:"):
        await SessionManager(settings).start()
    journal = SqliteJournal(tmp_path / "other.db")
    journal.open()
    journal.close()
    listener.close()
    await listener.wait_closed()


@pytest.mark.parametrize("host", ["0.0.0.0", "192.0.2.7"])
async def test_strangers_are_not_listened_to_without_tls(host: str) -> None:
    from flame.link import tcp
    from flame.manager.manager import SessionManager
    from flame.manager.settings import ManagerSettings

    with pytest.raises(InvalidConfigError, match="refusing to listen"):
        await SessionManager(ManagerSettings(links=(tcp(host, 0),))).start()
    with pytest.raises(InvalidConfigError, match="refusing to listen"):
        await SessionManager(ManagerSettings(frontend=f"{host}:0")).start()
    with pytest.raises(InvalidConfigError, match="no address"):
        await SessionManager(ManagerSettings()).start()


class Disk:
    """Makes every write of a journal fail while `broken`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.broken = False
        append = SqliteJournal.append

        def maybe(journal: SqliteJournal, records: Sequence[Record]) -> None:
            if self.broken:
                raise JournalError("the disk is full", remedy="free some space")
            append(journal, records)

        monkeypatch.setattr(SqliteJournal, "append", maybe)


async def read_only(client: Client) -> pb.ClusterInfo:
    """Wait until the manager knows of its trouble."""
    while not (info := await client.call("GetCluster", pb.GetClusterRequest(), pb.ClusterInfo)).read_only:
        pass
    return info


async def test_nothing_is_acknowledged_that_is_not_durable(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = Disk(monkeypatch)
    client, node = await world.client(), await world.node()
    await client.create()
    await client.attach()
    client.submit(1, b"before")
    await client.accepted()
    channel, _ = await node.start()
    (first,) = (await node.tasks(channel)).task_ids
    disk.broken = True
    node.answer(channel, [first], [b"result"])
    info = await read_only(client)
    assert info.read_only_reason == "the disk is full"
    assert (await client.session()).succeed == 1  # known, but not told as a result
    with pytest.raises(ReadOnlyError):
        await client.call("GetTask", pb.GetTaskRequest(session_id="s1", task_id="1"), types_pb2.Task)
    client.submit(2, b"meanwhile")
    refused = await client.accepted()
    assert (refused.error.code, refused.error.retryable) == (FlameErrorCode.READ_ONLY, True)
    with pytest.raises(ReadOnlyError, match="the disk is full"):
        await client.create("s2")
    await client.round_trip()
    assert not client.frames
    disk.broken = False
    assert list((await client.results()).outputs) == [b"result"]
    while (await client.call("GetCluster", pb.GetClusterRequest(), pb.ClusterInfo)).read_only:
        pass
    client.submit(2, b"again")
    assert (await client.accepted()).first_task_id == 2
    got = await client.call("GetTask", pb.GetTaskRequest(session_id="s1", task_id="1"), types_pb2.Task)
    assert got.spec.output == b"result"


async def test_a_damaged_input_fails_its_task_with_the_reason(world: World, tmp_path: Path) -> None:
    await one_done_two_waiting(world)
    await world.stop()
    connection = sqlite3.connect(tmp_path / "flame.db")
    connection.execute("UPDATE records SET body=zeroblob(length(body)) WHERE kind=?", (RecordKind.SUBMITTED,))
    connection.commit()
    connection.close()
    await world.start()
    client, node = await world.client(), await world.node(boot_id="another")
    await client.attach(next_seq=4, unresolved=[link_pb2.Range(first=2, last=3)])
    await node.start()
    texts: list[str] = []
    while len(texts) < 2:
        texts += [failure.message for failure in (await client.results()).failures]
    assert all("can't be read" in text and "damaged at record" in text for text in texts)
