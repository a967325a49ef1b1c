"""Making packages: the same bytes for the same content, what is left out, what is refused, what the files tell."""

from __future__ import annotations

import os
import sys
import tarfile
import threading
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO

import pytest

from flame.model.errors import InvalidArgumentError
from flame.packages.building import pack_folder
from flame.packages.detection import Detected, detect
from flame.packages.sources import open_source
from package_builder import pack, sha256


def files(folder: Path, contents: Mapping[str, str]) -> Path:
    """A folder with these files; those in bin/ and those whose name ends with ! are executable."""
    for name, text in contents.items():
        file = folder / name.rstrip("!")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        file.chmod(0o755 if name.startswith("bin/") or name.endswith("!") else 0o644)
    return folder


def test_the_same_content_is_the_same_package(tmp_path: Path) -> None:
    one = files(tmp_path / "one", {"b/x.py": "1", "a.py": "2", "run!": "3"})
    two = files(tmp_path / "two", {"run!": "3", "a.py": "2", "b/x.py": "1", "__pycache__/a.pyc": "no"})
    (two / "empty").mkdir()
    os.utime(two / "a.py", (1, 1))
    (two / "a.py").chmod(0o666)
    first, second = (pack_folder(folder, tmp_path / f"{folder.name}.tgz") for folder in (one, two))
    assert first.digest == second.digest == sha256(first.file)
    assert (first.names, first.size) == (("a.py", "b/x.py", "run"), first.file.stat().st_size)
    with tarfile.open(first.file) as archive:
        entries = [(entry.name, entry.mode, entry.mtime, entry.uid, entry.uname) for entry in archive]
    assert entries == [("a.py", 0o644, 0, 0, ""), ("b/x.py", 0o644, 0, 0, ""), ("run", 0o755, 0, 0, "")]
    files(two, {"a.py": "changed"})
    assert pack_folder(two, tmp_path / "two.tgz").digest != first.digest


def test_what_is_left_out(tmp_path: Path) -> None:
    folder = files(
        tmp_path / "app",
        {
            "keep.py": "",
            "sub/keep.log.py": "",
            "sub/x.log": "",
            "data/big.bin": "",
            "docs/a.md": "",
            "docs/deep/b.md": "",
            "notes.txt": "",
            ".git/config": "",
            ".venv/lib/x.py": "",
            "x.egg-info/PKG": "",
            ".flameignore": "# what nodes do not need\n*.log\n\ndata/\ndocs/*.md\n",
        },
    )
    (folder / ".venv/link").symlink_to("/nowhere")
    built = pack_folder(folder, tmp_path / "a.tgz", excludes=["notes.*"])
    assert built.names == ("keep.py", "sub/keep.log.py")


def test_virtual_environments_are_left_out_whatever_their_name(tmp_path: Path) -> None:
    for name in (
        "app/x.py",
        "app/.own/pyvenv.cfg",
        "app/.own/lib/y.py",
        "app/deep/env/pyvenv.cfg",
        "app/deep/z.py",
        "app/conda/conda-meta/history",
    ):
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    (tmp_path / "app" / ".own" / "python").symlink_to(sys.executable)
    assert pack_folder(tmp_path / "app", tmp_path / "a.tar.gz").names == ("deep/z.py", "x.py")


def test_what_git_ignores_is_left_out_where_that_is_wanted(tmp_path: Path) -> None:
    repository = files(
        tmp_path,
        {
            ".git/config": "",
            ".gitignore": "*.out\n/app/data/\n",
            "app/.gitignore": "!keep.out\ngenerated\nlogs/\n",
            "app/x.py": "",
            "app/x.out": "",
            "app/keep.out": "",
            "app/data/large": "",
            "app/generated/made.py": "",
            "app/logs": "a file",
            "app/sub/.gitignore": "/only-here\n",
            "app/sub/only-here": "",
            "app/sub/y.py": "",
        },
    )
    kept = (".gitignore", "keep.out", "logs", "sub/.gitignore", "sub/y.py", "x.py")
    assert pack_folder(repository / "app", tmp_path / "a.tgz", gitignore=True).names == kept
    files(repository, {"app/.flameignore": "!generated\n!x.out\nlogs\n"})
    chosen = (".gitignore", "generated/made.py", "keep.out", "sub/.gitignore", "sub/y.py", "x.out", "x.py")
    assert pack_folder(repository / "app", tmp_path / "a.tgz", gitignore=True).names == chosen
    assert "data/large" in pack_folder(repository / "app", tmp_path / "a.tgz").names
    # Somebody who names a folder that Git ignores means it.
    assert pack_folder(repository / "app" / "data", tmp_path / "a.tgz", gitignore=True).names == ("large",)


