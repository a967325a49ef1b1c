"""An MCP server whose tools are those of a sandbox: one for each client, made at its first call.

Over stdio the process serves one client. Over HTTP a client is a session; clients of protocol versions without
sessions get a handle with each result, and give it with the next call. Needs the extra `mcp`.
"""

from __future__ import annotations

import asyncio
import base64
import secrets
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import quote

from flame._version import __version__
from flame.agents import answers, toolbox
from flame.agents.answers import MAX_BINARY, Answer, Binary
from flame.agents.toolbox import AsyncToolbox, missing
from flame.model.errors import FlameError

try:
    from mcp.server.mcpserver import Context, MCPServer
    from mcp.types import (
        BlobResourceContents,
        CallToolResult,
        EmbeddedResource,
        ImageContent,
        TextContent,
        ToolAnnotations,
    )
    from pydantic import Field

    from flame.agents.arguments import Code, Command, Content, Encoding, Path
except ImportError as error:
    raise missing("mcp", error) from error

if TYPE_CHECKING:
    from starlette.types import ASGIApp

    from flame.agents.clients import Clients

_INSTRUCTIONS = (
    "Tools to run Python code and shell commands in a sandbox of your own, which is kept away from the machine that "
    "it runs on. Variables and files last until the sandbox ends. reset begins with a new one."
)
_BINARY = f"What is neither comes as a resource in base64, up to {MAX_BINARY} bytes."
_STDIO = "stdio"
_SESSION = "mcp-session-id"

Handle = Annotated[
    str | None, Field(description="Only where an earlier result named one: the sandbox to go on in. Else leave it out.")
]
Seconds = Annotated[float | None, Field(gt=0, description="After so many seconds it is ended.")]
Call = Callable[[AsyncToolbox], Awaitable[Answer]]


def make_server(clients: Clients) -> MCPServer[None]:
    """The server with its tools; when it stops, all sandboxes are closed."""

    @asynccontextmanager
    async def life(_: MCPServer[None]) -> AsyncGenerator[None, None]:
        try:
            yield
        finally:
            await asyncio.shield(clients.close_all())

    server: MCPServer[None] = MCPServer(
        "flame", title="Flame sandboxes", version=__version__, instructions=_INSTRUCTIONS, log_level="WARNING",
        lifespan=life,
    )  # fmt: skip
    _add_tools(server, clients)
    return server


def http_app(server: MCPServer[None], clients: Clients, idle: float) -> ASGIApp:
    """The server over streamable HTTP, at /mcp. `idle` seconds after the last request of a session it ends.

    Whoever may use it is for the caller to decide: see `flame.agents.door`.
    """
    from mcp.server.transport_security import TransportSecuritySettings

    unguarded = TransportSecuritySettings(enable_dns_rebinding_protection=False)
    return server.streamable_http_app(session_idle_timeout=idle, transport_security=unguarded)


def _add_tools(server: MCPServer[None], clients: Clients) -> None:
    def tool(description: str, *, reads: bool = False) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        about = ToolAnnotations(read_only_hint=reads, open_world_hint=False)
        return server.tool(description=description, annotations=about, structured_output=False)

    async def answer(context: Context[None], handle: str | None, call: Call) -> CallToolResult:
        key, told = _key(context, handle)
        try:
            async with clients.use(key, new=handle is None or told is None) as tools:
                found = await call(tools)
        except FlameError as error:
            return _result(answers.of_error(error))
        return _result(found, told)

    @tool(toolbox.RUN_CODE)
    async def run_code(
        context: Context[None], code: Code, timeout: Seconds = None, sandbox: Handle = None
    ) -> CallToolResult:
        return await answer(context, sandbox, lambda tools: tools.run_code(code, timeout))

    @tool(toolbox.RUN_COMMAND)
    async def run_command(
        context: Context[None], command: Command, timeout: Seconds = None, sandbox: Handle = None
    ) -> CallToolResult:
        return await answer(context, sandbox, lambda tools: tools.run_command(command, timeout))

    @tool(f"{toolbox.READ_FILE} {_BINARY}", reads=True)
    async def read_file(context: Context[None], path: Path, sandbox: Handle = None) -> CallToolResult:
        return await answer(context, sandbox, lambda tools: tools.read_file(path))

    @tool(toolbox.WRITE_FILE)
    async def write_file(
        context: Context[None], path: Path, content: Content, encoding: Encoding = "text", sandbox: Handle = None
    ) -> CallToolResult:
        return await answer(context, sandbox, lambda tools: tools.write_file(path, content, encoding))

    @tool(toolbox.LIST_FILES, reads=True)
    async def list_files(context: Context[None], path: Path = ".", sandbox: Handle = None) -> CallToolResult:
        return await answer(context, sandbox, lambda tools: tools.list_files(path))

    @tool("Close the sandbox with its files, variables and programs. The next call begins with a new one.")
    async def reset(context: Context[None], sandbox: Handle = None) -> CallToolResult:
        key, told = _key(context, sandbox)
        there = (told is None or sandbox is not None) and await clients.close(key)
        return _result(Answer("the sandbox was closed" if there else "there was no sandbox to close"))


def _key(context: Context[None], handle: str | None) -> tuple[str, str | None]:
    """The key of the client, and the handle to tell it when its key is no matter of the transport."""
    headers = context.headers
    if headers is None:
        return _STDIO, None
    session = headers.get(_SESSION)
    if session is not None:
        return f"{_SESSION} {session}", None
    key = handle or secrets.token_urlsafe(12)
    return key, key


def session_key(session: str) -> str:
    """The key of a client that is a session over HTTP."""
    return f"{_SESSION} {session}"


def _result(answer: Answer, handle: str | None = None) -> CallToolResult:
    text = answer.text if handle is None else f"{answer.text}\n[sandbox: {handle}; give it with the next call]"
    images = [ImageContent(type="image", data=_base64(image.data), mime_type=image.kind) for image in answer.images]
    files = [_resource(answer.binary)] if answer.binary is not None else []
    return CallToolResult(content=[TextContent(type="text", text=text), *images, *files], is_error=answer.failed)


def _resource(file: Binary) -> EmbeddedResource:
    uri = f"sandbox:///{quote(file.path.lstrip('/'))}"
    content = BlobResourceContents(uri=uri, mime_type=file.kind, blob=_base64(file.data))
    return EmbeddedResource(type="resource", resource=content)


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()
