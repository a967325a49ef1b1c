"""The frontend over gRPC, for clients of other languages and for those that speak the reference's contract."""

from __future__ import annotations

import importlib
import logging
import re
from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING, Any

from flame.link import Link, PeerInfo, tcp, unix
from flame.link.address import Address
from flame.link.frames import FRAME_SLACK
from flame.link.peer import is_loopback
from flame.manager.frontend import Frontend
from flame.model.errors import MEANING, FlameError, InternalError, InvalidConfigError
from flame.proto import link_pb2
from flame.security import Identity, Role, Tokens, grpc_server_credentials, identify, subject_of_text

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    import grpc
    import grpc.aio
    from google.protobuf.message import Message

    from flame.config import TlsConfig

_log = logging.getLogger("flame.manager")

_BEARER = "Bearer "
# What is not found, as clients of the contract expect it: the id alone, or without a verb.
_NOT_FOUND = re.compile(r"((?:session|task) <(.*)>) not found", re.DOTALL)
_ID_ALONE = frozenset({"GetSession", "GetTask", "ListTask", "CreateTask"})
_WITHOUT_VERB = frozenset({"CloseSession", "DeleteSession"})


def grpc_address(text: str) -> Address:
    """An address as gRPC writes it: `host:port` or `unix:/path`. Raises InvalidConfigError."""
    if text.startswith("unix:"):
        return unix(text.removeprefix("unix:"))
    host, colon, port = text.rpartition(":")
    if not colon or not port.isdigit():
        raise InvalidConfigError(f"invalid address {text!r}", remedy="write host:port or unix:/path")
    return tcp(host.strip("[]"), int(port))


class GrpcServer:
    """One gRPC server on one or more addresses, with the frontend and the gRPC carrier of the link."""

    def __init__(
        self,
        frontend: Frontend,
        accept: Callable[[Link], Awaitable[link_pb2.Welcome]],
        tokens: Tokens,
        *,
        tls: TlsConfig | None,
        insecure: bool,
        max_payload: int,
    ) -> None:
        self._frontend = frontend
        self._accept = accept
        self._tokens = tokens
        self._tls = tls
        self._insecure = insecure
        self._max_payload = max_payload
        self._server: grpc.aio.Server | None = None
        self._everybody: Identity | None = None  # who callers without a token are, where it is the same for all
        self.addresses: list[str] = []

    async def start(self, addresses: Sequence[str]) -> None:
        """Listen. Raises InvalidConfigError when an address can't be used."""
        from flame.link.grpc_carrier import serve_grpc

        grpc = _grpc()
        options = [
            ("grpc.max_receive_message_length", self._max_payload + FRAME_SLACK),
            ("grpc.max_send_message_length", -1),
            ("grpc.so_reuseport", 0),
        ]
        server: Any = grpc.aio.server(options=options)
        handlers = {name: self._handler(name) for name in self._frontend.methods}
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("flame.v1.Frontend", handlers),))
        serve_grpc(server, self._accept, peer=_peer)
        self._server = server
        for text in addresses:
            address = grpc_address(text)
            try:
                if self._tls is not None and not address.unix:
                    port = server.add_secure_port(text, grpc_server_credentials(self._tls))
                else:
                    port = server.add_insecure_port(text)
            except RuntimeError as error:
                raise InvalidConfigError(f"can't listen at {text}: {error}") from error
            self.addresses.append(text if address.unix else f"{text.rpartition(':')[0]}:{port}")
        if self._tls is None and (self._insecure or all(map(_is_inside, addresses))):
            self._everybody = Identity("anonymous" if self._insecure else "loopback", Role.ADMIN)
        await server.start()

    async def stop(self, grace: float) -> None:
        """End the calls under way after `grace` seconds."""
        if self._server is not None:
            await self._server.stop(grace)

    # --- calls -------------------------------------------------------------------------------------------------------

    def _handler(self, name: str) -> Any:
        grpc = _grpc()
        method = self._frontend.methods[name]
        if method.streams:
            return grpc.unary_stream_rpc_method_handler(self._streaming(name), method.request.FromString, _serialize)
        return grpc.unary_unary_rpc_method_handler(self._unary(name), method.request.FromString, _serialize)

    def _unary(self, name: str) -> Callable[[Any, Any], Awaitable[Message]]:
        frontend = self._frontend

        async def handle(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Message:
            try:
                return await frontend.unary(name, request, self._identity(context))
            except Exception as error:
                return await _abort(context, name, error)

        return handle

    def _streaming(self, name: str) -> Callable[[Any, Any], AsyncIterator[Message]]:
        frontend = self._frontend

        async def handle(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> AsyncIterator[Message]:
            try:
                async for message in frontend.streaming(name, request, self._identity(context)):
                    yield message
            except Exception as error:
                await _abort(context, name, error)

        return handle

    def _identity(self, context: grpc.aio.ServicerContext[Any, Any]) -> Identity:
        token = ""
        for key, value in context.invocation_metadata() or ():
            if key == "authorization" and isinstance(value, str):
                token = value.removeprefix(_BEARER)
        if self._everybody is not None and not token:
            return self._everybody
        return identify(_peer(context), token, self._tokens, tls=self._tls is not None, insecure=self._insecure)


def _is_inside(text: str) -> bool:
    address = grpc_address(text)
    return address.unix or address.host == "localhost" or is_loopback(address.host)


def _peer(context: Any) -> PeerInfo:
    """What is known of the caller. A unix socket counts as the loopback: its file is open to the own user only."""
    from flame.link.grpc_carrier import peer_of_context

    peer = peer_of_context(context)
    subject = context.auth_context().get("x509_subject")
    if not subject:
        return peer
    certificate = subject_of_text(b"".join(subject).decode())
    return PeerInfo(certificate=certificate, address=peer.address, loopback=peer.loopback)


async def _abort(context: grpc.aio.ServicerContext[Any, Any], name: str, error: Exception) -> Any:
    grpc = _grpc()
    if isinstance(error, grpc.aio.AbortError):
        raise error
    if not isinstance(error, FlameError):
        _log.exception("call_fault method=%s", name)
        error = InternalError(f"{type(error).__name__} in {name}")
    status = grpc.StatusCode[MEANING[error.code].grpc]
    details = (("flame-code", str(int(error.code))), ("flame-remedy-bin", error.remedy.encode()))
    await context.abort(status, _text(name, error), details)


def _text(name: str, error: FlameError) -> str:
    found = _NOT_FOUND.fullmatch(error.message)
    if found is None or name not in _ID_ALONE | _WITHOUT_VERB:
        return error.message
    return found[2] if name in _ID_ALONE else found[1]


def _grpc() -> Any:
    """The package, imported when it is first needed; untyped, since its stubs give handlers unknown types."""
    return importlib.import_module("grpc.aio") and importlib.import_module("grpc")


def _serialize(message: Message) -> bytes:
    return message.SerializeToString()
