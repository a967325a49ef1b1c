"""Files of sandboxes, through the real daemons, and the tricks that can be played with them."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

import flame
from flame.client.synchronous import Connection
from flame.sandbox import FileEvent
from sandboxes import LEVELS, cluster_for_sandboxes, create


@pytest.fixture(scope="module")
def connection(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Connection]:
    with cluster_for_sandboxes(tmp_path_factory.mktemp("files")) as cluster, flame.connect(cluster.endpoint) as made:
        yield made


@pytest.fixture(scope="module", params=LEVELS)
def sandbox(connection: Connection, request: pytest.FixtureRequest) -> Iterator[flame.Sandbox]:
    with create(connection, request.param) as made:
        yield made


@pytest.fixture(autouse=True)
def empty(sandbox: flame.Sandbox) -> Iterator[None]:
    yield
    sandbox.run_command("chmod -R u+w . && rm -rf ./* ./.[!.]*")


def names(sandbox: flame.Sandbox, path: str = ".") -> list[str]:
    return [file.name for file in sandbox.files.list(path)]


def test_written_and_read(sandbox: flame.Sandbox) -> None:
    files = sandbox.files
    files.write("a/b/c.txt", "häh")
    assert files.read("a/b/c.txt") == "häh".encode()
    assert files.read_text("a/b/c.txt") == "häh"
    files.write("empty", b"")
    assert files.read("empty") == b""
    assert names(sandbox) == ["a", "empty"]
    assert sandbox.run_command("cat a/b/c.txt").stdout == "häh".encode()


def test_large_files_in_pieces(sandbox: flame.Sandbox) -> None:
    data = os.urandom(5_000_001)
    sandbox.files.write("large", data)
    assert sandbox.files.read("large") == data
    assert names(sandbox) == ["large"]  # nothing is left beside it
    with pytest.raises(flame.TooLargeError):
        sandbox.files.read("large", max_size=1_000_000)


def test_a_file_is_replaced_whole_and_keeps_its_mode(sandbox: flame.Sandbox) -> None:
    files = sandbox.files
    files.write("script", "#!/bin/sh\necho one", mode=0o755)
    files.write("script", "#!/bin/sh\necho two")
    assert files.stat("script").mode == 0o755
    assert sandbox.run_command("./script").stdout == b"two\n"
    reader = sandbox.start_command("exec 3<script; echo open; read line; cat <&3")
    assert reader.read() is not None
    files.write("script", "new")
    reader.write(b"\n")
    assert reader.wait().stdout == b"#!/bin/sh\necho two"


def test_listed_by_name_with_kind_size_and_target(sandbox: flame.Sandbox) -> None:
    sandbox.files.write("file", b"12345")
    sandbox.run_command("mkdir folder; ln -s file link; mkfifo pipe")
    found = {file.name: (file.kind, file.target) for file in sandbox.files.list()}
    assert found == {"file": ("file", ""), "folder": ("folder", ""), "link": ("link", "file"), "pipe": ("other", "")}
    assert sandbox.files.stat("file").size == 5
    assert sandbox.files.exists("link")
    assert not sandbox.files.exists("nothing")


def test_a_long_list_comes_in_parts(sandbox: flame.Sandbox) -> None:
    sandbox.run_command("mkdir many; cd many; seq -w 0 4999 | xargs touch")
    assert names(sandbox, "many") == [f"{number:04}" for number in range(5000)]


def test_names_that_are_no_text_are_listed_as_well(sandbox: flame.Sandbox) -> None:
    sandbox.run_command(r"touch $(printf 'a\377b') z")
    assert names(sandbox) == ["a?b", "z"]


def test_folders_removed_and_renamed(sandbox: flame.Sandbox) -> None:
    files = sandbox.files
    files.make_dir("a/b")
    files.make_dir("a/b")
    files.write("a/b/c", b"1")
    with pytest.raises(flame.InvalidStateError, match="not empty"):
        files.remove("a")
    files.rename("a/b/c", "moved/here")
    assert files.read("moved/here") == b"1"
    files.remove("a", recursive=True)
    assert names(sandbox) == ["moved"]


@pytest.mark.parametrize(
    ("act", "kind"),
    [
        (lambda files: files.read("none"), flame.NotFoundError),
        (lambda files: files.list("none"), flame.NotFoundError),
        (lambda files: files.stat("none"), flame.NotFoundError),
        (lambda files: files.remove("none"), flame.NotFoundError),
        (lambda files: files.rename("none", "x"), flame.NotFoundError),
        (lambda files: files.watch("none"), flame.NotFoundError),
        (lambda files: files.read("."), flame.InvalidArgumentError),
        (lambda files: files.write(".", b""), flame.InvalidArgumentError),
        (lambda files: files.list("file"), flame.InvalidArgumentError),
        (lambda files: files.write("file/x", b""), flame.FlameError),
        (lambda files: files.read("loop"), flame.InvalidArgumentError),
        (lambda files: files.read("pipe"), flame.InvalidArgumentError),
        (lambda files: files.write("pipe", b""), flame.InvalidArgumentError),
        (lambda files: files.read("/dev/zero"), flame.InvalidArgumentError),
        (lambda files: files.read("x" * 5000), flame.InvalidArgumentError),
        (lambda files: files.read(""), flame.InvalidArgumentError),
        (lambda files: files.read("a\0b"), flame.InvalidArgumentError),
        (lambda files: files.read("\udcff"), flame.InvalidArgumentError),
        (lambda files: files.read(5), flame.InvalidArgumentError),
        (lambda files: files.read(Path("file")), flame.InvalidArgumentError),
        (lambda files: files.write("x", 5), flame.InvalidArgumentError),
        (lambda files: files.write("x", "\ud800"), flame.InvalidArgumentError),
        (lambda files: files.write("x", b"", mode="7"), flame.InvalidArgumentError),
        (lambda files: files.write("x", b"", mode=1 << 70), flame.InvalidArgumentError),
        (lambda files: files.remove(".", recursive=True), flame.InvalidArgumentError),
        (lambda files: files.remove("..", recursive=True), flame.InvalidArgumentError),
    ],
)
def test_what_cant_be_done_is_said(sandbox: flame.Sandbox, act: object, kind: type[Exception]) -> None:
    sandbox.run_command("echo > file; ln -s loop loop; mkfifo pipe")
    with pytest.raises(kind):
        act(sandbox.files)  # type: ignore[operator]
    assert sandbox.run_code("1").text == "1"


def test_files_that_have_no_size_are_read_to_their_end(sandbox: flame.Sandbox) -> None:
    assert b"Name:" in sandbox.files.read("/proc/self/status")


def test_links_are_followed_to_read_and_write_and_not_to_remove(sandbox: flame.Sandbox) -> None:
    files = sandbox.files
    files.write("target", b"1")
    sandbox.run_command("ln -s target link; ln -s nowhere dangling; mkdir folder; ln -s folder way")
    assert files.read("link") == b"1"
    files.write("link", b"2")
    assert (files.read("target"), files.stat("link").kind) == (b"2", "link")
    files.write("dangling", b"3")
    assert files.read("nowhere") == b"3"
    files.write("way/file", b"4")
    files.remove("way", recursive=True)
    assert names(sandbox, "folder") == ["file"]
    files.remove("link")
    assert files.exists("target")


def test_what_code_in_the_sandbox_cant_reach_files_cant_either(connection: Connection, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("mine")
    with create(connection) as sandbox:
        sandbox.run_command(f"ln -s {tmp_path}/secret way; ln -s {tmp_path} folder")
        for path in (str(tmp_path / "secret"), "way", "folder/secret", f"../../../../..{tmp_path}/secret"):
            with pytest.raises(flame.NotFoundError):
                sandbox.files.read(path)
        for path in ("/etc/shadow", "/usr/bin/new", "/proc/sys/kernel/hostname"):
            with pytest.raises(flame.FlameError):
                sandbox.files.write(path, b"x")
    assert (tmp_path / "secret").read_text() == "mine"


# --- watching --------------------------------------------------------------------------------------------------------


def until(changes: Iterator[FileEvent], last: FileEvent) -> list[FileEvent]:
    found: list[FileEvent] = []
    while last not in found:
        found.append(next(changes))
    return found


def test_a_folder_is_watched_with_those_below(sandbox: flame.Sandbox) -> None:
    with sandbox.files.watch(".", recursive=True) as changes:
        sandbox.run_command("mkdir -p a/b; echo > a/b/c; mv a/b/c a/d; echo >> a/d; rm -r a")
        found = until(changes, FileEvent("removed", "a", True))
    assert FileEvent("created", "a", True) in found
    assert FileEvent("removed", "a/d") in found
    assert {change.path for change in found} >= {"a", "a/b", "a/d"}


def test_a_file_is_watched_also_when_it_is_replaced(sandbox: flame.Sandbox) -> None:
    sandbox.files.write("watched", b"1")
    with sandbox.files.watch("watched") as changes:
        sandbox.files.write("other", b"1")
        sandbox.files.write("watched", b"2")
        sandbox.files.remove("watched")
        found = until(changes, FileEvent("removed", "watched"))
    assert {change.path for change in found} == {"watched"}


def test_renaming_tells_both_names(sandbox: flame.Sandbox) -> None:
    sandbox.files.write("old", b"")
    with sandbox.files.watch() as changes:
        sandbox.files.rename("old", "new")
        assert next(changes) == FileEvent("renamed", "new", False, "old")


def test_a_watch_that_was_closed_is_over(sandbox: flame.Sandbox) -> None:
    changes = sandbox.files.watch()
    changes.close()
    with pytest.raises(flame.NotFoundError):
        next(changes)


# --- between this machine and the sandbox ----------------------------------------------------------------------------


def test_folders_go_there_and_back(sandbox: flame.Sandbox, tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "sub").mkdir(parents=True)
    (source / "sub" / "data").write_bytes(os.urandom(1_500_000))
    (source / "run").write_text("#!/bin/sh\necho ran")
    (source / "run").chmod(0o755)
    (source / "way").symlink_to("/etc/passwd")
    os.mkfifo(source / "pipe")
    sandbox.files.upload(source, "there")
    assert names(sandbox, "there") == ["run", "sub"]
    assert sandbox.run_command("there/run").stdout == b"ran\n"
    sandbox.files.download("there", tmp_path / "back")
    assert (tmp_path / "back" / "sub" / "data").read_bytes() == (source / "sub" / "data").read_bytes()
    assert os.access(tmp_path / "back" / "run", os.X_OK)
    sandbox.files.upload(source / "run", "single")
    sandbox.files.download("single", tmp_path / "single")
    assert (tmp_path / "single").read_text() == "#!/bin/sh\necho ran"


def test_downloads_write_through_no_links(sandbox: flame.Sandbox, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "file").write_text("mine")
    sandbox.run_command("mkdir -p d/sub; echo new > d/file; echo new > d/sub/file; ln -s /etc/passwd d/link")
    here = tmp_path / "here"
    here.mkdir()
    (here / "file").symlink_to(outside / "file")
    sandbox.files.download("d", here)
    assert (here / "file").read_text() == "new\n"
    assert not (here / "file").is_symlink()
    assert not (here / "link").exists()
    there = tmp_path / "there"
    there.mkdir()
    (there / "sub").symlink_to(outside)
    with pytest.raises(OSError, match="sub"):
        sandbox.files.download("d", there)
    assert (outside / "file").read_text() == "mine"


def test_downloads_have_limits(sandbox: flame.Sandbox, tmp_path: Path) -> None:
    sandbox.files.write("d/large", b"x" * 2_000_000)
    with pytest.raises(flame.TooLargeError):
        sandbox.files.download("d", tmp_path / "d", max_size=1_000_000)
    assert list((tmp_path / "d").iterdir()) == []
    (tmp_path / "big").write_bytes(b"x" * 2_000_000)
    with pytest.raises(flame.TooLargeError):
        sandbox.files.upload(tmp_path / "big", "big", max_size=1_000_000)
    assert not sandbox.files.exists("big")


def test_a_full_disk_is_said(connection: Connection) -> None:
    with create(connection, limits=flame.Limits(disk=8 * 1024**2)) as sandbox:
        with pytest.raises(flame.ExhaustedError, match="disk is full"):
            sandbox.files.write("large", b"x" * 16 * 1024**2)
        assert sandbox.files.list() == []
        sandbox.files.write("small", b"x")


def test_a_socket_is_no_file_to_upload(sandbox: flame.Sandbox, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "s"))
        with pytest.raises(flame.InvalidArgumentError):
            sandbox.files.upload(tmp_path / "s", "s")
