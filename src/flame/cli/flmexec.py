"""flmexec: run a script on the cluster; its output comes while it runs."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from types import FrameType

import click

from flame._version import __version__
from flame.cli.program import run
from flame.model.isolation import LEVELS
from flame.model.network import FORM as NETWORK

APPLICATION = "flmexec"
_MAX_TASKS = 100_000
_MOST = 2**32 - 1


@click.command()
@click.option("-c", "--code", metavar="TEXT", help="The script.")
@click.option("-f", "--file", metavar="FILE", help="A file with the script, - for standard input.")
@click.option("-l", "--language", default="shell", metavar="NAME", help="shell (default), python, or a configured one.")
@click.option("-r", "--runtime", metavar="NAME", help="The shell (bash), or the version of Python.")
@click.option("-t", "--task-num", type=click.IntRange(1, _MAX_TASKS), default=1, help="How many times (1).")
@click.option("-i", "--input", "text", metavar="TEXT", help="Its standard input; - passes ours on (none).")
@click.option("--time-limit", type=click.FloatRange(min=0, min_open=True), metavar="SECONDS", help="Of the script.")
@click.option("-e", "--env", "env", multiple=True, metavar="NAME=VALUE", help="A variable; may be repeated.")
@click.option("--cwd", metavar="FOLDER", help="The folder on the node to run in (default: a new one).")
@click.option("--isolation", type=click.Choice(LEVELS), help="How far it is kept from its node (the application's).")
@click.option("--network", metavar=NETWORK, help="What it may reach, when it is isolated (none).")
@click.option("--memory", metavar="SIZE", help="What it may use, such as 256Mi.")
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
    isolation: str | None,
    network: str | None,
    memory: str | None,
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

    What it writes to its standard output and its standard error goes to ours while it runs, and its exit code is ours.
    Ctrl-C goes to the script, a second one kills it. Of several tasks (-t) each is printed when it has ended, in their
    order, and the exit code is the first that is not 0. Without --isolation it runs as the user of the executor manager
    and is not shut in.
    """
    if (code is None) == (file is None):
        raise click.UsageError("give the script with one of --code and --file", ctx)
    if file == "-" and text == "-":
        raise click.UsageError("standard input can be the script or its input, not both", ctx)
    from flame.cli.options import Settings
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
        limits=parse_limits([f"memory={memory}"]) if memory else None,
        patience=timeout,
    )
    settings = Settings(config=Path(config) if config else None, context=context, endpoint=endpoint)
    return (run_one if task_num == 1 else run_many)(script, job, settings)


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
