"""Certificates made here are accepted by each other and by nobody else; listeners refuse strangers."""

from __future__ import annotations

import asyncio
import ssl
import stat
from pathlib import Path

import pytest

from flame.config import TlsConfig
from flame.link import Address, Link, connect, parse, serve
from flame.model.errors import FlameError, InvalidConfigError, UnauthenticatedError
from flame.proto import link_pb2
from flame.security import (
    Certificates,
    Identity,
    Role,
    Tokens,
    check_listener,
    client_ssl,
    grpc_server_credentials,
    identify,
    make_certificates,
    server_ssl,
)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return make_certificates(tmp_path_factory.mktemp("certificates"))


def some_tokens() -> Tokens:
    return Tokens(b"secret", lambda executor_id, session_id: True)


def nothing(*args: object) -> None:
    """No frames are expected, and the end of a link is of no interest."""


async def ask_who_i_am(server: TlsConfig, client: TlsConfig, token: str = "", tokens: Tokens | None = None) -> Identity:
    """Connect to a listener with mutual TLS; the identity that it found."""
    found: list[Identity] = []

    async def accept(link: Link) -> link_pb2.Welcome:
        found.append(identify(link.peer, link.hello.token, tokens or some_tokens(), tls=True))
        return link_pb2.Welcome()

    listener = await serve(parse("tcp:127.0.0.1:0"), accept, ssl=server_ssl(server))
    try:
        hello = link_pb2.Hello(version=1, role="client", id="x", token=token)
        link = await connect(
            listener.address,
            hello,
            ssl=client_ssl(client),
            server_hostname="localhost",
            on_frames=nothing,
            on_closed=nothing,
        )
        link.close()
        await link.wait_closed()
    finally:
        listener.close()
        await listener.wait_closed()
    return found[0]


@pytest.mark.parametrize("role", [Role.ADMIN, Role.CLIENT, Role.NODE])
async def test_each_role_is_known_by_its_certificate(certificates: Certificates, role: Role) -> None:
    client: TlsConfig = getattr(certificates, role)
    assert await ask_who_i_am(certificates.server, client) == Identity(role, role)


async def test_an_instance_comes_with_a_token_instead(certificates: Certificates) -> None:
    tokens = some_tokens()
    client = TlsConfig(ca_file=certificates.client.ca_file)
    identity = await ask_who_i_am(certificates.server, client, tokens.issue("e1", "s1"), tokens)
    assert identity == Identity("e1", Role.INSTANCE, "s1")


async def test_without_certificate_and_token_nobody_comes_in(certificates: Certificates) -> None:
    with pytest.raises(UnauthenticatedError, match="no client certificate"):
        await ask_who_i_am(certificates.server, TlsConfig(ca_file=certificates.client.ca_file))


async def test_certificates_of_another_authority_are_refused(certificates: Certificates, tmp_path: Path) -> None:
    other = make_certificates(tmp_path)
    stranger = TlsConfig(other.admin.cert_file, other.admin.key_file, certificates.admin.ca_file)
    with pytest.raises(FlameError):
        await ask_who_i_am(certificates.server, stranger)
    with pytest.raises(UnauthenticatedError, match="TLS failed"):
        await ask_who_i_am(certificates.server, other.admin)


async def test_old_versions_of_tls_are_refused(certificates: Certificates) -> None:
    assert server_ssl(certificates.server).minimum_version is ssl.TLSVersion.TLSv1_2
    assert client_ssl(certificates.client).minimum_version is ssl.TLSVersion.TLSv1_2


async def test_plain_text_to_a_listener_with_tls_fails(certificates: Certificates) -> None:
    async def accept(link: Link) -> link_pb2.Welcome:
        raise AssertionError("nobody gets so far")

    listener = await serve(parse("tcp:127.0.0.1:0"), accept, ssl=server_ssl(certificates.server))
    reader, writer = await asyncio.open_connection("127.0.0.1", listener.address.port)
    writer.write(b"\0" * 64)
    await reader.read()
    writer.close()
    listener.close()
    await listener.wait_closed()


def test_keys_are_private(certificates: Certificates) -> None:
    for tls in (certificates.server, certificates.client, certificates.node, certificates.admin):
        assert tls.key_file is not None
        assert stat.S_IMODE(tls.key_file.stat().st_mode) == 0o600


@pytest.mark.parametrize("missing", ["cert_file", "key_file", "ca_file"])
def test_a_listener_needs_all_three_files(certificates: Certificates, missing: str) -> None:
    files = {
        name: getattr(certificates.server, name) for name in ("cert_file", "key_file", "ca_file") if name != missing
    }
    with pytest.raises(InvalidConfigError, match="needs cert_file, key_file and ca_file"):
        server_ssl(TlsConfig(**files))


@pytest.mark.parametrize("name", ["cert_file", "key_file", "ca_file"])
@pytest.mark.parametrize("content", [None, "not PEM"])
def test_a_bad_file_is_named(certificates: Certificates, tmp_path: Path, name: str, content: str | None) -> None:
    bad = tmp_path / "bad.pem"
    if content is not None:
        bad.write_text(content)
    files = {key: getattr(certificates.server, key) for key in ("cert_file", "key_file", "ca_file")} | {name: bad}
    for make in (server_ssl, client_ssl, grpc_server_credentials):
        with pytest.raises(InvalidConfigError, match=r"bad\.pem"):
            make(TlsConfig(**files))


@pytest.mark.parametrize("address", ["unix:/tmp/x.sock", "tcp:127.0.0.1:80", "tcp:[::1]:80", "tcp:localhost:80"])
def test_listening_inside_the_machine_needs_no_tls(address: str) -> None:
    check_listener(parse(address), None, insecure=False)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "example.org", ""])
def test_listening_beyond_the_loopback_needs_tls(certificates: Certificates, host: str) -> None:
    address = Address(host=host, port=80)
    with pytest.raises(InvalidConfigError, match="refusing to listen"):
        check_listener(address, None, insecure=False)
    check_listener(address, certificates.server, insecure=False)
    check_listener(address, None, insecure=True)
