"""The client reaches a cluster over TLS, and over gRPC where the framed link does not pass."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc.aio
import pytest

import flame
from flame import link
from flame.config import TlsConfig
from flame.link import LINK_OFFSET
from flame.link.grpc_carrier import serve_grpc
from flame.model.errors import InvalidConfigError, UnauthenticatedError
from flame.security import Certificates, grpc_server_credentials, make_certificates, server_ssl


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return make_certificates(tmp_path_factory.mktemp("certificates"))


def tls_of(config: TlsConfig) -> flame.FlameClientTls:
    return flame.FlameClientTls(str(config.ca_file), str(config.cert_file), str(config.key_file))


@pytest.fixture
async def secured(manager: Any, certificates: Certificates) -> AsyncIterator[str]:
    """The address of the manager behind TLS."""
    server = await link.serve(link.tcp("127.0.0.1", 0), manager._accept, ssl=server_ssl(certificates.server))
    yield f"https://localhost:{server.address.port - LINK_OFFSET}"
    server.close()
    await server.wait_closed()


async def test_tasks_pass_through_tls(secured: str, certificates: Certificates, manager: Any) -> None:
    async with await flame.aio.connect(secured, tls_of(certificates.client)) as connection:
        session = await connection.create_session("app")
        manager.max_payload = 1 << 20
        outputs = [output async for output in session.map(bytes([n % 256]) * 1000 for n in range(3000))]
        assert outputs == [bytes([n % 256]) * 1000 for n in range(3000)]


async def test_a_server_of_another_authority_is_not_trusted(secured: str, tmp_path: Path) -> None:
    other = make_certificates(tmp_path)
    with pytest.raises(UnauthenticatedError):
        await flame.aio.connect(secured, tls_of(other.client))


async def test_a_missing_file_is_named(secured: str) -> None:
    with pytest.raises(InvalidConfigError, match="/nowhere/ca"):
        await flame.aio.connect(secured, flame.FlameClientTls(ca_file="/nowhere/ca"))


@pytest.mark.parametrize("secure", [False, True])
async def test_grpc_is_taken_where_the_framed_link_does_not_listen(
    secure: bool, manager: Any, certificates: Certificates
) -> None:
    server = grpc.aio.server()
    serve_grpc(server, manager._accept)
    if secure:
        port = server.add_secure_port("localhost:0", grpc_server_credentials(certificates.server))
    else:
        port = server.add_insecure_port("localhost:0")
    await server.start()
    scheme = "https" if secure else "http"
    tls = tls_of(certificates.client) if secure else None
    async with await flame.aio.connect(f"{scheme}://localhost:{port}", tls) as connection:
        session = await connection.create_session("app")
        assert [output async for output in session.map(b"%d" % n for n in range(2000))] == [
            b"%d" % n for n in range(2000)
        ]
        manager.drop()
        assert await session.submit(b"after a break") == b"after a break"
        assert [task.id async for task in session.list_tasks()][-1] == "2001"
    await server.stop(None)
