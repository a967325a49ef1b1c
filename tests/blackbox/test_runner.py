"""The Runner against an embedded cluster: functions, classes and objects of this process as services."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed, wait
from functools import partial
from pathlib import Path

import pytest

import flame
from flame.local import Cluster
from flame.runner import ObjectFuture, Runner, SessionContext, StateLostError
from runner_samples import (
    Counter,
    Journal,
    RefusedError,
    Unloadable,
    add,
    add_later,
    be_cancelled,
    deep,
    end_the_program,
    fail_at_length,
    fail_strangely,
    fail_with_a_class_of_here,
    give_a_lock,
    give_bytes,
    nested_sum,
    refuse,
    total,
    wait_for,
)

SECONDS = 30.0


@pytest.fixture(scope="module")
def connection() -> Iterator[flame.Connection]:
    with Cluster(executors=4) as cluster, flame.connect(cluster.endpoint) as connection:
        yield connection


@pytest.fixture
def runner(connection: flame.Connection, request: pytest.FixtureRequest) -> Iterator[Runner]:
    with Runner(request.node.originalname.replace("_", "-"), connection=connection) as runner:
        yield runner


# --- functions -------------------------------------------------------------------------------------------------------


def test_a_function_is_called_there(runner: Runner) -> None:
    service = runner.service(add)
    future = service(1, b=2)
    assert isinstance(future, ObjectFuture)
    assert future.get(SECONDS) == 3
    assert runner.get([service(n, n) for n in range(100)], SECONDS) == [2 * n for n in range(100)]
    assert list(service.map(range(3), range(3))) == [0, 2, 4]


def test_a_lambda_and_what_it_refers_to_travel(runner: Runner) -> None:
    offset = 10
    assert runner.service(lambda value: value + offset)(1).get(SECONDS) == 11


def test_coroutines_are_awaited_there(runner: Runner) -> None:
    assert runner.service(add_later)(1, 2).get(SECONDS) == 3


def test_futures_are_futures_of_concurrent_futures_and_of_asyncio(runner: Runner) -> None:
    service = runner.service(add)
    futures = [service(n) for n in range(5)]
    done, rest = wait(futures, SECONDS)
    assert done == set(futures)
    assert not rest
    assert sorted(future.result() for future in as_completed(futures, SECONDS)) == list(range(5))
    assert {future.get() for future in runner.select(futures)} == set(range(5))

    async def both() -> list[int]:
        return await asyncio.gather(service(1), service(2))  # pyright: ignore[reportUnknownVariableType]

    assert asyncio.run(both()) == [1, 2]


# --- futures as arguments --------------------------------------------------------------------------------------------


def test_a_future_as_an_argument_becomes_its_value(runner: Runner) -> None:
    service = runner.service(add)
    first = service(1, 2)
    assert service(first, b=service(first, first)).get(SECONDS) == 9
    assert runner.service(total)([service(n) for n in range(10)]).get(SECONDS) == 45
    nested = {"list": [first], "tuple": (service(10),)}
    assert runner.service(deep)(nested).get(SECONDS) == 13


def test_nobody_waits_for_arguments_that_are_not_there_yet(runner: Runner, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    gate.touch()
    slow = runner.service(wait_for)(str(gate))
    service = runner.service(add)
    chained = service(slow, "!")  # far more calls than executors could wait in
    others = [service(slow, str(n)) for n in range(50)]
    assert service(1, 1).get(SECONDS) == 2
    assert not chained.done()
    gate.unlink()
    assert chained.get(SECONDS) == "done!"
    assert others[-1].get(SECONDS) == "done49"


def test_what_depends_on_a_failure_fails_with_it(runner: Runner) -> None:
    service = runner.service(add)
    failed = runner.service(refuse)(4)
    with pytest.raises(RefusedError) as caught:
        service(service(failed, 1), 2).get(SECONDS)
    assert caught.value.number == 4


def test_a_held_call_can_be_cancelled(runner: Runner, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    gate.touch()
    slow = runner.service(wait_for)(str(gate))
    held = runner.service(add)(slow, "!")
    assert held.cancel()
    with pytest.raises(flame.TaskCancelledError):
        held.get(SECONDS)
    assert held.cancelled()
    gate.unlink()
    assert slow.get(SECONDS) == "done"


def test_a_future_can_be_pickled_in_calls_only(runner: Runner) -> None:
    import pickle

    with pytest.raises(TypeError, match="argument of another call"):
        pickle.dumps(runner.service(add)(1))


# --- what goes wrong -------------------------------------------------------------------------------------------------


def test_the_exception_that_was_raised_there_is_raised_here(runner: Runner) -> None:
    future = runner.service(refuse)(7)
    with pytest.raises(RefusedError) as caught:
        future.get(SECONDS)
    assert caught.value.number == 7
    assert isinstance(caught.value.__cause__, flame.TaskFailedError)
    assert 'raise RefusedError("no", number)' in caught.value.__cause__.traceback
    assert "runpy.py" not in caught.value.__cause__.traceback
    assert isinstance(future.exception(), RefusedError)


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (fail_strangely, r"runner_samples.StrangeError: strange; runner_samples.StrangeError can't be pickled"),
        (end_the_program, r"SystemExit: that is all; SystemExit is not raised here, where it would end the caller"),
        (be_cancelled, r"asyncio.exceptions.CancelledError: CancelledError; .* is not raised here"),
        (partial(fail_at_length, 1_000_000), r"runner_samples.RefusedError: \('xxxx"),
        (
            fail_with_a_class_of_here,
            r"only_there.OnlyThereError: you can't have it; .* loaded here: ModuleNotFoundError",
        ),
    ],
)
def test_an_exception_that_can_not_be_had_here_is_described(runner: Runner, function: object, said: str) -> None:
    with pytest.raises(flame.TaskFailedError, match=said) as caught:
        runner.service(function)().get(SECONDS)
    assert "Traceback" in caught.value.traceback


def test_what_can_not_be_pickled_is_refused_where_it_is_used(runner: Runner) -> None:
    service = runner.service(add)
    with pytest.raises(flame.InvalidArgumentError, match="an argument can't be pickled: TypeError"):
        service(threading.Lock())
    lock = threading.Lock()
    with pytest.raises(flame.InvalidArgumentError, match="what is served can't be pickled"):
        runner.service(lambda: lock)
    with pytest.raises(flame.InvalidArgumentError, match="the result, a lock, can't be pickled"):
        runner.service(give_a_lock)().get(SECONDS)


def test_arguments_that_do_not_load_there_fail_their_call_only(runner: Runner) -> None:
    service = runner.service(add)
    with pytest.raises(ValueError, match="no number"):
        service(Unloadable()).get(SECONDS)
    assert service(1).get(SECONDS) == 1


def test_what_is_served_and_does_not_load_there_fails_each_call(runner: Runner) -> None:
    broken = Unloadable()
    service = runner.service(lambda: broken)
    for _ in range(2):
        with pytest.raises(flame.InvalidArgumentError, match="what this session serves can't be loaded"):
            service().get(SECONDS)


def test_results_and_arguments_over_the_limit_of_a_task(runner: Runner) -> None:
    service = runner.service(give_bytes)
    assert len(service(1 << 30).get(SECONDS)) == 1 << 30
    assert runner.service(len)(bytes(65 << 20)).get(SECONDS) == 65 << 20
    assert len(service(10 << 20).get(SECONDS)) == 10 << 20


def test_a_call_can_be_cancelled_and_limited_in_time(runner: Runner, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    gate.touch()
    service = runner.service(wait_for)
    running = service(str(gate))
    with pytest.raises(TimeoutError):
        running.get(0.01)
    assert running.cancel()
    with pytest.raises(flame.TaskCancelledError):
        running.get(SECONDS)
    with pytest.raises(flame.TaskFailedError, match="timed out after 100 ms"):
        service.options(run_timeout=0.1)(str(gate)).get(SECONDS)


# --- classes and objects ---------------------------------------------------------------------------------------------


def test_a_class_is_made_there_with_its_arguments(runner: Runner) -> None:
    service = runner.service(Counter, args=(5,))
    assert service.add(2).get(SECONDS) >= 7
    with pytest.raises(TypeError, match="called by its methods: add, die"):
        service(1)
    with pytest.raises(AttributeError, match="no method 'subtract'"):
        service.subtract(1)


def test_an_object_keeps_its_state_there(runner: Runner) -> None:
    counter = Counter(10)
    service = runner.service(counter)
    assert runner.get([service.add() for _ in range(5)], SECONDS) == [11, 12, 13, 14, 15]
    assert counter.value == 10
    with pytest.raises(ValueError, match="too late"):
        service.fail_after_adding().get(SECONDS)
    assert service.add(0).get(SECONDS) == 115


def test_each_of_several_instances_has_its_own_state(runner: Runner) -> None:
    service = runner.service(Counter, kwargs={"start": 100}, instances=2)
    assert service.instances == 2
    assert service.at(0).add(1).get(SECONDS) == 101
    assert service.at(0).add(1).get(SECONDS) == 102
    assert service.at(1).add(5).get(SECONDS) == 105
    assert service.keyed("someone").pid().get(SECONDS) == service.keyed("someone").pid().get(SECONDS)
    assert {service.pid().get(SECONDS) for _ in range(4)} == {service.at(n).pid().get(SECONDS) for n in (0, 1)}
    with pytest.raises(flame.InvalidArgumentError, match="instances 0 to 1, not 2"):
        service.at(2)


def test_a_call_that_ends_its_program_ends_itself_only(runner: Runner) -> None:
    counter = runner.service(Counter())
    with pytest.raises(flame.TaskFailedError, match="SystemExit: 3"):
        counter.leave().get(SECONDS)
    assert counter.add().get(SECONDS) == 11


def test_what_a_map_has_not_given_is_cancelled_with_it(runner: Runner, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    gate.touch()
    service = runner.service(lambda number, path: wait_for(path) if number else number, max_instances=1)
    results = service.map(range(3), [str(gate)] * 3)
    assert next(results) == 0
    results.close()  # type: ignore[attr-defined]
    (session_id,) = service.session_ids
    session = runner._application.connection.open_session(session_id)
    assert [list(session.watch_task(task.id))[-1].state.name for task in session.list_tasks()] == [
        "SUCCEED",
        "CANCELLED",
        "CANCELLED",
    ]


def test_the_time_of_a_map_is_that_of_all_its_calls(runner: Runner, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    gate.touch()
    with pytest.raises(flame.TimedOutError):
        list(runner.service(wait_for).map([str(gate)], timeout=0.2))


def test_a_lost_state_is_never_taken_for_a_new_one(runner: Runner) -> None:
    service = runner.service(Counter(), task_defaults=flame.TaskOptions(max_retries=0))
    assert service.add().get(SECONDS) == 1
    with pytest.raises(flame.FlameError):
        service.die().get(SECONDS)
    for _ in range(2):
        with pytest.raises(StateLostError, match=r"has ended, and the state with it"):
            service.add().get(SECONDS)


# --- sessions and applications ---------------------------------------------------------------------------------------


def test_leaving_the_block_while_calls_run_cleans_everything(connection: flame.Connection, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    gate.touch()
    with Runner("left-early", connection=connection) as runner:
        service = runner.service(wait_for)
        futures = [service(str(gate)) for _ in range(20)]
        while not Path(f"{gate}.runs").exists():
            pass
    for future in futures:
        with pytest.raises(flame.TaskCancelledError):
            future.get(SECONDS)
    assert connection.get_application("left-early") is None
    assert not connection.list_sessions(application="left-early")


def test_two_runners_of_one_name_share_the_application(connection: flame.Connection) -> None:
    with Runner("shared", connection=connection) as first:
        with pytest.raises(flame.AlreadyExistsError, match="exists already"):
            Runner("shared", fail_if_exists=True, connection=connection)
        served = first.service(add)
        assert served(1).get(SECONDS) == 1
        with Runner("shared", connection=connection) as second:
            assert second.service(add)(2).get(SECONDS) == 2
        assert served(3).get(SECONDS) == 3
    assert connection.get_application("shared") is None


def test_an_application_that_was_left_behind_gets_the_present_code(connection: flame.Connection) -> None:
    Runner("left-behind", connection=connection, environments={"WHICH": "old"})  # never closed
    with Runner("left-behind", connection=connection, environments={"WHICH": "new"}) as runner:
        assert runner.service(lambda: __import__("os").environ["WHICH"])().get(SECONDS) == "new"
    assert connection.get_application("left-behind") is None


def test_an_application_in_use_with_other_code_is_not_touched(connection: flame.Connection) -> None:
    with Runner("in-use", connection=connection) as runner:
        service = runner.service(add)
        with pytest.raises(flame.InvalidStateError, match="in use with other code"):
            Runner("in-use", connection=connection, environments={"OTHER": "1"})
        assert service(1).get(SECONDS) == 1


def test_a_session_can_be_chosen_and_shared(runner: Runner) -> None:
    counter = Counter(5)
    counter._session_context = SessionContext(session_id="the-counter")  # type: ignore[attr-defined]
    first, second = runner.service(counter), runner.service(counter)
    assert first.session_ids == second.session_ids == ["the-counter"]
    assert first.add().get(SECONDS) == 6
    assert second.add().get(SECONDS) == 7


def test_a_runner_inside_of_a_call_of_one(runner: Runner) -> None:
    service = runner.service(nested_sum)
    assert service(runner.name, [1, 2, 3]).get(SECONDS) == 9
    assert service("another-name", [1]).get(SECONDS) == 2


def test_a_service_with_a_state_gets_calls_in_the_order_they_were_made(runner: Runner, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    gate.touch()
    slow = runner.service(wait_for)(str(gate))
    journal = runner.service(Journal())
    journal.note("first")
    journal.note(slow)
    failed = journal.note(runner.service(refuse)(1))
    journal.note("third")
    everything = journal.all()
    assert not everything.done()
    gate.unlink()
    assert everything.get(SECONDS) == ["first", "done", "third"]
    assert isinstance(failed.exception(SECONDS), RefusedError)


def test_runners_of_one_name_that_come_and_go_together(connection: flame.Connection) -> None:
    def come_and_go(number: int) -> int:
        with Runner("contended", connection=connection) as runner:
            return runner.service(add)(number, 1).get(SECONDS)

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(come_and_go, range(12))) == list(range(1, 13))
    assert connection.get_application("contended") is None