def test_what_changes_or_vanishes_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = files(
        tmp_path / "app", {"a.py": "1", "gone/b.py": "2", "log": "one\n", "torn.py": "old text", "z.py": "3"}
    )
    os.utime(folder / "torn.py", (1, 1))
    opened: list[str] = []
    what_happens = {
        "a.py": [(folder / "gone" / "b.py").unlink],
        "log": [lambda: (folder / "log").write_text("one\ntwo\n")],
        "torn.py": [lambda: (folder / "torn.py").write_text("new text"), lambda: None],
    }
    add = tarfile.TarFile.addfile

    def addfile(archive: tarfile.TarFile, info: tarfile.TarInfo, stream: IO[bytes] | None = None) -> None:
        opened.append(info.name)
        if what_happens.get(info.name):
            what_happens[info.name].pop(0)()
        add(archive, info, stream)

    monkeypatch.setattr(tarfile.TarFile, "addfile", addfile)
    built = pack_folder(folder, tmp_path / "a.tgz")
    assert built.names == ("a.py", "log", "torn.py", "z.py")
    assert opened == ["a.py", "log", "torn.py", *built.names]
    with tarfile.open(built.file) as archive:
        torn, log = archive.extractfile("torn.py"), archive.extractfile("log")
        assert torn is not None
        assert log is not None
        assert (torn.read(), log.read()) == (b"new text", b"one\ntwo\n")

    def shrink() -> None:
        (folder / "z.py").write_text((folder / "z.py").read_text()[1:])

    (folder / "z.py").write_text("0123456789")
    what_happens["z.py"] = [shrink] * 5
    with pytest.raises(
        InvalidArgumentError, match=r"z\.py in .* changes while it is packed, 3 times in a row"
    ) as raised:
        pack_folder(folder, tmp_path / "a.tgz")
    assert ".flameignore" in raised.value.remedy


def test_a_folder_that_was_packed_while_it_grew(tmp_path: Path) -> None:
    folder = files(tmp_path / "app", {"log": "", "x.py": ""})
    stop = threading.Event()

    def write() -> None:
        with (folder / "log").open("a") as log:
            while not stop.is_set():
                log.write("line\n" * 100)
                log.flush()

    writer = threading.Thread(target=write)
    writer.start()
    try:
        built = pack_folder(folder, tmp_path / "a.tgz")
    finally:
        stop.set()
        writer.join()
    assert built.names == ("log", "x.py")
    with tarfile.open(built.file) as archive:
        assert archive.getnames() == ["log", "x.py"]


def test_a_large_folder_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("flame.packages.building.LARGE", 4_000_000)
    folder = files(tmp_path / "app", {"x.py": "", "data/one": "1" * 2_000_000, "data/two": "2" * 1_000_000})
    pack_folder(folder, tmp_path / "a.tgz")
    assert caplog.messages == []
    files(folder, {"model": "3" * 2_000_000})
    pack_folder(folder, tmp_path / "a.tgz")
    (said,) = caplog.messages
    assert said == (
        f"{folder} is sent to the nodes with 5 MB in 4 files (data/ 3 MB, model 2 MB, x.py 0 MB); "
        "what they do not need can be named in .flameignore"
    )


def test_more_files_are_added_but_replace_none(tmp_path: Path) -> None:
    folder = files(tmp_path / "app", {"a": "mine"})
    built = pack_folder(folder, tmp_path / "a.tgz", more={"a": b"other", "made/b": b"new"})
    assert built.names == ("a", "made/b")
    with tarfile.open(built.file) as archive:
        contents = [archive.extractfile(name) for name in built.names]
        assert [content.read() for content in contents if content is not None] == [b"mine", b"new"]


def test_links_to_files_in_the_folder_are_packed_as_files(tmp_path: Path) -> None:
    folder = files(tmp_path / "app", {"a/real": "text"})
    (folder / "link").symlink_to("a/real")
    built = pack_folder(folder, tmp_path / "a.tgz")
    with tarfile.open(built.file) as archive:
        assert [(entry.name, entry.isreg()) for entry in archive] == [("a/real", True), ("link", True)]


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("/etc/passwd", "link is a link that leads out of the folder"),
        ("../other", "link is a link that leads out of the folder"),
        ("sub", "link is a link to a folder or to nothing"),
        ("nothing", "link is a link to a folder or to nothing"),
    ],
)
def test_other_links_are_refused(tmp_path: Path, target: str, message: str) -> None:
    folder = files(tmp_path / "app", {"sub/x": ""})
    files(tmp_path, {"other": ""})
    (folder / "link").symlink_to(target)
    with pytest.raises(InvalidArgumentError) as raised:
        pack_folder(folder, tmp_path / "a.tgz")
    assert message in raised.value.message


