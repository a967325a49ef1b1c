"""Tenants: the tree and its rules, who may open sessions where, and how many tasks there may be."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine_builder import GIB, Bench
from flame.engine import Engine, EngineSettings, cluster_views, views
from flame.engine import effects as fx
from flame.engine import events as ev
from flame.engine.tenant_rules import unkept
from flame.engine.validate import validate
from flame.model.errors import (
    AlreadyExistsError,
    ExhaustedError,
    FlameError,
    InvalidArgumentError,
    InvalidStateError,
    NotFoundError,
    ReadOnlyError,
)
from flame.model.resources import Resources
from flame.model.specs import SessionSpec, TaskOptions
from flame.model.tenants import MAX_WEIGHT, Quota, TenantSpec


def tenant(bench: Bench, name: str, *, update: bool = False, **spec: Any) -> cluster_views.TenantView:
    """Create or update a tenant, which must work."""
    turn = bench.turn(ev.SetTenant(7, name, TenantSpec(**spec), create=not update))
    (reply,) = [effect for effect in turn.after if isinstance(effect, fx.Reply)]
    assert reply.error is None, reply.error
    assert isinstance(reply.value, cluster_views.TenantView)
    return reply.value


def refused(bench: Bench, event: ev.Event) -> FlameError:
    """The error of this event; nothing else came of it."""
    turn = bench.turn(event)
    (reply,) = turn.after
    assert isinstance(reply, fx.Reply | fx.Accepted)
    assert reply.error is not None
    assert turn.records == turn.now == []
    return reply.error


def counts(bench: Bench, *names: str) -> list[tuple[int, int]]:
    """Open sessions and tasks that have not ended, of each."""
    return [(bench.engine.tenants[name].sessions, bench.engine.tenants[name].pending) for name in names]


def a_tree(bench: Bench) -> None:
    """default; research over vision and speech; web."""
    tenant(bench, "research")
    tenant(bench, "vision", parent="research")
    tenant(bench, "speech", parent="research")
    tenant(bench, "web")


# --- the tree --------------------------------------------------------------------------------------------------------


def test_the_default_tenant_is_always_there() -> None:
    bench = Bench()
    (view,) = cluster_views.tenants(bench.engine)
    assert (view.name, view.spec, view.created) == ("default", TenantSpec(), 0)
    bench.session()
    assert counts(bench, "default") == [(1, 0)]


def test_a_new_tenant_is_durable_before_its_reply() -> None:
    bench = Bench()
    spec = TenantSpec(weight=2.0, quota=Quota(cpu=4))
    turn = bench.turn(ev.SetTenant(7, "web", spec))
    assert [record.kind for record in turn.records] == [fx.RecordKind.TENANT]
    (reply,) = turn.after
    assert isinstance(reply, fx.Reply)
    assert (reply.value.name, reply.value.spec, reply.value.created) == ("web", spec, bench.now)
    assert bench.engine.scheduler.tree.groups["web"].weight == 2.0


def test_tenants_are_listed_below_their_parents() -> None:
    bench = Bench()
    a_tree(bench)
    assert [view.name for view in cluster_views.tenants(bench.engine)] == [
        "default",
        "research",
        "speech",
        "vision",
        "web",
    ]


def test_a_replayed_engine_has_the_same_tree() -> None:
    bench = Bench()
    a_tree(bench)
    bench.session(tenant="vision")
    bench.submit(tasks=3)
    tenant(bench, "web", update=True, parent="research", weight=3.0)
    bench.turn(ev.DeleteTenant(8, "speech"))
    twin = bench.replayed()
    twin.recovered(bench.now)
    validate(twin)
    assert {name: (one.spec, one.created, one.sessions, one.pending) for name, one in twin.tenants.items()} == {
        name: (one.spec, one.created, one.sessions, one.pending) for name, one in bench.engine.tenants.items()
    }
    assert [view.name for view in cluster_views.tenants(twin)] == ["default", "research", "vision", "web"]


def test_a_session_of_a_tenant_that_a_journal_does_not_know_is_the_default_ones() -> None:
    bench = Bench()
    tenant(bench, "web")
    bench.session(tenant="web")
    twin = Engine(EngineSettings(), lambda: "y")
    for record in bench.log:
        if record.kind != fx.RecordKind.TENANT:
            twin.replay(record)
    twin.recovered(bench.now)
    validate(twin)
    assert twin.tenants["default"].sessions == 1


def test_the_default_tenant_may_be_updated_and_not_deleted() -> None:
    bench = Bench()
    assert tenant(bench, "default", update=True, weight=0.5).spec.weight == 0.5
    assert isinstance(refused(bench, ev.DeleteTenant(8, "default")), InvalidArgumentError)


def test_a_deleted_tenant_is_answered_as_it_was_and_its_closed_sessions_stay() -> None:
    bench = Bench()
    tenant(bench, "web", weight=2.0)
    bench.session(tenant="web")
    assert isinstance(refused(bench, ev.DeleteTenant(8, "web")), InvalidStateError)
    bench.turn(ev.CloseSession(3, "s"))
    turn = bench.turn(ev.DeleteTenant(8, "web"))
    assert [record.kind for record in turn.records] == [fx.RecordKind.TENANT_GONE]
    assert turn.after[0].value.spec.weight == 2.0  # type: ignore[attr-defined]
    assert views.session(bench.engine, "s").spec.tenant == "web"
    assert isinstance(refused(bench, ev.DeleteTenant(8, "web")), NotFoundError)
    tenant(bench, "web")


@pytest.mark.parametrize(
    ("event", "kind", "words"),
    [
        (ev.SetTenant(7, "web", TenantSpec()), AlreadyExistsError, "web already exists"),
        (ev.SetTenant(7, "wab", TenantSpec(), create=False), NotFoundError, "did you mean web?"),
        (ev.SetTenant(7, "", TenantSpec()), InvalidArgumentError, "'' is empty"),
        (ev.SetTenant(7, "a" * 129, TenantSpec()), InvalidArgumentError, "longer than 128"),
        (ev.SetTenant(7, "a b", TenantSpec()), InvalidArgumentError, "holds ' '"),
        (ev.SetTenant(7, "-a", TenantSpec()), InvalidArgumentError, "begins with '-'"),
        (ev.SetTenant(7, "a/b", TenantSpec()), InvalidArgumentError, "holds '/'"),
        (ev.SetTenant(7, "ü", TenantSpec()), InvalidArgumentError, "holds 'ü'"),
        (ev.SetTenant(7, "x", TenantSpec(parent="rosearch")), NotFoundError, "did you mean research?"),
        (ev.SetTenant(7, "x", TenantSpec(parent="x")), NotFoundError, "<x> not found"),
        (ev.SetTenant(7, "x", TenantSpec(parent="default")), InvalidArgumentError, "default has no others below"),
        (ev.SetTenant(7, "web", TenantSpec(parent="web"), create=False), InvalidArgumentError, "web < web"),
        (
            ev.SetTenant(7, "research", TenantSpec(parent="vision"), create=False),
            InvalidArgumentError,
            "research < vision < research",
        ),
        (ev.SetTenant(7, "x", TenantSpec(weight=0.0)), InvalidArgumentError, "weight 0.0"),
        (ev.SetTenant(7, "x", TenantSpec(weight=-1.0)), InvalidArgumentError, "weight -1.0"),
        (ev.SetTenant(7, "x", TenantSpec(weight=MAX_WEIGHT * 2)), InvalidArgumentError, "weight 2000000.0"),
        (ev.SetTenant(7, "x", TenantSpec(weight=math.inf)), InvalidArgumentError, "weight inf"),
        (ev.SetTenant(7, "x", TenantSpec(weight=math.nan)), InvalidArgumentError, "weight nan"),
        (ev.SetTenant(7, "x", TenantSpec(guarantee=Resources(cpu=-1))), InvalidArgumentError, "guarantee cpu -1"),
        (ev.SetTenant(7, "x", TenantSpec(guarantee=Resources(0, 2**63))), InvalidArgumentError, "guarantee memory 92"),
        (ev.SetTenant(7, "x", TenantSpec(quota=Quota(gpu=-1))), InvalidArgumentError, "quota gpu -1"),
        (ev.SetTenant(7, "x", TenantSpec(quota=Quota(pending=2**63))), InvalidArgumentError, "quota pending 92"),
        (ev.SetTenant(7, "x", TenantSpec(quota=Quota(sessions=-5))), InvalidArgumentError, "quota sessions -5"),
        (
            ev.SetTenant(7, "x", TenantSpec(guarantee=Resources(4), quota=Quota(cpu=3))),
            InvalidArgumentError,
            "quota of 3 cpu of tenant x is below its guarantee of 4 cpu",
        ),
        (ev.SetTenant(7, "x", TenantSpec(description="d" * 5000)), InvalidArgumentError, "over 4096 characters"),
        (ev.DeleteTenant(7, "research"), InvalidStateError, "2 tenants below it: speech, vision"),
        (ev.DeleteTenant(7, "wab"), NotFoundError, "did you mean web?"),
    ],
)
def test_what_can_not_be_is_refused(event: ev.Event, kind: type[FlameError], words: str) -> None:
    bench = Bench()
    a_tree(bench)
    error = refused(bench, event)
    assert isinstance(error, kind)
    assert words in f"{error.message}; {error.remedy}"
    assert error.remedy


def test_a_tree_has_a_limit_of_levels_also_when_a_branch_is_moved() -> None:
    bench = Bench()
    for level in range(16):
        tenant(bench, f"t{level}", parent=f"t{level - 1}" if level else "")
    assert "17 levels" in str(refused(bench, ev.SetTenant(7, "deep", TenantSpec(parent="t15"))))
    tenant(bench, "top")
    tenant(bench, "middle", parent="top")
    assert "17 levels" in str(refused(bench, ev.SetTenant(7, "t0", TenantSpec(parent="top"), create=False)))


def test_a_parent_has_no_sessions_of_its_own() -> None:
    bench = Bench()
    tenant(bench, "web")
    bench.session(tenant="web")
    error = refused(bench, ev.SetTenant(7, "shop", TenantSpec(parent="web")))
    assert isinstance(error, InvalidStateError)
    assert "web has 1 open session of its own" in error.message
    bench.turn(ev.CloseSession(3, "s"))
    tenant(bench, "shop", parent="web")


def test_guarantees_have_to_fit_into_those_above() -> None:
    bench = Bench()
    tenant(bench, "research", guarantee=Resources(cpu=4), quota=Quota(memory=8 * GIB))
    tenant(bench, "vision", parent="research", guarantee=Resources(cpu=3, memory=6 * GIB))
    tenant(bench, "speech", parent="research")
    too_much = TenantSpec(parent="speech", guarantee=Resources(cpu=2))
    error = refused(bench, ev.SetTenant(7, "german", too_much))
    assert "the tenants below research are guaranteed 5 cpu together, it is guaranteed 4 cpu itself" in error.message
    error = refused(bench, ev.SetTenant(7, "german", TenantSpec(parent="speech", guarantee=Resources(0, 4 * GIB))))
    assert "guaranteed 10Gi memory together, its quota is 8Gi memory" in error.message
    error = refused(bench, ev.SetTenant(7, "research", TenantSpec(guarantee=Resources(cpu=2)), create=False))
    assert "guaranteed 3 cpu together, it is guaranteed 2 cpu itself" in error.message
    tenant(bench, "german", parent="speech", guarantee=Resources(cpu=1, gpu=1))


def test_a_read_only_journal_refuses_changes() -> None:
    bench = Bench()
    tenant(bench, "web")
    bench.turn(ev.JournalFailed("the disk is full"))
    for event in (
        ev.SetTenant(7, "x", TenantSpec()),
        ev.SetTenant(7, "web", TenantSpec(weight=2.0), create=False),
        ev.DeleteTenant(7, "web"),
    ):
        assert isinstance(refused(bench, event), ReadOnlyError)
    bench.turn(ev.JournalRecovered())
    tenant(bench, "x")


# --- those of the cluster's settings -------------------------------------------------------------------------------


def configured(name: str, **spec: Any) -> ev.SetTenant:
    return ev.SetTenant(0, name, TenantSpec(**spec), configured=True)


def test_a_configured_tenant_is_made_once_and_then_only_changed() -> None:
    bench = Bench()
    assert len(bench.turn(configured("web", weight=2.0)).records) == 1
    assert bench.turn(configured("web", weight=2.0)).records == []
    tenant(bench, "web", update=True, weight=5.0)
    assert len(bench.turn(configured("web", weight=2.0)).records) == 1
    assert bench.engine.tenants["web"].spec.weight == 2.0


def test_guarantees_of_configured_tenants_are_added_up_when_all_are_there() -> None:
    bench = Bench()
    bench.turn(configured("top", guarantee=Resources(cpu=10)))
    bench.turn(configured("leaf", parent="top", guarantee=Resources(cpu=10)))
    bench.turn(configured("top", guarantee=Resources(cpu=5)))
    specs = {name: one.spec for name, one in bench.engine.tenants.items()}
    assert [*unkept(specs)] == ["the tenants below top are guaranteed 10 cpu together, it is guaranteed 5 cpu itself"]
    bench.turn(configured("leaf", parent="top", guarantee=Resources(cpu=5)))
    assert [*unkept({name: one.spec for name, one in bench.engine.tenants.items()})] == []


def test_a_configured_tenant_with_a_wrong_value_is_refused() -> None:
    bench = Bench()
    assert "weight nan" in refused(bench, configured("web", weight=math.nan)).message


# --- sessions --------------------------------------------------------------------------------------------------------


def test_a_session_belongs_to_a_leaf_that_exists() -> None:
    bench = Bench()
    a_tree(bench)
    unknown = refused(bench, ev.CreateSession(3, "s", SessionSpec("app", tenant="visoin")))
    assert isinstance(unknown, NotFoundError)
    assert unknown.remedy == "did you mean vision?"
    inner = refused(bench, ev.OpenSession(3, "s", SessionSpec("app", tenant="research")))
    assert isinstance(inner, InvalidArgumentError)
    assert inner.remedy == "name one of speech, vision"
    bench.session(tenant="vision")
    assert counts(bench, "vision", "research", "default", "web") == [(1, 0), (1, 0), (0, 0), (0, 0)]


def test_the_quota_of_sessions_counts_those_of_the_whole_branch() -> None:
    bench = Bench()
    a_tree(bench)
    tenant(bench, "research", update=True, quota=Quota(sessions=2))
    bench.session("a", tenant="vision")
    bench.session("b", tenant="speech")
    error = refused(bench, ev.CreateSession(3, "c", SessionSpec("app", tenant="speech")))
    assert isinstance(error, ExhaustedError)
    assert error.retryable
    assert error.message == "tenant research has 2 open sessions, its quota is 2"
    assert isinstance(refused(bench, ev.OpenSession(3, "c", SessionSpec("app", tenant="vision"))), ExhaustedError)
    opened = bench.turn(ev.OpenSession(3, "a", SessionSpec("app", tenant="vision")))  # that is there counts already
    assert opened.after[0].error is None  # type: ignore[attr-defined]
    bench.turn(ev.CloseSession(3, "a"))
    bench.session("c", tenant="speech")


def test_a_quota_below_what_is_there_takes_nothing_away() -> None:
    bench = Bench()
    bench.session("a")
    bench.session("b")
    tenant(bench, "default", update=True, quota=Quota(sessions=1, pending=0))
    assert counts(bench, "default") == [(2, 0)]
    assert isinstance(refused(bench, ev.CreateSession(3, "c", SessionSpec("app"))), ExhaustedError)


# --- tasks -----------------------------------------------------------------------------------------------------------


def test_the_quota_of_tasks_counts_those_of_the_whole_branch() -> None:
    bench = Bench()
    a_tree(bench)
    tenant(bench, "research", update=True, quota=Quota(pending=5))
    bench.session("a", tenant="vision")
    bench.session("b", tenant="speech")
    bench.submit("a", 3)
    error = refused(bench, ev.Submitted(4, "b", "c", 1, 3, b"inputs"))
    assert isinstance(error, ExhaustedError)
    assert error.retryable
    assert (
        "tenant research has 3 tasks that have not ended, 3 more would be over its quota of 5 pending" in error.message
    )
    bench.submit("b", 2)
    repeated = bench.submit("a", 3, first_seq=1)
    assert repeated.after[0].error is None  # type: ignore[attr-defined]
    bench.turn(ev.CancelTasks(5, "a", [(1, 1)]))
    bench.submit("b", 1)
    assert counts(bench, "vision", "speech", "research") == [(1, 2), (1, 3), (2, 5)]


def test_more_tasks_at_once_than_the_quota_never_help() -> None:
    bench = Bench()
    tenant(bench, "default", update=True, quota=Quota(pending=5))
    bench.session()
    error = refused(bench, ev.Submitted(4, "s", "c", 1, 6, b"inputs"))
    assert not error.retryable
    assert "submit at most 5 at once" in error.remedy


def test_running_resting_and_retried_tasks_have_not_ended() -> None:
    bench = Bench()
    bench.node(cpu=2)
    bench.session()
    bench.submit(tasks=4, options=TaskOptions(max_retries=1, retry_delay_ms=60_000))
    first, second = bench.started()
    bench.bound(first, second)
    assert counts(bench, "default") == [(1, 4)]
    bench.fail(first, 1)
    assert counts(bench, "default") == [(1, 4)]
    bench.complete(second, 2)
    assert counts(bench, "default") == [(1, 3)]
    bench.released(first, crashed=True)
    assert counts(bench, "default") == [(1, 3)]
    bench.turn(ev.CloseSession(6, "s", force=True))
    assert counts(bench, "default") == [(0, 0)]


def test_a_branch_that_moves_takes_its_counts_along() -> None:
    bench = Bench()
    a_tree(bench)
    bench.session("a", tenant="vision")
    bench.session("b", tenant="speech")
    bench.submit("a", 3)
    bench.submit("b", 2)
    tenant(bench, "group")
    tenant(bench, "research", update=True, parent="group")
    assert counts(bench, "group", "research") == [(2, 5), (2, 5)]
    tenant(bench, "vision", update=True)
    assert counts(bench, "group", "research", "vision") == [(1, 2), (1, 2), (1, 3)]
    bench.submit("a", 1)
    bench.turn(ev.CancelTasks(5, "b", [(1, 2)]))
    assert counts(bench, "group", "research", "vision") == [(1, 0), (1, 0), (1, 4)]


# --- what can be seen of it ------------------------------------------------------------------------------------------


def test_a_tenant_shows_what_it_has_and_wants() -> None:
    bench = Bench()
    tenant(bench, "web", weight=3.0)
    bench.node(cpu=4)
    bench.session(tenant="web", max_instances=3)
    bench.submit(tasks=9)
    view = cluster_views.tenant(bench.engine, "web")
    assert (view.used, view.executors, view.sessions, view.pending) == (Resources(3, 3 * GIB, 0), 3, 1, 9)
    assert (view.share, view.fair_share, view.wanted) == (0.75, 1.0, 0)
    bench.session("other", tenant="default")
    bench.submit("other", tasks=9)
    assert cluster_views.tenant(bench.engine, "web").fair_share == 0.75
    assert cluster_views.tenant(bench.engine, "default").wanted == 8
    with pytest.raises(NotFoundError, match="did you mean web"):
        cluster_views.tenant(bench.engine, "wep")


def test_the_scheduler_shares_by_the_weights_of_the_engines_tenants() -> None:
    bench = Bench()
    tenant(bench, "one")
    tenant(bench, "three", weight=3.0)
    for name in ("one", "three"):
        bench.session(name, tenant=name)
        bench.submit(name, tasks=20)
    bench.node(cpu=8)
    assert {name: len(bench.engine.sessions[name].executors) for name in ("one", "three")} == {"one": 2, "three": 6}


def test_a_raised_quota_lets_waiting_sessions_go_on() -> None:
    bench = Bench()
    tenant(bench, "web", quota=Quota(cpu=1))
    bench.node(cpu=4)
    bench.session(tenant="web")
    bench.submit(tasks=9)
    assert len(bench.engine.executors) == 1
    tenant(bench, "web", update=True, quota=Quota(cpu=3))
    assert len(bench.engine.executors) == 3


def test_what_its_own_quota_never_allows_fails_after_a_while() -> None:
    bench = Bench(EngineSettings(unsatisfiable_ms=1_000))
    tenant(bench, "web", quota=Quota(cpu=1))
    bench.node(cpu=4)
    bench.session(tenant="web", resreq=Resources(2, GIB, 0))
    bench.submit(tasks=1)
    bench.turn(ev.Tick(), after_ms=1_001)
    finish = views.task(bench.engine, "s", 1).finish
    assert finish is not None
    assert "needs 2 cpu; the quota of tenant web is 1; ask for less, or raise the quota" in finish.message


# --- whatever happens ------------------------------------------------------------------------------------------------

NAMES = ("default", "a", "b", "c", "d")
SESSIONS = ("s1", "s2", "s3")
names, sessions = st.sampled_from(NAMES), st.sampled_from(SESSIONS)
quotas = st.builds(Quota, sessions=st.none() | st.integers(0, 2), pending=st.none() | st.integers(0, 9))
happenings = st.one_of(
    st.builds(
        ev.SetTenant,
        st.just(1),
        names,
        st.builds(TenantSpec, parent=st.sampled_from(("", *NAMES)), quota=quotas),
        create=st.booleans(),
        configured=st.booleans(),
    ),
    st.builds(ev.DeleteTenant, st.just(1), names),
    st.builds(lambda name, of: ev.OpenSession(1, name, SessionSpec("app", tenant=of)), sessions, names),
    st.builds(lambda name, count: ev.Submitted(1, name, "c", 0, count, b""), sessions, st.integers(1, 6)),
    st.builds(lambda name, last: ev.CancelTasks(1, name, [(1, last)]), sessions, st.integers(1, 9)),
    st.builds(ev.CloseSession, st.just(1), sessions, force=st.just(True)),
    st.builds(ev.DeleteSession, st.just(1), sessions),
)


@given(st.lists(happenings, max_size=40))
def test_counts_are_right_whatever_happens_and_after_a_restart(events: list[ev.Event]) -> None:
    bench = Bench()
    bench.node(cpu=2)
    for event in events:
        bench.turn(event)  # which looks at every invariant
    for one in bench.engine.tenants.values():
        assert len(one.path) <= len(NAMES)
    twin = bench.replayed()
    twin.recovered(bench.now)
    validate(twin)
    for name, one in bench.engine.tenants.items():
        again = twin.tenants[name]
        assert (one.spec, one.sessions, one.pending) == (again.spec, again.sessions, again.pending)
