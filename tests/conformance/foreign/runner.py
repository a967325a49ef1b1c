"""The Runner of the foreign client."""

import os
import sys
import tempfile
import types
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import flamepy
from checks import raised, run_checks, unique
from flamepy.runner import Runner, SessionContext, get_data

# Its own build needs nothing from a registry.
PROJECT = """
[project]
name = "foreign-project"
version = "1.0"
requires-python = ">=3.10"
[build-system]
requires = ["uv_build>=0.5"]
build-backend = "uv_build"
"""


@contextmanager
def project(answer: str = "one") -> Iterator[str]:
    """Work in the folder of a project whose module says `answer`; a new name for a Runner."""
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        module = Path(folder, "src", "foreign_project", "__init__.py")
        module.parent.mkdir(parents=True)
        module.write_text(f"ANSWER = {answer!r}\n")
        Path(folder, "pyproject.toml").write_text(PROJECT)
        os.chdir(folder)
        try:
            yield unique("runner")
        finally:
            os.chdir(before)


def add(a: int, b: int = 0) -> int:
    return a + b


def answer_of_the_package() -> str:
    import foreign_project

    return foreign_project.ANSWER


def fail(text: str) -> None:
    raise ValueError(text)


class Counter:
    def __init__(self, value: int = 0) -> None:
        self.value = value

    def add(self, amount: int) -> int:
        self.value += amount
        return self.value

    def fail_after_adding(self) -> None:
        self.value += 100
        raise ValueError("too late")


def check_functions() -> None:
    with project() as name, Runner(name) as runner:
        service = runner.service(add)
        assert service(1, b=2).get() == 3
        assert runner.get([service(n, n) for n in range(10)]) == [2 * n for n in range(10)]
        assert sorted(future.get() for future in runner.select([service(n) for n in range(5)])) == list(range(5))
        futures = [service(n) for n in range(3)]
        runner.wait(futures)
        assert [flamepy.get_object(ref) for ref in runner.ref(futures)] == [0, 1, 2]


def check_code_of_the_package_is_there() -> None:
    with project("two") as name, Runner(name) as runner:
        assert runner.service(answer_of_the_package)().get() == "two"


def check_futures_and_references_as_arguments() -> None:
    with project() as name, Runner(name) as runner:
        service = runner.service(add)
        first = service(1, 2)
        assert service(first, b=first).get() == 6
        assert service(runner.put_object(40), 2).get() == 42


def check_classes() -> None:
    with project() as name, Runner(name) as runner:
        service = runner.service(Counter, autoscale=False, warmup=1)
        assert [service.add(1).get(), service.add(2).get()] == [1, 3]


def check_objects_keep_their_state() -> None:
    with project() as name, Runner(name) as runner:
        service = runner.service(Counter(10))
        assert service.add(1).get() == 11
        raised(service.fail_after_adding().get)
        assert service.add(1).get() == 12


def check_exceptions() -> None:
    with project() as name, Runner(name) as runner:
        error = raised(runner.service(fail)("what happened").get)
        assert "what happened" in error.message, error.message


def check_chosen_sessions() -> None:
    with project() as name, Runner(name) as runner:
        counter = Counter(5)
        counter._session_context = SessionContext(session_id=unique("chosen"))
        service = runner.service(counter)
        assert service.add(1).get() == 6
        assert flamepy.get_session(counter._session_context.session_id).application == name


def check_data_of_tasks() -> None:
    with project() as name, Runner(name) as runner:
        service = runner.service(add)
        assert service(1, 2).get() == 3
        (session,) = [one for one in flamepy.list_sessions() if one.application == name]
        (task,) = flamepy.open_session(session.id).list_tasks()
        call, result = get_data(task.input), get_data(task.output)
        assert (call["type"], list(call["args"]), result["result"]) == ("input", [1, 2], 3)


class OfAnotherPython:
    """Pickles as a code object that another Python compiled."""

    bytecode = {
        (3, 11): "970074010000000000000000640184007c004400ab00000000000000ab010000000000005300",  # by 3.12
    }.get(sys.version_info[:2], "9700740100000000000000000000640184007c004400a6000000ab000000000000000000a601000053")

    def __call__(self) -> None: ...

    def __reduce__(self) -> tuple:
        code = bytes.fromhex(self.bytecode)
        return types.CodeType, (0, 0, 0, 0, 3, 3, code, (None,), (), (), "f", "f", "f", 1, b"", b"", (), ())


def check_functions_of_another_python_are_refused() -> None:
    with project() as name, Runner(name) as runner:
        service = runner.service(add)
        assert service(1).get() == 1
        error = raised(service(OfAnotherPython()).get)
        assert "functions travel between equal ones" in str(error), error
        assert service(2).get() == 2
        held = Counter()
        held.function = OfAnotherPython()
        error = raised(runner.service(held).add(1).get)
        assert "functions travel between equal ones" in str(error), error


def check_nothing_is_left() -> None:
    with project() as name:
        with Runner(name) as runner:
            assert runner.service(add)(1).get() == 1
            assert flamepy.get_application(name) is not None
        assert flamepy.get_application(name) is None


if __name__ == "__main__":
    run_checks(dict(globals()))
