"""Bounds of the session manager: a slow journal slows its clients down, TLS keeps strangers out."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path

import pytest

from flame.config import TlsConfig
from flame.engine.effects import Record
from flame.journal import SqliteJournal
from flame.link import Kind, connect, tcp
from flame.manager import clients
from flame.manager.manager import SessionManager
from flame.manager.settings import ManagerSettings
from flame.model.errors import FlameError, PermissionDeniedError, UnauthenticatedError
from flame.proto import frontend_pb2, link_pb2
from flame.security import client_ssl, make_certificates
from manager_harness import Client, Node, a_world


async def test_a_slow_journal_slows_its_clients_down(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clients, "BACKLOG_BYTES", 1_000_000)
    gate = threading.Event()
    gate.set()
    append = SqliteJournal.append

    def gated(journal: SqliteJournal, records: Sequence[Record]) -> None:
        assert gate.wait(30)
        append(journal, records)

    monkeypatch.setattr(SqliteJournal, "append", gated)
    async with a_world(tmp_path, storage=f"sqlite://{tmp_path}/flame.db") as world:
        client, other = await world.client(), await world.client("client-2")
        await client.create()
        await client.attach()
        writer = world.manager._journal
        gate.clear()
        try:
            for number in range(100):
                client.submit(number + 1, bytes(100_000))
                await other.round_trip()  # others are served meanwhile
            assert world.manager._clients._paused
            assert writer.backlog < 2_000_000
        finally:
            gate.set()
        count = 0
        while count < 100:
            count += (await client.accepted()).count
        assert (await other.session()).pending == 100


async def test_a_client_that_does_not_read_its_answers_is_not_read_either(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clients, "UNREAD_BYTES", 2_000_000)
    async with a_world(tmp_path) as world:
        client, other = await world.client(), await world.client("client-2")
        [link] = [link for link in world.manager._servers[0].links if link.hello.id == "client-1"]
        client.link.pause_reading()
        refused = 0
        while client.link.buffered < 100_000:  # the manager takes no more
            refused += 1000
            assert refused < 100_000
            for _ in range(1000):
                client.submit(1, b"", channel=9)  # which is attached to no session
            await other.round_trip()
        assert 2_000_000 < link.buffered < 3_000_000
        client.link.resume_reading()
        for _ in range(refused):
            await client.take(Kind.ERROR, 9)


async def test_mutual_tls_on_the_framed_link(tmp_path: Path) -> None:
    certificates = make_certificates(tmp_path / "certificates")
    manager = SessionManager(ManagerSettings(links=(tcp("127.0.0.1", 0),), tls=certificates.server))
    await manager.start()

    async def come_in(peer: Client | Node, tls: TlsConfig) -> Client | Node:
        peer.link = await connect(
            manager.addresses[0],
            peer.hello,
            ssl=client_ssl(tls),
            server_hostname="localhost",
            on_frames=peer._received,
            on_closed=peer._closed,
        )
        return peer

    try:
        client = await come_in(Client(), certificates.client)
        node = await come_in(Node(), certificates.node)
        assert isinstance(client, Client)
        await client.create(min_instances=1)
        assert isinstance(node, Node)
        _, start = await node.start()
        instance = await come_in(Client("inside", token=start.token), TlsConfig(ca_file=certificates.client.ca_file))
        await instance.link.call("GetSession", frontend_pb2.GetSessionRequest(session_id="s1").SerializeToString())
        with pytest.raises(PermissionDeniedError, match="may not call NodeLink"):
            await come_in(Node("impostor"), certificates.client)
        with pytest.raises(PermissionDeniedError, match="may not call ClientLink"):
            await come_in(Client("impostor"), certificates.node)
        with pytest.raises(UnauthenticatedError):
            await come_in(Client("stranger"), TlsConfig(ca_file=certificates.client.ca_file))
        with pytest.raises(FlameError):
            await connect(
                manager.addresses[0],
                link_pb2.Hello(role="client", id="plain"),
                timeout=5,
                on_frames=client._received,
                on_closed=client._closed,
            )
    finally:
        await manager.stop()
