"""The worker's handlers, in this process: what becomes of an instance that trapped, and how calls are interrupted."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from components import CONDUCT, binary
from flame.service.api import ApplicationContext, SessionContext, TaskContext, TaskFailure
from flame.wasm.compiling import compile_component
from flame.wasm.worker import Worker

SESSION = SessionContext(b"shared", "session", ApplicationContext("app"))


class StoppedError(BaseException):
    """As a run loop raises it in a task that was told to stop."""


@pytest.fixture
def arguments() -> list[str]:
    """Of the component: how it behaves when it enters."""
    return ["service.wasm", "serve"]


@pytest.fixture
def worker(tmp_path: Path, arguments: list[str]) -> Iterator[Worker]:
    """One that has entered a session."""
    compiled = tmp_path / "compiled"
    assert compile_component(binary(CONDUCT), compiled, fuel=False) == ""
    handler = signal.getsignal(signal.SIGURG)
    worker = Worker(str(compiled), arguments, [], fuel=0, memory=0)
    worker.on_session_enter(SESSION)
    yield worker
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGURG, handler)


def invoke(worker: Worker, data: bytes) -> bytes | None:
    return worker.on_task_invoke(TaskContext("1", "session", data))


def strike_soon() -> None:
    """Interrupt the main thread, as the attendant of a run loop does."""
    main = threading.main_thread().ident or 0
    threading.Timer(0.05, signal.pthread_kill, (main, signal.SIGURG)).start()


def test_a_fresh_instance_serves_after_a_trap(worker: Worker) -> None:
    assert [invoke(worker, b"count") for _ in range(2)] == [b"1", b"2"]
    with pytest.raises(TaskFailure, match="unreachable") as caught:
        invoke(worker, b"trap")
    assert "backtrace" in caught.value.traceback
    assert [invoke(worker, data) for data in (b"count", b"common")] == [b"1", b"shared"]


def test_an_error_keeps_the_instance(worker: Worker) -> None:
    invoke(worker, b"count")
    with pytest.raises(TaskFailure, match="no luck"):
        invoke(worker, b"fail no luck")
    assert invoke(worker, b"count") == b"3"


def test_the_process_ends_when_a_fresh_instance_can_not_enter(worker: Worker, arguments: list[str]) -> None:
    with pytest.raises(TaskFailure):
        invoke(worker, b"trap")
    arguments[1] = "refuse"
    with pytest.raises(SystemExit, match="could not enter the session: last words"):
        invoke(worker, b"count")


def test_a_session_is_left_only_by_who_entered_it(worker: Worker, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(TaskFailure):
        invoke(worker, b"trap")
    worker.on_session_leave()
    assert capfd.readouterr().err == ""
    invoke(worker, b"count")
    worker.on_session_leave()
    assert capfd.readouterr().err == "left\n"


def test_a_call_that_never_ends_is_interrupted(worker: Worker) -> None:
    def stop(number: int, frame: object) -> None:
        raise StoppedError

    signal.signal(signal.SIGURG, stop)
    strike_soon()
    with pytest.raises(StoppedError):
        invoke(worker, b"hang")
    assert invoke(worker, b"count") == b"1"


def test_a_signal_for_the_task_before_does_not_interrupt_the_next(worker: Worker) -> None:
    heard: list[int] = []
    signal.signal(signal.SIGURG, lambda number, frame: heard.append(number))
    for number in range(1, 200):
        signal.raise_signal(signal.SIGURG)  # the task before had just ended
        assert invoke(worker, b"echo %d" % number) == b"%d" % number
    assert len(heard) == 199
