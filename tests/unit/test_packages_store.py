"""The packages of a node: installed once, whoever asks and whenever it was killed; used ones are never removed."""

from __future__ import annotations

import asyncio
import fcntl
import os
import resource
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from flame.model.errors import (
    FlameError,
    InternalError,
    InvalidArgumentError,
    NotFoundError,
    TimedOutError,
    UnavailableError,
)
from flame.packages import store as store_module
from flame.packages.installers import OWN_VERSION, Command, Run, Tools
from flame.packages.limits import StoreLimits
from flame.packages.store import Package, Store
from flame.proto import types_pb2
from package_builder import WebServer, make_wheel, pack, sha256


@pytest.fixture
def web() -> Iterator[WebServer]:
    with WebServer().serving() as server:
        yield server


class Commands:
    """Stands for the installers' programs: notes what is run, and answers as told."""

    def __init__(self, outcome: str = "", output: str = "") -> None:
        self.ran: list[list[str]] = []
        self.env: Mapping[str, str] = {}
        self.outcome = outcome
        self.output = output
        self.hangs = False
        self.begun = asyncio.Event()
        self.go_on = asyncio.Event()
        self.ended = 0

    async def run(self, command: Command, output: int) -> str:
        self.ran.append(list(command.argv))
        self.env = command.env
        os.write(output, self.output.encode())
        self.begun.set()
        try:
            if self.hangs:
                await self.go_on.wait()
        finally:
            self.ended += 1
        if "venv" in command.argv:
            python = Path(command.argv[-1]) / "bin" / "python"
            python.parent.mkdir(parents=True)
            python.symlink_to(sys.executable)
        return self.outcome


def a_store(folder: Path, run: Run | None = None, environ: Mapping[str, str] | None = None, **limits: Any) -> Store:
    tools = Tools(
        environ=environ if environ is not None else {"PATH": os.environ["PATH"]},
        bin_dir=Path(sys.executable).parent,
        cache=folder / "cache",
        run=run or Commands().run,
    )
    return Store(folder / "packages", tools, StoreLimits(**limits))


def spec(url: str | Path = "", installer: str = "binary", **environments: str) -> types_pb2.ApplicationSpec:
    entries = [types_pb2.Environment(name=name, value=value) for name, value in environments.items()]
    return types_pb2.ApplicationSpec(
        url=f"file://{url}" if isinstance(url, Path) else url, installer=installer, environments=entries
    )


async def provided(store: Store, application: types_pb2.ApplicationSpec) -> Package:
    package = await store.provide("app", application)
    assert package is not None
    return package


async def refused(store: Store, application: types_pb2.ApplicationSpec) -> FlameError:
    with pytest.raises(FlameError) as raised:
        await store.provide("app", application)
    return raised.value


def read(package: Package, name: str) -> str:
    return Path(package.variables["FLAME_APP_DIR"], name).read_text()


def releases(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "packages" / "releases").iterdir())


# --- what is asked for ------------------------------------------------------------------------------------------------


async def test_an_application_without_installer_gets_nothing(tmp_path: Path) -> None:
    store = a_store(tmp_path)
    assert await store.provide("app", spec("", "")) is None
    assert await store.provide("app", spec("", "binary")) is None
    error = await refused(store, spec("file:///a.tgz", ""))
    assert error.message.startswith("application app has a url but no installer")
    assert "python or binary" in error.remedy
    assert "unknown installer 'deb'" in (await refused(store, spec("file:///a.tgz", "deb"))).message


async def test_the_python_installer_without_a_package_makes_flame_importable(tmp_path: Path) -> None:
    commands = Commands()
    store = a_store(tmp_path, commands.run)
    package = await provided(store, spec("", "Python"))
    assert package.variables["FLAME_PYTHON_VERSION"] == OWN_VERSION
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-S", "-c", "import flame, msgspec", env={"PYTHONPATH": package.variables["PYTHONPATH"]}
    )
    assert await process.wait() == 0
    assert not commands.ran
    other = await provided(store, spec("", "python", FLAME_PYTHON_VERSION="python3.99"))
    assert other.variables["FLAME_PYTHON_VERSION"] == "3.99"
    assert "PYTHONPATH" not in other.variables
    assert "is no version" in (await refused(store, spec("", "python", FLAME_PYTHON_VERSION="2.7"))).message


