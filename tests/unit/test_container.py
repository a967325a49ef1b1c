"""What an application becomes in its image, what is seen there, and which images are kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from flame.proto import types_pb2
from flame.shims.container import inside
from flame.shims.container_images import MAX_AGE_S, Image, reason, too_many
from flame.shims.isolation_sandbox import Room, layout
from flame.shims.shim import BindError


@pytest.fixture
def image(tmp_path: Path) -> Image:
    for name in ("bin/tool", "usr/bin/other", "app/run"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).touch()
    return Image("digest", tmp_path, ["./run", "--fast"], ["PATH=/usr/bin:/bin", "COLOR=blue"], "/app")


def application(**spec: Any) -> types_pb2.ApplicationSpec:
    environments = [types_pb2.Environment(name=name, value=value) for name, value in spec.pop("env", {}).items()]
    return types_pb2.ApplicationSpec(image="app:1", environments=environments, **spec)


def environment(spec: types_pb2.ApplicationSpec) -> dict[str, str]:
    return {item.name: item.value for item in spec.environments}


def test_an_image_says_what_the_application_does_not(image: Image) -> None:
    found = inside(application(), image)
    assert (found.command, list(found.arguments), found.working_directory) == ("/app/run", ["--fast"], "/app")
    assert environment(found) == {"PATH": "/usr/bin:/bin", "COLOR": "blue"}


def test_arguments_of_the_application_follow_those_of_the_image(image: Image) -> None:
    assert list(inside(application(arguments=["more"]), image).arguments) == ["--fast", "more"]


def test_what_the_application_says_counts(image: Image) -> None:
    found = inside(application(command="other", arguments=["x"], working_directory="/srv", env={"COLOR": "red"}), image)
    assert (found.command, list(found.arguments), found.working_directory) == ("/usr/bin/other", ["x"], "/srv")
    assert environment(found)["COLOR"] == "red"


@pytest.mark.parametrize(
    ("command", "path"),
    [("tool", "/bin/tool"), ("/bin/tool", "/bin/tool"), ("./run", "/app/run"), ("../bin/tool", "/bin/tool")],
)
def test_commands_are_looked_for_in_the_image(image: Image, command: str, path: str) -> None:
    assert inside(application(command=command), image).command == path


@pytest.mark.parametrize("command", ["sh", "/etc/passwd", "../../../../../../etc/passwd"])
def test_a_command_that_only_the_node_has_is_not_found(image: Image, command: str) -> None:
    with pytest.raises(BindError, match="was not found in image 'app:1'"):
        inside(application(command=command), image)


def test_an_image_without_a_command(image: Image, tmp_path: Path) -> None:
    with pytest.raises(BindError, match="image 'app:1' has no command: name one in the application"):
        inside(application(), Image("digest", tmp_path, [], [], "/"))


# --- what is seen ----------------------------------------------------------------------------------------------------


def test_the_folders_of_an_image_stand_for_those_of_the_node(image: Image) -> None:
    (image.root / "lib").symlink_to("usr/lib")
    (image.root / "proc").mkdir()
    (image.root / "run").mkdir()
    assert layout(Room(root=image.root, sockets=[Path("/tmp/link")]), Path("/srv")) == [
        ("show", "/app", str(image.root / "app")),
        ("show", "/bin", str(image.root / "bin")),
        ("link", "/lib", "usr/lib"),
        ("show", "/usr", str(image.root / "usr")),
        ("open", "/tmp/link", "/tmp/link"),
    ]


def test_a_folder_of_the_image_in_which_something_else_is_shown_keeps_the_rest(image: Image, tmp_path: Path) -> None:
    (image.root / "usr/lib").mkdir()
    steps = layout(Room(root=image.root, readable=[Path("/usr/bin")]), Path("/srv"))
    assert ("show", "/usr/bin", "/usr/bin") in steps
    assert ("show", "/usr/lib", str(image.root / "usr/lib")) in steps
    assert "/usr" not in [path for _, path, _ in steps]


def test_the_network_of_the_node_brings_its_addresses(image: Image) -> None:
    (image.root / "etc").mkdir()
    (image.root / "etc/hosts").touch()
    alone, together = (layout(Room(root=image.root, network=network), Path("/srv")) for network in (False, True))
    assert ("show", "/etc", str(image.root / "etc")) in alone
    assert ("show", "/etc/hosts", "/etc/hosts") in together


# --- which are kept --------------------------------------------------------------------------------------------------


def test_those_that_were_used_last_are_kept() -> None:
    ages = {Path(name): used for name, used in (("a", 1.0), ("b", 3.0), ("c", 2.0))}
    assert too_many(ages, 2, 4.0) == [Path("a")]
    assert too_many(ages, 9, 4.0) == []
    assert too_many(ages, -1, 4.0) == list(ages)


def test_those_that_were_not_used_for_long_go() -> None:
    assert too_many({Path("old"): 0.0, Path("new"): 9.0}, 9, MAX_AGE_S + 1) == [Path("old")]


def test_of_what_podman_writes_its_last_error_counts() -> None:
    words = 'time="1" msg="Failed, retrying in 1s. Error: refused"\nError: pinging registry: refused\n'
    assert reason(words) == "pinging registry: refused"
    assert reason("tar: no space left") == "tar: no space left"
