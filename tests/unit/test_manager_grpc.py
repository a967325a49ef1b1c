"""The frontend over gRPC: errors as statuses, identities from certificates and tokens, the link's carrier beside it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from flame.config import TlsConfig
from flame.link.grpc_carrier import connect_grpc
from flame.manager.grpc_server import grpc_address
from flame.manager.manager import SessionManager
from flame.manager.settings import ManagerSettings
from flame.model.errors import InvalidConfigError
from flame.proto import frontend_pb2 as pb
from flame.proto import link_pb2, types_pb2
from flame.security import Certificates, grpc_channel_credentials, make_certificates
from manager_harness import Client, World, a_world


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return make_certificates(tmp_path_factory.mktemp("certificates"))


@asynccontextmanager
async def a_grpc_manager(tls: TlsConfig | None = None, frontend: str = "127.0.0.1:0") -> AsyncIterator[str]:
    """The address of a manager that speaks gRPC only."""
    manager = SessionManager(ManagerSettings(frontend=frontend, tls=tls, max_payload=8 << 20))
    await manager.start()
    try:
        yield manager.grpc_addresses[0]
    finally:
        await manager.stop()


async def call(channel: grpc.aio.Channel, method: str, request: Any, answer: Any, token: str = "") -> Any:
    stub = channel.unary_unary(
        f"/flame.v1.Frontend/{method}", lambda message: message.SerializeToString(), answer.FromString
    )
    return await stub(request, metadata=(("authorization", f"Bearer {token}"),) if token else None)


def plain(address: str) -> grpc.aio.Channel:
    return grpc.aio.insecure_channel(address)


def secure(address: str, tls: TlsConfig) -> grpc.aio.Channel:
    return grpc.aio.secure_channel(address.replace("127.0.0.1", "localhost"), grpc_channel_credentials(tls))


async def test_errors_are_statuses_with_code_and_remedy() -> None:
    async with a_grpc_manager() as address, plain(address) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call(channel, "GetSession", pb.GetSessionRequest(session_id="none"), types_pb2.Session)
        error = caught.value
        assert (error.code(), error.details()) == (grpc.StatusCode.NOT_FOUND, "none")
        assert ("flame-code", "5") in list(error.trailing_metadata())
        spec = types_pb2.SessionSpec(application="nope")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call(
                channel, "CreateSession", pb.CreateSessionRequest(session_id="s", session=spec), types_pb2.Session
            )
        metadata = dict(caught.value.trailing_metadata())
        assert metadata["flame-remedy-bin"] == b"register it first"


async def test_unknown_methods_are_unimplemented() -> None:
    async with a_grpc_manager() as address, plain(address) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call(channel, "Shutdown", pb.GetClusterRequest(), pb.ClusterInfo)
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_payloads_above_the_default_limit_of_grpc() -> None:
    async with a_grpc_manager() as address:
        options = [("grpc.max_receive_message_length", -1)]
        async with grpc.aio.insecure_channel(address, options=options) as channel:
            spec = types_pb2.SessionSpec(application="flmping", common_data=bytes(8 << 20))
            request = pb.CreateSessionRequest(session_id="s1", session=spec)
            made = await call(channel, "CreateSession", request, types_pb2.Session)
            assert len(made.spec.common_data) == 8 << 20
            request.session.common_data = bytes((8 << 20) + 1)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call(channel, "CreateSession", request, types_pb2.Session)
            assert caught.value.code() is grpc.StatusCode.OUT_OF_RANGE


async def test_a_unix_socket(tmp_path: Path) -> None:
    address = f"unix:{tmp_path}/grpc.sock"
    async with a_grpc_manager(frontend=address), plain(address) as channel:
        assert (await call(channel, "GetCluster", pb.GetClusterRequest(), pb.ClusterInfo)).generation == 1


async def test_the_role_in_the_certificate_counts(certificates: Certificates) -> None:
    request = pb.CreateSessionRequest(session_id="s1", session=types_pb2.SessionSpec(application="flmping"))
    async with a_grpc_manager(certificates.server) as address:
        async with secure(address, certificates.client) as channel:
            made = await call(channel, "CreateSession", request, types_pb2.Session)
            assert made.metadata.id == "s1"
        async with secure(address, certificates.node) as channel:
            assert (await call(channel, "GetCluster", pb.GetClusterRequest(), pb.ClusterInfo)).generation == 1
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call(channel, "CreateSession", request, types_pb2.Session)
            assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED
            assert caught.value.details() == "node 'node' may not call CreateSession"


async def test_without_a_certificate_of_the_authority_nobody_comes_in(
    certificates: Certificates, tmp_path: Path
) -> None:
    async with a_grpc_manager(certificates.server) as address:
        strangers = [TlsConfig(ca_file=certificates.client.ca_file), make_certificates(tmp_path).admin]
        for tls in strangers:
            async with secure(address, tls) as channel:
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await call(channel, "GetCluster", pb.GetClusterRequest(), pb.ClusterInfo)
                assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_an_instance_brings_its_token(tmp_path: Path) -> None:
    async with a_world(tmp_path, frontend="127.0.0.1:0") as world:
        token = await a_token(world)
        async with plain(world.manager.grpc_addresses[0]) as channel:
            request = pb.GetSessionRequest(session_id="s1")
            got = await call(channel, "GetSession", request, types_pb2.Session, token)
            assert got.metadata.id == "s1"
            for method, session_id, given, status in (
                ("GetSession", "s2", token, grpc.StatusCode.PERMISSION_DENIED),
                ("CloseSession", "s1", token, grpc.StatusCode.PERMISSION_DENIED),
                ("GetSession", "s1", token + "0", grpc.StatusCode.UNAUTHENTICATED),
            ):
                kind = pb.GetSessionRequest if method == "GetSession" else pb.CloseSessionRequest
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await call(channel, method, kind(session_id=session_id), types_pb2.Session, given)
                assert caught.value.code() is status


async def a_token(world: World) -> str:
    client, node = await world.client(), await world.node()
    await client.create("s1", min_instances=1)
    _, start = await node.start()
    return start.token


async def test_clients_without_the_framed_link_use_its_grpc_carrier(tmp_path: Path) -> None:
    async with a_world(tmp_path, frontend="127.0.0.1:0") as world:
        node = await world.node()
        client = Client()
        client.link = await connect_grpc(
            world.manager.grpc_addresses[0],
            client.hello,
            on_frames=client._received,
            on_closed=client._closed,
        )
        await client.create()
        await client.attach()
        client.submit(1, b"x")
        channel, _ = await node.start()
        node.answer(channel, (await node.tasks(channel)).task_ids, [b"over grpc"])
        assert list((await client.results()).outputs) == [b"over grpc"]
        assert isinstance(client.link.welcome, link_pb2.Welcome)
        await client.close()


@pytest.mark.parametrize("text", ["", "host", "host:", "host:port", "unix:"])
def test_addresses_that_are_none(text: str) -> None:
    with pytest.raises(InvalidConfigError):
        grpc_address(text)
