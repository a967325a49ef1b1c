"""Where the framed carrier of a link listens: `unix:/path/of/socket` or `tcp:host:port`."""

from __future__ import annotations

import os
from typing import NamedTuple

from flame.model.errors import InvalidConfigError

# From the port P of a cluster's endpoint, where gRPC listens: gRPC for nodes, the framed link, HTTP.
BACKEND_OFFSET, LINK_OFFSET, HTTP_OFFSET = 1, 2, 3
# What struct sockaddr_un holds on Linux, less the closing zero byte.
MAX_UNIX_PATH = 107


class Address(NamedTuple):
    """One place to listen at or to connect to. Either `path` is set (a unix socket), or `host` and `port` (TCP)."""

    path: str = ""
    host: str = ""
    port: int = 0

    @property
    def unix(self) -> bool:
        """Whether this names a unix socket."""
        return bool(self.path)

    def __str__(self) -> str:
        if self.path:
            return f"unix:{self.path}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"tcp:{host}:{self.port}"


def unix(path: str | os.PathLike[str]) -> Address:
    """The address of a unix socket. Raises InvalidConfigError when the path is empty or too long for the system."""
    text = os.fspath(path)
    if not text:
        raise InvalidConfigError("the path of a unix socket is empty", remedy="write unix:/path/of/socket")
    if len(os.fsencode(text)) > MAX_UNIX_PATH:
        raise InvalidConfigError(
            f"the socket path {text!r} is longer than {MAX_UNIX_PATH} bytes",
            remedy="use a shorter folder, such as one under /tmp or $XDG_RUNTIME_DIR",
        )
    return Address(path=text)


def tcp(host: str, port: int) -> Address:
    """A TCP address; port 0 lets the system choose one when listening. Raises InvalidConfigError."""
    if not host or not 0 <= port <= 65535:
        raise InvalidConfigError(
            f"invalid TCP address {host!r} port {port}", remedy="write tcp:host:port with a port up to 65535"
        )
    return Address(host=host, port=port)


def parse(text: str) -> Address:
    """The address in `text`: `unix:/path` or `tcp:host:port` (IPv6 hosts in brackets). Raises InvalidConfigError."""
    scheme, _, rest = text.partition(":")
    if scheme == "unix":
        return unix(rest.removeprefix("//"))
    host, colon, port = rest.rpartition(":")
    host = host.removeprefix("//")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    if scheme != "tcp" or not colon or not (port.isascii() and port.isdigit()):
        raise InvalidConfigError(f"invalid address {text!r}", remedy="write unix:/path/of/socket or tcp:host:port")
    return tcp(host, int(port))
