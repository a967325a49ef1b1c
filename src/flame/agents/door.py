"""Who may use an MCP server over HTTP: checked before anything else of a request is looked at."""

from __future__ import annotations

import hmac
import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from flame.model.errors import InvalidArgumentError

LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})

Message = Mapping[str, Any]
Receive = Callable[[], Awaitable[Any]]
Send = Callable[[Any], Awaitable[None]]
App = Callable[[Any, Receive, Send], Awaitable[None]]


@dataclass(frozen=True)
class Rules:
    """`hosts`: names under which the server may be asked, None for any. `origins`: web pages that may ask it; programs
    that are no browsers name none. `token`: what must be shown, empty for nothing."""

    hosts: frozenset[str] | None
    origins: frozenset[str]
    token: str

    def refusal(self, headers: Mapping[str, str]) -> tuple[int, str] | None:
        """The HTTP status and text for a request that may not be served. Header names are in small letters."""
        if self.hosts is not None and _name(headers.get("host", "")) not in self.hosts:
            return 421, "the Host header names another server"
        origin = headers.get("origin")
        if origin is not None and origin not in self.origins:
            return 403, "web pages of this origin may not use this server"
        shown = headers.get("authorization", "")
        scheme, _, token = shown.partition(" ")
        if self.token and not (
            scheme.lower() == "bearer" and hmac.compare_digest(token.strip().encode(), self.token.encode())
        ):
            return 401, "show the token: Authorization: Bearer TOKEN"
        return None


def rules(host: str, *, token: str, insecure: bool, hosts: tuple[str, ...], origins: tuple[str, ...]) -> Rules:
    """The rules of a server that listens at `host`. Raises InvalidArgumentError for one that everybody could use."""
    if host not in LOOPBACK and not token and not insecure:
        raise InvalidArgumentError(
            f"whoever reaches {host} could run code in the cluster",
            remedy="set FLAME_MCP_TOKEN to a secret that clients must show, or say --insecure",
        )
    named = frozenset(hosts)
    if host in LOOPBACK:
        return Rules(LOOPBACK | named, frozenset(origins), token)
    return Rules(LOOPBACK | named | {host} if named else None, frozenset(origins), token)


class Door:
    """An ASGI application in front of another, that lets in whom the rules allow. `on_end` is called with the id of a
    session that its client has ended."""

    def __init__(self, app: App, rules: Rules, on_end: Callable[[str], Awaitable[object]]) -> None:
        self._app = app
        self._rules = rules
        self._on_end = on_end

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        refusal = self._rules.refusal(headers)
        if refusal is not None:
            await _refuse(send, *refusal)
            return
        status = 0

        async def watch(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        await self._app(scope, receive, watch)
        session = headers.get("mcp-session-id")
        if scope["method"] == "DELETE" and session is not None and 200 <= status < 300:
            await self._on_end(session)


async def _refuse(send: Send, status: int, text: str) -> None:
    body = json.dumps({"error": text}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    if status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _name(host: str) -> str:
    """The name in a Host header, without its port."""
    try:
        return (urlsplit(f"//{host}").hostname or "").lower()
    except ValueError:
        return ""
