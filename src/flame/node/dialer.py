"""How a node reaches its session manager: over the framed link, else over gRPC."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from ssl import SSLContext
from typing import TYPE_CHECKING

from flame.link import Address, Link, connect
from flame.link.connection import OnCall, OnClosed, OnFrames
from flame.model.errors import UnavailableError
from flame.node.settings import NodeSettings
from flame.proto import link_pb2

if TYPE_CHECKING:
    import grpc

logger = logging.getLogger("flame.node")

_TIMEOUT = 10.0
# A port that is filtered gives no answer, and a session manager does not wait for its nodes for ever.
_TIMEOUT_BEFORE_GRPC = 4.0


class Dialer:
    """Makes links with these settings. Once the framed link has worked it is never given up for gRPC; a link over
    gRPC that ends is replaced by a framed one when that works meanwhile."""

    def __init__(self, settings: NodeSettings) -> None:
        """Raises InvalidConfigError for files of TLS that can't be used."""
        self._settings = settings
        self._framed_works = False
        self._ssl: SSLContext | None = None
        if settings.tls is not None:
            from flame.security import client_ssl

            self._ssl = client_ssl(settings.tls)

    async def dial(
        self, hello: Callable[[], link_pb2.Hello], on_frames: OnFrames, on_closed: OnClosed, on_call: OnCall
    ) -> Link:
        """A new link, and in the log where it leads; `hello` is asked at each attempt. Raises FlameError."""
        settings = self._settings
        fallback = settings.grpc if not self._framed_works else None
        try:
            link = await connect(
                settings.manager,
                hello(),
                ssl=self._ssl,
                timeout=_TIMEOUT_BEFORE_GRPC if fallback is not None else _TIMEOUT,
                on_frames=on_frames,
                on_closed=on_closed,
                on_call=on_call,
                heartbeat=settings.heartbeat,
            )
        except UnavailableError as error:
            if fallback is None or not await _answers(fallback):
                raise
            unreachable = error
        else:
            self._framed_works = True
            logger.info("connected to the session manager at %s", settings.manager)
            return link
        from flame.link.grpc_carrier import connect_grpc

        target = str(fallback).removeprefix("tcp:")
        try:
            link = await connect_grpc(
                target,
                hello(),
                credentials=self._credentials(),
                timeout=_TIMEOUT,
                on_frames=on_frames,
                on_closed=on_closed,
                on_call=on_call,
                heartbeat=settings.heartbeat,
            )
        except UnavailableError as error:
            raise UnavailableError(f"{unreachable.message}; and over gRPC at {target}: {error.message}") from error
        logger.warning(
            "connected to the session manager over gRPC at %s, which is slower: the framed link can't be used: %s",
            target,
            unreachable.message,
        )
        return link

    def _credentials(self) -> grpc.ChannelCredentials | None:
        if self._settings.tls is None:
            return None
        from flame.security.tls import grpc_channel_credentials

        return grpc_channel_credentials(self._settings.tls)


async def _answers(address: Address) -> bool:
    """Whether somebody listens there. Else the session manager is away, and gRPC, which is large, is not needed."""
    try:
        async with asyncio.timeout(_TIMEOUT):
            _, writer = await asyncio.open_connection(address.host, address.port)
            writer.close()
            await writer.wait_closed()
    except OSError:  # TimeoutError is one
        return False
    return True
