"""What a node says of itself, and how it reaches its session manager, through the real daemons."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import yaml

import flame
from blackbox.trouble import connect, echoes, numbers, register
from cluster import PATIENCE, Cluster, free_ports
from flame.security import make_certificates

SHOW = """
import os, sys
from flame.service import *
class Show(FlameService):
    def on_task_invoke(self, context):
        return os.environ.get(context.input.decode(), "nothing").encode()
run(Show())
"""


def service(cluster: Cluster, connection: flame.Connection) -> None:
    """Register `show`: the value of the environment variable that a task names."""
    program = cluster.folder / "show.py"
    program.write_text(SHOW)
    attributes = flame.ApplicationAttributes(command=sys.executable, arguments=[str(program)])
    connection.register_application("show", attributes)


# --- what it says ----------------------------------------------------------------------------------------------------


def test_a_node_says_what_the_file_and_the_command_line_say(tmp_path: Path) -> None:
    executors = {
        "capacity": "cpu=4,mem=4g",
        "labels": {"zone": "a", "disk": "ssd"},
        "taints": ["batch"],
        "limits": {"max_executors": 3},
    }
    with Cluster(tmp_path, nodes=1, settings={"executors": executors}) as cluster, connect(cluster) as connection:
        said = ["--label", "zone=b", "--label", "rack=7", "--taint", "batch", "--taint", "owner=me"]
        cluster.start_node("other", *said, "--max-executors", "1")
        system = os.uname()
        own = {"flame.hostname": system.nodename, "flame.arch": system.machine, "flame.os": "linux"}
        first, second = sorted(connection.list_nodes(), key=lambda node: node.name)
        assert (first.name, second.name) == ("node-1", "other")
        able = {name: value for name, value in first.labels.items() if name.startswith("flame.")}  # of this machine
        assert able.items() >= own.items()
        assert able.keys() >= {"flame.isolation.process", "flame.shim.container", "flame.limits"}
        own = able
        assert first.labels == {"zone": "a", "disk": "ssd", **own}
        assert (first.taints, first.max_executors) == (["batch"], 3)
        assert second.labels == {"zone": "b", "disk": "ssd", "rack": "7", **own}
        assert (second.taints, second.max_executors) == (["batch", "owner=me"], 1)
        listed = subprocess.run(
            [Path(sys.executable).with_name("flmctl"), "list", "-n", "-o", "json"],
            env=cluster.environ(), cwd=tmp_path, capture_output=True, text=True, timeout=PATIENCE, check=True,
        )  # fmt: skip
        assert {node["name"]: node["labels"]["zone"] for node in json.loads(listed.stdout)} == {
            "node-1": "a",
            "other": "b",
        }


def test_executors_that_share_a_gpu_see_the_same_one(tmp_path: Path) -> None:
    executors = {"capacity": "cpu=8,mem=8g", "devices": ["GPU-a", "MIG-b"], "gpu_fraction": 2}
    with Cluster(tmp_path, settings={"executors": executors}) as cluster, connect(cluster) as connection:
        assert [node.capacity.gpu for node in connection.list_nodes()] == [4]
        service(cluster, connection)
        seen: list[str] = []
        for _ in range(4):  # each keeps its executor
            session = connection.create_session("show", resreq=flame.ResourceRequirement(cpu=1, gpu=1))
            seen.append((session.invoke(b"CUDA_VISIBLE_DEVICES") or b"").decode())
        assert sorted(seen) == ["GPU-a", "GPU-a", "MIG-b", "MIG-b"]


# --- how it gets there -----------------------------------------------------------------------------------------------


@contextlib.contextmanager
def only_grpc(cluster: Cluster, **settings: object) -> Iterator[Path]:
    """A cluster file for nodes that reach the gRPC port for nodes, P+1, through a forwarder, and no other port."""
    port = free_ports(4)
    document = yaml.safe_load(cluster.config.read_text())
    document["cluster"]["endpoint"] = document["cluster"]["endpoint"].replace(str(cluster.port), str(port))
    document["cluster"].update(settings)
    file = cluster.folder / "only-grpc.yaml"
    file.write_text(yaml.safe_dump(document))
    forwarder = Forwarder(port + 1, cluster.port + 1)
    try:
        yield file
    finally:
        forwarder.close()


class Forwarder:
    """Passes connections on from one port to another; while nobody listens there, it ends them."""

    def __init__(self, port: int, target: int) -> None:
        self._target = target
        self._listener = socket.create_server(("127.0.0.1", port))
        self._sockets: list[socket.socket] = []
        self._pumps: list[threading.Thread] = []
        self._accepting = threading.Thread(target=self._accept)
        self._accepting.start()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._accepting.join(PATIENCE)
        for each in self._sockets:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
        for pump in self._pumps:
            pump.join(PATIENCE)
        for each in (self._listener, *self._sockets):
            each.close()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:  # close() was called
                return
            try:
                far = socket.create_connection(("127.0.0.1", self._target))
            except OSError:
                near.close()
                continue
            self._sockets += [near, far]
            for source, drain in ((near, far), (far, near)):
                self._pumps.append(threading.Thread(target=_pump, args=(source, drain)))
                self._pumps[-1].start()


def _pump(source: socket.socket, drain: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            drain.sendall(data)
    with contextlib.suppress(OSError):
        drain.shutdown(socket.SHUT_WR)


def test_a_node_that_reaches_only_grpc_works_over_it(tmp_path: Path) -> None:
    with Cluster(tmp_path, nodes=0) as cluster, only_grpc(cluster) as file, connect(cluster) as connection:
        node = cluster.start_node("far", "--config", str(file))
        node.wait_for("connected to the session manager over gRPC")
        register(connection)
        session = connection.create_session("trouble")
        assert numbers(session.map(echoes(500))) == list(range(500))
        session.close()
        said = len(node.lines)
        cluster.manager.kill()
        cluster.start_manager()
        node.wait_for("connected to the session manager over gRPC", after=said)
        again = connection.create_session("trouble")
        assert numbers(again.map(echoes(10))) == list(range(10))
        again.close()
        assert cluster.nodes["far"].stop() == 0


def test_grpc_has_the_same_certificates_as_the_link(tmp_path: Path) -> None:
    made = make_certificates(tmp_path / "certificates")
    server, node = (
        {key: str(getattr(tls, key)) for key in ("cert_file", "key_file", "ca_file")}
        for tls in (made.server, made.node)
    )
    cluster = Cluster(tmp_path, nodes=0, settings={"tls": server}, scheme="https")
    with cluster, only_grpc(cluster, tls=node) as file:
        cluster.start_node("far", "--config", str(file)).wait_for("connected to the session manager over gRPC")