async def test_a_binary_package(tmp_path: Path) -> None:
    archive = pack(tmp_path / "a.tgz", {"bin/run": "#!/bin/sh\n", "lib/x.so": "", "data": "d"})
    package = await provided(a_store(tmp_path), spec(archive))
    source = Path(package.variables["FLAME_APP_DIR"])
    assert package.variables == {
        "FLAME_APP_DIR": str(source),
        "PATH": f"{source}/bin:{source}",
        "LD_LIBRARY_PATH": f"{source}/libs:{source}/lib",
    }
    assert os.access(source / "bin" / "run", os.X_OK)
    assert read(package, "data") == "d"


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"pyproject.toml": "[project]\nname='x'\nversion='1'"}, ["."]),
        ({"setup.py": "", "requirements.txt": "x"}, ["."]),
        ({"repo-main/setup.cfg": "", "repo-main/x.py": ""}, ["."]),
        ({"requirements.txt": "x", "x.py": ""}, ["--requirement", "requirements.txt"]),
        ({"x.py": "", "pyproject.toml": "[tool.ruff]\nline-length = 100"}, None),
        ({"x/__init__.py": ""}, None),
    ],
)
async def test_what_is_installed_of_a_python_package(
    tmp_path: Path, files: dict[str, str], expected: list[str] | None
) -> None:
    commands = Commands()
    package = await provided(a_store(tmp_path, commands.run), spec(pack(tmp_path / "a.tgz", files), "python"))
    venv, *install = commands.ran
    assert venv[1:3] == ["venv", "--no-project"]
    assert [command[-len(expected or []) :] for command in install] == ([expected] if expected else [])
    environment = Path(package.variables["VIRTUAL_ENV"])
    paths = package.variables["PYTHONPATH"].split(":")
    assert paths[:2] == [f"{environment}/lib/python{OWN_VERSION}/site-packages", package.variables["FLAME_APP_DIR"]]
    assert package.variables["PATH"] == f"{environment}/bin"


def names_in(folder: str) -> list[str]:
    return [one.name for one in Path(folder).iterdir()]


async def test_flame_is_there_for_another_version_of_python(tmp_path: Path) -> None:
    commands = Commands()
    store = a_store(tmp_path, commands.run)
    archive = pack(tmp_path / "a.tgz", {"x.py": ""})
    other = await provided(store, spec(archive, "python", FLAME_PYTHON_VERSION="3.99"))
    _, install = commands.ran
    assert install[1:3] == ["pip", "install"]
    assert {line.partition("<")[0] for line in install} >= {"msgspec", "protobuf"}
    _, source, own = other.variables["PYTHONPATH"].split(":")
    assert (source, names_in(own)) == (other.variables["FLAME_APP_DIR"], ["flame"])
    assert (Path(own) / "flame" / "service").is_dir()
    # Flame does not run there, other programs do.
    await provided(store, spec(archive, "python", FLAME_PYTHON_VERSION="3.9"))
    assert len(commands.ran) == 3


async def test_libraries_of_python_packages_are_found(tmp_path: Path) -> None:
    class Installs(Commands):
        async def run(self, command: Command, output: int) -> str:
            became = await super().run(command, output)
            if "venv" not in command.argv:
                root = Path(command.argv[command.argv.index("--python") + 1]).parents[1]
                for name in ("a/lib/libone.so.1", "a/_extension.so", "b/x/y/libtwo.so", "b/x/y/z/libdeep.so", "c/x.py"):
                    file = root / f"lib/python{OWN_VERSION}/site-packages" / name
                    file.parent.mkdir(parents=True, exist_ok=True)
                    file.touch()
            return became

    archive = pack(tmp_path / "a.tgz", {"requirements.txt": "x"})
    package = await provided(a_store(tmp_path, Installs().run), spec(archive, "python"))
    root = f"{package.variables['VIRTUAL_ENV']}/lib/python{OWN_VERSION}/site-packages"
    assert package.variables["LD_LIBRARY_PATH"] == f"{root}/a/lib:{root}/b/x/y"


async def test_what_instances_are_told_of_the_nodes_settings(tmp_path: Path) -> None:
    told = {"UV_OFFLINE": "1", "UV_FIND_LINKS": "/srv", "SSL_CERT_FILE": "/etc/ca.pem", "REQUESTS_CA_BUNDLE": "/etc/ca"}
    environ = {
        "PATH": os.environ["PATH"],
        "UV_INDEX_URL": "https://me:secret@x",
        "https_proxy": "http://me:p@x",
        **told,
    }
    store = a_store(tmp_path, environ=environ)
    found = (await provided(store, spec(pack(tmp_path / "a.tgz", {"x.py": ""}), "python"))).variables
    assert {name: found.get(name) for name in environ if name != "PATH"} == {
        **told,
        "UV_INDEX_URL": None,
        "https_proxy": None,
    }


