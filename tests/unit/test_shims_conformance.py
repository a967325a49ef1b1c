"""The shims pass the suite for shims, each in every form that it has."""

from __future__ import annotations

import sys
import textwrap
from pathlib import Path

import msgspec

from flame.model.isolation import Limits
from flame.proto import types_pb2
from flame.shims.host import HostShim
from flame.shims.isolation_sandbox import Room, Sandboxes
from flame.shims.processes import Program
from flame.shims.rest import RestShim
from flame.shims.shim import Launch, Shim
from flame.shims.stdio import StdioShim
from flame.shims.warm import WarmLimits
from flame.testing.shims import Bench, Desk, ShimConformance, a_bench
from scripted_manager import NodeLog
from suite_services import GRPC, HEAD, LINES, LINK, ON_A_PORT, ON_A_SOCKET, ONCE


def program(folder: Path, source: str, *labels: str) -> types_pb2.ApplicationSpec:
    file = folder / "service.py"
    file.write_text(HEAD + textwrap.dedent(source))
    return types_pb2.ApplicationSpec(command=sys.executable, arguments=[str(file)], labels=labels)


class OfHost(ShimConformance):
    def make(self, bench: Bench) -> Shim:
        warm = WarmLimits(budget=0, idle=1, start_timeout=1, terminate_grace=1)
        return HostShim(bench.workshop, bench.reception, warm)


class TestHostLink(OfHost):
    def service(self, folder: Path) -> types_pb2.ApplicationSpec:
        return program(folder, LINK)


class TestHostGrpc(OfHost):
    def service(self, folder: Path) -> types_pb2.ApplicationSpec:
        return program(folder, GRPC)


class OfStdio(ShimConformance):
    def make(self, bench: Bench) -> Shim:
        return StdioShim(bench.workshop)


class TestStdioFramed(OfStdio):
    def service(self, folder: Path) -> types_pb2.ApplicationSpec:
        return program(folder, LINK, "stdio=framed")


class TestStdioLines(OfStdio):
    greets = False

    def service(self, folder: Path) -> types_pb2.ApplicationSpec:
        return program(folder, LINES)


class TestStdioOnce(OfStdio):
    greets = lasts = False

    def service(self, folder: Path) -> types_pb2.ApplicationSpec:
        return program(folder, ONCE, "stdio=once")


class OfRest(ShimConformance):
    def make(self, bench: Bench) -> Shim:
        return RestShim(bench.workshop, bench.reception)


class TestRestPort(OfRest):
    def service(self, folder: Path) -> types_pb2.ApplicationSpec:
        return program(folder, ON_A_PORT)


class TestRestSocket(OfRest):
    def service(self, folder: Path) -> types_pb2.ApplicationSpec:
        return program(folder, ON_A_SOCKET)


class Isolated(ShimConformance):
    """The same at level process, with a limit of each kind."""

    levels = ("process",)

    async def test_it_is_isolated(self) -> None:
        async with self.desk() as desk:
            (found,) = await desk.run(b"env HOME")
            assert found == b"/tmp"


def isolated(application: types_pb2.ApplicationSpec) -> types_pb2.ApplicationSpec:
    """The application at level process, with limits."""
    application.isolation = "process"
    application.limits.CopyFrom(types_pb2.Limits(memory=256 << 20, pids=100, cpu_millis=1500, disk=64 << 20))
    return application


class TestHostLinkIsolated(Isolated, OfHost):
    def service(self, folder: Path) -> types_pb2.ApplicationSpec:
        return isolated(program(folder, LINK))


class TestHostGrpcIsolated(Isolated, OfHost):
    def service(self, folder: Path) -> types_pb2.ApplicationSpec:
        return isolated(program(folder, GRPC))


class TestStdioFramedIsolated(Isolated, OfStdio):
    def service(self, folder: Path) -> types_pb2.ApplicationSpec:
        return isolated(program(folder, LINK, "stdio=framed"))


class TestStdioLinesIsolated(Isolated, OfStdio):
    greets = False

    def service(self, folder: Path) -> types_pb2.ApplicationSpec:
        return isolated(program(folder, LINES))


class TestStdioOnceIsolated(Isolated, OfStdio):
    greets = lasts = False

    def service(self, folder: Path) -> types_pb2.ApplicationSpec:
        return isolated(program(folder, ONCE, "stdio=once"))


class TestRestIsolated(Isolated, OfRest):
    def service(self, folder: Path) -> types_pb2.ApplicationSpec:
        return isolated(program(folder, ON_A_SOCKET))


class Sealed(Sandboxes):
    """A level that no socket reaches into, as those with a kernel of their own; here it is a sandbox of bubblewrap."""

    name = "microvm"
    streams = True

    def wrap(self, program: Program, room: Room, limits: Limits, launch: Launch) -> Program:
        return super().wrap(program, msgspec.structs.replace(room, sockets=()), limits, launch)


class TestHostSealed(Isolated):
    def make(self, bench: Bench) -> Shim:
        bench.workshop.confinement.levels["microvm"] = Sealed.find(bench.folder / "sealed")
        return HostShim(
            bench.workshop, bench.reception, WarmLimits(budget=0, idle=1, start_timeout=1, terminate_grace=1)
        )

    def service(self, folder: Path) -> types_pb2.ApplicationSpec:
        application = isolated(program(folder, LINK))
        application.isolation = "microvm"
        return application


async def test_an_http_server_can_not_be_where_no_socket_reaches(tmp_path: Path) -> None:
    async with a_bench() as bench:
        bench.workshop.confinement.levels["microvm"] = Sealed.find(bench.folder / "sealed")
        application = program(tmp_path, ON_A_SOCKET)
        application.isolation = "microvm"
        report = await Desk(bench, RestShim(bench.workshop, bench.reception), application).gone()
        assert (report.code, report.message) == (
            11,
            "an HTTP server can't be reached at isolation microvm: use another shim",
        )


async def test_an_instance_that_no_socket_reaches_is_started_ahead_too(tmp_path: Path) -> None:
    async with a_bench() as bench:
        bench.workshop.confinement.levels["microvm"] = Sealed.find(bench.folder / "sealed")
        shim = HostShim(
            bench.workshop, bench.reception, WarmLimits(budget=1, idle=30, start_timeout=30, terminate_grace=1)
        )
        application = program(tmp_path, LINK)
        application.arguments.append("serve")
        application.isolation, application.warm_instances = "microvm", 1
        with NodeLog() as log:
            first = Desk(bench, shim, application)
            await first.bound()
            await log.until("waits for a session")
        second = Desk(bench, shim, application)
        bound = await second.bound()
        assert f"process {bound.pid} waits for a session" in log.text
        assert await second.run(b"env HOME", b"env FLAME_INSTANCE_STDIO") == [b"/tmp", b"framed"]
        for desk in (first, second):
            await desk.stop()
        await shim.close()
