"""What a node tells the session manager of itself."""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import Mapping

from flame.link import Address
from flame.link.peer import is_loopback
from flame.node.capacity import Machine
from flame.node.settings import NodeSettings
from flame.packages.installers import OWN_VERSION, PYTHON_LABEL
from flame.proto import types_pb2
from flame.proto.values import resources_message

LOOPBACK = "127.0.0.1"


def describe(settings: NodeSettings, machine: Machine, address: str, able: Mapping[str, str] = {}) -> types_pb2.Node:
    """The node as HELLO and heartbeats carry it; `address` is where other nodes reach it.

    Labels beside those of the settings: `flame.hostname`, `flame.arch`, `flame.os`, `flame.python`, and those that say
    what it is `able` to do (model/isolation.py).
    """
    amount = resources_message(machine.resources)
    system = os.uname()
    arch, kind = system.machine, system.sysname.lower()
    own = {"flame.hostname": system.nodename, "flame.arch": arch, "flame.os": kind, PYTHON_LABEL: OWN_VERSION, **able}
    return types_pb2.Node(
        metadata=types_pb2.Metadata(id=settings.name, name=settings.name),
        spec=types_pb2.NodeSpec(
            hostname=system.nodename,
            labels={**settings.labels, **own},
            taints=settings.taints,
            max_executors=settings.max_executors,
        ),
        status=types_pb2.NodeStatus(
            state=types_pb2.Ready,
            capacity=amount,
            allocatable=amount,
            info=types_pb2.NodeInfo(arch=arch, os=kind),
            addresses=[
                types_pb2.NodeAddress(type="Hostname", address=system.nodename),
                types_pb2.NodeAddress(type="InternalIP", address=address),
            ],
            last_heartbeat_time=int(time.time()),
        ),
    )


async def own_address(manager: Address) -> str:
    """The address of this machine on the way to the session manager, which other nodes use as well.

    The loopback where the session manager is on this machine, or can't be found.
    """
    if manager.unix:
        return LOOPBACK
    loop = asyncio.get_running_loop()
    try:
        found = await loop.getaddrinfo(manager.host, manager.port, type=socket.SOCK_DGRAM)
    except OSError:
        return LOOPBACK
    for family, kind, protocol, _, place in found:
        # Connecting a datagram socket sends nothing; it only asks which of our addresses the route would use.
        try:
            with socket.socket(family, kind, protocol) as probe:
                probe.connect(place)
                address = str(probe.getsockname()[0])
                return LOOPBACK if is_loopback(address) else address
        except OSError:
            continue
    return LOOPBACK
