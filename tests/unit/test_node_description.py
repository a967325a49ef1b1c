"""What a node tells of itself: labels that it gives itself, and where other nodes find it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from flame.link import Address, tcp, unix
from flame.model.resources import Resources
from flame.node.capacity import Machine
from flame.node.description import describe, own_address
from flame.node.settings import NodeSettings

IN_A_NETWORK = """
ip link add wire type veth peer name far && ip link set lo up && ip link set far up && ip link set wire up &&
ip addr add 10.77.0.2/24 dev wire && ip addr add fd77::2/64 dev wire nodad && exec "$@"
"""
ASK = """
import asyncio, sys
from flame.link import parse
from flame.node.description import own_address
print(*(asyncio.run(own_address(parse(text))) for text in sys.argv[1:]))
"""


def test_a_node_describes_itself(tmp_path: Path) -> None:
    settings = NodeSettings(
        manager=unix("/m"), work_dir=tmp_path, name="n1", labels={"zone": "a"}, taints=("t=1", "u"), max_executors=7
    )
    node = describe(settings, Machine(Resources(2, 3, 4), ("0",), 4), "10.0.0.1", {"flame.limits": "yes"})
    system = os.uname()
    assert (node.metadata.name, node.spec.hostname) == ("n1", system.nodename)
    assert dict(node.spec.labels) == {
        "zone": "a",
        "flame.hostname": system.nodename,
        "flame.arch": system.machine,
        "flame.os": "linux",
        "flame.python": f"{sys.version_info.major}.{sys.version_info.minor}",
        "flame.limits": "yes",
    }
    assert (list(node.spec.taints), node.spec.max_executors) == (["t=1", "u"], 7)
    amount = node.status.capacity
    assert (amount.cpu, amount.memory, amount.gpu) == (2, 3, 4)
    assert [(one.type, one.address) for one in node.status.addresses] == [
        ("Hostname", system.nodename),
        ("InternalIP", "10.0.0.1"),
    ]


@pytest.mark.parametrize("manager", [unix("/m"), tcp("127.0.0.1", 1), tcp("::1", 1), tcp("localhost", 1)])
async def test_on_the_machine_of_the_session_manager_it_is_the_loopback(manager: Address) -> None:
    assert await own_address(manager) == "127.0.0.1"


def isolated() -> bool:
    """Whether this user may have a network of its own."""
    if shutil.which("unshare") is None or shutil.which("ip") is None:
        return False
    command = ["unshare", "-rn", "ip", "link", "add", "wire", "type", "veth", "peer", "name", "far"]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


@pytest.mark.skipif(not isolated(), reason="no network of its own can be made")
def test_elsewhere_it_is_the_address_on_the_way_there() -> None:
    command = ["unshare", "-rn", "sh", "-c", IN_A_NETWORK, "sh", sys.executable, "-c", ASK]
    ways = ["tcp:10.77.0.1:1", "tcp:[fd77::1]:1", "tcp:203.0.113.1:1"]  # the last one has no route
    done = subprocess.run([*command, *ways], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout.split() == ["10.77.0.2", "fd77::2", "127.0.0.1"], done.stderr
