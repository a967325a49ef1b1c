"""What happens to a full cluster. Each function prepares it, lets it happen and makes one pass with the stopwatch
running, and puts everything back."""

from __future__ import annotations

from collections.abc import Callable

from benchmarks.scheduling.clusters import PER_NODE, Cluster
from benchmarks.scheduling.stopwatch import Stopwatch

IDLE_MS = 100  # so long without work that others may take it
GANG = 8


def executor_ends(cluster: Cluster, timed: Stopwatch) -> None:
    """An executor is gone, and its room goes to whoever deserves it."""
    channel = cluster.holding().channel
    with timed:
        cluster.scheduler.freed(channel)
        cluster.decide()


def executor_idles(cluster: Cluster, timed: Stopwatch) -> None:
    """The last task of a session ended, and its executor is taken for another one."""
    holding = cluster.holding()
    assert holding.ask is not None
    session, want = holding.ask.session, holding.ask.want
    with timed:
        cluster.scheduler.wants(session, holding.ask.have - 1, cluster.now)
        cluster.scheduler.idle(holding.channel, cluster.now - IDLE_MS)
        cluster.decide()
    cluster.scheduler.wants(session, want, cluster.now)
    cluster.settle()


def session_opens(cluster: Cluster, timed: Stopwatch) -> None:
    """A session opens and takes a fair share from others."""
    with timed:
        name = cluster.open(cluster.size.want)
        cluster.decide()
    cluster.settle()
    cluster.close(name)
    cluster.settle()


def session_closes(cluster: Cluster, timed: Stopwatch) -> None:
    """A session closes and its executors leave."""
    name = cluster.session()
    with timed:
        cluster.close(name)
        cluster.decide()
    cluster.settle()
    cluster.open(cluster.size.want, name=name, number=int(name[1:]))
    cluster.settle()


def node_joins(cluster: Cluster, timed: Stopwatch) -> None:
    """An empty node comes and is filled."""
    name = cluster.next_node()
    with timed:
        cluster.join(name)
        cluster.decide()
    lose(cluster, name)
    cluster.settle()


def node_is_lost(cluster: Cluster, timed: Stopwatch) -> None:
    """A node goes with its executors."""
    name = cluster.next_node()
    cluster.join(name)
    cluster.settle()
    with timed:
        lose(cluster, name)
        cluster.decide()
    cluster.settle()


def lose(cluster: Cluster, name: str) -> None:
    """The node and what ran on it are gone."""
    for channel in list(cluster.scheduler.books.places[name].holdings):
        cluster.scheduler.freed(channel)
    cluster.scheduler.drop_node(name)


def node_is_cordoned(cluster: Cluster, timed: Stopwatch) -> None:
    """A node takes no new executors any more."""
    name = cluster.node()
    with timed:
        cluster.join(name, takes=False)
        cluster.decide()
    cluster.join(name)
    cluster.settle()


def priority_arrives(cluster: Cluster, timed: Stopwatch) -> None:
    """A session of higher priority takes executors back from others of its tenant."""
    with timed:
        name = cluster.open(PER_NODE, 5)
        cluster.decide()

    cluster.settle()
    cluster.close(name)
    cluster.settle()


def gang_waits(cluster: Cluster, timed: Stopwatch) -> None:
    """A gang comes that has no right to take anything back, and waits."""
    with timed:
        name = cluster.open(0, gang=GANG)
        cluster.decide()
    cluster.settle()
    cluster.close(name)
    cluster.settle()


def gang_takes(cluster: Cluster, timed: Stopwatch) -> None:
    """A gang of higher priority takes back all that it needs at once."""
    with timed:
        name = cluster.open(0, 5, gang=GANG)
        cluster.decide()
    cluster.settle()
    cluster.close(name)
    cluster.settle()


def new_shape(cluster: Cluster, timed: Stopwatch) -> None:
    """A session opens whose size no other has: what is known of the nodes does not help."""
    number = cluster.size.tenants * (cluster.size.shapes + cluster.opened)
    size, cluster.size = cluster.size, type(cluster.size)(0, 1, cluster.size.tenants, 1 << 30)
    try:
        with timed:
            name = cluster.open(1, number=number)
            cluster.decide()
    finally:
        cluster.size = size
    cluster.settle()
    cluster.close(name)
    cluster.settle()


HAPPENINGS: dict[str, Callable[[Cluster, Stopwatch], None]] = {
    "executor ends": executor_ends,
    "executor idles, is taken": executor_idles,
    "session opens": session_opens,
    "session of a new shape opens": new_shape,
    "session closes": session_closes,
    "node joins": node_joins,
    "node is lost": node_is_lost,
    "node is cordoned": node_is_cordoned,
    "higher priority takes back": priority_arrives,
    "gang of 8 waits": gang_waits,
    "gang of 8 takes back": gang_takes,
}
