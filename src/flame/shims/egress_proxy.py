"""`python -m flame.shims.egress_proxy NETWORK FILE`: lets one instance reach what a list names, and nothing else.

It listens at the socket that is its stdin, speaks HTTP (CONNECT, and requests with a whole URL) and SOCKS 5, looks
names up itself, and connects to the very address that it has looked at. What it refuses is written to stderr, the
log of the instance, once each. How many bytes were carried, both ways, is in the file all the time. At SIGTERM it says
so in the log, and ends.
"""

from __future__ import annotations

import asyncio
import mmap
import re
import signal
import socket
import struct
import sys
from collections.abc import Awaitable, Callable, Sequence
from ipaddress import ip_address
from pathlib import Path
from urllib.parse import SplitResult, urlsplit

from flame.model.network import Address, Refusal, Rule, address_of, admit, name_of, parse, reachable

CARRIED = struct.Struct("=QQ")  # bytes sent and received
_CONNECTIONS = 128
_HEAD_BYTES, _HEAD_S = 32 * 1024, 20.0
_CONNECT_S, _RESOLVE_S = 15.0, 15.0
_IDLE_S = 600.0
_CHUNK = 64 * 1024
_TOLD = 200  # different refusals that are written down
_HTTP = re.compile(r"([A-Z]{1,20}) (\S{1,8192}) HTTP/1\.[01]")
_HEADER = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+:[^\r\n\0]*")
_OF_PROXIES = ("connection", "proxy-connection", "proxy-authorization", "keep-alive", "te", "upgrade", "host")

Resolve = Callable[[str, int], Awaitable[Sequence[Address]]]
"""The addresses of a name, for a port. Raises OSError."""


class RefusedError(Exception):
    """It is not listed, or nobody could say so."""


class UnreachableError(Exception):
    """It is listed, but there is no connection to be had."""


class MalformedError(Exception):
    """What came is no request."""


