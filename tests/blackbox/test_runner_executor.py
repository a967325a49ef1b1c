"""The plain ways in: Executor, remote functions, joblib, asyncio, a progress bar."""

from __future__ import annotations

import asyncio
import io
import itertools
import operator
import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from concurrent.futures import CancelledError, wait
from pathlib import Path
from typing import Any

import pytest

import flame
from flame.local import Cluster
from flame.runner.bars import PlainBar
from flame.runner.kept import KeptExecutors
from runner_samples import (
    RefusedError,
    add,
    die_for_good,
    die_with_an_executor,
    nested_await,
    nested_class,
    nested_exit,
    nested_gpu,
    nested_map,
    nested_object,
    nested_wait,
    nested_waits_deep,
    pid_of,
    refuse,
    remember,
    remembered,
    wait_for,
)

SECONDS = 30.0


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with Cluster(executors=3) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def connection(cluster: Cluster) -> Iterator[flame.Connection]:
    with flame.connect(cluster.endpoint) as connection:
        yield connection


@pytest.fixture
def executor(connection: flame.Connection) -> Iterator[flame.Executor]:
    with flame.Executor(connection=connection) as executor:
        yield executor


# --- Executor --------------------------------------------------------------------------------------------------------


def test_submit_calls_a_function_there(executor: flame.Executor) -> None:
    assert executor.submit(operator.add, 1, 2).result(SECONDS) == 3
    assert executor.submit(add, 1, b=2).result(SECONDS) == 3
    assert executor.submit(lambda value: value * 2, 4).result(SECONDS) == 8
    assert executor.submit(pid_of).result(SECONDS) != os.getpid()


def test_what_was_submitted_is_the_function_as_it_was_then(executor: flame.Executor) -> None:
    futures = []
    for offset in range(3):

        def function(value: int, offset: int = offset) -> int:
            return value + offset

        futures.append(executor.submit(function, 10))
    assert [future.result(SECONDS) for future in futures] == [10, 11, 12]


def test_map_gives_results_in_order(executor: flame.Executor) -> None:
    assert list(executor.map(add, range(1000), range(1000))) == [2 * n for n in range(1000)]
    assert list(executor.map(add, range(1000), range(1000), chunksize=64)) == [2 * n for n in range(1000)]
    assert list(itertools.islice(executor.map(add, itertools.count(), buffersize=100), 5)) == [0, 1, 2, 3, 4]
    with pytest.raises(ValueError, match="chunksize"):
        executor.map(add, [1], chunksize=0)


def test_map_raises_what_a_call_raised(executor: flame.Executor) -> None:
    results = executor.map(refuse, [1, 2], chunksize=1)
    with pytest.raises(RefusedError) as caught:
        next(results)
    assert caught.value.number == 1
    with pytest.raises(RefusedError):
        list(executor.map(refuse, range(10), chunksize=4))


def test_after_shutdown_nothing_is_taken(connection: flame.Connection) -> None:
    executor = flame.Executor(connection=connection)
    future = executor.submit(add, 1)
    executor.shutdown()
    assert future.result(0) == 1
    with pytest.raises(RuntimeError, match="after shutdown"):
        executor.submit(add, 1)
    with pytest.raises(RuntimeError, match="after shutdown"):
        executor.map(add, [1])
    assert connection.get_application(executor.session_id.rpartition("-")[0]) is None


