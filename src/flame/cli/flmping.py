"""flmping: run tasks of the built-in application `flmping` and say how it went."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import click

from flame._version import __version__
from flame.cli.bounds import whole
from flame.cli.options import output_option, settings_of, where_options
from flame.cli.program import run
from flame.cli.session_options import common_data_option, patience_option, priority_option, resreq_option
from flame.model.errors import FlameError, TimedOutError
from flame.model.resources import Resources, parse_resources, parse_size

if TYPE_CHECKING:
    from flame.cli.options import Settings
    from flame.client.futures import TaskFuture
    from flame.client.synchronous import Session

_MAX_MILLISECONDS = 2**63 - 1
_MAX_TASKS = 2**31 - 1


@dataclass(frozen=True)
class Job:
    """What one run of flmping does. `payload`: the request of every task."""

    tasks: int
    payload: bytes
    common_data: bytes | None
    priority: int
    resreq: Resources | None
    timeout: float | None


@dataclass(frozen=True)
class Outcome:
    """One task's end: its latency in seconds, and its output or its error."""

    latency: float
    output: bytes | None = None
    error: BaseException | None = None


@click.command()
@click.option("-t", "--task-num", type=whole(0, _MAX_TASKS), metavar="N", default=10, help="How many tasks (10).")
@common_data_option("-c")
@click.option("-d", "--duration", type=whole(0, _MAX_MILLISECONDS), metavar="MS", help="Each task sleeps.")
@click.option("-m", "--memory", metavar="SIZE", help="Each task takes so much memory, such as 10m.")
@click.option("-p", "--perf", is_flag=True, help="Print only the measured rate and latency.")
@priority_option("-P")
@resreq_option("-r")
@patience_option
@where_options
@output_option
@click.version_option(__version__, prog_name="flmping", message="%(prog)s %(version)s")
@click.pass_context
def flmping(
    ctx: click.Context,
    task_num: int,
    common_data: str | None,
    duration: int | None,
    memory: str | None,
    perf: bool,
    priority: int,
    resreq: str | None,
    timeout: float | None,
) -> int:
    """Run tasks in a session of the application flmping: a first test and a benchmark.

    Without a configured cluster it uses the local one, or starts one that ends with it. The exit code is 1 when a
    task failed.
    """
    size = parse_size(memory) if memory is not None else None
    job = Job(
        tasks=task_num,
        payload=json.dumps({"duration": duration, "memory": size}, separators=(",", ":")).encode(),
        common_data=json.dumps({"value": common_data}).encode() if common_data is not None else None,
        priority=priority,
        resreq=parse_resources(resreq) if resreq is not None else None,
        timeout=timeout,
    )
    return ping(job, settings_of(ctx), perf=perf)


def ping(job: Job, settings: Settings, *, perf: bool) -> int:
    """Run the job in a session of its own and print the report. The exit code."""
    from flame.cli.connecting import open_connection
    from flame.cli.times import stopwatch

    with open_connection(settings) as connection:
        begin = time.perf_counter()
        session = connection.create_session(
            "flmping",
            common_data=job.common_data,
            priority=job.priority,
            resreq=str(job.resreq) if job.resreq is not None else None,
        )
        try:
            if settings.output in ("table", "wide"):
                created = stopwatch(time.perf_counter() - begin)
                running = f"start to run <{job.tasks:,}> tasks in the session:"
                print(f"Session <{session.id}> was created in <{created}>, {running}", flush=True)
            begin = time.perf_counter()
            outcomes = run_tasks(session, job)
            seconds = time.perf_counter() - begin
        finally:
            session.close(force=True)
    failed = sum(outcome.error is not None for outcome in outcomes)
    if settings.output in ("table", "wide"):
        print("\n".join(_benchmark(outcomes, failed, seconds) if perf else _report(session.id, outcomes, seconds)))
    elif settings.output == "name":
        print(session.id)
    else:
        from flame.cli.output import write_json, write_yaml

        document = _document(session.id, outcomes, failed, seconds, perf=perf)
        (write_json if settings.output == "json" else write_yaml)(document)
    return 1 if failed else 0


def run_tasks(session: Session, job: Job) -> list[Outcome]:
    """Submit all tasks at once and wait for all. Raises TimedOutError when the job's time is over before."""
    from flame.cli.progress import Progress

    submitted = [0.0] * job.tasks
    ended = [0.0] * job.tasks
    count = 0
    all_done = threading.Event()

    # Called one after another by the connection's thread: the counter needs no lock.
    def note(index: int) -> None:
        nonlocal count
        ended[index] = time.perf_counter()
        count += 1
        if count == job.tasks:
            all_done.set()

    with Progress(job.tasks, lambda: count):
        futures: list[TaskFuture] = []
        for index in range(job.tasks):
            submitted[index] = time.perf_counter()
            future = session.submit(job.payload)
            future.add_done_callback(lambda _, index=index: note(index))
            futures.append(future)
        if futures and not all_done.wait(job.timeout):
            raise TimedOutError(f"{job.tasks - count:,} of {job.tasks:,} tasks were not done within {job.timeout:g} s")
    outcomes: list[Outcome] = []
    for future, start, end in zip(futures, submitted, ended, strict=True):
        error = future.exception()
        outcomes.append(Outcome(end - start, None if error is not None else future.result(), error))
    return outcomes


def _benchmark(outcomes: Sequence[Outcome], failed: int, seconds: float) -> list[str]:
    from flame.cli.measures import benchmark_lines

    return benchmark_lines(len(outcomes), failed, seconds, [outcome.latency for outcome in outcomes])


def _report(session_id: str, outcomes: Sequence[Outcome], seconds: float) -> list[str]:
    """The table of all tasks and the closing line."""
    from flame.cli.output import table
    from flame.cli.times import stopwatch

    rows = [
        [session_id, str(number), "Succeed" if outcome.error is None else "Failed", _words(outcome)]
        for number, outcome in enumerate(outcomes, 1)
    ]
    lines = table(("Session", "Task", "State", "Output"), rows)
    return ["", *lines, "", f"<{len(outcomes):,}> tasks was completed in <{stopwatch(seconds)}>."]


def _document(
    session_id: str, outcomes: Sequence[Outcome], failed: int, seconds: float, *, perf: bool
) -> dict[str, object]:
    """What the tables say, for programs."""
    from flame.cli.measures import benchmark_document

    latencies = [outcome.latency for outcome in outcomes]
    document = {"session": session_id, **benchmark_document(len(outcomes), failed, seconds, latencies)}
    if not perf:
        document["tasks"] = [
            {
                "id": number,
                "state": "Succeed" if outcome.error is None else "Failed",
                "latency_ms": outcome.latency * 1e3,
                "output": _words(outcome),
            }
            for number, outcome in enumerate(outcomes, 1)
        ]
    return document


def _words(outcome: Outcome) -> str:
    """The message in a task's answer, or its error in one line."""
    if isinstance(outcome.error, FlameError):
        return f"code {int(outcome.error.code)}: {outcome.error.message}".replace("\n", " ")
    if outcome.error is not None:
        return str(outcome.error).replace("\n", " ")
    try:
        answer: object = json.loads(outcome.output or b"null")
    except ValueError:
        return repr(outcome.output)
    return str(cast("dict[str, object]", answer).get("message")) if isinstance(answer, dict) else str(answer)


def main() -> None:
    """The console script."""
    sys.exit(run(flmping, "flmping"))