class Proxy:
    """What one instance may reach, and what it did."""

    def __init__(
        self, rules: Sequence[Rule], resolve: Resolve, say: Callable[[str], None], carried: bytearray | mmap.mmap
    ) -> None:
        """`carried` always has the bytes that went out and in, as CARRIED says."""
        self._rules = rules
        self._resolve = resolve
        self._say = say
        self._carried = carried
        self._told: set[str] = set()
        self._open = 0
        self.connections = self.refused = self.sent = self.received = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One client, to its end. Raises nothing."""
        if self._open >= _CONNECTIONS:
            self._tell(f"more than {_CONNECTIONS} connections at a time")
            writer.close()
            return
        self._open += 1
        try:
            await self._greet(reader, writer)
        except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, TimeoutError):
            pass  # it went away, or says nothing that is worth an answer
        except asyncio.CancelledError:
            pass  # all of this ends
        finally:
            self._open -= 1
            writer.close()

    def total(self) -> str:
        """What was carried."""
        return (
            f"network: {self.connections} connections, {self.refused} refused; "
            f"{self.sent} bytes out, {self.received} bytes in"
        )

    async def _greet(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async with asyncio.timeout(_HEAD_S):
            first = await reader.readexactly(1)
            if first == b"\5":
                host, port = await _socks_request(reader, writer)
                head, answer = b"", _socks_answer
            else:
                try:
                    text = first + await reader.readuntil(b"\r\n\r\n")
                    host, port, head = _http_request(text.decode("latin-1"))
                except (MalformedError, asyncio.LimitOverrunError) as error:
                    words = str(error) if isinstance(error, MalformedError) else "its head is too long"
                    writer.write(_http_answer(400, words))
                    await writer.drain()
                    return
                answer = _http_answer
        try:
            there, to_there = await self._connect(host, port)
        except (RefusedError, UnreachableError) as error:
            writer.write(answer(403 if isinstance(error, RefusedError) else 502, str(error)))
            await writer.drain()
            return
        try:
            if head:
                self._count(True, len(head))
                to_there.write(head)
            else:
                writer.write(answer(200, ""))
            await self._carry(reader, writer, there, to_there, once=bool(head))
        finally:
            to_there.close()

    async def _connect(self, host: str, port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Raises RefusedError and UnreachableError."""
        where = f"{_printable(host)}:{port}"
        rule = admit(self._rules, host, port)
        if isinstance(rule, Refusal):
            raise self._refusal(f"{where}: {rule.why}")
        address = address_of(host)
        if address is not None:
            addresses: Sequence[Address] = [address]
        else:
            try:
                async with asyncio.timeout(_RESOLVE_S):
                    addresses = await self._resolve(name_of(host), port)
            except (OSError, TimeoutError, UnicodeError) as error:
                raise UnreachableError(f"{where}: its address can't be found: {error or 'no answer'}") from None
            verdicts = [reachable(self._rules, rule, each, port) for each in addresses]
            refusals = [each for each in verdicts if isinstance(each, Refusal)]
            addresses = [each for each, verdict in zip(addresses, verdicts, strict=True) if isinstance(verdict, Rule)]
            if not addresses and refusals:
                raise self._refusal(f"{where}, which {rule.text} lists: {refusals[0].why}")
        problem = "it has no address"
        for each in addresses:
            try:
                async with asyncio.timeout(_CONNECT_S):
                    found = await asyncio.open_connection(str(each), port, limit=_HEAD_BYTES)
            except (OSError, TimeoutError) as error:
                problem = str(error) or "no answer"
            else:
                self.connections += 1
                return found
        raise UnreachableError(f"{where}: {problem}")

    async def _carry(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        there: asyncio.StreamReader,
        to_there: asyncio.StreamWriter,
        *,
        once: bool,
    ) -> None:
        """Bytes, both ways, until both have ended, or nothing was said for long. `once`: until there is an answer."""
        loop = asyncio.get_running_loop()
        last = loop.time()
        for each in (writer, to_there):
            _hold_little(each.transport)

        async def copy(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
            nonlocal last
            try:
                while True:
                    try:
                        async with asyncio.timeout(max(0.0, last + _IDLE_S - loop.time())):
                            data = await source.read(_CHUNK)
                            self._count(source is reader, len(data))  # before anybody can know of them
                            sink.write(data)
                            await sink.drain()
                    except TimeoutError:
                        if loop.time() >= last + _IDLE_S:
                            sink.transport.abort()
                            return
                        continue
                    if not data:
                        sink.write_eof()
                        return
                    last = loop.time()
            except OSError:
                sink.transport.abort()

        request = asyncio.ensure_future(copy(reader, to_there))
        try:
            await copy(there, writer)
            if not once:
                await request
        finally:
            request.cancel()

    def _count(self, outward: bool, size: int) -> None:
        if outward:
            self.sent += size
        else:
            self.received += size
        CARRIED.pack_into(self._carried, 0, self.sent, self.received)

    def _refusal(self, what: str) -> RefusedError:
        self.refused += 1
        self._tell(f"refused {what}")
        return RefusedError(what)

    def _tell(self, what: str) -> None:
        if what not in self._told and len(self._told) < _TOLD:
            self._told.add(what)
            self._say(f"network: {what}")


def _hold_little(transport: asyncio.WriteTransport) -> None:
    """What is read at once, and what waits to be written, is a chunk at most."""
    transport.set_write_buffer_limits(0)
    if hasattr(transport, "max_size"):  # of transports over sockets: four times as much
        transport.max_size = _CHUNK  # pyright: ignore[reportAttributeAccessIssue]


def _http_request(text: str) -> tuple[str, int, bytes]:
    """Host and port, and the head to be sent there; none for CONNECT. Raises MalformedError."""
    line, *headers = text.split("\r\n")[:-2]
    match = _HTTP.fullmatch(line)
    if match is None:
        raise MalformedError("this is a proxy for HTTP")
    if any(not _HEADER.fullmatch(header) for header in headers):
        raise MalformedError("one of its headers is none")
    method, target = match.groups()
    try:
        if method == "CONNECT":
            parts = urlsplit(f"//{target}")
            if not parts.hostname or not parts.port or parts.netloc != target:
                raise MalformedError("CONNECT wants HOST:PORT")
            return _host(parts), parts.port, b""
        parts = urlsplit(target)
        if parts.scheme.lower() != "http" or not parts.hostname or "@" in parts.netloc:
            raise MalformedError("this is a proxy: it wants a whole URL that begins with http://, or CONNECT")
        port = 80 if parts.port is None else parts.port
    except ValueError:
        raise MalformedError("its URL is none") from None
    path = target.partition("//")[2][len(parts.netloc) :].partition("#")[0]
    path = path if path.startswith("/") else f"/{path}"
    # What the server takes for its name is what was asked for, whatever the client says.
    kept = [header for header in headers if header.partition(":")[0].lower() not in _OF_PROXIES]
    head = [f"{method} {path} HTTP/1.1", f"Host: {parts.netloc}", *kept, "Connection: close", "", ""]
    return _host(parts), port, "\r\n".join(head).encode("latin-1")


def _host(parts: SplitResult) -> str:
    return parts.hostname or ""


def _http_answer(status: int, words: str) -> bytes:
    if status == 200:
        return b"HTTP/1.1 200 Connection established\r\n\r\n"
    reason = {400: "Bad Request", 403: "Forbidden", 502: "Bad Gateway"}[status]
    what = "refused by the network policy: " if status == 403 else ""
    body = f"{what}{words}\n".encode()
    head = f"HTTP/1.1 {status} {reason}\r\nContent-Type: text/plain\r\nContent-Length: {len(body)}\r\n"
    return f"{head}Connection: close\r\n\r\n".encode() + body


async def _socks_request(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> tuple[str, int]:
    """After its first byte. Raises OSError for what is not served."""
    methods = await reader.readexactly((await reader.readexactly(1))[0])
    writer.write(b"\5\0" if 0 in methods else b"\5\xff")
    version, command, _, kind = await reader.readexactly(4)
    if kind == 3:
        host = (await reader.readexactly((await reader.readexactly(1))[0])).decode("latin-1")
    else:
        host = str(ip_address(await reader.readexactly(16 if kind == 4 else 4)))
    (port,) = struct.unpack(">H", await reader.readexactly(2))
    if (version, command) != (5, 1) or kind not in (1, 3, 4):
        writer.write(_socks_reply(7))
        await writer.drain()
        raise OSError("only connections are served")
    return host, port


def _socks_answer(status: int, words: str) -> bytes:
    return _socks_reply({200: 0, 403: 2}.get(status, 4))


def _socks_reply(code: int) -> bytes:
    return bytes((5, code, 0, 1, 0, 0, 0, 0, 0, 0))


def _printable(host: str) -> str:
    return "".join(letter if letter.isprintable() else "?" for letter in host[:255])


async def look_up(name: str, port: int) -> list[Address]:
    """As this machine does it. Raises OSError."""
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(name, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(ip_address(str(where[0]).partition("%")[0]) for *_, where in found))


async def run(network: str, carried: mmap.mmap, listening: socket.socket) -> None:
    """Serve until SIGTERM."""

    def say(text: str) -> None:
        sys.stderr.write(f"{text}\n")
        sys.stderr.flush()

    proxy = Proxy(parse(network), look_up, say, carried)
    over = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, over.set)
    server = await asyncio.start_unix_server(proxy.serve, sock=listening, limit=_HEAD_BYTES)
    await over.wait()
    server.close()
    say(proxy.total())


def main() -> None:
    """Serve at the socket that is stdin."""
    with Path(sys.argv[2]).open("r+b") as file, mmap.mmap(file.fileno(), CARRIED.size) as carried:
        asyncio.run(run(sys.argv[1], carried, socket.socket(fileno=0)))


if __name__ == "__main__":
    main()
