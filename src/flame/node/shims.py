"""The shims of a node: which there are, which it can run, and what it says of that."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from flame.model.isolation import NO, SHIM_LABEL, YES
from flame.model.states import BindCode
from flame.model.states import Shim as Kind
from flame.shims.container import ContainerShim
from flame.shims.container_limits import ImageLimits
from flame.shims.host import HostShim
from flame.shims.reception import Reception
from flame.shims.rest import RestShim
from flame.shims.shim import BindError, Instance, Launch, Owner, Shim
from flame.shims.stdio import StdioShim
from flame.shims.wasm import WasmShim
from flame.shims.workplace import Workshop


def find_shims(
    host: HostShim, workshop: Workshop, reception: Reception, folder: Path, images: ImageLimits
) -> dict[Kind, Shim]:
    """All shims. Those that need something of their own have a folder in `folder`, made when they need it. Blocks a
    moment; raises OSError."""
    return {
        Kind.HOST: host,
        Kind.STDIO: StdioShim(workshop),
        Kind.REST: RestShim(workshop, reception),
        Kind.CONTAINER: ContainerShim.find(host, workshop, reception, folder / "container", images),
        Kind.WASM: WasmShim.find(host, workshop, folder / "wasm"),
    }


def labels(shims: Mapping[Kind, Shim]) -> dict[str, str]:
    """What the node tells the scheduler of them."""
    return {SHIM_LABEL + kind.name.lower(): NO if shim.missing else YES for kind, shim in shims.items()}


def missing(shims: Mapping[Kind, Shim]) -> list[str]:
    """Why the node can't run those that it can't run."""
    return [f"no shim {kind.name.lower()}: {shim.missing}" for kind, shim in shims.items() if shim.missing]


def choose(shims: Mapping[Kind, Shim], wanted: int) -> Shim:
    """The shim of that number; one that only says why it can't, where this node can't run it."""
    known = {int(kind): shim for kind, shim in shims.items()}
    shim = known.get(wanted)
    if shim is None:
        names = ", ".join(kind.name.lower() for kind, each in shims.items() if not each.missing)
        return MissingShim(f"this node does not know shim {wanted}; it runs {names}")
    return MissingShim(f"this node can't run that shim: {shim.missing}") if shim.missing else shim


class MissingShim:
    """Stands in for a shim that this node does not have."""

    def __init__(self, missing: str) -> None:
        self.missing = missing

    async def prepare(self, launch: Launch) -> Launch:
        raise BindError(BindCode.START, self.missing)

    async def start(self, launch: Launch, owner: Owner) -> Instance:
        raise BindError(BindCode.START, self.missing)