async def test_installers_get_the_nodes_settings_for_them_and_no_secrets(tmp_path: Path) -> None:
    commands = Commands()
    environ = {"PATH": os.environ["PATH"], "UV_OFFLINE": "1", "PIP_INDEX_URL": "x", "https_proxy": "p", "AWS_KEY": "k"}
    archive = pack(tmp_path / "a.tgz", {"requirements.txt": "x"})
    await provided(a_store(tmp_path, commands.run, environ), spec(archive, "python"))
    kept = {name: commands.env.get(name) for name in ("UV_OFFLINE", "PIP_INDEX_URL", "https_proxy", "AWS_KEY")}
    assert kept == {"UV_OFFLINE": "1", "PIP_INDEX_URL": "x", "https_proxy": "p", "AWS_KEY": None}


async def test_without_uv_pip_installs_and_a_python_that_is_not_there_is_named(tmp_path: Path) -> None:
    commands = Commands()
    bin_dir = tmp_path / "bin"
    bin_dir.mkdir()
    tools = Tools(environ={"PATH": str(bin_dir)}, bin_dir=bin_dir, cache=tmp_path / "cache", run=commands.run)
    store = Store(tmp_path / "packages", tools, StoreLimits())
    archive = pack(tmp_path / "a.tgz", {"setup.py": ""})
    package = await provided(store, spec(archive, "python"))
    python = f"{package.variables['VIRTUAL_ENV']}/bin/python"
    assert commands.ran == [
        [sys.executable, "-m", "venv", package.variables["VIRTUAL_ENV"]],
        [python, "-m", "pip", "install", "--no-input", "."],
    ]
    error = await refused(store, spec(archive, "python", FLAME_PYTHON_VERSION="3.99"))
    assert error.message.startswith("this node has no Python 3.99")
    assert len(releases(tmp_path)) == 1


async def run_for_real(command: Command, output: int) -> str:
    process = await asyncio.create_subprocess_exec(
        *command.argv, env=command.env, cwd=command.cwd, stdout=output, stderr=output
    )
    status = await process.wait()
    return f"exited with status {status}" if status else ""


