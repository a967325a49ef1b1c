"""flmexec: run a script on the cluster and print what it printed."""

from __future__ import annotations

import base64
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from flame._version import __version__
from flame.cli.program import run
from flame.model.errors import TimedOutError

if TYPE_CHECKING:
    from flame.cli.options import Settings

APPLICATION = "flmexec"
_MAX_TASKS = 100_000
_MOST = 2**32 - 1


@dataclass(frozen=True)
class Job:
    """What one run of flmexec does: the same request for every task. `patience` in seconds, for all of it."""

    application: str
    tasks: int
    payload: bytes
    priority: int
    resreq: str | None
    patience: float | None


@click.command()
@click.option("-c", "--code", metavar="TEXT", help="The script.")
@click.option("-f", "--file", metavar="FILE", help="A file with the script, - for standard input.")
@click.option("-l", "--language", default="shell", metavar="NAME", help="shell (default), python, or a configured one.")
@click.option("-r", "--runtime", metavar="NAME", help="The shell (bash), or the version of Python.")
@click.option("-t", "--task-num", type=click.IntRange(1, _MAX_TASKS), default=1, help="How many times (1).")
@click.option("-i", "--input", "text", metavar="TEXT", help="Its standard input; - passes on our own (none).")
@click.option("--time-limit", type=click.FloatRange(min=0, min_open=True), metavar="SECONDS", help="Of the script.")
@click.option("-e", "--env", "env", multiple=True, metavar="NAME=VALUE", help="A variable; may be repeated.")
@click.option("--cwd", metavar="FOLDER", help="The folder on the node to run in (default: a new one).")
@click.option("-a", "--app", "application", default=APPLICATION, metavar="NAME", help="The application (flmexec).")
@click.option("-P", "--priority", type=click.IntRange(0, _MOST), default=0, help="Of the session (0).")
@click.option("--resreq", metavar="TEXT", help="What one executor needs, such as cpu=1,mem=1g.")
@click.option("--endpoint", metavar="URL", help="The cluster's address: http://HOST:PORT or unix:PATH.")
@click.option("--context", metavar="NAME", help="The context of the settings file to use.")
@click.option("--config", type=click.Path(), metavar="FILE", help="Settings (default ~/.flame/flame.yaml).")
@click.option("--timeout", type=click.FloatRange(min=0, min_open=True), metavar="SECONDS", help="Give up after that.")
@click.argument("arguments", nargs=-1)
@click.version_option(__version__, prog_name="flmexec", message="%(prog)s %(version)s")
@click.pass_context
def flmexec(
    ctx: click.Context,
    code: str | None,
    file: str | None,
    language: str,
    runtime: str | None,
    task_num: int,
    text: str | None,
    time_limit: float | None,
    env: tuple[str, ...],
    cwd: str | None,
    application: str,
    priority: int,
    resreq: str | None,
    endpoint: str | None,
    context: str | None,
    config: str | None,
    timeout: float | None,
    arguments: tuple[str, ...],
) -> int:
    """Run a script on the cluster, with ARGUMENTS behind its name.

    What it writes to its standard output and its standard error goes to ours, and its exit code is ours (of several
    tasks the first that is not 0). It runs as the user of the executor manager and is not shut in.
    """
    if (code is None) == (file is None):
        raise click.UsageError("give the script with one of --code and --file", ctx)
    if file == "-" and text == "-":
        raise click.UsageError("standard input can be the script or its input, not both", ctx)
    variables = dict(_variable(entry, ctx) for entry in env)
    stdin = sys.stdin.buffer.read() if text == "-" else (text or "").encode()
    request: dict[str, Any] = {
        "answer": "full",
        "language": language,
        "runtime": runtime,
        "code": code if code is not None else _read(str(file), ctx),
        "stdin": base64.b64encode(stdin).decode(),
        "arguments": list(arguments),
        "env": variables,
        "cwd": cwd,
        "timeout": time_limit,
    }
    from flame.cli.options import Settings

    settings = Settings(config=Path(config) if config else None, context=context, endpoint=endpoint)
    return execute(Job(application, task_num, json.dumps(request).encode(), priority, resreq, timeout), settings)


def execute(job: Job, settings: Settings) -> int:
    """Run the job in a session of its own and print what comes, in the order of the tasks. The exit code."""
    from concurrent.futures import wait

    from flame.cli.connecting import open_connection
    from flame.cli.progress import Progress

    code = 0
    with open_connection(settings) as connection:
        session = connection.create_session(
            job.application, priority=job.priority, resreq=job.resreq, max_instances=job.tasks
        )
        try:
            futures = [session.submit(job.payload) for _ in range(job.tasks)]
            with Progress(job.tasks, lambda: sum(future.done() for future in futures)):
                if wait(futures, job.patience).not_done:
                    raise TimedOutError(f"the script did not end within {job.patience:g} s")
            for number, future in enumerate(futures, 1):
                status = _show(json.loads(future.result() or b"{}"), number if job.tasks > 1 else 0)
                code = code or status
        finally:
            session.close(force=True)
    return code


def _show(answer: dict[str, Any], number: int) -> int:
    """Print what one task's script printed; `number` 0 for the only one. Its exit code."""
    status = int(answer["exit_code"])
    if number:
        print(f"==> task {number}: exit code {status} <==", flush=True)
    for stream, name in ((sys.stdout, "stdout"), (sys.stderr, "stderr")):
        stream.buffer.write(base64.b64decode(answer[name]))
        stream.buffer.flush()
    if answer["timed_out"]:
        print("error: its time was over", file=sys.stderr)
    return status


def _variable(entry: str, ctx: click.Context) -> tuple[str, str]:
    name, separator, value = entry.partition("=")
    if not name or not separator:
        raise click.UsageError(f"--env {entry!r} is not NAME=VALUE", ctx)
    return name, value


def _read(file: str, ctx: click.Context) -> str:
    try:
        return sys.stdin.read() if file == "-" else Path(file).read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise click.UsageError(f"{file} can't be read: {error}", ctx) from None


def main() -> None:
    """The console script."""
    sys.exit(run(flmexec, "flmexec"))
