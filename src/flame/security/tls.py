"""TLS as every listener and every client of Flame uses it: version 1.2 or later, both sides with certificates."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import TYPE_CHECKING

from flame.config import TlsConfig
from flame.link.address import Address
from flame.link.peer import is_loopback
from flame.model.errors import InvalidConfigError

if TYPE_CHECKING:
    import grpc


def server_ssl(tls: TlsConfig) -> ssl.SSLContext:
    """For listeners of the framed link. Raises InvalidConfigError for missing or unreadable files.

    A client certificate is verified when one is shown. It is not demanded by TLS itself because instances show a
    token instead; `identify` refuses a peer that has neither.
    """
    certificate, key, authority = _server_files(tls)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    _load_own(context, certificate, key)
    _load_authority(context, authority)
    context.verify_mode = ssl.CERT_OPTIONAL
    return context


def client_ssl(tls: TlsConfig) -> ssl.SSLContext:
    """For connecting: verifies the server's name, and shows the own certificate when there is one."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if tls.ca_file is not None:
        _load_authority(context, tls.ca_file)
    else:
        context.load_default_certs()
    if tls.cert_file is not None and tls.key_file is not None:
        _load_own(context, tls.cert_file, tls.key_file)
    return context


def grpc_server_credentials(tls: TlsConfig) -> grpc.ServerCredentials:
    """For a gRPC listener: clients must show a certificate of the authority."""
    import grpc

    certificate, key, authority = _server_files(tls)
    server_ssl(tls)  # names a bad file; gRPC itself only fails to bind
    pairs = [(_read(key), _read(certificate))]
    return grpc.ssl_server_credentials(pairs, root_certificates=_read(authority), require_client_auth=True)


def grpc_channel_credentials(tls: TlsConfig) -> grpc.ChannelCredentials:
    """For a gRPC client."""
    import grpc

    client_ssl(tls)
    return grpc.ssl_channel_credentials(
        root_certificates=_read(tls.ca_file) if tls.ca_file is not None else None,
        private_key=_read(tls.key_file) if tls.key_file is not None else None,
        certificate_chain=_read(tls.cert_file) if tls.cert_file is not None else None,
    )


def check_listener(address: Address, tls: TlsConfig | None, *, insecure: bool) -> None:
    """Refuse to listen where strangers can come in. Raises InvalidConfigError.

    Unix sockets and the loopback are fine; anything else needs TLS, or `insecure` from a user who knows what it does.
    """
    if address.unix or tls is not None or insecure or address.host == "localhost" or is_loopback(address.host):
        return
    raise InvalidConfigError(
        f"refusing to listen on {address.host} without TLS: everybody who reaches it could run programs here",
        remedy="set cluster.tls, listen on 127.0.0.1, or insist with --insecure",
    )


def _server_files(tls: TlsConfig) -> tuple[Path, Path, Path]:
    if tls.cert_file is None or tls.key_file is None or tls.ca_file is None:
        raise InvalidConfigError(
            "cluster.tls needs cert_file, key_file and ca_file", remedy="both sides of a connection show certificates"
        )
    return tls.cert_file, tls.key_file, tls.ca_file


def _load_own(context: ssl.SSLContext, certificate: Path, key: Path) -> None:
    for file in (certificate, key):
        _read(file)
    try:
        context.load_cert_chain(certificate, key)
    except (OSError, ssl.SSLError) as error:
        raise InvalidConfigError(f"{certificate} and {key} are no PEM certificate with its key: {error}") from error


def _load_authority(context: ssl.SSLContext, authority: Path) -> None:
    _read(authority)
    try:
        context.load_verify_locations(authority)
    except (OSError, ssl.SSLError) as error:
        raise InvalidConfigError(f"{authority} holds no PEM certificates: {error}") from error


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise InvalidConfigError(f"can't read {file}: {error.strerror}") from error
