"""What an application becomes in its image, what is seen there, and which images are kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from flame.proto import types_pb2
from flame.shims.container import inside, remembered_trouble, trouble_of
from flame.shims.container_commands import reason
from flame.shims.container_images import Image, Kept, too_many
from flame.shims.container_limits import ImageLimits
from flame.shims.container_podman import unfit
from flame.shims.container_tree import locate, make_folder, user_of
from flame.shims.isolation_sandbox import Room, layout
from flame.shims.shim import BindError


@pytest.fixture
def image(tmp_path: Path) -> Image:
    for name in ("bin/tool", "usr/bin/other", "app/run"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).touch(mode=0o755)
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
    found = inside(application(command="other", arguments=["x"], working_directory="/usr", env={"COLOR": "red"}), image)
    assert (found.command, list(found.arguments), found.working_directory) == ("/usr/bin/other", ["x"], "/usr")
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


def test_a_command_that_is_not_executable(image: Image) -> None:
    (image.root / "app/run").chmod(0o644)
    with pytest.raises(BindError, match="command '/app/run' of image 'app:1' is not executable"):
        inside(application(), image)


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


# --- links ------------------------------------------------------------------------------------------------------------


def test_links_are_followed_within_an_image(image: Image) -> None:
    root = image.root
    for name, target in (("sbin", "/usr/bin"), ("usr/out", "../../../../etc"), ("usr/loop", "loop"), ("etc", "/app")):
        (root / name).symlink_to(target)
    assert locate(root, "/sbin/other") == root / "usr/bin/other"
    assert locate(root, "/usr/out/run") == root / "app/run"
    assert locate(root, "/usr/out/passwd") is None
    assert locate(root, "/usr/loop") is None
    assert locate(root, "/../..") == root


def test_a_command_behind_a_link_to_an_absolute_path(image: Image) -> None:
    (image.root / "sbin").symlink_to("/usr/bin")
    (image.root / "bin/sh").symlink_to("/bin/absent")
    assert inside(application(command="/sbin/other"), image).command == "/sbin/other"
    for only_here in ("/sbin/env", "sh"):
        with pytest.raises(BindError, match="was not found in image"):
            inside(application(command=only_here), image)


def test_folders_are_made_in_an_image_and_not_behind_its_links(image: Image, tmp_path: Path) -> None:
    root = image.root
    (root / "link").symlink_to("/nowhere")
    (root / "app/there").symlink_to("/usr")
    assert make_folder(root, "/new/one") == root / "new/one"
    assert make_folder(root, "/app/there/deep") == root / "usr/deep"
    assert make_folder(root, "/link/x") is None
    assert make_folder(root, "/app/run/x") is None
    assert not Path("/nowhere").exists()


@pytest.mark.parametrize(
    ("folder", "message"),
    [("/absent", "working_directory '/absent' is no folder of image 'app:1'"), ("app", "is not an absolute path")],
)
def test_a_working_directory_that_is_not_there(image: Image, folder: str, message: str) -> None:
    with pytest.raises(BindError, match=message):
        inside(application(command="/bin/tool", working_directory=folder), image)


# --- users -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "user"),
    [
        ("", None),
        ("root", None),
        ("0:7", None),
        ("app", (101, 102)),
        ("101", (101, 102)),
        ("app:web", (101, 33)),
        ("app:7", (101, 7)),
        ("5000", (5000, 0)),
        ("5000:web", (5000, 33)),
    ],
)
def test_the_user_that_an_image_names(tmp_path: Path, text: str, user: tuple[int, int] | None) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/passwd").write_text("root:x:0:0::/:/bin/sh\n\napp:x:101:102::/:/bin/sh\n")
    (tmp_path / "etc/group").write_text("root:x:0:\nweb:x:33:\n")
    assert user_of(tmp_path, text) == user


@pytest.mark.parametrize("text", ["app", "1:app", "-1", "4294967296", "1:\u0663"])
def test_a_user_that_an_image_does_not_have(tmp_path: Path, text: str) -> None:
    with pytest.raises(LookupError, match="is not in its /etc/passwd or /etc/group"):
        user_of(tmp_path, text)


def test_a_podman_that_does_not_work_for_its_user(tmp_path: Path) -> None:
    program = tmp_path / "podman"
    program.write_text("#!/bin/sh\necho 'level=warning\nError: newuidmap is missing' >&2; exit 125\n")
    program.chmod(0o755)
    assert trouble_of(str(program)) == "newuidmap is missing"
    assert "No such file" in trouble_of(str(tmp_path / "nothing"))
    assert trouble_of("podman") == ""


def test_a_podman_that_works_is_tried_once(tmp_path: Path) -> None:
    program, tries = tmp_path / "podman", tmp_path / "tries"
    environ = {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    for status, count, trouble in ((1, 1, "it exits with status 1"), (1, 2, "it exits with status 1"), (0, 3, "")):
        program.write_text(f"#!/bin/sh\necho >> {tries}; exit {status}\n")
        program.chmod(0o755)
        assert remembered_trouble(str(program), tmp_path, environ) == trouble
        assert len(tries.read_text()) == count
    assert remembered_trouble(str(program), tmp_path, environ) == ""
    assert len(tries.read_text()) == 3
    program.write_text(f"#!/bin/sh\necho >> {tries}; exit 7\n")  # another one
    assert remembered_trouble(str(program), tmp_path, environ) == "it exits with status 7"


# --- which can be run, which are kept --------------------------------------------------------------------------------


def test_an_image_for_another_machine_is_not_run() -> None:
    assert unfit("app:1", {"Os": "linux", "Architecture": "s390x", "Size": 1}, 10).startswith(
        "image 'app:1' is made for linux/s390x, and this node is linux/"
    )
    assert "is made for windows/" in unfit("app:1", {"Os": "windows"}, 10)
    assert unfit("app:1", {"Os": "", "Architecture": "", "Size": 10}, 10) == ""


def test_an_image_that_is_too_large_is_not_unpacked() -> None:
    assert "it is larger than 10 bytes, which is what this node allows" in unfit("app:1", {"Size": 11}, 10)


NAMES = ("a", "b", "c")
IMAGES = {Path(name): Kept(used, 10) for name, used in zip(NAMES, (1.0, 3.0, 2.0), strict=True)}


@pytest.mark.parametrize(
    ("limits", "used", "gone"),
    [
        (ImageLimits(), (), []),
        (ImageLimits(keep_count=2), (), ["a"]),
        (ImageLimits(keep_count=2), ("a",), ["c"]),
        (ImageLimits(keep_count=1), NAMES, []),
        (ImageLimits(keep_bytes=20), (), ["a"]),
        (ImageLimits(keep_bytes=5), (), ["b", "c", "a"]),
        (ImageLimits(keep_age=2.0), (), ["c", "a"]),
        (ImageLimits(keep_age=2.0), ("a",), ["c"]),
    ],
)
def test_those_that_were_used_last_are_kept(limits: ImageLimits, used: tuple[str, ...], gone: list[str]) -> None:
    assert [path.name for path in too_many(IMAGES, {Path(name) for name in used}, limits, 4.0)] == gone


def test_of_what_podman_writes_its_last_error_counts() -> None:
    words = 'time="1" msg="Failed, retrying in 1s. Error: refused"\nError: pinging registry: refused\n'
    assert reason(words) == "pinging registry: refused"
    assert reason("tar: no space left") == "tar: no space left"
