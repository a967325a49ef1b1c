"""Who is at the other end of a connection, as far as the operating system and TLS can tell."""

from __future__ import annotations

import ipaddress
import socket
import struct
from asyncio import BaseTransport
from typing import Any

import msgspec

_CREDENTIALS = struct.Struct("3i")  # struct ucred: pid, uid, gid


class PeerInfo(msgspec.Struct, frozen=True):
    """What is known of the peer without its own word.

    `uid` and `pid` come from a unix socket, `certificate` (as `ssl.SSLSocket.getpeercert` gives it) and its DER form
    from TLS; they are None where the connection has no such thing. `loopback` is true for unix sockets too.
    """

    uid: int | None = None
    pid: int | None = None
    certificate: dict[str, Any] | None = None
    certificate_der: bytes | None = None
    address: str = ""
    loopback: bool = False


def peer_of(transport: BaseTransport) -> PeerInfo:
    """The peer of a connected asyncio transport."""
    sock: socket.socket | None = transport.get_extra_info("socket")
    tls = transport.get_extra_info("ssl_object")
    certificate: dict[str, Any] | None = (tls.getpeercert() or None) if tls is not None else None
    der: bytes | None = tls.getpeercert(binary_form=True) if tls is not None else None
    if sock is not None and sock.family == socket.AF_UNIX:
        pid, uid, _ = _CREDENTIALS.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
        return PeerInfo(uid, pid, certificate, der, f"unix:pid={pid}", True)
    name = transport.get_extra_info("peername")
    if not isinstance(name, tuple) or len(name) < 2:  # type: ignore[arg-type]  # the peer is gone already
        return PeerInfo(certificate=certificate, certificate_der=der)
    host, port = str(name[0]), int(name[1])  # type: ignore[index]
    address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    return PeerInfo(None, None, certificate, der, address, is_loopback(host))


def is_loopback(host: str) -> bool:
    """Whether an IP address in text form belongs to this machine's loopback."""
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback
