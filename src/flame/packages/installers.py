"""The installers: what is done with an unpacked package, and what its instances find in their environment for it.

`binary` leaves it as it is. `python` makes a virtual environment beside it and installs what is in the package there,
with uv if the node has it, else with pip.
"""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import sys
import sysconfig
import tomllib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from importlib.metadata import requires
from pathlib import Path

import msgspec

from flame.model.errors import FlameError, InternalError, InvalidArgumentError, InvalidConfigError

INSTALLERS = ("python", "binary")
BUILD_FILES = ("pyproject.toml", "setup.py", "setup.cfg")
OWN_VERSION = f"{sys.version_info.major}.{sys.version_info.minor}"
PYTHON_VERSION = "FLAME_PYTHON_VERSION"
PYTHON_LABEL = "flame.python"  # of nodes: the version that packages and instances get where they ask for none
OLDEST = (3, 11)  # that Flame runs on
FLAME, LIBRARIES = "flame", "libraries"  # beside the environment: Flame for another Python, and folders of libraries
_DEPTH = 4  # of folders in the environment that may hold libraries

_VERSION = re.compile(r"(?:python)?(3\.\d+)(?:\.\d+)?")
# Of the node's environment, what instances are told (no addresses: there may be passwords in them), and what the tools
# that install are given.
_TOLD = re.compile(r"UV_(OFFLINE|NO_INDEX|FIND_LINKS|NATIVE_TLS|SYSTEM_CERTS)|SSL_CERT_(FILE|DIR)|REQUESTS_CA_BUNDLE")
_PASSED = re.compile(r"UV_\w+|PIP_\w+|\w+_proxy|\w+_PROXY|SSL_CERT_\w+|REQUESTS_CA_BUNDLE|NETRC|XDG_\w+|LANG|LC_\w+")


class Command(msgspec.Struct, frozen=True):
    """A program to run in a folder, with this environment."""

    argv: Sequence[str]
    env: Mapping[str, str]
    cwd: Path


Run = Callable[[Command, int], Awaitable[str]]
"""Run a command, its output going to this descriptor; returns when nothing of it runs any more: empty when it exited
with 0, else what became of it, such as "exited with status 1". A cancelled run ends all of its processes."""


class Tools(msgspec.Struct, frozen=True):
    """What a node installs with. `bin_dir` is where commands beside Flame's own Python are looked for first."""

    environ: Mapping[str, str]
    bin_dir: Path
    cache: Path
    run: Run

    @property
    def path(self) -> str:
        return f"{self.bin_dir}:{self.environ.get('PATH') or os.defpath}"

    def find(self, program: str) -> str | None:
        return shutil.which(program, path=self.path)


class Job(msgspec.Struct, frozen=True):
    """An installation: the package is in `release/src`, or is the wheel `wheel`; `python` is its version, "3.11"."""

    name: str
    installer: str
    release: Path
    wheel: Path | None
    python: str
    log: int

    @property
    def source(self) -> Path:
        return self.release / "src"

    @property
    def environment(self) -> Path:
        return self.release / "env"


def python_version(environments: Mapping[str, str]) -> str:
    """The version that an application asks for, such as "3.12"; Flame's own by default. Raises InvalidArgumentError."""
    text = environments.get(PYTHON_VERSION, "")
    if not text:
        return OWN_VERSION
    match = _VERSION.fullmatch(text)
    if match is None:
        raise InvalidArgumentError(f"{PYTHON_VERSION} {text!r} is no version of Python", remedy="write it like 3.12")
    return match[1]


def check_installer(name: str) -> str:
    """Its name in lower case. Raises InvalidArgumentError for one that does not exist."""
    if name.lower() not in INSTALLERS:
        raise InvalidArgumentError(f"unknown installer {name!r}", remedy=f"there are {' and '.join(INSTALLERS)}")
    return name.lower()


# --- what instances find ---------------------------------------------------------------------------------------------


