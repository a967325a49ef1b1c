"""Policies by name: built-in ones, installed ones, and what is said of those that can't be used."""

from __future__ import annotations

from itertools import count
from pathlib import Path

import pytest

from flame.manager.policies import load_policies
from flame.model.errors import InvalidConfigError
from flame.proto import frontend_pb2 as pb
from flame.scheduler.policies import BUILT_IN
from manager_harness import World, a_world

POLICY = """
from flame.scheduler.policy import Policy

class NightShift(Policy):
    name = "night-shift"

class Nameless(Policy):
    pass

class Fussy(Policy):
    name = "fussy"
    def __init__(self):
        raise OSError("no moon today")

thing = 7
"""

numbers = count(1)


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A package `moonlight` with entry points for all of the policies above; its module's name."""
    module = f"moonlight{next(numbers)}"  # another one for each test: modules stay imported
    (tmp_path / f"{module}.py").write_text(POLICY)
    install(tmp_path, "moonlight", module)
    monkeypatch.syspath_prepend(str(tmp_path))
    return module


def install(folder: Path, package: str, module: str) -> None:
    """What an installer leaves of a package."""
    about = folder / f"{package}-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    points = {
        "night-shift": "NightShift",
        "nameless": "Nameless",
        "fussy": "Fussy",
        "thing": "thing",
        "nothing": "Nothing",
    }
    lines = [f"{name} = {module}:{attribute}" for name, attribute in points.items()]
    lines.append("no-module = there_is_no_such_module:Policy")
    (about / "entry_points.txt").write_text("\n".join(["[flame.policies]", *lines, ""]))


def test_the_built_in_ones_come_in_the_order_of_their_names() -> None:
    names = ["spread", *(name for name in BUILT_IN if name != "spread")]
    assert [type(policy) for policy in load_policies(names)] == [BUILT_IN[name] for name in names]


def test_no_policies_are_allowed() -> None:
    assert load_policies([]) == []


def test_an_installed_one_is_found_by_the_name_of_its_entry_point(installed: str) -> None:
    drf, night = load_policies(["drf", "night-shift"])
    assert (drf.name, night.name) == ("drf", "night-shift")
    assert type(night).__module__ == installed


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (
            ["night-shfit"],
            "unknown policy 'night-shfit' in cluster.policies; did you mean night-shift? the known ones are",
        ),
        (["drf", "drf"], "policy 'drf' stands twice"),
        (["night-shift", "night-shift"], "policy 'night-shift' stands twice"),
        (["fussy"], "policy 'fussy' of moonlight can't be loaded: OSError: no moon today"),
        (["no-module"], "policy 'no-module' of moonlight can't be loaded: ModuleNotFoundError"),
        (["nothing"], "policy 'nothing' of moonlight can't be loaded: AttributeError"),
        (["thing"], "policy 'thing' of moonlight is 7, no subclass of flame.scheduler.policy.Policy"),
        (["nameless"], "policy 'nameless' of moonlight calls itself ''; its name has to be 'nameless'"),
        (["priority", "shim"], "there is no policy 'shim' in cluster.policies; leave it out"),
        (["fairshare"], "there is no policy 'fairshare' in cluster.policies; write drf"),
    ],
)
def test_what_can_not_be_used_is_named_with_what_to_write(installed: str, names: list[str], words: str) -> None:
    with pytest.raises(InvalidConfigError) as caught:
        load_policies(names)
    assert str(caught.value).startswith(words)
    assert caught.value.remedy


def test_one_name_from_two_packages_is_refused(installed: str, tmp_path: Path) -> None:
    install(tmp_path, "starlight", installed)
    with pytest.raises(InvalidConfigError, match="policy 'night-shift' comes with moonlight and starlight"):
        load_policies(["night-shift"])


async def test_a_manager_names_its_policies_and_does_not_start_with_wrong_ones(installed: str, tmp_path: Path) -> None:
    async with a_world(tmp_path, policies=("night-shift", "drf")) as world:
        client = await world.client()
        info = await client.call("GetCluster", pb.GetClusterRequest(), pb.ClusterInfo)
        assert list(info.policies) == ["night-shift", "drf"]
    world = World(tmp_path, {"policies": ("dfr",), "storage": f"sqlite://{tmp_path}/flame.db"})
    with pytest.raises(InvalidConfigError, match="did you mean drf"):
        await world.start()
    assert not (tmp_path / "flame.db").exists()