async def test_pip_installs_from_a_folder_of_wheels_without_a_network(tmp_path: Path) -> None:
    """As on a node without uv and without a registry."""
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    make_wheel(wheels, "colours", "3", {"colours.py": "RED = 1"}, {})
    bin_dir = tmp_path / "bin"
    bin_dir.mkdir()
    environ = {"PATH": str(bin_dir), "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(wheels), "HOME": str(tmp_path)}
    tools = Tools(environ=environ, bin_dir=bin_dir, cache=tmp_path / "cache", run=run_for_real)
    store = Store(tmp_path / "packages", tools, StoreLimits())
    package = await provided(store, spec(pack(tmp_path / "a.tgz", {"requirements.txt": "colours==3"}), "python"))
    python = f"{package.variables['VIRTUAL_ENV']}/bin/python"
    process = await asyncio.create_subprocess_exec(python, "-c", "import colours; print(colours.RED)", stdout=-1)
    assert (await process.communicate())[0] == b"1\n"
    error = await refused(store, spec(pack(tmp_path / "b.tgz", {"requirements.txt": "colours==4"}), "python"))
    assert "No matching distribution found for colours==4" in error.message


# --- once -------------------------------------------------------------------------------------------------------------


async def test_many_executors_one_installation(tmp_path: Path, web: WebServer) -> None:
    web.files["/a.tgz"] = pack(tmp_path / "a.tgz", {"x.py": ""}).read_bytes()
    commands = Commands()
    store = a_store(tmp_path, commands.run)
    packages = await asyncio.gather(*(provided(store, spec(f"{web.url}/a.tgz", "python")) for _ in range(20)))
    assert len({package.identity for package in packages}) == 1
    assert len(commands.ran) == 1
    assert [status for _, _, status in web.asked] == [200]


async def test_a_pinned_package_that_is_there_is_not_even_asked_for(tmp_path: Path, web: WebServer) -> None:
    archive = pack(tmp_path / "a.tgz", {"x": ""})
    web.files["/a.tgz"] = archive.read_bytes()
    url = f"{web.url}/a.tgz#sha256={sha256(archive)}"
    first = await provided(a_store(tmp_path), spec(url))
    web.status = 500
    assert (await provided(a_store(tmp_path), spec(url))).identity == first.identity
    assert len(web.asked) == 1


async def test_an_address_whose_content_changes_is_followed(tmp_path: Path, web: WebServer) -> None:
    store = a_store(tmp_path)
    identities: list[str] = []
    for text in ("1", "1", "2", "1"):
        web.files["/a.tgz"] = pack(tmp_path / "a.tgz", {"x": text}).read_bytes()
        package = await provided(store, spec(f"{web.url}/a.tgz"))
        identities.append(package.identity)
        assert read(package, "x") == text
    assert identities[0] == identities[1] == identities[3] != identities[2]
    # The second time it was unchanged; the last time what came was there already.
    assert [status for _, _, status in web.asked] == [200, 304, 200, 200]
    assert len(releases(tmp_path)) == 2
    # What the address names now can't be known: what it named before is not taken for it.
    web.status = 500
    assert isinstance(await refused(store, spec(f"{web.url}/a.tgz")), UnavailableError)


@pytest.mark.parametrize("scheme", ["file", "http"])
async def test_a_digest_is_looked_at_also_when_the_address_was_fetched_without_one(
    tmp_path: Path, web: WebServer, scheme: str
) -> None:
    archive = pack(tmp_path / "a.tgz", {"x": ""})
    web.files["/a.tgz"] = archive.read_bytes()
    url = f"{web.url}/a.tgz" if scheme == "http" else archive.as_uri()
    store = a_store(tmp_path)
    await provided(store, spec(url))
    error = await refused(store, spec(f"{url}#sha256={'0' * 64}"))
    assert "its address says 000000" in error.message
    await provided(store, spec(f"{url}#sha256={sha256(archive)}"))


async def test_the_same_content_from_elsewhere_and_for_another_python(tmp_path: Path) -> None:
    commands = Commands()
    store = a_store(tmp_path, commands.run)
    one, two = (pack(tmp_path / name, {"x.py": ""}) for name in ("a.tgz", "b.tgz"))
    one.replace(tmp_path / "c.tgz")
    (tmp_path / "b.tgz").write_bytes((tmp_path / "c.tgz").read_bytes())
    first = await provided(store, spec(tmp_path / "c.tgz", "python"))
    second = await provided(store, spec(two, "python"))
    third = await provided(store, spec(two, "python", FLAME_PYTHON_VERSION="3.99"))
    fourth = await provided(store, spec(two, "binary"))
    assert first.identity == second.identity
    assert len({second.identity, third.identity, fourth.identity}) == 3
    assert commands.ran[1][-2:] == ["3.99", third.variables["VIRTUAL_ENV"]]


async def test_who_gives_up_does_not_end_it_for_others(tmp_path: Path) -> None:
    commands = Commands()
    commands.hangs = True
    store = a_store(tmp_path, commands.run)
    application = spec(pack(tmp_path / "a.tgz", {"x.py": ""}), "python")
    impatient, patient = (asyncio.create_task(provided(store, application)) for _ in range(2))
    await commands.begun.wait()
    impatient.cancel()
    with pytest.raises(asyncio.CancelledError):
        await impatient
    commands.go_on.set()
    assert (await patient).identity
    assert len(commands.ran) == 1


PROCESS = """
import asyncio, sys
from pathlib import Path
from flame.packages.installers import Command, Tools
from flame.packages.limits import StoreLimits
from flame.packages.store import Store
from flame.proto import types_pb2

folder, archive = Path(sys.argv[1]), sys.argv[2]

async def run(command, output):
    (folder / f"ran-{sys.argv[3]}").touch()
    print("installing", flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    python = Path(command.argv[-1]) / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.symlink_to(sys.executable)
    return ""

async def main():
    tools = Tools(environ={"PATH": ""}, bin_dir=folder, cache=folder, run=run)
    store = Store(folder / "packages", tools, StoreLimits())
    print("begun", flush=True)
    package = await store.provide("app", types_pb2.ApplicationSpec(url="file://" + archive, installer="python"))
    print(package.identity, flush=True)

asyncio.run(main())
"""


def a_process(tmp_path: Path, archive: Path, number: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", textwrap.dedent(PROCESS), str(tmp_path), str(archive), str(number)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def says(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def tell(process: subprocess.Popen[str]) -> None:
    """Let its installer go on."""
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


def rest(process: subprocess.Popen[str]) -> list[str]:
    """What else it says until its end."""
    assert process.stdout is not None
    return process.stdout.read().split()


def test_two_processes_share_a_folder_and_one_of_them_installs(tmp_path: Path) -> None:
    archive = pack(tmp_path / "a.tgz", {"x.py": ""})
    with a_process(tmp_path, archive, 1) as first, a_process(tmp_path, archive, 2) as second:
        assert [says(first), says(second)] == ["begun", "begun"]
        # Whoever is first waits for a line; the other one waits for it.
        tell(first)
        tell(second)
        lines = sorted((rest(first), rest(second)), key=len)
        (identity,) = lines[0]
        assert lines[1] == ["installing", identity]


def test_an_installation_that_was_killed_is_made_anew(tmp_path: Path) -> None:
    archive = pack(tmp_path / "a.tgz", {"x.py": ""})
    with a_process(tmp_path, archive, 1) as first:
        assert [says(first), says(first)] == ["begun", "installing"]
        first.send_signal(signal.SIGKILL)
    (left,) = releases(tmp_path)
    assert [path.name for path in left.iterdir()] == ["src"]
    (download,) = (tmp_path / "packages" / "incoming").iterdir()
    with a_process(tmp_path, archive, 2) as second:
        assert says(second) == "begun"
        assert not download.exists()
        tell(second)
        assert rest(second) == ["installing", left.name]


# --- failures ---------------------------------------------------------------------------------------------------------


async def test_a_failed_installation_shows_the_end_of_its_output_and_may_be_tried_again(tmp_path: Path) -> None:
    commands = Commands("exited with status 1", "".join(f"line {number}\n" for number in range(1000)))
    store = a_store(tmp_path, commands.run)
    archive = pack(tmp_path / "a.tgz", {"requirements.txt": "nonsense"})
    error = await refused(store, spec(archive, "python"))
    assert isinstance(error, InvalidArgumentError)
    begin = f"installing package file://{archive} failed: the installer exited with status 1; the end of its output:\n"
    assert error.message.startswith(begin)
    assert error.message.splitlines()[1:] == [f"line {number}" for number in range(980, 1000)]
    assert not releases(tmp_path)
    commands.outcome = ""
    assert (await provided(store, spec(archive, "python"))).identity


async def test_logs_of_failed_installations_are_kept_for_a_week(tmp_path: Path) -> None:
    commands = Commands("exited with status 1")
    archive = pack(tmp_path / "a.tgz", {"x.py": ""})
    store = a_store(tmp_path, commands.run)
    await refused(store, spec(archive, "python"))
    (log,) = logs = list((tmp_path / "packages" / "logs").iterdir())
    a_store(tmp_path)
    assert list((tmp_path / "packages" / "logs").iterdir()) == logs
    os.utime(log, (1, 1))
    a_store(tmp_path)
    assert not list((tmp_path / "packages" / "logs").iterdir())
    commands.outcome = ""
    package = await provided(store, spec(archive, "python"))
    os.utime(log, (1, 1))
    a_store(tmp_path)
    assert [path.stem for path in (tmp_path / "packages" / "logs").iterdir()] == [package.identity]


async def test_a_full_disk_is_named_as_what_it_is(tmp_path: Path) -> None:
    archive = pack(tmp_path / "a.tgz", {"x": "y" * 100_000})
    store = a_store(tmp_path)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))
    try:
        error = await refused(store, spec(archive))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert error.message == f"installing package file://{archive} failed: File too large"
    assert error.remedy == "look after the disk of this node"
    assert not releases(tmp_path)
    assert (await provided(store, spec(archive))).identity