def test_a_pipe_is_refused(tmp_path: Path) -> None:
    folder = files(tmp_path / "app", {"x": ""})
    os.mkfifo(folder / "pipe")
    with pytest.raises(InvalidArgumentError, match="pipe is a device, a pipe or a socket"):
        pack_folder(folder, tmp_path / "a.tgz")


# --- what the files tell ----------------------------------------------------------------------------------------------

SCRIPTS = "[project]\nname = 'x'\nversion = '1'\n[project.scripts]\n"


@pytest.mark.parametrize(
    ("contents", "expected"),
    [
        ({"pyproject.toml": SCRIPTS + "my-app = 'a:b'\nother = 'a:c'"}, Detected("python", "my-app")),
        ({"pyproject.toml": SCRIPTS + "serve = 'a:b'"}, Detected("python", "serve")),
        ({"setup.py": "", "my_app/__main__.py": ""}, Detected("python", "python", ("-m", "my_app"))),
        ({"setup.cfg": "", "src/my_app/__main__.py": ""}, Detected("python", "python", ("-m", "my_app"))),
        ({"my_app.py": ""}, Detected("python", "python", ("-m", "my_app"))),
        ({"my_app.py": "", "bin/my-app": ""}, Detected("python", "python", ("-m", "my_app"))),
        ({"bin/my-app": "", "bin/zzz": ""}, Detected("binary", "my-app")),
        ({"bin/tool": "", "run!": ""}, Detected("binary", "tool")),
        ({"run!": "", "readme": ""}, Detected("binary", "run")),
        ({"pyproject.toml": "[tool.x]\n", "run!": ""}, Detected("binary", "run")),
        ({"readme": ""}, Detected("binary", why="it holds no executable, and no my_app.py or my_app/__main__.py")),
        ({"a!": "", "b!": ""}, Detected("binary", why="it holds the executables a, b, none of them named my-app")),
        (
            {"pyproject.toml": SCRIPTS + "a = 'x:y'\nb = 'x:z'"},
            Detected("python", why="its scripts are a, b and no my_app.py or my_app/__main__.py"),
        ),
        (
            {"requirements.txt": ""},
            Detected("python", why="it has no script and no my_app.py or my_app/__main__.py"),
        ),
    ],
)
def test_installer_and_command(tmp_path: Path, contents: dict[str, str], expected: Detected) -> None:
    assert detect(files(tmp_path / "x", contents), "my-app") == expected


def test_the_scripts_of_a_wheel(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x-1-py3-none-any.whl", "w") as wheel:
        wheel.writestr("x-1.dist-info/entry_points.txt", "[console_scripts]\nServe = x:main\n[other]\na = b:c\n")
    assert detect(tmp_path, "my-app") == Detected("python", "Serve")
    (tmp_path / "x-1-py3-none-any.whl").write_bytes(b"no wheel")
    assert detect(tmp_path, "my-app").command == ""


# --- what is deployed -------------------------------------------------------------------------------------------------


def packed(path: Path, tmp_path: Path) -> tuple[str, tuple[str, ...]]:
    work = tmp_path / "work"
    work.mkdir()
    source = open_source(path, work, ["*.md"])
    return source.kind, source.pack(tmp_path / "out.tgz").names


@pytest.mark.parametrize(
    ("contents", "names"),
    [
        ({"repo-1.0/setup.py": "", "repo-1.0/x.py": ""}, ("setup.py", "x.py")),
        ({"mymodule/__init__.py": ""}, ("mymodule/__init__.py",)),
        ({"bin/run": ""}, ("bin/run",)),
        ({"a/x": "", "b/y": ""}, ("a/x", "b/y")),
    ],
)
def test_an_archive_that_holds_one_folder_is_that_folder(
    tmp_path: Path, contents: dict[str, str], names: tuple[str, ...]
) -> None:
    assert packed(pack(tmp_path / "a.tar.gz", contents), tmp_path) == ("archive", names)


def test_folders_wheels_and_programs(tmp_path: Path) -> None:
    folder = files(tmp_path / "in", {"app/x": "", "app/y.md": "", "x-1-py3-none-any.whl": "", "tool!": ""})
    for name, expected in (
        ("app", ("directory", ("x",))),
        ("x-1-py3-none-any.whl", ("wheel", ("x-1-py3-none-any.whl",))),
        ("tool", ("executable-file", ("bin/tool",))),
    ):
        inner = tmp_path / f"for-{name}"
        inner.mkdir()
        assert packed(folder / name, inner) == expected


@pytest.mark.parametrize(("name", "message"), [("no", "does not exist"), ("plain", "is neither a folder")])
def test_what_can_not_be_deployed(tmp_path: Path, name: str, message: str) -> None:
    files(tmp_path, {"plain": ""})
    with pytest.raises(InvalidArgumentError, match=message):
        open_source(tmp_path / name, tmp_path, [])
