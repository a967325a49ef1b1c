"""Where a cluster is, and how a link to it is made: framed where that is possible, else over gRPC."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from ssl import SSLContext
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import urlsplit

from flame import _version
from flame.client.values import FlameClientTls
from flame.link import LINK_OFFSET, Address, Frame, Link, connect, parse, tcp
from flame.model.errors import FlameError, InvalidConfigError, UnavailableError
from flame.proto import link_pb2

if TYPE_CHECKING:
    import grpc

    from flame.config import TlsConfig

DEFAULT_PORT = 8080
# A port that is filtered gives no answer; the gRPC carrier gets the rest of the time.
_FRAMED_SHARE = 0.4

OnFrames = Callable[[Link, list[Frame]], None]
OnClosed = Callable[[Link, FlameError | None], None]


class Endpoint(NamedTuple):
    """One cluster. `framed` is where its framed link listens, `grpc` is `host:port` of its gRPC services, if any."""

    text: str
    framed: Address
    grpc: str = ""
    tls: FlameClientTls | None = None  # set exactly for TLS


def resolve(addr: str | None, tls: FlameClientTls | None) -> Endpoint:
    """The endpoint that `addr` names; None means the configured one, else the local cluster, started when needed.

    Forms: `http://host[:port]`, `https://host[:port]`, `host[:port]`, `unix:/path`, `tcp:host:port`. TLS is used for
    https only. Raises InvalidConfigError.
    """
    if addr is None:
        from flame.client.context import FlameContext

        context = FlameContext()
        addr, tls = context.configured_endpoint, tls or context.tls
        if addr is None:
            addr = _local_endpoint()
    return parse_endpoint(addr, tls)


def parse_endpoint(addr: str, tls: FlameClientTls | None = None) -> Endpoint:
    """As resolve, for an address that is given."""
    if not addr:
        raise InvalidConfigError("address cannot be empty", remedy="write http://host:port or unix:/path")
    if addr.startswith(("unix:", "tcp:")):
        return Endpoint(addr, parse(addr))
    url = urlsplit(addr if "://" in addr else f"http://{addr}")
    try:
        host, port = url.hostname, url.port
    except ValueError:
        host = port = None
    if url.scheme not in ("http", "https") or not host or url.path.strip("/") or url.query:
        raise InvalidConfigError(f"invalid address {addr!r}", remedy="write http://host:port or unix:/path")
    port = port or DEFAULT_PORT
    name = f"[{host}]" if ":" in host else host
    secure = (tls or FlameClientTls()) if url.scheme == "https" else None
    return Endpoint(addr, tcp(host, min(port + LINK_OFFSET, 65535)), f"{name}:{port}", secure)


def _local_endpoint() -> str:
    try:
        from flame.local import default_endpoint
    except ImportError as error:
        raise InvalidConfigError(
            "no cluster is configured", remedy="set FLAME_ENDPOINT, or cluster.endpoint in ~/.flame/flame.yaml"
        ) from error
    return default_endpoint()


def lost_for_good(addr: str) -> str:
    """Why nobody will be at this address again, empty when that is not known: a cluster that this process started, and
    that ended by itself, has nobody to start it again."""
    local = sys.modules.get("flame.local.cluster")
    return "" if local is None else local.lost_cluster(addr)


class Dialer:
    """Makes links to one endpoint, always with the same client id; remembers which carrier worked."""

    def __init__(self, endpoint: Endpoint, client_id: str, *, instance_token: bool = True) -> None:
        """`instance_token`: inside an instance, show that this is one."""
        self.endpoint = endpoint
        self._hello = link_pb2.Hello(
            role="client",
            id=client_id,
            token=os.environ.get("FLAME_INSTANCE_TOKEN", "") if instance_token else "",
            software=f"flame-python/{_version.__version__}",
        )
        self._ssl: SSLContext | None = None
        self._carrier = ""

    async def dial(self, timeout: float, on_frames: OnFrames, on_closed: OnClosed) -> Link:
        """A new link; `timeout` in seconds. Raises UnavailableError, UnauthenticatedError, or what the cluster says."""
        if self._carrier != "grpc":
            share = timeout * _FRAMED_SHARE if self.endpoint.grpc and not self._carrier else timeout
            try:
                link = await self._framed(share, on_frames, on_closed)
            except UnavailableError:
                if not self.endpoint.grpc or self._carrier == "framed":
                    raise
                timeout -= share
            else:
                self._carrier = "framed"
                return link
        from flame.link.grpc_carrier import connect_grpc

        link = await connect_grpc(
            self.endpoint.grpc,
            self._copy(),
            credentials=self._credentials(),
            timeout=timeout,
            on_frames=on_frames,
            on_closed=on_closed,
        )
        self._carrier = "grpc"
        return link

    async def _framed(self, timeout: float, on_frames: OnFrames, on_closed: OnClosed) -> Link:
        if self.endpoint.tls is not None and self._ssl is None:
            from flame.security.tls import client_ssl

            self._ssl = client_ssl(_files(self.endpoint.tls))
        return await connect(
            self.endpoint.framed, self._copy(), ssl=self._ssl, timeout=timeout, on_frames=on_frames, on_closed=on_closed
        )

    def _copy(self) -> link_pb2.Hello:
        hello = link_pb2.Hello()
        hello.CopyFrom(self._hello)
        return hello

    def _credentials(self) -> grpc.ChannelCredentials | None:
        if self.endpoint.tls is None:
            return None
        from flame.security.tls import grpc_channel_credentials

        return grpc_channel_credentials(_files(self.endpoint.tls))


def _files(tls: FlameClientTls) -> TlsConfig:
    from pathlib import Path

    from flame.config import TlsConfig

    def path(text: str | None) -> Path | None:
        return Path(text).expanduser() if text else None

    return TlsConfig(cert_file=path(tls.cert_file), key_file=path(tls.key_file), ca_file=path(tls.ca_file))
