"""Which instances may be copies of one that was saved, and what copies get of their own."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

from flame.model.isolation import Limits
from flame.proto import shim_pb2, types_pb2
from flame.shims.build_cache import Cache
from flame.shims.gvisor import Gvisor
from flame.shims.gvisor_processes import PREFIX
from flame.shims.gvisor_root import Plan
from flame.shims.isolation_sandbox import Room
from flame.shims.processes import Program
from flame.shims.shim import Launch
from flame.shims.snapshots import alike, common

MIB = 1024**2
LINK, DOOR = Path("/srv/links/1"), Path("/dev/shm/doors/1")
ENV = {
    "FLAME_INSTANCE_LINK": str(LINK),
    "FLAME_INSTANCE_ENDPOINT": f"{DOOR}/s.sock",
    "FLAME_EXECUTOR_ID": "e1",
    "COLOR": "red",
}


@pytest.mark.parametrize(
    ("labels", "arguments", "gang", "are"),
    [
        ((), ("service.py", "--color", "${COLOR}"), False, True),
        (("shown=yes",), (), False, True),
        (("snapshot=off",), (), False, False),
        ((), (), True, False),
        ((), ("--name=${FLAME_EXECUTOR_ID}",), False, False),
        ((), ("--listen", "$FLAME_INSTANCE_ENDPOINT"), False, False),
    ],
)
def test_which_instances_are_alike(labels: Sequence[str], arguments: Sequence[str], gang: bool, are: bool) -> None:
    assert alike(labels, arguments, gang=gang) is are


def test_what_is_saved_has_no_identity() -> None:
    own = ("FLAME_INSTANCE_TOKEN", "FLAME_INSTANCE_ID", "FLAME_EXECUTOR_ID", "FLAME_SESSION_ID")
    env = {**dict.fromkeys((*own, "FLAME_COMMON_DATA_FILE"), "mine"), "FLAME_APPLICATION": "app", "COLOR": "red"}
    assert common(env) == {"FLAME_APPLICATION": "app", "COLOR": "red"}


# --- level gvisor ----------------------------------------------------------------------------------------------------


def wrapped(
    room: Room, env: dict[str, str] | None = None, memory: int = 0, kept: int = 8
) -> tuple[Plan, dict[str, str]]:
    """What its runner is told, and the environment that the program finds."""
    level = Gvisor(["runsc"], Path("/srv/level"), cache=Path("/srv/cache"), kept=kept)
    launch = Launch("e1", "", types_pb2.ApplicationSpec(), shim_pb2.SessionContext())
    program = level.wrap(Program("/bin/x", ["x"], env or ENV, "/"), room, Limits(memory=memory), launch)
    inside = {name.removeprefix(PREFIX): value for name, value in program.env.items() if name.startswith(PREFIX)}
    return msgspec.json.decode(program.argv[4], type=Plan), inside


def test_what_is_one_instances_own_is_at_the_same_place_in_all() -> None:
    data = Path("/tmp/e1/common_data")
    room = Room(readable=[Path("/srv/code"), data], sockets=[LINK, DOOR])
    plan, env = wrapped(room, {**ENV, "FLAME_COMMON_DATA_FILE": str(data)})
    assert plan.copied is not None
    assert plan.copied.added == [("open", "/.flame/link", str(LINK)), ("show", "/.flame/common_data", str(data))]
    assert plan.copied.door == str(DOOR)
    assert "/srv/code" in plan.copied.readable
    assert "/srv/cache" in plan.copied.hidden
    assert plan.command == ["runsc", "--network=none", "--host-uds=all"]
    for own in (LINK, DOOR, data):
        assert str(own) not in repr((plan.tree, plan.configuration))
    assert env == {
        **ENV,
        "FLAME_INSTANCE_LINK": "/.flame/link",
        "FLAME_INSTANCE_ENDPOINT": "/.flame/door/s.sock",
        "FLAME_COMMON_DATA_FILE": "/.flame/common_data",
    }


def test_the_relay_of_its_objects_too() -> None:
    relay = Path("/srv/objects/1")
    plan, env = wrapped(Room(sockets=[LINK, DOOR, relay]), {**ENV, "FLAME_CACHE_ENDPOINT": f"relay:{relay}"})
    assert plan.copied is not None
    assert ("open", "/.flame/objects", str(relay)) in plan.copied.added
    assert env["FLAME_CACHE_ENDPOINT"] == "relay:/.flame/objects"
    assert str(relay) not in repr((plan.tree, plan.configuration))


def test_what_runs_in_an_image_may_be_a_copy() -> None:
    plan, env = wrapped(room=Room(sockets=[LINK, DOOR], root=Path(__file__).parent))
    assert plan.copied is not None
    assert env["FLAME_INSTANCE_LINK"] == "/.flame/link"
    assert ("show", f"/{Path(__file__).name}", __file__) in plan.tree  # so a copy is one of the same image


REFUSED: dict[str, dict[str, Any]] = {
    "no link": {"room": Room(sockets=[DOOR])},
    "a proxy besides": {"room": Room(sockets=[LINK, DOOR, Path("/srv/proxy")])},
    "the node's network": {"room": Room(sockets=[LINK, DOOR], network=True)},
    "little memory": {"memory": 95 * MIB},
    "none are kept": {"kept": 0},
}


@pytest.mark.parametrize("case", REFUSED.values(), ids=REFUSED)
def test_what_is_never_a_copy(case: dict[str, Any]) -> None:
    plan, env = wrapped(**{"room": Room(sockets=[LINK, DOOR]), **case})
    assert plan.copied is None
    assert env == ENV


def test_a_number_of_snapshots_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "runsc").write_text("#!/bin/sh\n")
    (tmp_path / "runsc").chmod(0o755)
    found = Gvisor.find(tmp_path / "level", {"PATH": str(tmp_path), "FLAME_GVISOR_SNAPSHOTS": "many"})
    assert found.missing == "FLAME_GVISOR_SNAPSHOTS must be the number of snapshots to keep, not 'many'"


# --- where they are kept ---------------------------------------------------------------------------------------------


def test_a_thing_that_has_lost_a_file_is_made_anew(tmp_path: Path) -> None:
    cache = Cache(str(tmp_path), {"thing": 2})
    for text in ("first", "second"):

        def make(folder: str, text: str = text) -> None:
            Path(folder, "file").write_text(text)

        [descriptor] = cache.make("thing", "key", ["file"], make)
        with os.fdopen(descriptor) as file:
            assert file.read() == text
        assert cache.has("thing", "key", ["file"])
        Path(cache.place("thing", "key"), "file").unlink()
        assert cache.has("thing", "key")
        assert not cache.has("thing", "key", ["file"])
