"""The container shim passes the suite for shims, with the real podman, at each of its levels, each in another form."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from flame.proto import types_pb2
from flame.shims.container import ContainerShim
from flame.shims.container_limits import ImageLimits
from flame.shims.host import HostShim
from flame.shims.shim import Shim
from flame.shims.warm import WarmLimits
from flame.testing.shims import Bench, ShimConformance
from images import python_image
from suite_services import HEAD, LINK, ON_A_SOCKET, ONCE

PROGRAMS = {"link": LINK, "once": ONCE, "rest": ON_A_SOCKET}


@pytest.fixture(scope="module", autouse=True)
def image(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """One image with the services of the suite. It is unpacked once for all benches."""
    folder = tmp_path_factory.mktemp("image")
    for name, source in PROGRAMS.items():
        (folder / f"by_{name}.py").write_text(HEAD + source)
    programs = {f"by_{name}.py": folder / f"by_{name}.py" for name in PROGRAMS}
    with python_image(folder / "image.tar", programs) as name:
        OfContainer.image, OfContainer.unpacked = name, folder / "unpacked"
        yield


class OfContainer(ShimConformance):
    """At level none, which still needs a sandbox: that is its root."""

    levels = ("process",)
    image: str
    unpacked: Path

    def make(self, bench: Bench) -> Shim:
        warm = WarmLimits(budget=0, idle=1, start_timeout=1, terminate_grace=1)
        host = HostShim(bench.workshop, bench.reception, warm)
        shim = ContainerShim.find(host, bench.workshop, bench.reception, self.unpacked, ImageLimits())
        assert not shim.missing
        return shim

    def application(self, program: str, *labels: str) -> types_pb2.ApplicationSpec:
        return types_pb2.ApplicationSpec(
            shim=types_pb2.Container, image=self.image, command="python", arguments=[f"by_{program}.py"], labels=labels
        )

    def service(self, folder: Path) -> types_pb2.ApplicationSpec:
        return self.application("link")

    async def test_it_runs_in_its_image(self) -> None:
        async with self.desk() as desk:
            assert await desk.run(b"env PATH", b"env HOME") == [b"/python/bin:/bin", b"/tmp"]


class TestLink(OfContainer):
    pass


class Isolated(OfContainer):
    """The same with a limit of each kind."""

    isolation = "process"

    def application(self, program: str, *labels: str) -> types_pb2.ApplicationSpec:
        application = super().application(program, *labels)
        application.isolation = self.isolation
        application.limits.CopyFrom(types_pb2.Limits(memory=256 << 20, pids=100, cpu_millis=1500, disk=64 << 20))
        return application


class TestRestIsolated(Isolated):
    def service(self, folder: Path) -> types_pb2.ApplicationSpec:
        return self.application("rest", "container=rest")


class TestOnceOnGvisor(Isolated):
    levels = ("process", "gvisor")
    isolation = "gvisor"
    greets = lasts = False

    def service(self, folder: Path) -> types_pb2.ApplicationSpec:
        return self.application("once", "stdio=once")
