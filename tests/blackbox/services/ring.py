"""A service for gangs: at its start all members add up a number each, over sockets of their own, around a ring.

Tasks answer with what this member knows: {"rank", "size", "addresses", "sum", "pid", "env"}; input: seconds to sleep.
"""

from __future__ import annotations

import json
import os
import socket
import time

import flame

PATIENCE = 20.0


class Ring(flame.FlameService):
    """Member r gives r + 1 to the sum. It listens at its own address and connects to the next member's."""

    def on_session_enter(self, context: flame.SessionContext) -> None:
        gang = context.gang
        if gang is None:
            raise RuntimeError("this service works in a gang only")
        self.gang = gang
        host, port = gang.addresses[gang.rank].rsplit(":", 1)
        with socket.create_server((host, int(port))) as listener:
            listener.settimeout(PATIENCE)
            self.next = _connect(gang.addresses[(gang.rank + 1) % gang.world_size])
            self.previous, _ = listener.accept()
        self.previous.settimeout(PATIENCE)
        self.sum = number = gang.rank + 1
        for _ in range(gang.world_size - 1):
            self.next.sendall(number.to_bytes(4, "big"))
            number = int.from_bytes(self.previous.recv(4, socket.MSG_WAITALL), "big")
            self.sum += number

    def on_task_invoke(self, context: flame.TaskContext) -> bytes:
        time.sleep(float(context.input or b"0"))
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
        names += ("FLAME_GANG_RANK", "FLAME_GANG_SIZE", "FLAME_GANG_ADDRESSES")
        told = {
            "rank": self.gang.rank,
            "size": self.gang.world_size,
            "addresses": self.gang.addresses,
            "sum": self.sum,
            "pid": os.getpid(),
            "env": {name: os.environ.get(name) for name in names},
        }
        return json.dumps(told).encode()


def _connect(address: str) -> socket.socket:
    """Connect as soon as the other one listens."""
    host, port = address.rsplit(":", 1)
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            return socket.create_connection((host, int(port)), PATIENCE)
        except ConnectionRefusedError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.01)


if __name__ == "__main__":
    flame.run(Ring())