async def test_an_installer_that_hangs_is_ended_and_not_asked_again_at_once(tmp_path: Path) -> None:
    commands = Commands(output="resolving...\n")
    commands.hangs = True
    store = a_store(tmp_path, commands.run, install_timeout=0.2)
    application = spec(pack(tmp_path / "a.tgz", {"x.py": ""}), "python")
    error = await refused(store, application)
    assert isinstance(error, TimedOutError)
    assert "took more than 0.2 s and was ended" in error.message
    assert error.message.endswith("resolving...")
    assert (commands.ended, releases(tmp_path)) == (1, [])
    patient = a_store(tmp_path, commands.run, install_timeout=60)
    waiting = asyncio.create_task(refused(patient, application))
    commands.begun.clear()
    await commands.begun.wait()
    waiting.cancel()
    await patient.close()
    assert (commands.ended, releases(tmp_path)) == (2, [])


async def test_a_bad_archive_leaves_nothing(tmp_path: Path) -> None:
    store = a_store(tmp_path)
    (tmp_path / "a.tgz").write_bytes(b"<html>")
    assert "is damaged or no archive" in (await refused(store, spec(tmp_path / "a.tgz"))).message
    assert isinstance(await refused(store, spec(tmp_path / "b.tgz")), NotFoundError)
    assert not releases(tmp_path)
    assert not list((tmp_path / "packages" / "incoming").iterdir())


