"""An executor and an instance that does not keep to its contract, at moments that real programs rarely hit."""

from __future__ import annotations

from pathlib import Path

from flame.proto import types_pb2
from flame.shims.shim import Instance, Launch, Owner
from flame.shims.stdio import StdioShim
from flame.testing.shims import Desk, a_bench


class Hasty(StdioShim):
    """A shim whose program is known to talk nonsense before its start is through; it says so only once."""

    async def start(self, launch: Launch, owner: Owner) -> Instance:
        instance = await super().start(launch, owner)
        owner.broken("it wrote nonsense")
        return instance


async def test_an_instance_that_broke_its_contract_before_its_start_was_through_is_given_up(tmp_path: Path) -> None:
    async with a_bench() as bench:
        waits = types_pb2.ApplicationSpec(command="sh", arguments=["-c", "read line; sleep 3600"])
        desk = Desk(bench, Hasty(bench.workshop), waits)
        report = await desk.gone()
        assert report.crashed
        assert report.message == "the instance broke its contract: it wrote nonsense"
