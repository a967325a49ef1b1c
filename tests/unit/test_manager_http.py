"""Probes and metrics over HTTP: what each path says in each situation, and what is counted."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import NamedTuple

import pytest
from prometheus_client.parser import text_string_to_metric_families

from flame.config import TlsConfig
from flame.journal import JournalError
from flame.link import unix
from flame.manager.manager import SessionManager
from flame.manager.settings import ManagerSettings
from flame.model.errors import InvalidConfigError
from flame.model.tenants import TenantSpec
from flame.proto import frontend_pb2 as pb
from flame.proto import types_pb2
from flame.security import client_ssl, make_certificates
from manager_harness import World, a_world


class Response(NamedTuple):
    status: int
    text: str
    headers: Mapping[str, str]


async def ask(
    manager: SessionManager, path: str, *, method: str = "GET", accept: str = "", tls: ssl.SSLContext | None = None
) -> Response:
    """One request on a connection of its own."""
    address = manager.http_address
    assert address is not None
    name = "localhost" if tls is not None else None
    reader, writer = await asyncio.open_connection(address.host, address.port, ssl=tls, server_hostname=name)
    try:
        writer.write(f"{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAccept: {accept}\r\n\r\n".encode())
        head, _, body = (await reader.read()).decode().partition("\r\n\r\n")
        if not head:
            raise ConnectionError("the connection ended without an answer")
        first, *lines = head.split("\r\n")
        return Response(int(first.split()[1]), body, dict(line.split(": ", 1) for line in lines))
    finally:
        writer.close()


async def measure(world: World) -> dict[str, float]:
    """All samples, as name or name{label value}."""
    text = (await ask(world.manager, "/metrics")).text
    values: dict[str, float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            label = ",".join(sample.labels.values())
            values[f"{sample.name}{{{label}}}" if label else sample.name] = sample.value
    return values


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with a_world(tmp_path, storage=f"sqlite://{tmp_path}/flame.db", http="127.0.0.1:0") as world:
        yield world


# --- paths -----------------------------------------------------------------------------------------------------------


async def test_a_manager_that_works_is_alive_and_ready(world: World) -> None:
    alive, ready = await ask(world.manager, "/healthz"), await ask(world.manager, "/readyz")
    assert (alive.status, alive.text) == (200, "alive\n")
    assert (ready.status, ready.text) == (200, "ready\n")
    assert ready.headers["Cache-Control"] == "no-store"


async def test_a_manager_that_can_not_write_is_alive_but_not_ready(world: World) -> None:
    world.manager._turns.journal_trouble(JournalError("the disk is full"))
    ready = await ask(world.manager, "/readyz")
    assert (ready.status, ready.text) == (503, "not ready: the journal can't be written: the disk is full\n")
    assert (await ask(world.manager, "/healthz")).status == 200
    assert (await measure(world))["flame_journal_read_only"] == 1
    world.manager._turns.journal_trouble(None)
    assert (await ask(world.manager, "/readyz")).status == 200
    assert (await measure(world))["flame_journal_read_only"] == 0


async def test_the_index_names_what_is_there_and_so_does_a_wrong_path(world: World) -> None:
    index, wrong = await ask(world.manager, "/"), await ask(world.manager, "/metric?x=1")
    assert (index.status, wrong.status) == (200, 404)
    assert wrong.text == f"there is no '/metric' here\n\n{index.text}"
    for path in ("/healthz", "/readyz", "/metrics"):
        assert path in index.text


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS"])
async def test_nothing_can_be_changed(world: World, method: str) -> None:
    refused = await ask(world.manager, "/healthz", method=method)
    assert (refused.status, refused.headers["Allow"]) == (405, "GET, HEAD")


async def test_a_head_request_gets_no_body(world: World) -> None:
    assert (await ask(world.manager, "/metrics", method="HEAD"))[:2] == (200, "")


async def test_connections_that_come_together_are_all_served(world: World) -> None:
    answers = await asyncio.gather(*(ask(world.manager, "/healthz") for _ in range(8)))
    assert [answer.status for answer in answers] == [200] * 8


async def test_a_connection_that_says_nothing_does_not_hold_up_the_end(tmp_path: Path) -> None:
    async with a_world(tmp_path, http="127.0.0.1:0") as world:
        address = world.manager.http_address
        assert address is not None
        _, first = await asyncio.open_connection(address.host, address.port)
        await ask(world.manager, "/healthz")
        reader, second = await asyncio.open_connection(address.host, address.port)
        async with asyncio.timeout(10):
            await world.stop()
            assert await reader.read() == b""
        for writer in (first, second):
            writer.close()
        await world.start()


# --- who may ask ------------------------------------------------------------------------------------------------------


async def test_with_tls_a_certificate_is_needed_and_its_role_counts(tmp_path: Path) -> None:
    certificates = make_certificates(tmp_path)
    authority = TlsConfig(ca_file=certificates.server.ca_file)
    async with a_world(tmp_path, http="127.0.0.1:0", tls=certificates.server) as world:
        with pytest.raises((ssl.SSLError, ConnectionError)):
            await ask(world.manager, "/healthz", tls=client_ssl(authority))
        client, node = client_ssl(certificates.client), client_ssl(certificates.node)
        assert (await ask(world.manager, "/metrics", tls=client)).status == 200
        assert (await ask(world.manager, "/readyz", tls=node)).status == 200
        refused = await ask(world.manager, "/metrics", tls=node)
        assert (refused.status, refused.text) == (403, "node 'node' may not call Metrics\n")


@pytest.mark.parametrize(
    ("http_at", "words"),
    [
        ("0.0.0.0:0", "refusing to listen on 0.0.0.0 without TLS"),
        ("unix:/tmp/x.sock", "can't serve HTTP at unix:/tmp/x.sock"),
        ("8083", "invalid address '8083'"),
    ],
)
async def test_an_address_that_can_not_be_is_explained(tmp_path: Path, http_at: str, words: str) -> None:
    manager = SessionManager(ManagerSettings(links=(unix(tmp_path / "m.sock"),), http=http_at))
    with pytest.raises(InvalidConfigError, match=words):
        await manager.start()


# --- metrics ----------------------------------------------------------------------------------------------------------


async def test_an_empty_manager_shows_every_series_at_zero(world: World) -> None:
    turns = world.manager._turns
    await turns.durable(turns.engine.seq)  # the first commit is made while it begins to serve
    values = await measure(world)
    for name in (
        "flame_sessions{open}",
        "flame_tasks{running}",
        "flame_tasks_ended_total{failed}",
        "flame_nodes{ready}",
    ):
        assert values[name] == 0
    assert values["flame_executors{bound}"] == 0
    assert values["flame_capacity_memory_bytes"] == 0
    assert values["flame_generation"] == 1
    assert values["flame_turn_seconds_count"] >= 1
    assert values["flame_turn_seconds_sum"] > 0
    assert values["flame_journal_commits_total"] >= 1
    assert values["process_resident_memory_bytes"] > 1 << 20


async def test_the_work_under_way_is_counted(world: World) -> None:
    client, node = await world.client(), await world.node(cpu=4)
    await client.create()
    await client.attach()
    client.submit(1, b"a", b"b", b"c", b"d")
    await client.accepted()
    channel, _ = await node.start()
    sent = (await node.tasks(channel)).task_ids
    before = await measure(world)
    assert (before["flame_tasks{running}"], before["flame_tasks{pending}"]) == (1, 3)
    assert before["flame_sessions{open}"] == before["flame_clients_connected"] == before["flame_nodes{ready}"] == 1
    assert before["flame_executors{bound}"] >= 1
    assert (before["flame_capacity_cpu_cores"], before["flame_capacity_memory_bytes"]) == (4, 4 << 30)
    assert before["flame_allocated_cpu_cores"] >= 1
    node.answer(channel, sent[:1], [b"done"])
    await client.results()
    after = await measure(world)
    assert after["flame_tasks_ended_total{succeed}"] == 1
    assert after["flame_journal_commits_total"] > before["flame_journal_commits_total"]
    assert after["flame_journal_written_bytes_total"] > before["flame_journal_written_bytes_total"]
    assert after["flame_turn_seconds_count"] > before["flame_turn_seconds_count"]


async def test_counters_never_shrink_with_deleted_sessions_and_begin_anew_at_a_restart(world: World) -> None:
    client = await world.client()
    await client.create()
    await client.attach()
    client.submit(1, b"a", b"b")
    await client.accepted()
    await client.call("CloseSession", pb.CloseSessionRequest(session_id="s1"), types_pb2.Session)
    closed = await measure(world)
    assert (closed["flame_sessions{closed}"], closed["flame_tasks_ended_total{cancelled}"]) == (1, 2)
    await client.create("s2")
    await client.attach("s2", 2)
    client.submit(1, b"a", channel=2)
    await client.accepted(2)
    await client.call("CloseSession", pb.CloseSessionRequest(session_id="s2"), types_pb2.Session)
    await client.call("DeleteSession", pb.DeleteSessionRequest(session_id="s1"), types_pb2.Session)
    deleted = await measure(world)
    assert (deleted["flame_sessions{closed}"], deleted["flame_tasks_ended_total{cancelled}"]) == (1, 3)
    await world.stop()
    await world.start()
    again = await measure(world)
    assert (again["flame_sessions{closed}"], again["flame_tasks_ended_total{cancelled}"]) == (1, 0)
    assert again["flame_generation"] == 2


async def test_more_sessions_are_not_more_series(world: World) -> None:
    client = await world.client()
    await client.create("s1")
    few = set(await measure(world))
    for number in range(2, 20):
        await client.create(f"s{number}")
    assert set(await measure(world)) == few


@pytest.mark.parametrize(
    ("accept", "content_type", "end"),
    [
        ("", "text/plain; version=0.0.4; charset=utf-8", ""),
        ("text/plain", "text/plain; version=0.0.4; charset=utf-8", ""),
        ("application/openmetrics-text; version=1.0.0", "application/openmetrics-text; version=1.0.0", "# EOF\n"),
    ],
)
async def test_the_form_follows_the_accept_header(world: World, accept: str, content_type: str, end: str) -> None:
    answer = await ask(world.manager, "/metrics", accept=accept)
    assert answer.headers["Content-Type"].startswith(content_type)
    assert answer.text.endswith(end)
    assert ("# EOF" in answer.text) == bool(end)


async def test_tenants_are_measured_with_those_below_them(world: World) -> None:
    client, node = await world.client(), await world.node(cpu=4)
    for name, parent in (("research", ""), ("vision", "research")):
        request = pb.CreateTenantRequest(name=name, tenant=types_pb2.TenantSpec(parent=parent))
        await client.call("CreateTenant", request, types_pb2.Tenant)
    await client.create(tenant="vision", min_instances=1)
    await client.attach()
    client.submit(1, b"a")
    await client.accepted()
    await node.start()
    values = await measure(world)
    assert values["flame_tenants"] == 3
    for name in ("research", "vision"):
        assert values[f"flame_tenant_used_cpu_cores{{{name}}}"] == 1
        assert values[f"flame_tenant_share{{{name}}}"] == 0.25
        assert values[f"flame_tenant_sessions{{{name}}}"] == values[f"flame_tenant_pending_tasks{{{name}}}"] == 1
    assert values["flame_tenant_sessions{default}"] == values["flame_tenant_share{default}"] == 0


async def test_only_so_many_tenants_have_series_of_their_own(tmp_path: Path) -> None:
    tenants = tuple((f"t{number:03}", TenantSpec()) for number in range(150))
    async with a_world(tmp_path, http="127.0.0.1:0", tenants=tenants) as world:
        values = await measure(world)
    assert values["flame_tenants"] == 151
    assert sum(name.startswith("flame_tenant_share{") for name in values) == 100
    assert "flame_tenant_share{default}" in values
