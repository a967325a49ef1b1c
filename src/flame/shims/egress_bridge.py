"""Runs inside of a sandbox, by its path: makes the proxy's socket a port of the sandbox's loopback, and becomes the
program.

Arguments: the socket, and the program with its arguments. A process apart carries bytes between the two; it ends with
the sandbox. Only the standard library: this is started with `python -I -S`.
"""

# pathlib would cost more than all the rest here:
# ruff: noqa: PTH208
from __future__ import annotations

import os
import signal
import socket
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    import asyncio

_PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")
_OWN = "localhost,127.0.0.1,::1"
KEPT = "FLAME_KEPT_"  # before the name of a variable that is not meant for the bridge
_BACKLOG = 128
_CONNECTIONS = 128  # the proxy takes no more
_CHUNK = 64 * 1024


def main() -> None:
    """Listen, leave a process behind that serves, and become the program."""
    path, program, *arguments = sys.argv[1:]
    listening = socket.create_server(("127.0.0.1", 0), backlog=_BACKLOG)
    address = f"http://127.0.0.1:{listening.getsockname()[1]}"
    environment = {name.removeprefix(KEPT): value for name, value in os.environ.items()}
    environment["NO_PROXY"] = environment["no_proxy"] = _OWN
    for name in _PROXIES:
        environment[name] = environment[name.lower()] = address
    leave_behind(path, listening)
    listening.close()
    try:
        os.execve(program, [program, *arguments], environment)
    except OSError as error:
        sys.exit(f"can't start {program}: {error.strerror}")


def leave_behind(path: str, listening: socket.socket) -> None:
    """Start the process that serves. It is nobody's child whom the program would have to know of."""
    child = os.fork()
    if child:
        os.waitpid(child, 0)
        return
    if not os.fork():
        try:
            os.setsid()
            signal.signal(signal.SIGTERM, signal.SIG_IGN)  # it is needed until the program has ended
            let_go(listening.fileno())
            serve(path, listening)
        finally:
            os._exit(1)
    os._exit(0)


def let_go(kept: int) -> None:
    """Of all that the program has open, but for this descriptor."""
    nothing = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(nothing, descriptor)
    for name in os.listdir("/proc/self/fd"):
        if int(name) > 2 and int(name) != kept:
            try:
                os.close(int(name))
            except OSError:
                pass  # the one that the folder was read with


def serve(path: str, listening: socket.socket) -> None:
    """Carry bytes between whoever comes and the socket, for ever."""
    import asyncio

    carried = 0
    folder, name = os.path.split(path)
    os.chdir(folder)  # a socket's path may have 107 bytes only

    async def copy(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        try:
            while data := await source.read(_CHUNK):
                sink.write(data)
                await sink.drain()
            sink.write_eof()
        except OSError:
            sink.transport.abort()

    async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal carried
        if carried >= _CONNECTIONS:
            writer.close()
            return
        carried += 1
        try:
            await carry_one(reader, writer)
        finally:
            carried -= 1

    async def carry_one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            there, to_there = await asyncio.open_unix_connection(name, limit=_CHUNK)
        except OSError:
            writer.close()
            return
        try:
            await asyncio.gather(copy(reader, to_there), copy(there, writer))
        finally:
            to_there.close()
            writer.close()

    async def run() -> None:
        server = await asyncio.start_server(carry, sock=listening, limit=_CHUNK)
        await server.serve_forever()

    asyncio.run(run())


if __name__ == "__main__":
    main()
