"""Thousands of small disasters, each decided by one seed. A failing one prints the command that replays it."""

from __future__ import annotations

import os

import msgspec
import pytest

from flame.engine.validate import validate
from flame.model.resources import Resources
from flame.model.specs import SessionSpec, TaskOptions
from flame.model.states import SessionState
from simulation.admin import Admin
from simulation.client import Client
from simulation.manager import SETTINGS, Manager
from simulation.node import Node
from simulation.world import Disk, World

SEEDS = int(os.environ.get("FLAME_SIMULATION_SEEDS", "1000"))
FIRST = int(os.environ.get("FLAME_SIMULATION_FIRST", "1"))
GROUP = 50
GIB = 1024**3


def simulate(seed: int) -> Manager:
    """One cluster through its troubles and back to calm; raises AssertionError when a promise is broken."""
    world = World(seed)
    rng = world.random
    policies = rng.choice([SETTINGS.policies, SETTINGS.policies, ("priority", "drf", "gang", "spread")])
    manager = Manager(world, Disk(), msgspec.structs.replace(SETTINGS, policies=policies))
    manager.start()
    admin = Admin(world, manager)
    admin.say()
    gang = rng.random() < 0.3
    nodes = [
        Node(world, manager, f"node-{i}", Resources(rng.randint(1, 3) + 3 * (i == 0), 8 * GIB))
        for i in range(rng.randint(1, 3))
    ]
    for node in nodes:
        node.start()
    clients: list[Client] = []
    for index in range(rng.randint(1, 3)):
        spec = SessionSpec(
            "app",
            priority=rng.randint(0, 1),
            # What is kept for one must not starve the others.
            min_instances=(2 if gang else rng.randint(0, 1)) if index == 0 else 0,
            max_instances=None if gang and index == 0 else rng.choice([None, 1, 2]),
            gang=gang and index == 0,
            topology=rng.choice(["", "", "same-node"]) if gang and index == 0 else "",
            on_member_loss=rng.choice(["", "restart", "fail"]) if gang and index == 0 else "",
            tenant=rng.choice(["", "team", "solo"]),
            resreq=rng.choice([None, None, Resources(2, GIB, 0)]) if not gang else None,
            max_running_per_key=rng.choice([0, 1, 2]),
            idle_timeout_s=600 if index else 0,  # longer than a story: the alarms ring, and nothing is closed
        )
        world.per_key[f"session-{index}"] = max(1, spec.max_running_per_key)
        clients.append(Client(world, manager, f"client-{index}", f"session-{index}", spec))
    if rng.random() < 0.3:  # two clients in one session
        clients.append(Client(world, manager, "client-x", clients[0].session_id, clients[0].spec))
    for client in clients:
        client.connect()
        for _ in range(rng.randint(1, 6)):
            kinds = rng.choices(["good", "raise", "poison"], [96, 3, 1], k=rng.randint(1, 30))
            options = TaskOptions(
                max_retries=rng.choice([None, 1, 3]),
                priority=rng.choice([0, 0, 5]),
                deadline_ms=rng.choice([0, 0, 0, 50, 500, 5_000]),
                retry_delay_ms=rng.choice([0, 0, 20, 200]),
                key=rng.choice(["", "", "a", "b"]),
            )
            world.later(0, 800, lambda client=client, kinds=kinds, options=options: client.submit(kinds, options))
        if rng.random() < 0.5:
            world.later(50, 900, client.cancel_some)
    for _ in range(rng.randint(0, 6)):
        _trouble(world, manager, nodes, clients)
    for _ in range(rng.randint(0, 4)):
        change = rng.choice([admin.change, admin.change, admin.guest, lambda: admin.mark(rng.choice(nodes).name)])
        world.later(10, 1_900, change)

    world.run(world.now + 2_000)
    world.calm = True
    _heal(world, manager, nodes, clients, admin)
    finished = world.run(world.now + 120_000, lambda: all(client.done for client in clients))
    missing = {c.name: sorted(set(c.inputs) - set(c.results))[:10] for c in clients if not c.done}
    assert finished, f"no end after all faults ceased; missing by sequence number: {missing}"
    _same_after_replay(manager)
    return manager


def _trouble(world: World, manager: Manager, nodes: list[Node], clients: list[Client]) -> None:
    rng = world.random
    node, client = rng.choice(nodes), rng.choice(clients)

    def restart_manager() -> None:
        manager.kill()
        world.later(1, 100, lambda: _restart(manager, nodes, clients))

    def restart_node() -> None:
        node.die()
        world.later(1, 1_500, lambda: None if node.alive else node.start())

    def flap() -> None:
        for delay in range(0, 300, 60):
            world.at(world.now + delay, node.cut)

    world.later(10, 1_900, rng.choice([restart_manager, restart_node, node.cut, client.cut, flap]))


def _restart(manager: Manager, nodes: list[Node], clients: list[Client]) -> None:
    if manager.alive:
        return
    manager.start()
    for node in nodes:
        node.connect(node.boot)
    for client in clients:
        client.connect()


def _heal(world: World, manager: Manager, nodes: list[Node], clients: list[Client], admin: Admin) -> None:
    def again() -> None:
        if not manager.alive:
            _restart(manager, nodes, clients)
        for node in nodes:
            if not node.alive:
                node.start()
            node.connect(node.boot)
        for client in clients:
            client.connect()
        admin.heal()
        world.at(world.now + 500, again)

    again()


def _same_after_replay(manager: Manager) -> None:
    """A manager that replays the same disk comes to the same durable state."""
    world = World(0)
    twin = Manager(world, Disk())
    twin.disk.records = list(manager.disk.records)
    twin.start()
    durable = set(manager.engine.sessions)
    assert set(twin.engine.sessions) == durable
    validate(twin.engine)
    for session_id, session in manager.engine.sessions.items():
        replayed = twin.engine.sessions[session_id]
        assert session.state is SessionState.OPEN
        ended = {index for index, state in enumerate(session.states) if state > 1}
        assert {index for index, state in enumerate(replayed.states) if state > 1} == ended
        assert all(session.states[index] == replayed.states[index] for index in ended)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("group", range(FIRST, FIRST + SEEDS, GROUP))
def test_every_promise_holds_through_chaos(group: int) -> None:
    for seed in range(group, min(group + GROUP, FIRST + SEEDS)):
        try:
            simulate(seed)
        except Exception as error:
            replay = f"FLAME_SIMULATION_FIRST={seed} FLAME_SIMULATION_SEEDS=1 python -m pytest tests/simulation"
            raise AssertionError(f"seed {seed}: {error}\nreplay it with: {replay}") from error
