"""Where a cache listens and what its references say."""

from __future__ import annotations

import fcntl
import re
import socket
import struct
from urllib.parse import urlsplit

from flame.config.cache import CacheSection
from flame.link.peer import is_loopback
from flame.model.errors import InvalidConfigError

DEFAULT_PORT = 9090
_SIOCGIFADDR = 0x8915
_SCHEMES = {"http": "grpc", "grpc": "grpc", "https": "grpc+tls", "grpcs": "grpc+tls"}


def place(section: CacheSection, *, insecure: bool) -> tuple[str, str]:
    """Where to listen and what references say. Raises InvalidConfigError.

    A loopback endpoint is taken as it is. Any other one names a machine as others see it: the cache listens at the
    address of the first interface that `network_interface` matches, and says that address in its references.
    """
    parts = urlsplit(section.endpoint)
    scheme, host, port = _SCHEMES[parts.scheme], parts.hostname or "127.0.0.1", parts.port or DEFAULT_PORT
    _check_tls(section, scheme)
    if host == "localhost" or is_loopback(host):
        name = f"[{host}]" if ":" in host else host
        address = f"{scheme}://{name}:{port}"
        return address, address
    if scheme == "grpc" and not insecure:
        raise InvalidConfigError(
            f"refusing to listen for {section.endpoint} without TLS: everybody who reaches it could read all objects",
            remedy="write grpcs:// and set cache.tls, use 127.0.0.1, or insist with --insecure",
        )
    address = f"{scheme}://{interface_address(section.network_interface)}:{port}"
    return address, address


def _check_tls(section: CacheSection, scheme: str) -> None:
    tls = section.tls
    if scheme == "grpc+tls" and (tls is None or tls.cert_file is None or tls.key_file is None):
        raise InvalidConfigError(
            f"cache.endpoint {section.endpoint} needs a certificate", remedy="set cache.tls.cert_file and key_file"
        )
    if section.verify_clients and (tls is None or tls.ca_file is None):
        raise InvalidConfigError(
            "cache.tls.verify_clients needs the authority of their certificates", remedy="set cache.tls.ca_file"
        )


def interface_address(pattern: str) -> str:
    """The IPv4 address of the first interface whose name matches. Raises InvalidConfigError."""
    try:
        wanted = re.compile(pattern)
    except re.error as error:
        raise InvalidConfigError(f"cache.network_interface {pattern!r} is no regular expression: {error}") from None
    names = [name for _, name in socket.if_nameindex()]
    for name in names:
        address = _address_of(name) if wanted.fullmatch(name) else None
        if address is not None:
            return address
    raise InvalidConfigError(
        f"no interface with an IPv4 address matches cache.network_interface {pattern!r}",
        remedy=f"choose one of {', '.join(names)}",
    )


def _address_of(name: str) -> str | None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            answer = fcntl.ioctl(probe, _SIOCGIFADDR, struct.pack("256s", name.encode()[:15]))
        except OSError:
            return None
    return socket.inet_ntoa(answer[20:24])
