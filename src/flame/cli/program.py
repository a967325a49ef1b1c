"""What every tool shares: commands that are imported when they are used, errors as one line, exit codes."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import click

from flame.model.errors import MEANING, FlameError

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

INTERRUPTED = 130
USAGE = 2


class Lazy(NamedTuple):
    """A command that is not imported yet: `module:attribute`, and its line in the help of the program."""

    target: str
    summary: str


class LazyGroup(click.Group):
    """A program whose commands are modules, each imported when it is run; the help needs none of them."""

    def __init__(self, *, lazy: Mapping[str, Lazy], **settings: Any) -> None:
        super().__init__(**settings)
        self.lazy = dict(lazy)

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names in the order of their declaration."""
        return list(self.lazy)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the command's module now."""
        entry = self.lazy.get(cmd_name)
        if entry is None:
            return None
        module, _, attribute = entry.target.partition(":")
        return cast("click.Command", getattr(import_module(module), attribute))

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Like click's, with the nearest known name in the error."""
        if args and args[0] not in self.lazy and not args[0].startswith("-") and not ctx.resilient_parsing:
            from flame.config.document import nearest

            raise click.UsageError(f"no command {args[0]!r}; {nearest(args[0], list(self.lazy))}", ctx)
        return super().resolve_command(ctx, args)

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Names of commands and options that begin so, for the shell; no command is imported for it."""
        from click.shell_completion import CompletionItem

        names = [
            CompletionItem(name, help=entry.summary) for name, entry in self.lazy.items() if name.startswith(incomplete)
        ]
        return [*names, *click.Command.shell_complete(self, ctx, incomplete)]

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The list of commands in the help, from the summaries alone."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, entry.summary) for name, entry in self.lazy.items()])


def run(command: click.Command, name: str, arguments: Sequence[str] | None = None) -> int:
    """Run a tool and return its exit code: 0, what the table of errors says, 2 for usage errors, 130 for Ctrl-C."""
    try:
        result: object = command.main(args=arguments, prog_name=name, standalone_mode=False)
        sys.stdout.flush()
    except click.exceptions.Exit as request:
        return request.exit_code
    except click.ClickException as error:
        _complain(error.format_message().rstrip("."))
        context = getattr(error, "ctx", None)
        if isinstance(error, click.UsageError) and context is not None:
            _hint(f"see {context.command_path} --help")
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        return INTERRUPTED
    except BrokenPipeError:
        # The reader of our output went away (`| head`). Python would complain again when it flushes at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except FlameError as error:
        _complain(error.message)
        if error.remedy:
            _hint(error.remedy)
        return MEANING[error.code].exit_code
    return result if isinstance(result, int) else 0


def _complain(text: str) -> None:
    print("error: " + " ".join(text.split()), file=sys.stderr)


def _hint(text: str) -> None:
    print("hint: " + text.strip().replace("\n", "\n  "), file=sys.stderr)
