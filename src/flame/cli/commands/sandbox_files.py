"""flmctl sandbox files: files of a sandbox."""

from __future__ import annotations

import stat
import sys
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, NamedTuple

import click

from flame.cli.commands.sandbox import sandbox_argument
from flame.cli.options import all_options, cluster_options, settings_of
from flame.cli.output import Column, Kind
from flame.cli.program import Lazy, LazyGroup

if TYPE_CHECKING:
    from flame.sandbox import FileInfo, Sandbox

_HERE = "flame.cli.commands.sandbox_files"

COMMANDS = {
    "ls": Lazy(f"{_HERE}:list_files", "List a folder, or show one file."),
    "read": Lazy(f"{_HERE}:read", "Write a file to standard output."),
    "write": Lazy(f"{_HERE}:write", "Make a file of standard input."),
    "rm": Lazy(f"{_HERE}:remove", "Remove a file or a folder."),
    "cp": Lazy(f"{_HERE}:copy", "Copy a file or a folder into a sandbox or out of it."),
}

FILES: Kind[FileInfo] = Kind(
    columns=(
        Column("Name", lambda f: f.name + ("/" if f.is_folder else "")),
        Column("Kind", lambda f: f.kind),
        Column("Size", lambda f: f.size),
        Column("Mode", lambda f: stat.filemode(f.mode)[1:]),
        Column("Changed", lambda f: f.modified.astimezone().isoformat(timespec="seconds")),
        Column("Path", lambda f: f.path, wide=True),
        Column("Leads To", lambda f: f.target, wide=True),
    ),
    document=lambda f: {
        "name": f.name,
        "path": f.path,
        "kind": f.kind,
        "size": f.size,
        "mode": stat.S_IMODE(f.mode),
        "modified": f.modified.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "target": f.target or None,
    },
    name=lambda f: f.path,
    page=lambda f: [],
)


@click.group(cls=LazyGroup, lazy=COMMANDS, invoke_without_command=True)
@all_options
@click.pass_context
def files(ctx: click.Context) -> None:
    """Look at, read, write and copy files of a sandbox.

    Paths that are not absolute start at its working folder.
    """
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


@click.command()
@sandbox_argument
@click.argument("path", default=".")
@all_options
@click.pass_context
def list_files(ctx: click.Context, sandbox_id: str, path: str) -> None:
    """List a folder, or show one file."""
    from flame.cli.output import show_list
    from flame.cli.sandboxes import opened

    settings = settings_of(ctx)
    with opened(settings, sandbox_id) as found:
        about = found.files.stat(path)
        # A link that is named is followed, as far as it leads to a folder.
        entries = found.files.list(path) if about.kind == "folder" or _is_folder(found, path) else [about]
    show_list(entries, FILES, settings.output)


@click.command()
@sandbox_argument
@click.argument("path")
@cluster_options
@click.pass_context
def read(ctx: click.Context, sandbox_id: str, path: str) -> None:
    """Write a file to standard output."""
    from flame.cli.sandboxes import opened, waiting

    with opened(settings_of(ctx), sandbox_id) as found:
        with waiting("the file is read"):
            data = found.files.read(path)
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()


@click.command()
@sandbox_argument
@click.argument("path")
@click.option("--text", metavar="TEXT", help="This in place of standard input.")
@cluster_options
@click.pass_context
def write(ctx: click.Context, sandbox_id: str, path: str, text: str | None) -> None:
    """Make a file of standard input."""
    from flame.cli.sandboxes import opened, waiting

    data = sys.stdin.buffer.read() if text is None else text.encode()
    with opened(settings_of(ctx), sandbox_id) as found, waiting("the file is written"):
        found.files.write(path, data)


@click.command("rm")
@sandbox_argument
@click.argument("path")
@click.option("-r", "--recursive", is_flag=True, help="Folders too, with all in them.")
@cluster_options
@click.pass_context
def remove(ctx: click.Context, sandbox_id: str, path: str, recursive: bool) -> None:
    """Remove a file or a folder."""
    from flame.cli.sandboxes import opened
    from flame.model.errors import InvalidStateError

    with opened(settings_of(ctx), sandbox_id) as found:
        try:
            found.files.remove(path, recursive=recursive)
        except InvalidStateError as error:
            remedy = "add -r" if "recursive" in error.remedy else error.remedy
            raise InvalidStateError(error.message, remedy=remedy) from None


class Place(NamedTuple):
    """One side of a copy: a path here, or one in a sandbox."""

    sandbox_id: str
    path: str


@click.command("cp")
@click.argument("source")
@click.argument("target")
@cluster_options
@click.pass_context
def copy(ctx: click.Context, source: str, target: str) -> None:
    """Copy a file or a folder into a sandbox or out of it.

    One side is ID:PATH, the other a path here (with a / before any colon). A target that is a folder, or ends with /,
    gets the source's name in it.
    """
    from flame.cli.sandboxes import opened, waiting

    here, there = place(source), place(target)
    if bool(here.sandbox_id) == bool(there.sandbox_id):
        raise click.UsageError("one of SOURCE and TARGET is ID:PATH, a path in a sandbox, and the other is not", ctx)
    with opened(settings_of(ctx), here.sandbox_id or there.sandbox_id) as found, waiting(f"{source} is copied"):
        try:
            if here.sandbox_id:
                local = Path(there.path)
                into = there.path.endswith("/") or local.is_dir()
                name = PurePosixPath(here.path).name or found.id
                found.files.download(here.path, local / name if into else local)
            else:
                into = there.path.endswith("/") or _is_folder(found, there.path)
                name = Path(here.path).resolve().name
                found.files.upload(here.path, str(PurePosixPath(there.path, name)) if into else there.path)
        except OSError as error:
            raise click.UsageError(f"{error.filename or target}: {error.strerror or error}") from None


def place(text: str) -> Place:
    """The side of a copy that is written so."""
    head, colon, tail = text.partition(":")
    if not colon or not head or "/" in head:
        return Place("", text)
    return Place(head, tail or ".")


def _is_folder(found: Sandbox, path: str) -> bool:
    from flame.model.errors import InvalidArgumentError, NotFoundError

    try:
        found.files.list(path)
    except (InvalidArgumentError, NotFoundError):
        return False
    return True
