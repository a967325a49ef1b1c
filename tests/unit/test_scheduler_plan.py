"""Plans as a pure function: scenarios a user would complain about, and what must hold for any snapshot."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from flame.model.resources import Resources
from flame.scheduler.plan import Demand, Plan, Room, plan, share

GIB = 1024**3
UNIT = Resources(1, GIB, 0)


def room(name: str = "n1", cpu: int = 4, *, used: int = 0, leaving: int = 0, gpu: int = 0) -> Room:
    """A node with much memory; `used` and `leaving` count cores."""
    memory = 1000 * GIB
    return Room(
        name, Resources(cpu, memory, gpu), Resources(cpu - used, memory, gpu), Resources(leaving, leaving * GIB, 0)
    )


def demand(
    name: str, want: int, have: int = 0, *, priority: int = 0, created: int = 0, resreq: Resources = UNIT,
    floor: int = 0, idle: tuple[int, ...] = (), busy: tuple[int, ...] = (),
) -> Demand:  # fmt: skip
    """A session that has `have` executors and wants `want`."""
    return Demand(name, priority, created, resreq, have, want, floor, idle, busy)


def starts(made: Plan) -> dict[str, int]:
    """How many executors each session gets."""
    names = [session for session, _ in made.starts]
    return {name: names.count(name) for name in sorted(set(names))}


def test_equal_sessions_share_evenly_whatever_their_age() -> None:
    assert starts(plan([demand("a", 100), demand("b", 100, created=9)], [room(cpu=10)])) == {"a": 5, "b": 5}


def test_a_session_that_has_less_catches_up_first() -> None:
    made = plan([demand("a", 100, have=4, busy=(1, 2, 3, 4)), demand("b", 100)], [room(cpu=8, used=4)])
    assert starts(made) == {"b": 4}


def test_shares_count_the_dominant_resource() -> None:
    big = Resources(2, GIB, 0)
    made = plan([demand("big", 100, resreq=big), demand("small", 100)], [room(cpu=12)])
    assert starts(made) == {"big": 3, "small": 6}


def test_higher_priority_is_served_whole_before_lower() -> None:
    made = plan([demand("low", 100), demand("high", 3, priority=1, created=5)], [room(cpu=4)])
    assert starts(made) == {"high": 3, "low": 1}


def test_a_session_that_fits_nowhere_does_not_hold_up_the_others() -> None:
    huge = Resources(64, GIB, 0)
    made = plan([demand("huge", 5, priority=9, resreq=huge), demand("small", 2)], [room(cpu=4)])
    assert starts(made) == {"small": 2}
    assert made.noes["huge"].message == "one executor needs cpu=64; the largest node has 4"


def test_executors_are_spread_over_nodes() -> None:
    made = plan([demand("a", 4)], [room("n1", 4), room("n2", 4)])
    assert sorted(node for _, node in made.starts) == ["n1", "n1", "n2", "n2"]


def test_idle_executors_of_others_make_room_longest_idle_first() -> None:
    made = plan([demand("a", 3, 3, idle=(7, 8, 9)), demand("b", 2)], [room(cpu=3, used=3)])
    assert (made.starts, made.releases, made.drains) == ([], [7, 8], [])


def test_min_instances_are_not_taken_away() -> None:
    made = plan([demand("a", 3, 3, idle=(7, 8, 9), floor=2), demand("b", 3)], [room(cpu=3, used=3)])
    assert made.releases == [7]


def test_what_leaves_already_is_counted_before_more_is_taken() -> None:
    made = plan([demand("a", 2, 2, busy=(1, 2)), demand("b", 1)], [room(cpu=3, used=3, leaving=1)])
    assert (made.releases, made.drains) == ([], [])


def test_a_session_above_its_share_is_drained_down_to_it_and_no_further() -> None:
    made = plan([demand("a", 100, 6, busy=(1, 2, 3, 4, 5, 6)), demand("b", 100)], [room(cpu=6, used=6)])
    assert made.drains == [1, 2, 3]


def test_one_executor_each_is_left_alone() -> None:
    made = plan([demand("a", 9, 1, busy=(1,)), demand("b", 9, 1, busy=(2,)), demand("c", 9)], [room(cpu=2, used=2)])
    assert made.drains == []


def test_lower_priority_gives_way_and_higher_never_does() -> None:
    low, high = demand("low", 9, 2, busy=(1, 2)), demand("high", 9, priority=1)
    assert plan([low, high], [room(cpu=2, used=2)]).drains == [1, 2]
    assert plan([demand("low", 9), demand("high", 9, 2, priority=1, busy=(1, 2))], [room(cpu=2, used=2)]).drains == []


demands = st.lists(
    st.builds(
        lambda number, want, priority, cpu, gib, gpu: demand(
            f"s{number}", want, priority=priority, created=number, resreq=Resources(cpu, gib * GIB, gpu)
        ),
        st.integers(0, 10**6), st.integers(0, 20), st.integers(0, 3), st.integers(0, 8), st.integers(0, 8),
        st.integers(0, 2),
    ),
    max_size=8, unique_by=lambda made: made.session,
)  # fmt: skip
nodes = st.lists(st.tuples(st.integers(0, 32), st.integers(0, 32), st.integers(0, 4)), max_size=6)


def rooms_of(sizes: list[tuple[int, int, int]]) -> list[Room]:
    made: list[Room] = []
    for index, (cpu, gib, gpu) in enumerate(sizes):
        size = Resources(cpu, gib * GIB, gpu)
        made.append(Room(f"n{index}", size, size, Resources()))
    return made


@given(demands, nodes)
def test_nothing_is_over_committed_and_nobody_gets_more_than_asked(
    wanted: list[Demand], sizes: list[tuple[int, int, int]]
) -> None:
    made = plan(wanted, rooms_of(sizes))
    by_name = {item.session: item for item in wanted}
    used: dict[str, Resources] = {}
    for session, node in made.starts:
        used[node] = used.get(node, Resources()) + by_name[session].resreq
    for index, (cpu, gib, gpu) in enumerate(sizes):
        assert used.get(f"n{index}", Resources()).fits(Resources(cpu, gib * GIB, gpu))
    for session, count in starts(made).items():
        assert count <= by_name[session].want


@given(demands, nodes)
@settings(max_examples=50)
def test_the_same_snapshot_gives_the_same_plan(wanted: list[Demand], sizes: list[tuple[int, int, int]]) -> None:
    assert plan(wanted, rooms_of(sizes)) == plan(wanted, rooms_of(sizes))


@given(demands, nodes)
def test_who_gets_less_than_it_wants_is_told_why(wanted: list[Demand], sizes: list[tuple[int, int, int]]) -> None:
    made = plan(wanted, rooms_of(sizes))
    given_out = starts(made)
    for item in wanted:
        assert (item.session in made.noes) == (given_out.get(item.session, 0) < item.want)


@given(st.lists(st.integers(0, 3), min_size=2, max_size=6), st.integers(1, 30))
def test_sessions_of_equal_size_end_within_one_executor_of_each_other(held: list[int], cpu: int) -> None:
    wanted = [demand(f"s{index}", 1000, have) for index, have in enumerate(held)]
    made = plan(wanted, [room(cpu=cpu + sum(held), used=sum(held))])
    got = starts(made)
    totals = [have + got.get(f"s{index}", 0) for index, have in enumerate(held)]
    growing = [total for index, total in enumerate(totals) if got.get(f"s{index}")]
    if growing:
        assert max(growing) - min(totals) <= 1


def test_share_of_something_the_cluster_lacks_is_whole() -> None:
    assert share(2, Resources(0, 0, 1), Resources(8, GIB, 0)) == 2.0
