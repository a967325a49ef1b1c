"""flmctl completion, and the same command of the other tools."""

from __future__ import annotations

import click

SHELLS = ("bash", "zsh", "fish")


@click.command()
@click.argument("shell", type=click.Choice(SHELLS))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print the completion script for a shell.

    \b
    For bash, of the program PROGRAM:
    PROGRAM completion bash > ~/.local/share/bash-completion/completions/PROGRAM
    """
    from click.shell_completion import BashComplete, get_completion_class

    program = ctx.find_root()
    name = program.info_name or "flmctl"
    kind = get_completion_class(shell)
    if kind is None:
        raise click.UsageError(f"no completion for {shell}", ctx)
    if kind is BashComplete:
        # click's own check starts a bash only to read its version; the script says itself what it needs.
        kind = type("Bash", (BashComplete,), {"_check_version": staticmethod(lambda: None)})
    variable = f"_{name}_COMPLETE".replace("-", "_").upper()
    print(kind(program.command, {}, name, variable).source())
