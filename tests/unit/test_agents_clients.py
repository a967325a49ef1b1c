"""The sandboxes of an MCP server's clients, without a cluster."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from flame.agents.clients import Clients
from flame.model.errors import InvalidStateError


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


async def closed_while_made(outcome: Any) -> tuple[InvalidStateError, bool]:
    """A client closes its sandbox while the first call makes it, which ends with `outcome`: what the call raised, and
    whether there was a sandbox to close."""
    may_end, asked = asyncio.Event(), asyncio.Event()

    async def create() -> Any:
        asked.set()
        await may_end.wait()
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    clients = Clients(create, idle=600, most=16, timeout=10, limit=1000)

    async def call() -> None:
        async with clients.use("one"):
            raise AssertionError("there is none to be used")

    calling = asyncio.create_task(call())
    await asked.wait()
    closing = asyncio.create_task(clients.close("one"))
    await asyncio.sleep(0)
    may_end.set()
    with pytest.raises(InvalidStateError) as raised:
        await calling
    return raised.value, await closing


async def test_a_sandbox_that_is_made_while_its_client_closes_it_is_closed() -> None:
    sandbox = Slow()
    sandbox.may_end.set()
    error, closed = await closed_while_made(sandbox)
    assert "closed while it was made" in error.message
    assert closed is True
    assert sandbox.closed


async def test_closing_what_can_not_be_made_ends() -> None:
    error, closed = await closed_while_made(InvalidStateError("no room"))
    assert "no room" in error.message
    assert closed is False
