"""The sandboxes of an MCP server's clients, without a cluster."""

from __future__ import annotations

import asyncio
from typing import Any

from flame.agents.clients import Clients


class Slow:
    """A sandbox that is closed when it may be."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        self.may_end = asyncio.Event()
        self.closed = False

    async def close(self) -> None:
        self.asked.set()
        await self.may_end.wait()
        self.closed = True


def clients_of(sandbox: Any) -> Clients:
    async def create() -> Any:
        return sandbox

    return Clients(create, idle=600, most=16, timeout=10, limit=1000)


async def test_a_signal_while_sandboxes_are_closed_leaves_none_behind() -> None:
    sandbox = Slow()
    clients = clients_of(sandbox)
    async with clients.use("one"):
        pass
    first = asyncio.create_task(clients.close_all())
    await sandbox.asked.wait()
    second = asyncio.create_task(clients.close_all())
    await asyncio.sleep(0)
    assert not second.done()
    sandbox.may_end.set()
    await asyncio.gather(first, second)
    assert sandbox.closed


async def test_a_closing_that_nobody_waits_for_any_more_goes_on() -> None:
    sandbox = Slow()
    clients = clients_of(sandbox)
    async with clients.use("one"):
        pass
    given_up = asyncio.create_task(clients.close("one"))
    await sandbox.asked.wait()
    given_up.cancel()
    await asyncio.wait({given_up})
    sandbox.may_end.set()
    await clients.close_all()
    assert sandbox.closed
