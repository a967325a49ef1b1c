"""Sessions and applications: refusals name the reason, endings lose nothing."""

from __future__ import annotations

import pytest

from engine_builder import Bench
from flame.engine import EngineSettings, views
from flame.engine import effects as fx
from flame.engine import events as ev
from flame.model.errors import (
    AlreadyExistsError,
    FlameError,
    InternalError,
    InvalidArgumentError,
    InvalidStateError,
    NotFoundError,
)
from flame.model.resources import Resources
from flame.model.specs import ApplicationSpec, SessionSpec
from flame.model.states import SessionState, Shim


def refusal(turn: fx.Turn) -> FlameError:
    """The error of the only reply."""
    (reply,) = turn.after
    assert isinstance(reply, fx.Reply)
    assert reply.error is not None
    assert turn.records == []
    return reply.error


def test_a_session_gets_the_default_resources() -> None:
    bench = Bench(EngineSettings(resreq=Resources(2, 7, 0)))
    turn = bench.turn(ev.CreateSession(2, "s", SessionSpec("app")))
    assert turn.after[0].value.resreq == Resources(2, 7, 0)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("session_id", "spec", "kind"),
    [
        ("s", SessionSpec("app"), AlreadyExistsError),
        ("t", SessionSpec("nobody"), NotFoundError),
        ("", SessionSpec("app"), InvalidArgumentError),
        ("x" * 513, SessionSpec("app"), InvalidArgumentError),
        ("t", SessionSpec("app", min_instances=2, max_instances=1), InvalidArgumentError),
        ("t", SessionSpec("app", resreq=Resources(-1, 0, 0)), InvalidArgumentError),
    ],
)
def test_bad_sessions_are_refused(session_id: str, spec: SessionSpec, kind: type[FlameError]) -> None:
    bench = Bench()
    bench.session("s")
    assert isinstance(refusal(bench.turn(ev.CreateSession(2, session_id, spec))), kind)


def test_opening_compares_what_a_client_asks_for() -> None:
    bench = Bench()
    bench.session("s", priority=3)
    assert bench.turn(ev.OpenSession(2, "s")).after[0].error is None  # type: ignore[attr-defined]
    error = refusal(bench.turn(ev.OpenSession(2, "s", SessionSpec("app", priority=4))))
    assert error.message == "session <s> spec mismatch: priority differs (expected 3, got 4)"
    assert isinstance(refusal(bench.turn(ev.OpenSession(2, "none"))), NotFoundError)
    bench.turn(ev.CloseSession(2, "s"))
    error = refusal(bench.turn(ev.OpenSession(2, "s")))
    assert (type(error), error.message) == (InvalidStateError, "session <s> is not open")


def test_closing_cancels_what_is_pending_and_stops_the_executors() -> None:
    bench = Bench()
    bench.node(cpu=1)
    bench.session()
    bench.submit(tasks=2)
    (channel,) = bench.started()
    bench.bound(channel)
    bench.complete(channel, 1)
    bench.complete(channel, 2)
    bench.submit(tasks=1)
    bench.complete(channel, 3)
    turn = bench.turn(ev.CloseSession(5, "s"))
    assert turn.now == [fx.StopExecutor("n1", channel, 5_000, "the session was closed")]
    assert views.session(bench.engine, "s").state is SessionState.CLOSED


def test_running_tasks_forbid_closing_unless_forced() -> None:
    bench = Bench()
    bench.node(cpu=1)
    bench.session()
    bench.submit(tasks=2)
    (channel,) = bench.started()
    bench.bound(channel)
    error = refusal(bench.turn(ev.CloseSession(5, "s")))
    assert (type(error), error.message) == (InternalError, "Cannot close session with running tasks")
    bench.turn(ev.CloseSession(5, "s", force=True))
    view = views.session(bench.engine, "s")
    assert (view.state, view.cancelled, view.running, view.pending) == (SessionState.CLOSED, 2, 0, 0)
    assert bench.released(channel).now == []


