"""The pool of instances started ahead, when the order of events matters: with instances that a test moves by hand."""

from __future__ import annotations

import asyncio

import pytest

from flame.model.errors import ProtocolError
from flame.model.states import BindCode
from flame.proto import shim_pb2, types_pb2
from flame.shims.pool import Pool
from flame.shims.shim import BindError, Dialect, Launch, Owner
from flame.shims.warm import WarmLimits


class Hand:
    """An instance that is ready when the test says so, and ends when it is told to."""

    pid = 1

    def __init__(self, launch: Launch, owner: Owner) -> None:
        self.launch = launch
        self.owner = owner
        self.ended: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.is_ready = asyncio.Event()
        self.disposed = False

    async def ready(self) -> Dialect:
        waiting = asyncio.ensure_future(self.is_ready.wait())
        await asyncio.wait({waiting, self.ended}, return_when=asyncio.FIRST_COMPLETED)
        if not waiting.done():
            waiting.cancel()
            raise BindError(BindCode.START, f"it {self.ended.result()}")
        return None  # type: ignore[return-value]

    def entered(self) -> None: ...

    def last_words(self) -> str:
        return ""

    def terminate(self) -> None:
        self.ended.set_result("was told to")

    def kill(self) -> None: ...

    async def dispose(self) -> None:
        self.disposed = True


class World:
    """A pool and all that it has started."""

    def __init__(self, budget: int = 8) -> None:
        self.started: list[Hand] = []
        self.fails: Exception | None = None
        self.pool: Pool[Hand] = Pool(
            self._spawn, WarmLimits(budget=budget, idle=3600, start_timeout=3600, terminate_grace=1)
        )

    async def _spawn(self, launch: Launch, owner: Owner) -> Hand:
        if self.fails is not None:
            raise self.fails
        self.started.append(Hand(launch, owner))
        return self.started[-1]

    async def use(self, executor_id: str, wish: int = 1, name: str = "app") -> Hand | None:
        """An executor starts and enters its session."""
        given = self.pool.starting(launch(executor_id, wish, name))
        self.pool.entered(launch(executor_id, wish, name))
        await settle()
        return given


def launch(executor_id: str, wish: int = 1, name: str = "app") -> Launch:
    context = shim_pb2.SessionContext(session_id="s", application=shim_pb2.ApplicationContext(name=name))
    return Launch(executor_id, "t", types_pb2.ApplicationSpec(command="run", warm_instances=wish), context)


async def settle() -> None:
    """Let everything that can happen now happen."""
    for _ in range(10):
        await asyncio.sleep(0)


async def test_none_is_started_while_an_executor_starts() -> None:
    world = World()
    other = launch("e-2", name="other")
    world.pool.starting(other)
    await world.use("e-1")
    assert not world.started
    world.pool.over("e-2")
    await settle()
    assert len(world.started) == 1


async def test_they_are_started_one_after_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flame.shims.pool._AT_ONCE", 1)
    world = World()
    await world.use("e-1", wish=2)
    (first,) = world.started
    first.is_ready.set()
    await settle()
    assert len(world.started) == 2
    world.started[1].is_ready.set()
    await settle()
    assert len(world.started) == 2


async def test_one_that_is_not_ready_is_better_than_none_and_the_longest_ready_is_best(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("flame.shims.pool._AT_ONCE", 3)
    world = World()
    await world.use("e-1", wish=3)
    slow, second, third = world.started
    for instance in (second, third):
        instance.is_ready.set()
    await settle()
    assert [world.pool.starting(launch(f"e-{number}", 3)) for number in range(2, 6)] == [second, third, slow, None]
    # Who took it waits for it; the pool does no more.
    slow.is_ready.set()
    await settle()
    assert not slow.ended.done()
    await world.pool.close()
    assert not any(instance.ended.done() for instance in world.started[:3])


async def test_a_program_that_never_waited_for_a_session_is_not_trusted_to_do_so() -> None:
    world = World()
    await world.use("e-1")
    assert world.started
    assert await world.use("e-2") is None


async def test_those_that_die_together_count_as_one_death(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flame.shims.pool._AT_ONCE", 4)
    monkeypatch.setattr("flame.shims.warm._PAUSES", (0.0,))
    world = World()
    await world.use("e-1", wish=4)
    assert len(world.started) == 4
    for instance in world.started:
        instance.is_ready.set()
    await settle()
    for instance in world.started[:4]:
        instance.ended.set_result("was killed")
    await settle()
    assert len(world.started) == 8
    for instance in world.started[4:]:
        instance.ended.set_result("was killed again")
    await settle()
    assert len(world.started) == 8


async def test_tokens_and_ids_are_their_own() -> None:
    world = World()
    await world.use("e-1", wish=1)
    world.started[0].is_ready.set()
    await settle()
    given = await world.use("e-2", wish=1)
    assert given is world.started[0]
    ids = {instance.launch.executor_id for instance in world.started}
    tokens = {instance.launch.token for instance in world.started}
    assert len(ids) == len(tokens) == 2
    assert ids.isdisjoint({"e-1", "e-2"})
    assert tokens.isdisjoint({"t", ""})


async def test_one_that_is_not_wanted_any_more_when_it_runs_is_ended() -> None:
    world = World()
    world.pool.entered(launch("e-1"))
    closing = asyncio.create_task(world.pool.close())
    await settle()
    await closing
    assert all(instance.ended.done() and instance.disposed for instance in world.started)
    assert await world.use("e-2") is None


@pytest.mark.parametrize("failure", [BindError(BindCode.START, "no such command"), RuntimeError("a fault of ours")])
async def test_a_program_that_can_not_be_started_any_more_is_given_up(
    monkeypatch: pytest.MonkeyPatch, failure: Exception
) -> None:
    monkeypatch.setattr("flame.shims.warm._PAUSES", ())
    world = World()
    world.fails = failure
    await world.use("e-1")
    world.fails = None
    world.pool.starting(launch("e-2"))
    world.pool.over("e-2")
    await settle()
    assert not world.started
    await world.use("e-3")
    assert len(world.started) == 1


async def test_nothing_that_one_says_before_its_session_counts() -> None:
    world = World()
    await world.use("e-1")
    owner = world.started[0].owner
    with pytest.raises(ProtocolError):
        owner.results(b"")
    with pytest.raises(ProtocolError):
        owner.retracted(b"")
    owner.broken("garbage")
    assert await world.use("e-2") is None
