"""What the machine itself allows: copying in memory, a plain TCP connection and a unix socket."""

from __future__ import annotations

import os
import socket
import threading

import numpy as np

from benchmarks.contenders.data_job import LARGE, OPERATIONS, large, mb_per_s, per_s, tell


def receive(address: tuple[str, int], into: memoryview) -> None:
    """Read the large array over a connection."""
    with socket.create_connection(address) as connection:
        place = 0
        while place < LARGE:
            place += connection.recv_into(into[place:])


def serve(listener: socket.socket, array: np.ndarray) -> None:
    """The other end of all connections, in a process of its own."""
    while True:
        connection, _ = listener.accept()
        with connection:
            connection.sendall(array)


def echo(connection: socket.socket) -> None:
    """Answer each message."""
    while data := connection.recv(4096):
        connection.sendall(data)


def main() -> None:
    """All figures of one run."""
    array = large()
    target = np.zeros_like(array)
    figures = {"put_mb_s": mb_per_s(lambda: np.copyto(target, array))}
    here, there = socket.socketpair()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = listener.getsockname()[:2]
        child = os.fork()
        if child == 0:
            threading.Thread(target=echo, args=(there,), daemon=True).start()
            serve(listener, array)
        into = memoryview(target).cast("B")
        figures["tcp_get_mb_s"] = figures["tcp_put_mb_s"] = mb_per_s(lambda: receive(address, into))

        def ping() -> None:
            here.sendall(bytes(1024))
            here.recv(4096)

        figures["small_puts_s"] = figures["small_gets_s"] = per_s([ping] * OPERATIONS)
        os.kill(child, 9)
        os.waitpid(child, 0)
    tell(figures)


if __name__ == "__main__":
    main()
