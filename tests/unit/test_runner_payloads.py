"""Calls, results and failures as bytes."""

from __future__ import annotations

import os
import pickle
import sys
import threading
import types
from pathlib import Path
from typing import Any

import pytest

import flame
from flame.model.errors import InvalidArgumentError, TaskFailedError
from flame.runner import payloads, runpy, versions
from flame.runner.failures import StateLostError, error_of, failure_of
from flame.runner.inspecting import ErrorType, RunnerError, get_data
from flame.runner.packing import project_folder, send
from flame.runner.payloads import Served
from flame.service.api import ApplicationContext, SessionContext, TaskContext, TaskFailure


def entered(body: Any, **served: Any) -> runpy.FlameRunpyService:
    """A service in a session that serves this."""
    service = runpy.FlameRunpyService()
    data = payloads.served(body, **served).encode()
    service.on_session_enter(SessionContext(data, "session", ApplicationContext("app")))
    return service


def answer(service: runpy.FlameRunpyService, data: bytes) -> Any:
    return pickle.loads(service.on_task_invoke(TaskContext("1", "session", data)))


def call(*args: Any, method: str | None = None, **kwargs: Any) -> bytes:
    data, needs = payloads.encode_call(method, args, kwargs)
    assert not needs
    return data


# --- calls -----------------------------------------------------------------------------------------------------------


def test_a_call_of_a_function() -> None:
    service = entered(flame.runner.RunnerContext(divmod))
    assert answer(service, call(7, 2)) == (3, 1)


def test_a_call_with_values_of_others() -> None:
    service = entered(flame.runner.RunnerContext(lambda *values: values))
    data = pickle.dumps((None, (payloads_value(1), [payloads_value(0)]), {}))
    whole = payloads.with_values(data, [pickle.dumps("first"), pickle.dumps("second")])
    assert answer(service, whole) == ("second", ["first"])


class payloads_value:  # noqa: N801 - reads as what it stands for
    """Pickles as a future in a call does."""

    def __init__(self, index: int) -> None:
        self.index = index

    def __reduce__(self) -> Any:
        return payloads._value, (self.index,)


def test_a_value_can_not_be_read_without_its_call() -> None:
    with pytest.raises(pickle.UnpicklingError, match="part of a call"):
        pickle.loads(pickle.dumps(payloads_value(0)))


@pytest.mark.parametrize("data", [b"", b"nonsense", b"FLR?more"])
def test_inputs_that_are_no_calls_fail_their_task(data: bytes) -> None:
    with pytest.raises(TaskFailure, match="no call of a Runner"):
        answer(entered(flame.runner.RunnerContext(len)), data)


def test_a_session_of_something_else_fails_each_task() -> None:
    for data in (None, b"", b"something else", b"\x80\x05N."):
        service = runpy.FlameRunpyService()
        service.on_session_enter(SessionContext(data, "session", ApplicationContext("flmrun")))
        with pytest.raises(TaskFailure, match="says nothing that a Runner could serve"):
            service.on_task_invoke(TaskContext("1", "session", call()))


@pytest.mark.parametrize(
    ("served", "said"),
    [
        (Served((3, 9), "0", b""), r"the client runs Python 3\.9, this executor .*python_version='3\.9'"),
        (Served(sys.version_info[:2], "0.1", b""), r"client has cloudpickle 0\.1, .*pip install cloudpickle=="),
    ],
)
def test_versions_must_be_equal(served: Served, said: str) -> None:
    with pytest.raises(InvalidArgumentError, match=said):
        versions.check_versions(served)


