"""What the session manager counts, for Prometheus: read from the engine when somebody asks, kept nowhere.

docs/metrics.md is the table of it. No label holds the id of a session, a task or a node: the number of series does not
grow with use. Tenants are named, up to MAX_TENANTS of them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING

from flame._version import __version__
from flame.engine import cluster_views, views
from flame.manager.turns import Turns
from flame.model.resources import Resources
from flame.model.states import ExecutorState, NodeState

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry
    from prometheus_client.metrics_core import Metric

MAX_TENANTS = 100  # with series of their own: those that were made first
_STATES = [state for state in ExecutorState if state is not ExecutorState.UNKNOWN]


class Metrics:
    """All metrics of one session manager. Make it when the journal is replayed: counters begin with 0 there, so that
    nothing is counted twice when a manager starts again. `prometheus_client` is imported at the first `render`."""

    def __init__(self, turns: Turns, clients: Callable[[], int]) -> None:
        """`clients` tells how many are connected."""
        self._turns = turns
        self._clients = clients
        self._replayed = views.totals(turns.engine)
        self._registry: CollectorRegistry | None = None
        self._lag = 0.0

    def render(self, accept: str, lag: float) -> tuple[bytes, str]:
        """Everything as text in the form that the Accept header asks for, and its content type. `lag` in seconds."""
        from prometheus_client import CollectorRegistry, ProcessCollector
        from prometheus_client.exposition import choose_encoder

        if self._registry is None:
            self._registry = CollectorRegistry()
            self._registry.register(self)
            ProcessCollector(registry=self._registry)
        self._lag = lag
        encode, content_type = choose_encoder(accept)
        return encode(self._registry), content_type

    def collect(self) -> Iterator[Metric]:
        """The families, as prometheus_client asks for them."""
        yield _gauge("flame_build_info", "1, with the version of Flame", {__version__: 1}, "version")
        yield _gauge("flame_generation", "Starts of a session manager on this journal", self._turns.engine.generation)
        yield from self._work()
        yield from self._nodes()
        yield from self._tenants()
        yield from self._manager()

    def _work(self) -> Iterator[Metric]:
        whole, before = views.totals(self._turns.engine), self._replayed
        ended = {
            "succeed": whole.succeed - before.succeed,
            "failed": whole.failed - before.failed,
            "cancelled": whole.cancelled - before.cancelled,
        }
        yield _gauge("flame_sessions", "Sessions by state", {"open": whole.open, "closed": whole.closed}, "state")
        tasks = {"pending": whole.pending, "running": whole.running}
        yield _gauge("flame_tasks", "Tasks that have not ended, by state", tasks, "state")
        yield _counter("flame_tasks_ended", "Tasks that ended since the start, by state", ended, "state")
        stale = "Answers that nobody waited for any more, such as of a task that runs elsewhere since"
        yield _counter("flame_stale_answers", stale, self._turns.engine.stale)

    def _nodes(self) -> Iterator[Metric]:
        engine = self._turns.engine
        executors = Counter(executor.state for executor in engine.executors.values())
        nodes = Counter(node.state for node in engine.nodes.values())
        ready = [node for node in engine.nodes.values() if node.state is NodeState.READY]
        capacity = sum((node.capacity for node in ready), Resources())
        allocated = sum((node.allocated for node in ready), Resources())
        by_state = {state.name.lower(): executors[state] for state in _STATES}
        yield _gauge("flame_executors", "Executors by state", by_state, "state")
        yield _gauge("flame_nodes", "Nodes by state", {s.name.lower(): nodes[s] for s in NodeState}, "state")
        for name, what, offered, held in (
            ("cpu_cores", "Cores", capacity.cpu, allocated.cpu),
            ("memory_bytes", "Memory", capacity.memory, allocated.memory),
            ("gpus", "GPUs", capacity.gpu, allocated.gpu),
        ):
            yield _gauge(f"flame_capacity_{name}", f"{what} of the nodes that are ready", offered)
            yield _gauge(f"flame_allocated_{name}", f"{what} of the nodes that are ready, held by executors", held)

    def _tenants(self) -> Iterator[Metric]:
        engine = self._turns.engine
        found = cluster_views.tenant_measures(engine, MAX_TENANTS)
        yield _gauge("flame_tenants", "Tenants, also those without series of their own", len(engine.tenants))
        for name, what, values in (
            ("used_cpu_cores", "Cores held by executors of the tenant and those below it", [t.used.cpu for t in found]),
            ("share", "Dominant share of the cluster that they hold, 0 to 1", [t.share for t in found]),
            ("sessions", "Their open sessions", [t.sessions for t in found]),
            ("pending_tasks", "Their tasks that have not ended", [t.pending for t in found]),
        ):
            by_name = dict(zip((tenant.name for tenant in found), values, strict=True))
            yield _gauge(f"flame_tenant_{name}", what, by_name, "tenant")

    def _manager(self) -> Iterator[Metric]:
        from prometheus_client.metrics_core import SummaryMetricFamily

        turns, journal = self._turns, self._turns.journal
        yield SummaryMetricFamily(
            "flame_turn_seconds", "Turns, and the time that the loop spent in them", turns.count, turns.busy_s
        )
        yield _gauge("flame_event_loop_lag_seconds", "How long the event loop let this scrape wait", self._lag)
        yield _gauge("flame_clients_connected", "Connections of clients over the link", self._clients())
        yield _counter("flame_journal_commits", "Commits of the journal since the start", journal.commits)
        yield _counter("flame_journal_written_bytes", "Bytes of durable records since the start", journal.written)
        yield _gauge("flame_journal_backlog_bytes", "Bytes of records that are not durable yet", journal.backlog)
        read_only = int(turns.trouble is not None)
        yield _gauge("flame_journal_read_only", "1 while the journal can't be written, else 0", read_only)
        yield _gauge("flame_payload_held_bytes", "Inputs and results held in memory", turns.payloads.held_size)


def _gauge(name: str, text: str, value: float | Mapping[str, float], label: str = "") -> Metric:
    from prometheus_client.metrics_core import GaugeMetricFamily

    if not isinstance(value, Mapping):
        return GaugeMetricFamily(name, text, value)
    family = GaugeMetricFamily(name, text, labels=[label])
    for key, one in value.items():
        family.add_metric([key], one)
    return family


def _counter(name: str, text: str, value: float | Mapping[str, float], label: str = "") -> Metric:
    from prometheus_client.metrics_core import CounterMetricFamily

    if not isinstance(value, Mapping):
        return CounterMetricFamily(name, text, value)
    family = CounterMetricFamily(name, text, labels=[label])
    for key, one in value.items():
        family.add_metric([key], one)
    return family
