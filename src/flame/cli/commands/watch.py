"""flmctl watch."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from flame.cli import completing
from flame.cli.options import all_options, settings_of
from flame.cli.session_options import session_option

if TYPE_CHECKING:
    from flame.cli.api import Api


@click.command()
@session_option(complete=completing.open_sessions)
@click.option("-t", "--task", "task_id", metavar="ID", help="Only this task; the exit code is 1 when it fails.")
@all_options
@click.pass_context
def watch(ctx: click.Context, session_id: str, task_id: str | None) -> int:
    """Follow a session or a task until it ends."""
    from flame.cli.api import open_api

    settings = settings_of(ctx)
    as_json = settings.output in ("json", "yaml")
    with open_api(settings) as api:
        if task_id is not None:
            return _watch_task(api, session_id, task_id, as_json=as_json)
        _watch_session(api, session_id, as_json=as_json)
    return 0


def _watch_session(api: Api, session_id: str, *, as_json: bool) -> None:
    from flame.cli.objects.sessions import counts_text, session_kind
    from flame.cli.objects.states import session_state, task_state
    from flame.cli.output import write_json_line

    kind = session_kind(api.unit())
    last = ""
    for update in api.watch_session(session_id):
        if as_json:
            changes = [
                {"id": task.task_id, "state": task_state(task.state), "attempt": task.attempt} for task in update.tasks
            ]
            write_json_line({"session": kind.document(update.session), "tasks": changes})
            continue
        line = f"{session_state(update.session):8} {counts_text(update.session.status)}"
        if update.session.status.pending_reason:
            line += f"; waiting: {update.session.status.pending_reason}"
        if line != last:
            print(f"{_now()}  {line}", flush=True)
            last = line


def _watch_task(api: Api, session_id: str, task_id: str, *, as_json: bool) -> int:
    from flame.cli.objects.states import TERMINAL, task_state
    from flame.cli.objects.tasks import TASKS, message_of
    from flame.cli.output import write_json_line
    from flame.model.errors import NotFoundError
    from flame.proto import types_pb2 as ty

    task = api.task(session_id, task_id)
    if task.status.state not in TERMINAL:
        for task in api.watch_task(session_id, task_id):
            if as_json:
                write_json_line(TASKS.document(task))
            elif task.status.state not in TERMINAL:
                print(f"{_now()}  {task_state(task.status.state)} (attempt {task.status.attempt})", flush=True)
        if task.status.state not in TERMINAL:
            raise NotFoundError(f"task {task_id} of session {session_id!r} went away before it ended")
        # The watch leaves out the events, which say why a task failed.
        task = api.task(session_id, task_id)
    if as_json:
        write_json_line(TASKS.document(task))
    else:
        why = message_of(task)
        print(f"{_now()}  {task_state(task.status.state)}{': ' + why if why else ''}", flush=True)
    return 0 if task.status.state == ty.TaskState.Succeed else 1


def _now() -> str:
    import time

    from flame.cli.times import local_time

    return local_time(int(time.time() * 1000))
