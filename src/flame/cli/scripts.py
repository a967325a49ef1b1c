"""What flmexec does: one script in a sandbox, whose output comes while it runs, or many as tasks of one session."""

from __future__ import annotations

import base64
import contextlib
import json
import sys
import threading
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from flame.cli.sandboxes import follow, network_of
from flame.model.errors import FlameError, TaskFailedError, TimedOutError

if TYPE_CHECKING:
    from flame.cli.options import Settings
    from flame.client.synchronous import Connection
    from flame.model.isolation import Limits
    from flame.sandbox import RunningCommand, Sandbox

_IDLE_S = 300.0  # after which a sandbox whose client has gone is closed
_SUFFIXES = {"shell": ".sh", "python": ".py"}
# Run by the sandbox's kernel: the node knows its interpreters, we don't.
_CHOOSE = """
import os
from flame.sandbox.inside.scripts import Request, interpreter
class Answer(dict):
    def _repr_json_(self):
        return dict(self)
try:
    request = Request(language={language!r}.lower(), runtime={runtime!r}, code={code!r}, data=b"")
    answer = Answer(command=interpreter(request, os.environ))
except ValueError as error:
    answer = Answer(error=str(error))
answer
"""


@dataclass(frozen=True)
class Script:
    """What is run. `stdin`: all that it reads, None for our own standard input. `time_limit` in seconds."""

    language: str
    runtime: str | None
    code: str
    stdin: bytes | None
    arguments: Sequence[str]
    env: Mapping[str, str]
    cwd: str | None
    time_limit: float | None


@dataclass(frozen=True)
class Job:
    """Where it runs, and how often. `patience` in seconds, for all of it."""

    application: str
    tasks: int
    priority: int
    resreq: str | None
    isolation: str
    network: str
    limits: Limits | None
    patience: float | None


def run_one(script: Script, job: Job, settings: Settings) -> int:
    """Run it in a sandbox of its own. Its exit code."""
    from flame.cli.connecting import open_connection
    from flame.cli.terminals import Feed

    with open_connection(settings) as connection, _patience(job) as end, _sandbox(connection, job, end) as sandbox:
        command = _start(sandbox, script)
        with Feed(command) if script.stdin is None else contextlib.nullcontext():
            return follow(command)


def run_many(script: Script, job: Job, settings: Settings) -> int:
    """Run it as so many tasks, and print what each printed, in their order. The first exit code that is not 0."""
    from flame.cli.connecting import open_connection
    from flame.cli.progress import Progress

    payload = json.dumps(_request(script)).encode()
    until = None if job.patience is None else time.monotonic() + job.patience
    code = 0
    with open_connection(settings) as connection:
        session = connection.create_session(
            job.application,
            priority=job.priority,
            resreq=job.resreq,
            max_instances=job.tasks,
            isolation=job.isolation,
            network=job.network,
            limits=job.limits,
        )
        try:
            futures = [session.submit(payload) for _ in range(job.tasks)]
            # Where the outputs themselves are looked at, a bar would be in their way.
            drawn = 0 if sys.stdout.isatty() else job.tasks
            with Progress(drawn, lambda: sum(future.done() for future in futures)):
                for number, future in enumerate(futures, 1):
                    left = None if until is None else max(0.0, until - time.monotonic())
                    try:
                        answer = future.result(left)
                    except TimedOutError:
                        if future.done():
                            raise
                        raise _impatient(job) from None
                    code = code or _show(json.loads(answer or b"{}"), number)
        finally:
            session.close(force=True)
    return code


# --- one ------------------------------------------------------------------------------------------------------------


@contextmanager
def _patience(job: Job) -> Generator[Callable[[Callable[[], object]], None], None, None]:
    """Gives a function that is told how to end it all, and does so when the job takes too long."""
    end: list[Callable[[], object]] = []
    over = threading.Event()

    def give_up() -> None:
        over.set()
        for each in end:
            with contextlib.suppress(FlameError):
                each()

    timer = threading.Timer(job.patience or 0, give_up)
    timer.daemon = True
    if job.patience is not None:
        timer.start()
    try:
        yield end.append
    except FlameError:
        if over.is_set():
            raise _impatient(job) from None
        raise
    finally:
        timer.cancel()


