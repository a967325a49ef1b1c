"""flmctl top."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import click

from flame.cli.bounds import Bounded, whole
from flame.cli.options import all_options, settings_of

if TYPE_CHECKING:
    from flame.cli.api import Api
    from flame.proto import frontend_pb2 as fe
    from flame.proto import types_pb2 as ty

_CLEAR = "\x1b[H\x1b[2J"
_SESSIONS_SHOWN = 20
_LEFT_OUT = ("ARCH", "OS", "HOSTNAME", "TAINTS", "LABELS")  # of the columns of nodes


@click.command()
@click.option(
    "-i",
    "--interval",
    type=Bounded(click.FloatRange(min=0.1)),
    metavar="SECONDS",
    default=2.0,
    help="Between pictures (2).",
)
@click.option("--count", type=whole(1), metavar="N", help="End after so many pictures.")
@click.option("--once", is_flag=True, help="Print one picture and end.")
@all_options
@click.pass_context
def top(ctx: click.Context, interval: float, count: int | None, once: bool) -> None:
    """Show nodes, tenants and busy sessions, again and again."""
    from flame.cli.api import open_api

    most = 1 if once else count
    meter = Meter()
    settings = settings_of(ctx)
    with open_api(settings) as api:
        shown = 0
        while True:
            _show(look(api, meter), settings.output, first=shown == 0)
            shown += 1
            if most is not None and shown >= most:
                return
            api.sleep(interval)


def _show(scene: Scene, output: str, *, first: bool) -> None:
    from flame.cli.output import write_json_line, write_yaml

    if output == "json":
        write_json_line(document(scene))
    elif output == "yaml":
        print("---")
        write_yaml(document(scene))
        sys.stdout.flush()
    elif sys.stdout.isatty():
        # A line that goes on in the next one would make the table unreadable.
        width = shutil.get_terminal_size().columns
        print(_CLEAR + "\n".join(line[:width] for line in picture(scene)), flush=True)
    else:
        print("\n".join(picture(scene) if first else ["", *picture(scene)]), flush=True)


class Meter:
    """Tasks per second, from the counters of two pictures."""

    def __init__(self) -> None:
        self._finished: dict[str, int] = {}
        self._at = 0.0
        self._seen = False

    def rates(self, sessions: Sequence[ty.Session], now: float) -> dict[str, float]:
        """For each session; empty at the first call. `now` in seconds of any clock."""
        finished = {
            entry.metadata.id: entry.status.succeed + entry.status.failed + entry.status.cancelled for entry in sessions
        }
        elapsed = now - self._at
        rates: dict[str, float] = {}
        if self._seen and elapsed > 0:
            rates = {key: max(0, count - self._finished.get(key, 0)) / elapsed for key, count in finished.items()}
        self._finished, self._at, self._seen = finished, now, True
        return rates


class Scene(NamedTuple):
    """What one picture shows. `rates`: tasks per second by session, empty at the first; `sessions`: all of them."""

    info: fe.ClusterInfo
    nodes: Sequence[ty.Node]
    executors: Sequence[ty.Executor]
    sessions: Sequence[ty.Session]
    tenants: Sequence[ty.Tenant]
    rates: Mapping[str, float]

    def busiest(self) -> list[ty.Session]:
        """The open sessions, those with the most work first."""
        from flame.proto import types_pb2 as ty

        found = [entry for entry in self.sessions if entry.status.state == ty.SessionState.Open]
        return sorted(found, key=lambda entry: (-self.rates.get(entry.metadata.id, 0), -entry.status.pending))


def look(api: Api, meter: Meter) -> Scene:
    """What is to be seen now."""
    sessions = list(api.sessions())
    return Scene(
        info=api.cluster(),
        nodes=sorted(api.nodes(), key=lambda entry: entry.metadata.name),
        executors=api.executors(),
        sessions=sessions,
        tenants=api.tenants(),
        rates=meter.rates(sessions, time.monotonic()),
    )


def document(scene: Scene) -> dict[str, object]:
    """The picture for programs, with every open session in it."""
    from flame.cli.objects.executors import EXECUTORS
    from flame.cli.objects.nodes import NODES
    from flame.cli.objects.sessions import session_kind
    from flame.cli.objects.tenants import tenant_kind, tree

    info, rates = scene.info, scene.rates
    sessions = session_kind(info.unit)
    ordered, depths = tree(scene.tenants)
    tenants = tenant_kind(depths)
    return {
        "cluster": info.name or None,
        "version": info.version,
        "storage": info.storage,
        "read_only": info.read_only_reason or None,
        "tasks_per_second": sum(rates.values()) if rates else None,
        "nodes": [NODES.document(entry) for entry in scene.nodes],
        "executors": [EXECUTORS.document(entry) for entry in scene.executors],
        "tenants": [tenants.document(entry) for entry in ordered],
        "sessions": [
            {**sessions.document(entry), "tasks_per_second": rates.get(entry.metadata.id)} for entry in scene.busiest()
        ],
    }


def picture(scene: Scene) -> list[str]:
    """The lines of one picture."""
    from flame.cli.objects.nodes import NODES
    from flame.cli.objects.states import executor_state, node_state, session_state
    from flame.cli.output import table
    from flame.cli.times import span

    info, nodes, executors, sessions, rates = scene.info, scene.nodes, scene.executors, scene.sessions, scene.rates
    busiest = scene.busiest()
    ready = sum(node_state(entry) == "Ready" for entry in nodes)
    bound = sum(executor_state(entry) == "Bound" for entry in executors)
    up = span(time.time() - info.start_time / 1000) if info.start_time else "-"
    rate = f"{sum(rates.values()):,.0f} tasks/s" if rates else "measuring"
    executors_text = f"executors {bound}/{len(executors)} bound"
    sessions_text = f"sessions {len(busiest)} open of {len(sessions)}"
    lines = [
        f"cluster {info.name or '-'}  Flame {info.version}  up {up}  storage {info.storage}",
        f"nodes {ready}/{len(nodes)} ready  {executors_text}  {sessions_text}  {rate}",
    ]
    if info.read_only:
        lines.append(f"READ ONLY: {info.read_only_reason}")
    columns = [column for column in NODES.columns if column.title not in _LEFT_OUT]
    lines += ["", *table([c.title for c in columns], [[str(c.value(entry)) for c in columns] for entry in nodes])]
    lines += _tenants(scene.tenants)
    rows = [
        [
            entry.metadata.id,
            session_state(entry),
            entry.spec.application,
            str(entry.status.executors),
            f"{entry.status.pending:,}",
            f"{entry.status.running:,}",
            f"{entry.status.succeed:,}",
            f"{entry.status.failed:,}",
            f"{rates[entry.metadata.id]:,.0f}" if entry.metadata.id in rates else "-",
            entry.status.pending_reason or "-",
        ]
        for entry in busiest[:_SESSIONS_SHOWN]
    ]
    titles = ("SESSION", "STATE", "APP", "EXECUTORS", "PENDING", "RUNNING", "SUCCEED", "FAILED", "TASKS/S", "WAITING")
    lines += ["", *table(titles, rows)]
    if len(busiest) > _SESSIONS_SHOWN:
        lines.append(f" ... and {len(busiest) - _SESSIONS_SHOWN} more open sessions")
    return lines


def _tenants(tenants: Sequence[ty.Tenant]) -> list[str]:
    """A table of shares when the cluster is shared at all."""
    if len(tenants) < 2:
        return []
    from flame.cli.objects.tenants import tenant_kind, tree
    from flame.cli.output import table

    ordered, depths = tree(tenants)
    columns = [column for column in tenant_kind(depths).columns if not column.wide]
    rows = [[str(column.value(entry)) for column in columns] for entry in ordered]
    return ["", *table([column.title.upper().replace("NAME", "TENANT") for column in columns], rows)]
