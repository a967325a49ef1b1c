"""The options of all tools: each has a help, and where several tools have one, it says the same."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import cast

import click
import pytest

from flame.cli.bounds import SECONDS, whole
from flame.cli.flmadm import flmadm
from flame.cli.flmctl import flmctl
from flame.cli.flmexec import flmexec
from flame.cli.flmping import flmping
from flame.cli.mcp import flame_mcp
from flame.cli.program import LazyGroup, run

TOOLS = {"flmadm": flmadm, "flmctl": flmctl, "flmexec": flmexec, "flmping": flmping, "flame-mcp": flame_mcp}
# What counts when an option is not given stands in parentheses, and may differ.
SHARED = {
    "--endpoint", "--context", "--config", "--isolation", "--network", "--limit", "--memory", "--resreq", "--priority",
    "--tenant", "--env", "--cwd", "--time-limit", "--common-data", "--description", "--output", "--quiet",
}  # fmt: skip
OTHERS = {  # of the same name, and something else
    ("flmctl list", "--limit"), ("flmctl list", "--tenant"), ("flmctl view", "--tenant"), ("flmping", "--memory"),
    ("flmadm up", "--config"),
}  # fmt: skip


def commands(command: click.Command, path: str) -> Iterator[tuple[str, click.Command]]:
    """The command and all below it, each with how it is called."""
    yield path, command
    if isinstance(command, LazyGroup):
        ctx = click.Context(command)
        for name in command.list_commands(ctx):
            below = command.get_command(ctx, name)
            assert below is not None
            yield from commands(below, f"{path} {name}")


ALL = [found for name, tool in TOOLS.items() for found in commands(tool, name)]


def options(command: click.Command) -> list[click.Option]:
    return [param for param in command.params if isinstance(param, click.Option) and not param.hidden]


@pytest.mark.parametrize(("path", "command"), ALL, ids=[path for path, _ in ALL])
def test_the_help_speaks_of_every_option_in_sentences(path: str, command: click.Command) -> None:
    assert (command.help or "").split("\n")[0].endswith("."), path
    for option in options(command):
        assert (option.help or "").endswith("."), f"{path} {option.opts}"
        assert "RANGE" not in option.make_metavar(click.Context(command))


def test_an_option_means_the_same_everywhere() -> None:
    helps: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for path, command in ALL:
        for option in options(command):
            for name in SHARED.intersection(option.opts):
                if (path, name) not in OTHERS:
                    helps[name][(option.help or "").partition(" (")[0].rstrip(".")].append(path)
    assert {name: dict(texts) for name, texts in helps.items() if len(texts) > 1} == {}
    assert helps.keys() == SHARED


@pytest.mark.parametrize(
    ("tool", "arguments"),
    [
        ("flmexec", ["-c", "true", "-t", "0"]),
        ("flmexec", ["-c", "true", "--time-limit", "0"]),
        ("flmping", ["-t", "many"]),
        ("flmping", ["-P", "-1"]),
        ("flmping", ["--timeout", "0"]),
        ("flmctl", ["create", "-a", "x", "--max-instances", "0"]),
        ("flmctl", ["create", "-a", "x", "--priority", "4294967296"]),
        ("flmctl", ["--timeout", "-1", "list", "-s"]),
        ("flmctl", ["top", "--interval", "0.01"]),
    ],
)
def test_numbers_out_of_bounds_are_wrong_usage(
    tool: str, arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(cast("click.Command", TOOLS[tool]), tool, arguments) == 2
    complaint = capsys.readouterr().err
    assert complaint.startswith("error: Invalid value for")
    assert "is not in the range" in complaint or "is not a valid integer" in complaint


def test_the_help_does_not_speak_of_bounds() -> None:
    @click.command()
    @click.option("--count", type=whole(1, 5), metavar="N", help="How many.")
    @click.option("--pause", type=SECONDS, metavar="SECONDS", help="How long.")
    def tool() -> None: ...

    assert "<=" not in tool.get_help(click.Context(tool))


def test_memory_is_short_for_its_limit(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(flmexec, "flmexec", ["-c", "true", "--memory", "1Mi", "--limit", "memory=2Mi"]) == 2
    assert "memory" in capsys.readouterr().err


@pytest.mark.parametrize("tool", ["flmctl", "flmadm"])
def test_how_to_have_completions(tool: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(TOOLS[tool], tool, ["completion", "--help"]) == 0
    assert "PROGRAM completion bash >" in capsys.readouterr().out
