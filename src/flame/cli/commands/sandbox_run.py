"""flmctl sandbox run, exec and shell."""

from __future__ import annotations

import base64
import contextlib
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from flame.cli.commands.sandbox import sandbox_argument
from flame.cli.options import all_options, cluster_options, settings_of
from flame.cli.session_options import cwd_option, env_option, time_limit_option

if TYPE_CHECKING:
    from flame.sandbox import CodeError, Execution, Result

_SHELL = 'exec "$(command -v bash || command -v sh)"'
_SUFFIXES = {
    "image/png": "png",
    "image/jpeg": "jpg",
    "image/svg+xml": "svg",
    "text/html": "html",
    "text/markdown": "md",
    "text/latex": "tex",
    "application/json": "json",
    "application/pdf": "pdf",
}


@click.command("run")
@sandbox_argument
@click.option("-c", "--code", metavar="TEXT", help="The code.")
@click.option("-f", "--file", metavar="FILE", help="A file with the code, - for standard input.")
@time_limit_option
@env_option
@click.option(
    "--save",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="FOLDER",
    help="Put what it displays, such as plots, there as files.",
)
@all_options
@click.pass_context
def run_code(
    ctx: click.Context,
    sandbox_id: str,
    code: str | None,
    file: str | None,
    time_limit: float | None,
    env: tuple[str, ...],
    save: Path | None,
) -> int:
    """Run Python code in a sandbox; its variables last.

    What it prints comes while it runs, what it displays as text. The exit code is 1 when it raised, 124 when its time
    was over.
    """
    from flame.cli.sandboxes import TIMED_OUT, opened, variables

    if (code is None) == (file is None):
        raise click.UsageError("give the code with one of --code and --file", ctx)
    text = code if code is not None else _read(str(file), ctx)
    known = variables(env, ctx)
    settings = settings_of(ctx)
    quiet = settings.output in ("json", "yaml")
    shown = _Displayed(save, quiet=quiet)
    with opened(settings, sandbox_id) as found:
        execution = found.run_code(
            text,
            timeout=time_limit,
            env=known,
            on_stdout=None if quiet else lambda piece: print(piece, end="", flush=True),
            on_stderr=None if quiet else lambda piece: print(piece, end="", file=sys.stderr, flush=True),
            on_result=shown.show,
        )
    if quiet:
        _write(execution, settings.output)
    elif execution.error is not None:
        print(_told(execution.error), file=sys.stderr)
    if execution.error is None:
        return 0
    return TIMED_OUT if execution.error.name == "TimeoutError" else 1


@click.command("exec", context_settings={"allow_interspersed_args": False, "ignore_unknown_options": False})
@click.option("-i", "--stdin", "pass_stdin", is_flag=True, help="Pass our standard input on to it.")
@time_limit_option
@env_option
@cwd_option("its working folder")
@cluster_options
@sandbox_argument
@click.argument("command", nargs=-1, required=True)
@click.pass_context
def execute(
    ctx: click.Context,
    pass_stdin: bool,
    time_limit: float | None,
    env: tuple[str, ...],
    cwd: str | None,
    sandbox_id: str,
    command: tuple[str, ...],
) -> int:
    """Run a command in a sandbox.

    Options stand before ID, everything behind it is the command. What it prints comes while it runs, each stream to
    ours, and its exit code is ours: 128 and the signal's number when one killed it, 124 when its time was over.
    Ctrl-C goes to the command, a second one kills it.
    """
    from flame.cli.sandboxes import follow, opened, variables
    from flame.cli.terminals import Feed

    if command[0] == "--":
        command = command[1:]
    if not command or command[0].startswith("-"):
        raise click.UsageError("options stand before ID, and the command behind it", ctx)
    known = variables(env, ctx)
    with opened(settings_of(ctx), sandbox_id) as found:
        stdin = None if pass_stdin else b""
        started = found.start_command(command, stdin=stdin, timeout=time_limit, env=known, cwd=cwd, followed=True)
        with Feed(started) if pass_stdin else contextlib.nullcontext():
            return follow(started)


@click.command(context_settings={"allow_interspersed_args": False})
@env_option
@cwd_option("its working folder")
@cluster_options
@sandbox_argument
@click.argument("command", nargs=-1)
@click.pass_context
def shell(ctx: click.Context, env: tuple[str, ...], cwd: str | None, sandbox_id: str, command: tuple[str, ...]) -> int:
    """Open a terminal in a sandbox.

    It runs the shell there, or the command behind ID; options stand before ID. Ctrl-] ends it from outside, also when
    the sandbox does not answer.
    """
    from flame.cli.sandboxes import copy, opened, variables
    from flame.cli.terminals import TerminalFeed, size
    from flame.model.errors import FlameError

    if not sys.stdin.isatty():
        raise click.UsageError("standard input is no terminal; flmctl sandbox exec runs commands without one", ctx)
    words = list(command[1:] if command[:1] == ("--",) else command)
    known = {"TERM": os.environ.get("TERM", "xterm-256color"), **variables(env, ctx)}
    with opened(settings_of(ctx), sandbox_id) as found:
        started = found.start_command(words or ["/bin/sh", "-c", _SHELL], env=known, cwd=cwd, pty=size())
        with TerminalFeed(started):
            try:
                return copy(started)
            except KeyboardInterrupt:
                with contextlib.suppress(FlameError):
                    started.kill(signal.SIGKILL)
                raise


class _Displayed:
    """What code displays: printed as text, and saved."""

    def __init__(self, folder: Path | None, *, quiet: bool) -> None:
        self._folder = folder
        self._quiet = quiet
        self._number = 0

    def show(self, result: Result) -> None:
        if not self._quiet:
            print(result.text, flush=True)
        if self._folder is None:
            return
        self._number += 1
        for kind, data in result.formats.items():
            self._save(f"result-{self._number}.{_SUFFIXES.get(kind, 'bin')}", data)

    def _save(self, name: str, data: str | bytes) -> None:
        from flame.cli.sandboxes import note

        assert self._folder is not None
        target = self._folder / name
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            target.write_bytes(data.encode() if isinstance(data, str) else data)
        except OSError as error:
            raise click.UsageError(f"{target} can't be written: {error.strerror}") from None
        note(f"saved {target}")


def _write(execution: Execution, output: str) -> None:
    from flame.cli.output import write_json, write_yaml

    error = execution.error
    document: dict[str, Any] = {
        "stdout": execution.stdout,
        "stderr": execution.stderr,
        "text": execution.text,
        "results": [
            {
                "text": result.text,
                "formats": {
                    kind: data if isinstance(data, str) else {"base64": base64.b64encode(data).decode()}
                    for kind, data in result.formats.items()
                },
            }
            for result in execution.results
        ],
        "error": error and {"name": error.name, "message": error.message, "traceback": error.traceback},
        "cut": execution.cut,
        "kernel_lost": execution.kernel_lost,
    }
    (write_json if output == "json" else write_yaml)(document)


def _told(error: CodeError) -> str:
    """With the lines of the code, as far as there are any, and why it was ended from outside if it was."""
    why = "" if error.name in error.traceback else f"{error.name}: {error.message}"
    return f"{error.traceback.rstrip()}\n{why}".strip("\n")


def _read(file: str, ctx: click.Context) -> str:
    try:
        return sys.stdin.read() if file == "-" else Path(file).read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise click.UsageError(f"{file} can't be read: {error}", ctx) from None
