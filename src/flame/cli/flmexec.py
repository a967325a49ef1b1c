"""flmexec: run a script on the cluster; its output comes while it runs."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from types import FrameType

import click

from flame._version import __version__
from flame.cli.bounds import whole
from flame.cli.options import settings_of, where_options
from flame.cli.program import run
from flame.cli.session_options import (
    cwd_option,
    env_option,
    isolation_option,
    limit_option,
    limit_texts,
    memory_option,
    network_option,
    patience_option,
    priority_option,
    resreq_option,
    time_limit_option,
)

APPLICATION = "flmexec"
_MAX_TASKS = 100_000


@click.command()
@click.option("-c", "--code", metavar="TEXT", help="The script.")
@click.option("-f", "--file", metavar="FILE", help="A file with the script, - for standard input.")
@click.option("-l", "--language", default="shell", metavar="NAME", help="shell (default), python, or a configured one.")
@click.option("-r", "--runtime", metavar="NAME", help="The shell (bash), or the version of Python.")
@click.option("-t", "--task-num", type=whole(1, _MAX_TASKS), metavar="N", default=1, help="How many times (1).")
@click.option("-i", "--input", "text", metavar="TEXT", help="Its standard input; - passes ours on (none).")
@time_limit_option
@env_option
@cwd_option("a new one")
@isolation_option("as its application says")
@network_option("as its application says")
@limit_option
@memory_option
@click.option("-a", "--app", "application", default=APPLICATION, metavar="NAME", help="The application (flmexec).")
@priority_option("-P")
@resreq_option()
@patience_option
@where_options
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
    isolation: str | None,
    network: str | None,
    limits: tuple[str, ...],
    memory: str | None,
    application: str,
    priority: int,
    resreq: str | None,
    timeout: float | None,
    arguments: tuple[str, ...],
) -> int:
    """Run a script on the cluster, with ARGUMENTS behind its name.

    What it writes to its standard output and its standard error goes to ours while it runs, and its exit code is ours.
    Ctrl-C goes to the script, a second one kills it. Of several tasks (-t) each is printed when it has ended, in their
    order, and the exit code is the first that is not 0. Without --isolation it runs as the user of the executor manager
    and is not shut in.
    """
    if (code is None) == (file is None):
        raise click.UsageError("give the script with one of --code and --file", ctx)
    if file == "-" and text == "-":
        raise click.UsageError("standard input can be the script or its input, not both", ctx)
    from flame.cli.sandboxes import variables
    from flame.cli.scripts import Job, Script, run_many, run_one
    from flame.model.isolation import parse_limits

    script = Script(
        language=language,
        runtime=runtime,
        code=code if code is not None else _read(str(file), ctx),
        stdin=None if text == "-" else (text or "").encode(),
        arguments=arguments,
        env=variables(env, ctx),
        cwd=cwd,
        time_limit=time_limit,
    )
    job = Job(
        application=application,
        tasks=task_num,
        priority=priority,
        resreq=resreq,
        isolation=isolation or "",
        network=network or "",
        limits=parse_limits(limit_texts(limits, memory)) if limits or memory else None,
        patience=timeout,
    )
    return (run_one if task_num == 1 else run_many)(script, job, settings_of(ctx))


def _read(file: str, ctx: click.Context) -> str:
    try:
        return sys.stdin.read() if file == "-" else Path(file).read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise click.UsageError(f"{file} can't be read: {error}", ctx) from None


def main() -> None:
    """The console script."""
    signal.signal(signal.SIGTERM, _terminated)
    sys.exit(run(flmexec, "flmexec"))


def _terminated(number: int, frame: FrameType | None) -> None:
    """End as with Ctrl-C, so that nothing goes on in the cluster."""
    sys.exit(128 + number)