def test_shutdown_cancels_what_has_not_begun_if_asked(connection: flame.Connection, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    gate.touch()
    executor = flame.Executor(1, connection=connection)
    running = executor.submit(wait_for, str(gate))
    waiting = [executor.submit(add, n) for n in range(600)]
    dependent = executor.submit(add, running, "!")
    while not Path(f"{gate}.runs").exists():
        pass
    executor.shutdown(wait=False, cancel_futures=True)
    for future in (*waiting, dependent):
        with pytest.raises(CancelledError):
            future.result(SECONDS)
    assert not running.done()
    gate.unlink()
    assert running.result(SECONDS) == "done"


def test_shutdown_cancels_also_what_was_submitted_just_now(connection: flame.Connection, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    gate.touch()
    executor = flame.Executor(1, connection=connection)
    running = executor.submit(wait_for, str(gate))
    while not Path(f"{gate}.runs").exists():
        pass
    waiting = [executor.submit(add, n) for n in range(5000)]
    executor.shutdown(wait=False, cancel_futures=True)
    for future in waiting:
        with pytest.raises(CancelledError):
            future.result(SECONDS)
    gate.unlink()
    assert running.result(SECONDS) == "done"


def test_the_initializer_runs_once_per_instance(connection: flame.Connection) -> None:
    with flame.Executor(1, remember, ("this",), connection=connection) as executor:
        assert [executor.submit(remembered).result(SECONDS) for _ in range(3)] == [["this"]] * 3
    with flame.Executor(1, refuse, (5,), connection=connection) as executor:
        for _ in range(2):
            with pytest.raises(RefusedError):
                executor.submit(add, 1).result(SECONDS)


def test_futures_are_arguments_too(executor: flame.Executor) -> None:
    first = executor.submit(add, 1, 2)
    assert executor.submit(sum, [first, first, 4]).result(SECONDS) == 10
    with pytest.raises(flame.InvalidArgumentError, match="can't be futures"):
        list(executor.map(add, [first]))


def test_run_in_executor_of_asyncio(executor: flame.Executor) -> None:
    async def main() -> list[Any]:
        loop = asyncio.get_running_loop()
        results = [await loop.run_in_executor(executor, add, 1, 2)]
        results += await asyncio.gather(*(loop.run_in_executor(executor, add, n) for n in range(3)))
        with pytest.raises(RefusedError):
            await loop.run_in_executor(executor, refuse, 1)
        return results

    assert asyncio.run(main()) == [3, 0, 1, 2]


def test_an_executor_inside_of_its_calls(executor: flame.Executor) -> None:
    assert executor.submit(nested_map, 5).result(SECONDS) == [1, 2, 3, 4, 5]


def test_calls_that_wait_for_calls_end_when_the_cluster_is_full(executor: flame.Executor) -> None:
    outer = [executor.submit(nested_map, 3) for _ in range(3)]  # as many as there are executors
    wait(outer, SECONDS)
    assert [future.result(SECONDS) for future in outer] == [[1, 2, 3]] * 3


@pytest.mark.parametrize("function", [nested_wait, nested_await])
def test_however_they_wait(executor: flame.Executor, function: Any) -> None:
    outer = [executor.submit(function, 3) for _ in range(3)]
    for future in outer:
        assert sorted(future.result(SECONDS))[:3] == [1, 2, 2 if function is nested_await else 3]


def test_a_nested_call_that_ends_its_program_is_no_end_of_who_waits(executor: flame.Executor, tmp_path: Path) -> None:
    for future in [executor.submit(nested_exit, str(tmp_path), 3) for _ in range(3)]:
        assert "SystemExit: that is all" in future.result(2 * SECONDS)


def test_what_asks_for_a_gpu_is_not_run_by_who_waits(executor: flame.Executor) -> None:
    assert "no room for the instance" in executor.submit(nested_gpu, "0.5").result(SECONDS)


def test_calls_that_wait_several_levels_deep(executor: flame.Executor) -> None:
    assert [future.result(SECONDS) for future in [executor.submit(nested_waits_deep, 4) for _ in range(2)]] == [4, 4]


def test_classes_are_served_by_who_waits_when_the_cluster_is_full(executor: flame.Executor, tmp_path: Path) -> None:
    outer = [executor.submit(nested_class, f"nested-class-{number}", str(tmp_path), 3) for number in range(3)]
    wait(outer, 2 * SECONDS)
    for future in outer:
        first, second = future.result(SECONDS)  # of one instance or of two
        assert first == 101
        assert second in (101, 102)


def test_an_object_that_gets_no_room_moves_to_who_waits(executor: flame.Executor, tmp_path: Path) -> None:
    alone, crowd = tmp_path / "alone", tmp_path / "crowd"
    alone.mkdir()
    crowd.mkdir()
    assert executor.submit(nested_object, "nested-object", "", str(alone), 1).result(SECONDS) == [101, 102]
    outer = [executor.submit(nested_object, f"nested-object-{number}", "1", str(crowd), 3) for number in range(3)]
    assert [future.result(2 * SECONDS) for future in outer] == [[101, 102]] * 3


def test_what_a_killed_instance_opened_is_closed(
    executor: flame.Executor, connection: flame.Connection, tmp_path: Path
) -> None:
    file = tmp_path / "session"
    second = executor.submit(die_with_an_executor, str(file)).result(SECONDS)
    assert second != file.read_text()
    with pytest.raises(flame.NotFoundError):  # it went with its application
        connection.get_session(file.read_text())


def test_closing_a_session_closes_what_its_instances_opened(connection: flame.Connection, tmp_path: Path) -> None:
    file = tmp_path / "session"
    with flame.Executor(connection=connection) as executor:
        future = executor.submit(die_for_good, str(file))
        with pytest.raises(flame.FlameError):
            future.result(SECONDS)
        assert connection.get_session(file.read_text()).state == flame.SessionState.OPEN
    with pytest.raises(flame.NotFoundError):
        connection.get_session(file.read_text())


# --- functions -------------------------------------------------------------------------------------------------------


def script(cluster: Cluster, folder: Path, text: str) -> str:
    """What a program prints that is no module of a project."""
    file = folder / "program.py"
    file.write_text(textwrap.dedent(text))
    environment = {**os.environ, "FLAME_ENDPOINT": cluster.endpoint}
    done = subprocess.run(
        [sys.executable, "-W", "error", str(file)],
        env=environment,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return done.stdout


def test_a_function_is_called_here_and_there(cluster: Cluster, connection: flame.Connection, tmp_path: Path) -> None:
    printed = script(
        cluster,
        tmp_path,
        """
        import asyncio, os
        import flame

        @flame.function
        def where(value=0):
            "Where it runs."
            return os.getpid() == HOME, value

        @flame.function(max_retries=1, max_instances=1, run_timeout=20)
        def factorial(number):
            return 1 if number < 2 else number * factorial(number - 1)

        HOME = os.getpid()
        print(where(1), where.remote(2).get(), where.__name__, where.__doc__)
        print(list(where.map(range(3))))
        print(asyncio.run(where.aio(4)))
        print(factorial.options(priority=3).remote(factorial.remote(3)).get())
        """,
    )
    assert printed.splitlines() == [
        "(True, 1) (False, 2) where Where it runs.",
        "[(False, 0), (False, 1), (False, 2)]",
        "(False, 4)",
        "720",
    ]
    assert not [one.name for one in connection.list_applications() if one.name.startswith("functions-")]


def test_what_a_program_leaves_open_is_closed_at_its_end(
    cluster: Cluster, connection: flame.Connection, tmp_path: Path
) -> None:
    printed = script(
        cluster,
        tmp_path,
        """
        import flame, threading

        def hang():
            threading.Event().wait()

        function = flame.function(hang)
        executor, runner = flame.Executor(), flame.Runner("left-open")
        futures = [function.remote(), executor.submit(hang), runner.service(hang)()]
        print(*(future.session_id for future in futures))
        """,
    )
    for session_id in printed.split():
        with pytest.raises(flame.NotFoundError):  # it went with its application
            connection.get_session(session_id)


def test_what_nobody_can_use_any_more_is_closed_after_its_calls(
    cluster: Cluster, connection: flame.Connection, tmp_path: Path
) -> None:
    printed = script(
        cluster,
        tmp_path,
        f"""
        import flame
        from pathlib import Path

        def wait_for(path):
            while Path(path).exists():
                pass
            return path

        gate = {str(tmp_path / "gate")!r}
        Path(gate).touch()
        future = flame.Executor().submit(wait_for, gate)
        function = flame.function(wait_for)
        call = function.remote(gate)
        function = flame.function(len)
        with flame.connect() as connection:
            sessions = [connection.open_session(one.session_id) for one in (future, call)]
            print([session.state.name for session in sessions])
            Path(gate).unlink()
            print(future.result(30) == call.result(30) == gate)
            for session in sessions:
                try:
                    print([update.state.name for update in session.watch()][-1])
                except flame.NotFoundError:
                    print("CLOSED")
        """,
    )
    assert printed.splitlines() == ["['OPEN', 'OPEN']", "True", "CLOSED", "CLOSED"]


def test_a_traceback_names_files_and_shows_lines(cluster: Cluster, tmp_path: Path) -> None:
    printed = script(
        cluster,
        tmp_path,
        """
        import flame

        def half(value):
            return value / 0  # wrong

        with flame.Executor() as executor:
            print(executor.submit(half, 1).exception().__cause__.traceback)
            print(executor.submit(lambda: half(2)).exception().__cause__.traceback)
        """,
    )
    where = f'File "{tmp_path}/program.py", line 5, in half\n    return value / 0  # wrong\n'
    assert printed.count(where) == 2


def test_a_bar_over_results_and_over_nonsense(executor: flame.Executor) -> None:
    stream = io.StringIO()
    assert list(flame.progress(executor.map(add, range(3)), total=3, bar=PlainBar(3, stream=stream))) == [0, 1, 2]
    assert stream.getvalue() == f"{'#' * 30} 3/3\n"
    futures = [executor.submit(add, n) for n in range(2)]
    assert len(list(flame.progress(futures, total=7, bar=PlainBar(7, stream=stream)))) == 2
    with pytest.raises(flame.InvalidArgumentError, match="futures, or results and their number"):
        flame.progress(executor.map(add, range(3)))  # type: ignore[type-var]


def test_methods_and_endless_maps_of_a_function(cluster: Cluster, tmp_path: Path) -> None:
    printed = script(
        cluster,
        tmp_path,
        """
        import itertools
        import flame

        class Scale:
            def __init__(self, factor):
                self.factor = factor

            @flame.function
            def times(self, value, *, offset=0):
                return self.factor * value + offset

            @staticmethod
            @flame.function
            def double(value):
                return 2 * value

            @classmethod
            @flame.function
            def name(cls):
                return cls.__name__

        taken = []

        def endless():
            for number in itertools.count():
                taken.append(number)
                yield number

        scale = Scale(3)
        print(scale.times(4, offset=1), scale.times.remote(4, offset=1).get(), Scale.times.remote(scale, 5).get())
        print(list(scale.times.map(range(3))), scale.times.options(max_retries=1).remote(1).get())
        print(scale.double.remote(4).get(), Scale.double.remote(5).get(), Scale.name.remote().get())
        results = scale.times.map(endless())
        print(list(itertools.islice(results, 5)), len(taken))
        results.close()
        """,
    )
    assert printed.splitlines() == ["13 13 15", "[0, 3, 6] 3", "8 10 Scale", "[0, 3, 6, 9, 12] 16388"]


def test_a_progress_bar_that_needs_nothing(executor: flame.Executor) -> None:
    stream = io.StringIO()
    futures = [executor.submit(add, n) for n in range(4)]
    bar = PlainBar(4, "adding", stream)
    assert {future.result() for future in flame.progress(futures, bar=bar)} == {0, 1, 2, 3}
    assert stream.getvalue() == f"adding: {'#' * 30} 4/4\n"


def test_the_progress_bar_of_tqdm(executor: flame.Executor, capsys: pytest.CaptureFixture[str]) -> None:
    assert len(list(flame.progress([executor.submit(add, n) for n in range(4)], "adding"))) == 4
    assert "adding: 100%" in capsys.readouterr().err


def test_joblib(cluster: Cluster, tmp_path: Path) -> None:
    printed = script(
        cluster,
        tmp_path,
        """
        import os
        import flame, joblib

        flame.register_joblib()

        def square(value):
            return value * value, os.getpid()

        def refuse(value):
            raise KeyError(value)

        with joblib.parallel_backend("flame", n_jobs=2):
            results = joblib.Parallel()(joblib.delayed(square)(n) for n in range(50))
            print([value for value, _ in results] == [n * n for n in range(50)])
            print(os.getpid() in {pid for _, pid in results})
            try:
                joblib.Parallel()(joblib.delayed(refuse)(n) for n in range(3))
            except KeyError as error:
                print("KeyError", error.args[0] in range(3))
        print(joblib.parallel.BACKENDS["flame"]().effective_n_jobs(-1))
        """,
    )
    assert printed.splitlines() == ["True", "False", "KeyError True", "3"]


def test_the_next_parallel_of_joblib_has_the_same_instances(cluster: Cluster, tmp_path: Path) -> None:
    printed = script(
        cluster,
        tmp_path,
        """
        import os
        import flame, joblib

        flame.register_joblib()
        connection = flame.connect()

        def pids(n_jobs, **arguments):
            with joblib.parallel_backend("flame", n_jobs=n_jobs, **arguments):
                return set(joblib.Parallel()(joblib.delayed(os.getpid)() for _ in range(4)))

        def refuse():
            raise KeyError

        def sessions():
            return connection.list_sessions([flame.SessionState.OPEN])

        first = pids(2)
        print(len(sessions()), pids(2) <= first | pids(2), len(sessions()))
        pids(2, environments={"A": "B"})
        pids(3)
        print(len(sessions()))
        for session in sessions():
            session.close(force=True)  # somebody else does
        print(pids(2).isdisjoint(first), len(sessions()))
        try:
            with joblib.parallel_backend("flame", n_jobs=2):
                joblib.Parallel()(joblib.delayed(refuse)() for _ in range(2))
        except KeyError:
            print(len(sessions()))  # what still runs there is of no use to the next one
        print(len(pids(2)) > 0, len(sessions()))
        """,
    )
    assert printed.splitlines() == ["1 True 1", "3", "True 1", "0", "True 1"]


def test_an_executor_that_nobody_takes_again_is_closed(connection: flame.Connection) -> None:
    kept = KeptExecutors(keep=0.01)
    executor = kept.take(1, {"connection": connection})
    assert executor.submit(add, 1, 2).result(SECONDS) == 3
    updates = connection.open_session(executor.session_id).watch()
    kept.give_back(executor)
    assert any(update.state is flame.SessionState.CLOSED for update in updates)
    another = kept.take(1, {"connection": connection})
    assert another is not executor
    kept.drop(another)