def _impatient(job: Job) -> TimedOutError:
    return TimedOutError(f"the script did not end within {job.patience:g} s")


@contextmanager
def _sandbox(
    connection: Connection, job: Job, end: Callable[[Callable[[], object]], None]
) -> Generator[Sandbox, None, None]:
    """A sandbox of the job's application, which may be one of the user's with the same service; `end` is told how to
    end it."""
    from dataclasses import replace

    from flame.sandbox import Sandbox, opening
    from flame.sandbox.calling import AsyncCaller, Caller

    attrs = opening.attributes(
        isolation=job.isolation,
        network=job.network or network_of(job.isolation or "none", None),
        limits=job.limits,
        resreq=job.resreq,
        idle_timeout=_IDLE_S,
        labels=None,
        tenant="",
    )
    # What is not said is as the application has it.
    attrs = replace(attrs, application=job.application, priority=job.priority, network=job.network)
    session = connection.create_session(attrs)
    end(lambda: session.close(force=True))
    try:
        opening.check_begun(session.invoke(opening.beginning(attrs, None)))
        yield Sandbox(Caller(session, AsyncCaller(session.asynchronous)), created=False)
    finally:
        session.close(force=True)


def _start(sandbox: Sandbox, script: Script) -> RunningCommand:
    """Raises TaskFailedError when the node has no interpreter for it."""
    interpreter = _interpreter(sandbox, script)
    # Without isolation the working folder may hold what another script left there.
    file = f"{sandbox.id}/main{_SUFFIXES.get(script.language.lower(), '')}"
    sandbox.files.write(file, script.code)
    path = PurePosixPath(sandbox.files.stat(file).path)
    return sandbox.start_command(
        [*interpreter, str(path), *script.arguments],
        stdin=script.stdin,
        timeout=script.time_limit,
        env=script.env,
        cwd=script.cwd or str(path.parent),
        followed=True,
    )


def _interpreter(sandbox: Sandbox, script: Script) -> list[str]:
    """The command that runs it there. Raises TaskFailedError."""
    if script.language.lower() == "shell" and not script.runtime:
        # What the node would choose too; to ask it takes longer than most scripts.
        return ["/bin/sh", "-c", 'exec "$(command -v bash || command -v sh)" "$@"', "sh"]
    chosen = sandbox.run_code(_CHOOSE.format(language=script.language, runtime=script.runtime or "", code=script.code))
    if chosen.error is not None:
        raise TaskFailedError(f"{chosen.error.name}: {chosen.error.message}")
    answer = json.loads(chosen.results[-1].formats["application/json"])
    if "error" in answer:
        raise TaskFailedError(answer["error"])
    return answer["command"]


# --- many -----------------------------------------------------------------------------------------------------------


def _request(script: Script) -> dict[str, Any]:
    """The input of each task."""
    stdin = sys.stdin.buffer.read() if script.stdin is None else script.stdin
    return {
        "answer": "full",
        "language": script.language,
        "runtime": script.runtime,
        "code": script.code,
        "stdin": base64.b64encode(stdin).decode(),
        "arguments": list(script.arguments),
        "env": dict(script.env),
        "cwd": script.cwd,
        "timeout": script.time_limit,
    }


def _show(answer: dict[str, Any], number: int) -> int:
    """Print what one task's script printed. Its exit code."""
    status = int(answer["exit_code"])
    print(f"==> task {number}: exit code {status} <==", flush=True)
    for stream, name in ((sys.stdout, "stdout"), (sys.stderr, "stderr")):
        stream.buffer.write(base64.b64decode(answer[name]))
        stream.buffer.flush()
    if answer["timed_out"]:
        print("error: its time was over", file=sys.stderr)
    return status
