"""flmctl explain."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from flame.cli.options import all_options, session_option, settings_of

if TYPE_CHECKING:
    from flame.proto import frontend_pb2 as fe


@click.command()
@session_option()
@click.option("-t", "--task", "task_id", metavar="ID", default="", help="One of its tasks.")
@all_options
@click.pass_context
def explain(ctx: click.Context, session_id: str, task_id: str) -> None:
    """Say why a session or a task waits, and what happened to it."""
    from flame.cli.api import open_api
    from flame.cli.output import write_json, write_yaml

    settings = settings_of(ctx)
    with open_api(settings) as api:
        answer = api.explain(session_id, task_id)
    if settings.output == "json":
        write_json(_document(answer))
    elif settings.output == "yaml":
        write_yaml(_document(answer))
    else:
        _print(answer)


def _print(answer: fe.Explanation) -> None:
    from flame.cli.objects.events import event_lines
    from flame.cli.times import local_time

    print(answer.summary)
    for reason in answer.reasons:
        since = f" since {local_time(reason.since)}" if reason.since else ""
        print(f"\n  {reason.object}: {reason.message}{since} (rule: {reason.rule})")
        if reason.remedy:
            print(f"    {reason.remedy}")
    if answer.story:
        print("\nWhat happened:")
        for line in event_lines(answer.story).split("\n"):
            print(f"  {line}")


def _document(answer: fe.Explanation) -> dict[str, object]:
    from flame.cli.objects.events import event_document
    from flame.cli.times import utc_time

    return {
        "summary": answer.summary,
        "reasons": [
            {
                "rule": reason.rule,
                "object": reason.object,
                "message": reason.message,
                "remedy": reason.remedy,
                "since": utc_time(reason.since),
            }
            for reason in answer.reasons
        ],
        "story": [event_document(event) for event in answer.story],
    }
