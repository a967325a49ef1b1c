"""flmctl logs."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from flame.cli import completing
from flame.cli.options import all_options, settings_of
from flame.cli.session_options import session_option

if TYPE_CHECKING:
    from flame.proto import frontend_pb2 as fe


@click.command()
@session_option(required=False, help_text="All executors of this session.")
@click.option(
    "-e", "--executor", "executor_id", metavar="ID", help="One executor.", shell_complete=completing.executors
)
@click.option("-f", "--follow", is_flag=True, help="Go on as more is written, until the session ends.")
@click.option("--stream", type=click.Choice(("stdout", "stderr")), help="Only one of the two.")
@click.option("--tail", metavar="SIZE", help="Only the last so many bytes of each, such as 4k.")
@all_options
@click.pass_context
def logs(
    ctx: click.Context,
    session_id: str | None,
    executor_id: str | None,
    follow: bool,
    stream: str | None,
    tail: str | None,
) -> None:
    """Print what instances wrote to stdout and stderr, also after they ended."""
    if (session_id is None) == (executor_id is None):
        raise click.UsageError("choose one of -s ID and -e ID", ctx)
    from flame.cli.api import open_api
    from flame.model.resources import parse_size
    from flame.proto import frontend_pb2 as fe

    request = fe.GetLogsRequest(
        session_id=session_id or "",
        executor_id=executor_id or "",
        stream=stream or "",
        follow=follow,
        tail_bytes=parse_size(tail) if tail is not None else 0,
    )
    settings = settings_of(ctx)
    with open_api(settings) as api:
        if settings.output in ("json", "yaml"):
            _print_json(api.logs(request))
        else:
            _print_text(api.logs(request))


def _print_text(chunks: Iterator[fe.LogChunk]) -> None:
    """The bytes as they are, with a head line wherever the source changes."""
    source: tuple[str, str] | None = None
    fresh_line = True
    out = sys.stdout.buffer
    for chunk in chunks:
        if (chunk.executor_id, chunk.stream) != source:
            source = (chunk.executor_id, chunk.stream)
            missing = " (its start was dropped)" if chunk.truncated else ""
            start = "" if fresh_line else "\n"
            out.write(f"{start}==> {chunk.executor_id} {chunk.stream}{missing} <==\n".encode())
            fresh_line = True
        if chunk.data:
            out.write(chunk.data)
            fresh_line = chunk.data.endswith(b"\n")
        out.flush()


def _print_json(chunks: Iterator[fe.LogChunk]) -> None:
    from flame.cli.output import bytes_document, write_json_line

    for chunk in chunks:
        write_json_line(
            {
                "executor_id": chunk.executor_id,
                "stream": chunk.stream,
                "offset": chunk.offset,
                "truncated": chunk.truncated,
                "data": bytes_document(chunk.data),
            }
        )
