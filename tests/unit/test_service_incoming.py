"""What an instance learns when it enters its session."""

from __future__ import annotations

from flame.proto import shim_pb2, types_pb2
from flame.service.incoming import begin_session


def test_an_instance_that_was_started_ahead_learns_whose_it_is() -> None:
    environ = {"FLAME_EXECUTOR_ID": "warm-1", "FLAME_INSTANCE_TOKEN": "worthless", "FLAME_INSTANCE_ID": "warm-1"}
    wire = shim_pb2.SessionContext(session_id="s", executor_id="e", token="secret", common_data=b"")
    context = begin_session(wire, environ)
    assert environ == {
        "FLAME_EXECUTOR_ID": "e",
        "FLAME_INSTANCE_TOKEN": "secret",
        "FLAME_SESSION_ID": "s",
        "FLAME_INSTANCE_ID": "warm-1",
    }
    assert (context.session_id, context.common_data(), context.gang) == ("s", b"", None)


def test_an_executor_manager_that_tells_no_more_than_the_session_changes_nothing_else() -> None:
    environ = {"FLAME_EXECUTOR_ID": "e", "FLAME_INSTANCE_TOKEN": "secret"}
    application = shim_pb2.ApplicationContext(name="app", command="run")
    context = begin_session(shim_pb2.SessionContext(session_id="s", application=application), environ)
    assert environ == {"FLAME_EXECUTOR_ID": "e", "FLAME_INSTANCE_TOKEN": "secret", "FLAME_SESSION_ID": "s"}
    assert (context.common_data(), context.application.command, context.application.image) == (None, "run", None)


def test_the_first_member_of_a_gang_has_rank_0() -> None:
    gang = types_pb2.Gang(rank=0, world_size=2, addresses=["a:1", "b:2"])
    context = begin_session(shim_pb2.SessionContext(session_id="s", gang=gang), {})
    assert context.gang is not None
    assert (context.gang.rank, context.gang.world_size, context.gang.addresses) == (0, 2, ("a:1", "b:2"))