async def test_what_was_refused_is_not_unpacked_again_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unpacked: list[str] = []
    whole = store_module.unpack

    def counted(archive: Path, name: str, *rest: Any) -> None:
        unpacked.append(name)
        whole(archive, name, *rest)

    monkeypatch.setattr(store_module, "unpack", counted)
    store = a_store(tmp_path)
    (tmp_path / "a.tgz").write_bytes(b"<html>")
    first, second = [await refused(store, spec(tmp_path / "a.tgz")) for _ in range(2)]
    assert first.message == second.message
    assert len(unpacked) == 1
    pack(tmp_path / "a.tgz", {"x": ""})
    await provided(store, spec(tmp_path / "a.tgz"))


async def test_an_environment_whose_python_is_gone_is_made_anew(tmp_path: Path) -> None:
    commands = Commands()
    store = a_store(tmp_path, commands.run)
    archive = pack(tmp_path / "a.tgz", {"x.py": ""})
    package = await provided(store, spec(archive, "python"))
    os.unlink(f"{package.variables['VIRTUAL_ENV']}/bin/python")  # noqa: PTH108
    assert (await provided(store, spec(archive, "python"))).identity == package.identity
    assert len(commands.ran) == 2


# --- what goes --------------------------------------------------------------------------------------------------------


async def test_what_was_not_used_for_the_longest_time_goes_unless_it_is_in_use(tmp_path: Path) -> None:
    store = a_store(tmp_path, keep_count=2, keep_recent=0)
    archives = [pack(tmp_path / f"{number}.tgz", {"x": str(number)}) for number in range(4)]
    packages: list[Package] = []
    for number, archive in enumerate(archives[:2]):
        packages.append(await provided(store, spec(archive)))
        os.utime(tmp_path / "packages" / "releases" / packages[-1].identity / "ready", (number, number))
    packages[0].hold()
    packages[0].hold()
    packages.append(await provided(store, spec(archives[2])))
    kept = {path.name for path in releases(tmp_path)}
    assert kept == {packages[0].identity, packages[2].identity}
    with pytest.raises(InternalError, match="was removed from this node"):
        packages[1].hold()
    packages[0].release()
    packages[0].release()
    os.utime(tmp_path / "packages" / "releases" / packages[0].identity / "ready", (1, 1))
    packages.append(await provided(store, spec(archives[3])))
    assert {path.name for path in releases(tmp_path)} == {packages[2].identity, packages[3].identity}


async def test_what_another_process_uses_stays(tmp_path: Path) -> None:
    store = a_store(tmp_path, keep_count=0, keep_recent=0)
    first = await provided(store, spec(pack(tmp_path / "1.tgz", {"x": "1"})))
    # Nothing held it, and no package at all may be kept.
    assert not releases(tmp_path)
    with pytest.raises(InternalError):
        first.hold()
    roomy = a_store(tmp_path)
    first = await provided(roomy, spec(tmp_path / "1.tgz"))
    lock = os.open(tmp_path / "packages" / "locks" / first.identity, os.O_RDWR)
    fcntl.flock(lock, fcntl.LOCK_SH)
    await provided(store, spec(pack(tmp_path / "2.tgz", {"x": "2"})))
    assert [path.name for path in releases(tmp_path)] == [first.identity]
    os.close(lock)


async def test_what_was_used_a_moment_ago_stays(tmp_path: Path) -> None:
    store = a_store(tmp_path, keep_bytes=0)
    for number in range(3):
        await provided(store, spec(pack(tmp_path / f"{number}.tgz", {"x": str(number)})))
    assert len(releases(tmp_path)) == 3