def variables(installer: str, release: Path | None, python: str, tools: Tools) -> dict[str, str]:
    """The variables that instances get for their package; of PATH, PYTHONPATH and LD_LIBRARY_PATH what goes first.

    Without a package (`release` None) those that make Flame importable.
    """
    found: dict[str, str] = {}
    if release is not None:
        found["FLAME_APP_DIR"] = str(release / "src")
    if installer == "binary":
        if release is not None:
            source = release / "src"
            found["PATH"] = f"{source / 'bin'}:{source}"
            libraries = [source / "libs", *([source / "lib"] if (source / "lib").is_dir() else [])]
            found["LD_LIBRARY_PATH"] = ":".join(map(str, libraries))
        return found
    paths: list[str] = []
    if release is not None:
        environment = release / "env"
        paths += [str(site_packages(environment, python)), str(release / "src")]
        found["PATH"] = str(environment / "bin")
        found["VIRTUAL_ENV"] = str(environment)
        if (release / FLAME).is_dir():
            paths.append(str(release / FLAME))
        libraries = _read_lines(release / LIBRARIES)
        if libraries:
            found["LD_LIBRARY_PATH"] = ":".join(libraries)
    if python == OWN_VERSION:
        paths += own_packages()
    if paths:
        found["PYTHONPATH"] = ":".join(paths)
    found[PYTHON_VERSION] = python
    found["UV_CACHE_DIR"] = tools.environ.get("UV_CACHE_DIR") or str(tools.cache / "uv")
    found["PIP_CACHE_DIR"] = tools.environ.get("PIP_CACHE_DIR") or str(tools.cache / "pip")
    # What instances install themselves comes from where the node's packages come from.
    found.update((name, value) for name, value in tools.environ.items() if _TOLD.fullmatch(name))
    return found


def site_packages(environment: Path, python: str) -> Path:
    """Where a virtual environment keeps its packages."""
    return environment / "lib" / f"python{python}" / "site-packages"


def own_packages() -> list[str]:
    """Where Flame and what it needs are imported from, in this process."""
    found = [sysconfig.get_path("purelib"), sysconfig.get_path("platlib"), str(Path(__file__).parents[2])]
    return list(dict.fromkeys(found))


# --- python ----------------------------------------------------------------------------------------------------------


async def install_python(job: Job, tools: Tools) -> None:
    """Make the environment and install the package in it. Raises FlameError."""
    uv = tools.find("uv")
    env = _environment(tools)
    await _run(job, tools, _make_environment(job, tools, uv), env)
    what = await asyncio.to_thread(_wanted, job)
    if what:
        interpreter = str(job.environment / "bin" / "python")
        if uv is not None:
            install = [uv, "pip", "install", "--python", interpreter, "--link-mode=copy", *what]
        else:
            install = [interpreter, "-m", "pip", "install", "--no-input", *what]
        await _run(job, tools, install, env)
    if (
        job.python != OWN_VERSION
        and _runs_flame(job.python)
        and not (site_packages(job.environment, job.python) / "flame").is_dir()
    ):
        await _provide_flame(job, tools, uv, env)
    await asyncio.to_thread(_note_libraries, job)


async def _provide_flame(job: Job, tools: Tools, uv: str | None, env: dict[str, str]) -> None:
    """For a version of Python that is not this process's: the code is the same, what it needs is not."""
    interpreter = str(job.environment / "bin" / "python")
    needed = [line for line in requires("flame-engine") or () if "extra ==" not in line]
    pip = [uv, "pip", "install", "--python", interpreter] if uv is not None else [interpreter, "-m", "pip", "install"]
    await _run(job, tools, [*pip, *needed], env)
    (job.release / FLAME).mkdir()
    (job.release / FLAME / "flame").symlink_to(Path(__file__).parents[1], target_is_directory=True)


def _runs_flame(python: str) -> bool:
    return tuple(map(int, python.split("."))) >= OLDEST