def test_libraries_must_be_of_the_same_series(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("some_library")
    monkeypatch.setitem(sys.modules, "some_library", module)
    for ours, theirs in (("2.1", "2.4.6"), ("0.3.1", "0.3.9"), ("dev", "dev")):
        module.__dict__["__version__"] = ours
        versions.check_libraries({"some_library": theirs, "unheard_of": "1"})
    for ours, theirs in (("1.26", "2.4.6"), ("0.3.1", "0.4.1")):
        module.__dict__["__version__"] = ours
        with pytest.raises(
            InvalidArgumentError, match=rf"client has some_library {theirs}, this executor has {ours}; "
        ):
            versions.check_libraries({"some_library": theirs})
    assert versions.libraries()["some_library"] == "0.3.1"
    assert "json" not in versions.libraries()


def test_a_function_that_uses_another_version_of_a_library_is_not_called() -> None:
    service = runpy.FlameRunpyService()
    data = payloads.served((None, ()), calls=True)._replace(libraries={"pytest": "1.0"}).encode()
    service.on_session_enter(SessionContext(data, "session", ApplicationContext("app")))
    with pytest.raises(TaskFailure, match=r"the client has pytest 1\.0, this executor has"):
        answer(service, call(payloads.dumps(len, "it"), [1]))


def test_a_state_is_known_by_its_name() -> None:
    service = entered(flame.runner.RunnerContext([]), stateful=True)
    unknown = bytes(payloads.STATE_ID)
    result = service.on_task_invoke(TaskContext("1", "s", payloads.STATE + unknown + call(1, method="append")))
    assert result[:4] == payloads.STATE
    state = result[4 : 4 + payloads.STATE_ID]
    again = service.on_task_invoke(TaskContext("2", "s", payloads.STATE + state + call(method="copy")))
    assert pickle.loads(payloads.bare(again)) == [1]
    with pytest.raises(TaskFailure, match="has ended, and the state with it"):
        service.on_task_invoke(TaskContext("3", "s", payloads.STATE + os.urandom(16) + call(method="copy")))


# --- failures --------------------------------------------------------------------------------------------------------


def told(error: Exception) -> TaskFailedError:
    """The failure as a client gets it."""
    try:
        raise error
    except Exception as raised:
        failure = failure_of(raised)
    made = TaskFailedError(failure.message)
    made.traceback, made.details = failure.traceback, failure.details
    return made


def test_an_exception_comes_back_as_it_was() -> None:
    failure = told(KeyError("a", 1))
    error = error_of(failure)
    assert type(error) is KeyError
    assert error.args == ("a", 1)
    assert error.__cause__ is failure
    assert "KeyError: ('a', 1)" in failure.traceback


def test_errors_of_our_own_keep_their_remedy() -> None:
    error = error_of(told(StateLostError("gone", remedy="begin anew")))
    assert type(error) is StateLostError
    assert error.remedy == "begin anew"


def test_an_exception_with_arguments_of_its_own_comes_back_without_what_can_not_travel() -> None:
    class RefusedError(OSError):
        def __init__(self, place: str, *, code: int) -> None:
            super().__init__(code, f"refused at {place}")
            self.place, self.lock = place, threading.Lock()

    made = RefusedError("home", code=7)
    made.add_note("by day")
    error: Any = error_of(told(made))
    assert type(error) is RefusedError
    assert (error.place, error.errno, str(error)) == ("home", 7, "[Errno 7] refused at home")
    assert (error.__notes__, hasattr(error, "lock")) == (["by day"], False)


def test_an_exception_that_can_not_travel_is_described() -> None:
    class HoldingError(Exception):
        def __init__(self) -> None:
            super().__init__("held", threading.Lock())

        def __str__(self) -> str:
            return "held"

    error = error_of(told(HoldingError()))
    assert isinstance(error, TaskFailedError)
    assert error.message.endswith("HoldingError: held")
    assert "can't be pickled" in error.remedy


def test_a_generator_is_no_result() -> None:
    with pytest.raises(InvalidArgumentError, match="the result can't be pickled") as caught:
        payloads.dumps((value for value in ()), "the result")
    assert "make a list" in caught.value.remedy


def test_details_that_are_nonsense_change_nothing() -> None:
    failure = TaskFailedError("what happened")
    failure.details = b"nonsense"
    error = error_of(failure)
    assert isinstance(error, TaskFailedError)
    assert "what happened" in error.message
    failure.details = pickle.dumps(("x.Y", pickle.dumps("no exception")))
    assert "what happened" in str(error_of(failure))


# --- looking into tasks ----------------------------------------------------------------------------------------------


def test_data_of_a_call_and_a_result() -> None:
    assert get_data(call(1, [2], method="go", key=3)) == {
        "type": "input",
        "method": "go",
        "args": (1, [2]),
        "kwargs": {"key": 3},
        "metadata": {},
    }
    assert get_data(pickle.dumps({"a": 1})) == {"type": "output", "result": {"a": 1}, "metadata": {}}


@pytest.mark.parametrize(("data", "kind"), [(b"", "empty"), (b"nonsense", "bytes"), (b"\x80\x05nonsense", "pickle")])
def test_data_that_says_nothing(data: bytes, kind: str) -> None:
    with pytest.raises(RunnerError, match=r"^\[decode_error\] ") as caught:
        get_data(data)
    assert (caught.value.error_type, caught.value.data_type) == (ErrorType.DECODE_ERROR, kind)


# --- packages --------------------------------------------------------------------------------------------------------


def test_what_is_packed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert project_folder(None) is None
    assert project_folder(tmp_path) == tmp_path
    (tmp_path / "setup.py").touch()
    assert project_folder(None) == tmp_path


def test_packages_are_named_by_their_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from flame.config import load_context

    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("FLAME_CONFIG", "")
    monkeypatch.setenv("HOME", str(tmp_path))
    folder = tmp_path / "project"
    (folder / "own-env").mkdir(parents=True)
    (folder / "own-env" / "pyvenv.cfg").touch()
    (folder / "own-env" / "python").symlink_to("/usr/bin/python3")
    (folder / "module.py").write_text("one = 1")

    def sent(*dependencies: str) -> str:
        return send(folder, dependencies, load_context(), local=True)

    first = sent()
    assert first.startswith((tmp_path / "state" / "flame" / "packages").as_uri())
    assert sent() == first
    with_dependencies = sent("numpy")
    assert with_dependencies != first
    (folder / "module.py").write_text("one = 2")
    assert sent() != first
    assert len(list((tmp_path / "state").rglob("*.tar.gz"))) == 3
    (folder / "requirements.txt").touch()
    with pytest.raises(InvalidArgumentError, match="says itself what it depends on"):
        sent("numpy")