def test_a_closed_session_stays_readable_until_its_retention_ends() -> None:
    bench = Bench()
    bench.turn(ev.CreateSession(2, "s", SessionSpec("app", retention_s=10)))
    bench.turn(ev.CloseSession(5, "s"))
    bench.turn(ev.Tick(), after_ms=9_000)
    assert views.session(bench.engine, "s").state is SessionState.CLOSED
    turn = bench.turn(ev.Tick(), after_ms=2_000)
    assert [type(effect) for effect in turn.after] == [fx.Purge]
    with pytest.raises(NotFoundError):
        views.session(bench.engine, "s")
    assert "s" not in bench.replayed().sessions


def test_only_so_many_closed_sessions_are_kept() -> None:
    bench = Bench(EngineSettings(max_sessions=2))
    for name in ("a", "b", "c"):
        bench.session(name)
        bench.turn(ev.CloseSession(5, name))
    assert sorted(bench.engine.sessions) == ["b", "c"]


def test_open_sessions_are_not_deleted() -> None:
    bench = Bench()
    bench.session()
    assert refusal(bench.turn(ev.DeleteSession(5, "s"))).message == "Cannot delete open session"
    bench.turn(ev.CloseSession(5, "s"))
    bench.turn(ev.DeleteSession(5, "s"))
    assert bench.engine.sessions == {}


@pytest.mark.parametrize("name", ["", ".a", "-a", "a/b", "a..b", "a\\b", "ä", "a b", "x" * 254])
def test_application_names_are_safe_for_paths(name: str) -> None:
    bench = Bench()
    assert isinstance(refusal(bench.turn(ev.RegisterApplication(1, name, ApplicationSpec()))), InvalidArgumentError)


def test_programs_of_images_need_an_image() -> None:
    bench = Bench()
    turn = bench.turn(ev.RegisterApplication(1, "of-none", ApplicationSpec(shim=Shim.CONTAINER)))
    assert "there is none" in refusal(turn).message
    turn = bench.turn(ev.RegisterApplication(1, "of-one", ApplicationSpec(shim=Shim.CONTAINER, image="python:3.13")))
    assert any(isinstance(effect, fx.Reply) and effect.error is None for effect in turn.after)


def test_an_application_in_use_is_neither_updated_nor_unregistered() -> None:
    bench = Bench()
    bench.session()
    for event in (ev.UpdateApplication(1, "app", ApplicationSpec()), ev.UnregisterApplication(1, "app")):
        error = refusal(bench.turn(event))
        assert "open sessions in the application" in error.message
    bench.turn(ev.CloseSession(5, "s"))
    bench.turn(ev.UnregisterApplication(1, "app"))
    assert (bench.engine.applications, bench.engine.sessions) == ({}, {})
    assert isinstance(refusal(bench.turn(ev.UpdateApplication(1, "app", ApplicationSpec()))), NotFoundError)


def test_registering_twice_is_refused_except_for_unchanged_builtins() -> None:
    bench = Bench()
    assert isinstance(refusal(bench.turn(ev.RegisterApplication(1, "app", ApplicationSpec()))), AlreadyExistsError)
    spec = bench.engine.applications["app"].spec
    turn = bench.turn(ev.RegisterApplication(1, "app", spec, builtin=True))
    assert (turn.records, turn.after) == ([], [fx.Reply(1)])


def test_watchers_are_told_of_their_tasks_only() -> None:
    bench = Bench()
    bench.node(cpu=1)
    bench.session()
    bench.turn(ev.Watch("s", 2))
    bench.submit(tasks=2)
    (channel,) = bench.started()
    bench.bound(channel)
    assert bench.of(fx.TaskChanged) == []
    bench.complete(channel, 1)
    assert bench.of(fx.TaskChanged) == [fx.TaskChanged("s", [2])]
    bench.turn(ev.Unwatch("s", 2))
    bench.complete(channel, 2)
    assert bench.of(fx.TaskChanged) == []