def _note_libraries(job: Job) -> None:
    """Folders of shared libraries that packages brought: others may look for those by their names alone."""
    root = site_packages(job.environment, job.python)
    folders = {
        str(file.parent)
        for depth in range(_DEPTH)
        for file in root.glob(f"{'*/' * depth}lib*.so*")
        if file.is_file() and not file.is_symlink()
    }
    if folders:
        (job.release / LIBRARIES).write_text("".join(f"{folder}\n" for folder in sorted(folders)))


def _read_lines(file: Path) -> list[str]:
    try:
        return file.read_text().splitlines()
    except FileNotFoundError:
        return []


def _make_environment(job: Job, tools: Tools, uv: str | None) -> list[str]:
    own = job.python == OWN_VERSION
    if uv is not None:
        return [uv, "venv", "--no-project", "--python", sys.executable if own else job.python, str(job.environment)]
    interpreter = sys.executable if own else tools.find(f"python{job.python}")
    if interpreter is None:
        raise InvalidConfigError(
            f"this node has no Python {job.python}, which package {job.name} asks for",
            remedy=f"install it, or uv, on the nodes; or leave {PYTHON_VERSION} out (they have {OWN_VERSION})",
        )
    return [interpreter, "-m", "venv", str(job.environment)]


def _wanted(job: Job) -> list[str]:
    """What to install: a wheel, a project, requirements, wheels, or (plain modules) nothing.

    Wheels in the folder `wheels` of a package count beside those of a registry.
    """
    if job.wheel is not None:
        return [str(job.wheel)]
    wheels = sorted(file.name for file in job.source.glob("*.whl"))
    if is_project(job.source):
        what = ["."]
    elif (job.source / "requirements.txt").is_file():
        what = ["--requirement", "requirements.txt"]
    elif wheels:
        what = [f"./{name}" for name in wheels]
    else:
        return []
    return [*what, "--find-links", "wheels"] if (job.source / "wheels").is_dir() else what


def is_project(folder: Path) -> bool:
    """Whether a folder has a build file; a pyproject.toml that holds settings of tools only is none."""
    if any((folder / name).is_file() for name in BUILD_FILES[1:]):
        return True
    try:
        text = (folder / BUILD_FILES[0]).read_text(errors="replace")
        settings = tomllib.loads(text)
    except FileNotFoundError:
        return False
    except (tomllib.TOMLDecodeError, IsADirectoryError):
        return True  # the installer says what is wrong with it
    return "project" in settings or "build-system" in settings


def _environment(tools: Tools) -> dict[str, str]:
    passed = {name: value for name, value in tools.environ.items() if _PASSED.fullmatch(name)}
    caches = {"UV_CACHE_DIR": str(tools.cache / "uv"), "PIP_CACHE_DIR": str(tools.cache / "pip")}
    return {
        **caches,
        "UV_NO_PROGRESS": "1",
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        "PIP_PROGRESS_BAR": "off",
        **passed,
        "PATH": tools.path,
        "HOME": tools.environ.get("HOME", "/"),
    }


async def _run(job: Job, tools: Tools, argv: list[str], env: dict[str, str]) -> None:
    shown = " ".join([Path(argv[0]).name, *argv[1:]]).replace(f"{job.release}/", "")
    os.write(job.log, f"$ {shown}\n".encode())
    cwd = job.source if job.source.is_dir() else job.release
    became = await tools.run(Command(argv, env, cwd), job.log)
    if became:
        raise InstallerFailedError(became)


class InstallerFailedError(Exception):
    """An installer's program did not end well; what it said stands in the log."""


def as_flame_error(error: Exception, what: str) -> FlameError:
    """An error of an installation, said about what was installed."""
    if isinstance(error, FlameError):
        return error
    if isinstance(error, OSError):
        return InvalidConfigError(f"{what}: {error.strerror or error}", remedy="look after the disk of this node")
    return InternalError(f"{what}: {type(error).__name__}: {error}")
