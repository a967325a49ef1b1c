"""flmctl sandbox: places to run code, commands and files in."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from flame.cli import completing
from flame.cli.bounds import whole
from flame.cli.options import Settings, all_options, output_option, settings_of, where_options
from flame.cli.program import Lazy, LazyGroup
from flame.cli.session_options import (
    env_option,
    isolation_option,
    label_option,
    limit_option,
    limit_texts,
    memory_option,
    network_option,
    only_label_option,
    readable_option,
    resreq_option,
    start_timeout_option,
    tenant_option,
)

if TYPE_CHECKING:
    from flame.sandbox import Sandbox

F = TypeVar("F", bound=Callable[..., Any])
_HERE = "flame.cli.commands"
_LOOK_S = 5.0  # how often it is looked whether the sandbox of an exposed port is still there

COMMANDS = {
    "create": Lazy(f"{_HERE}.sandbox:create", "Create a sandbox."),
    "list": Lazy(f"{_HERE}.sandbox:list_sandboxes", "List the sandboxes."),
    "run": Lazy(f"{_HERE}.sandbox_run:run_code", "Run Python code in a sandbox; its variables last."),
    "exec": Lazy(f"{_HERE}.sandbox_run:execute", "Run a command in a sandbox."),
    "shell": Lazy(f"{_HERE}.sandbox_run:shell", "Open a terminal in a sandbox."),
    "files": Lazy(f"{_HERE}.sandbox_files:files", "Look at, read, write and copy files of a sandbox."),
    "expose": Lazy(f"{_HERE}.sandbox:expose", "Make a port of a sandbox available on this machine's loopback."),
    "pause": Lazy(f"{_HERE}.sandbox:pause", "Stop all that runs in a sandbox; it keeps its memory."),
    "resume": Lazy(f"{_HERE}.sandbox:resume", "Let a paused sandbox go on."),
    "snapshot": Lazy(f"{_HERE}.sandbox:snapshot", "Save files and variables of a sandbox, to begin others with."),
    "fork": Lazy(f"{_HERE}.sandbox:fork", "Create another sandbox like this one, with its files and variables."),
    "close": Lazy(f"{_HERE}.sandbox:close", "End sandboxes with all that runs in them."),
}


@click.group(cls=LazyGroup, lazy=COMMANDS, invoke_without_command=True)
@all_options
@click.pass_context
def sandbox(ctx: click.Context) -> None:
    """Places to run code, commands and files in, kept away from their node."""
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


def sandbox_argument(function: F) -> F:
    """Add the argument ID."""
    return click.argument("sandbox_id", metavar="ID", shell_complete=completing.sandboxes)(function)


@click.command()
@isolation_option("process", "process")
@network_option("none; host at isolation none")
@limit_option
@memory_option
@resreq_option("-r")
@env_option
@click.option(
    "--idle-timeout",
    type=whole(),
    default=600,
    metavar="SECONDS",
    help="It is closed when nothing was asked of it for so long (600); 0 = never.",
)
@label_option
@tenant_option
@readable_option
@click.option(
    "--snapshot",
    "snapshot_file",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Begin with the files and variables of this snapshot.",
)
@start_timeout_option
@where_options
@output_option
@click.pass_context
def create(
    ctx: click.Context,
    isolation: str,
    network: str | None,
    limits: tuple[str, ...],
    memory: str | None,
    resreq: str | None,
    env: tuple[str, ...],
    idle_timeout: int,
    labels: tuple[str, ...],
    tenant: str,
    readable_objects: tuple[str, ...],
    snapshot_file: Path | None,
    timeout: float,
) -> None:
    """Create a sandbox."""
    from flame.cli.filters import label_filter
    from flame.cli.sandboxes import connected, load_snapshot, network_of, variables, waiting
    from flame.model.isolation import parse_limits
    from flame.sandbox import Sandbox

    known = variables(env, ctx)
    begin_with = load_snapshot(snapshot_file) if snapshot_file else None
    asked = parse_limits(limit_texts(limits, memory)) if limits or memory else None
    settings = settings_of(ctx)
    with connected(settings) as connection, waiting("the sandbox starts"):
        made = Sandbox.create(
            isolation=isolation,
            network=network_of(isolation, network),
            limits=asked,
            resreq=resreq,
            env=known,
            idle_timeout=idle_timeout or None,
            labels=label_filter(labels),
            tenant=tenant,
            readable_objects=readable_objects,
            snapshot=begin_with,
            timeout=timeout,
            connection=connection,
        )
    _show_made(settings, made)


@click.command("list")
@click.option("--all", "closed_too", is_flag=True, help="Also those that were closed and are still remembered.")
@only_label_option("those")
@all_options
@click.pass_context
def list_sandboxes(ctx: click.Context, closed_too: bool, labels: tuple[str, ...]) -> None:
    """List the sandboxes."""
    from flame.cli.api import open_api
    from flame.cli.filters import label_filter
    from flame.cli.objects.sandboxes import SANDBOXES
    from flame.cli.objects.sessions import listing_order
    from flame.cli.output import show_list
    from flame.cli.sandboxes import sandboxes

    settings = settings_of(ctx)
    wanted = label_filter(labels)
    with open_api(settings) as api:
        show_list(sorted(sandboxes(api, wanted, closed_too), key=listing_order), SANDBOXES, settings.output)


@click.command()
@sandbox_argument
@all_options
@click.pass_context
def pause(ctx: click.Context, sandbox_id: str) -> None:
    """Stop all that runs in a sandbox; it keeps its memory."""
    from flame.cli.sandboxes import opened

    settings = settings_of(ctx)
    with opened(settings, sandbox_id) as found:
        found.pause()
    _show(settings, found, "is paused")


@click.command()
@sandbox_argument
@all_options
@click.pass_context
def resume(ctx: click.Context, sandbox_id: str) -> None:
    """Let a paused sandbox go on."""
    from flame.cli.sandboxes import opened

    settings = settings_of(ctx)
    with opened(settings, sandbox_id) as found:
        found.resume()
    _show(settings, found, "goes on")


@click.command()
@sandbox_argument
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@all_options
@click.pass_context
def snapshot(ctx: click.Context, sandbox_id: str, file: Path) -> None:
    """Save files and variables of a sandbox, to begin others with.

    All that it runs stands still meanwhile. `flmctl sandbox create --snapshot FILE` begins one with it.
    """
    from flame.cli.output import write_json, write_yaml
    from flame.cli.sandboxes import note_skipped, opened, waiting

    settings = settings_of(ctx)
    with opened(settings, sandbox_id) as found, waiting("the snapshot is taken"):
        taken = found.snapshot()
        try:
            taken.save(file)
        except OSError as error:
            raise click.UsageError(f"{file} can't be written: {error.strerror}") from None
    document = {"file": str(file), "bytes": file.stat().st_size, "skipped": taken.skipped}
    if settings.output == "json":
        write_json(document)
    elif settings.output == "yaml":
        write_yaml(document)
    else:
        note_skipped(taken.skipped)
        print(file if settings.output == "name" else f"Snapshot <{file}> was saved, {document['bytes']} bytes.")


@click.command()
@sandbox_argument
@start_timeout_option
@where_options
@output_option
@click.pass_context
def fork(ctx: click.Context, sandbox_id: str, timeout: float) -> None:
    """Create another sandbox like this one, with its files and variables."""
    from flame.cli.sandboxes import opened, waiting

    settings = settings_of(ctx)
    with opened(settings, sandbox_id) as found, waiting("the sandbox is forked"):
        made = found.fork(timeout=timeout)
    _show_made(settings, made)


@click.command()
@click.argument("sandbox_ids", metavar="ID...", nargs=-1, required=True, shell_complete=completing.sandboxes)
@all_options
@click.pass_context
def close(ctx: click.Context, sandbox_ids: tuple[str, ...]) -> None:
    """End sandboxes with all that runs in them."""
    from flame.cli.sandboxes import connected
    from flame.sandbox import Sandbox

    settings = settings_of(ctx)
    with connected(settings) as connection:
        for sandbox_id in sandbox_ids:
            found = Sandbox.open(sandbox_id, connection=connection)
            found.close()
            if settings.output in ("table", "wide"):
                print(f"Sandbox <{sandbox_id}> was closed.")
            elif settings.output == "name":
                print(sandbox_id)
    if settings.output in ("json", "yaml"):
        for sandbox_id in sandbox_ids:
            _document(settings, sandbox_id)


@click.command()
@sandbox_argument
@click.argument("port", type=click.IntRange(1, 65535))
@all_options
@click.pass_context
def expose(ctx: click.Context, sandbox_id: str, port: int) -> None:
    """Make a port of a sandbox available on this machine's loopback.

    Prints the address and stays until Ctrl-C, or until the sandbox ends.
    """
    from flame.cli.output import write_json_line, write_yaml
    from flame.cli.sandboxes import connected
    from flame.sandbox import Sandbox

    settings = settings_of(ctx)
    with (
        connected(settings) as connection,
        Sandbox.open(sandbox_id, connection=connection) as found,
        found.expose(port) as exposed,
    ):
        document = {"host": exposed.host, "port": exposed.port, "url": exposed.url}
        if settings.output == "json":
            write_json_line(document)
        elif settings.output == "yaml":
            write_yaml(document)
        else:
            print(exposed.url, flush=True)
        try:
            while not threading.Event().wait(_LOOK_S):
                Sandbox.open(sandbox_id, connection=connection)
        except KeyboardInterrupt:
            return


def _show_made(settings: Settings, made: Sandbox) -> None:
    """With what it lacks of the sandbox that it began with."""
    from flame.cli.sandboxes import note_skipped

    if settings.output in ("json", "yaml"):
        _document(settings, made.id, {"skipped": made.skipped})
        return
    note_skipped(made.skipped)
    _show(settings, made, "was created")


def _show(settings: Settings, found: Sandbox, what: str) -> None:
    if settings.output in ("table", "wide"):
        print(f"Sandbox <{found.id}> {what}.")
    elif settings.output == "name":
        print(found.id)
    else:
        _document(settings, found.id)


def _document(settings: Settings, sandbox_id: str, more: Mapping[str, object] | None = None) -> None:
    from flame.cli.api import open_api
    from flame.cli.objects.sandboxes import SANDBOXES
    from flame.cli.output import write_json, write_yaml

    with open_api(settings) as api:
        document = {**SANDBOXES.document(api.session(sandbox_id)), **(more or {})}
    (write_json if settings.output == "json" else write_yaml)(document)
