"""What a package is: the installer it needs and the command that starts its service, as far as its files tell."""

from __future__ import annotations

import configparser
import os
import tomllib
import zipfile
from pathlib import Path
from typing import Any, cast

import msgspec

from flame.packages.installers import is_project


class Detected(msgspec.Struct, frozen=True):
    """`command` is empty when nothing was found to start; `why` says what was looked for then."""

    installer: str
    command: str = ""
    arguments: tuple[str, ...] = ()
    why: str = ""


def detect(folder: Path, name: str) -> Detected:
    """Look at the folder with the content of a package for the application `name`.

    Python: a project's script of that name, or its only one; else the module of that name. Otherwise programs: the
    executable `bin/NAME`, the only one in bin/, or the only one of the folder.
    """
    module = _module_of(name)
    wheels = sorted(folder.glob("*.whl"))
    python = is_project(folder) or bool(wheels) or (folder / "requirements.txt").is_file()
    scripts = _scripts(folder, wheels)
    if name in scripts:
        return Detected("python", name)
    if len(scripts) == 1:
        return Detected("python", scripts[0])
    places = (folder / module / "__main__.py", folder / "src" / module / "__main__.py", folder / f"{module}.py")
    if any(place.is_file() for place in places):
        return Detected("python", "python", ("-m", module))
    if python:
        found = f"its scripts are {', '.join(scripts)}" if scripts else "it has no script"
        return Detected("python", why=f"{found} and no {module}.py or {module}/__main__.py")
    return _program(folder, name)


def _program(folder: Path, name: str) -> Detected:
    programs = _executables(folder / "bin")
    if name in programs:
        return Detected("binary", name)
    where = "bin/"
    if not programs:
        programs, where = _executables(folder), "it"
    if len(programs) == 1:
        return Detected("binary", programs[0])
    if programs:
        return Detected("binary", why=f"{where} holds the executables {', '.join(programs)}, none of them named {name}")
    module = _module_of(name)
    return Detected("binary", why=f"it holds no executable, and no {module}.py or {module}/__main__.py")


def _module_of(name: str) -> str:
    """The module that an application of this name may be."""
    return name.replace("-", "_").replace(".", "_")


def _executables(folder: Path) -> list[str]:
    if not folder.is_dir():
        return []
    return sorted(file.name for file in folder.iterdir() if file.is_file() and os.access(file, os.X_OK))


def _scripts(folder: Path, wheels: list[Path]) -> list[str]:
    """The names of the commands that come with the installed package, as far as that can be told before."""
    try:
        settings = tomllib.loads((folder / "pyproject.toml").read_text())
    except (OSError, ValueError):
        settings = {}
    project = settings.get("project")
    found = cast("dict[str, Any]", project).get("scripts") if isinstance(project, dict) else None
    names = set(cast("dict[str, Any]", found)) if isinstance(found, dict) else set[str]()
    for wheel in wheels:
        names.update(_scripts_of_wheel(wheel))
    return sorted(names)


def _scripts_of_wheel(wheel: Path) -> list[str]:
    entries = configparser.ConfigParser(delimiters="=", interpolation=None)
    entries.optionxform = str  # type: ignore[assignment, method-assign]
    try:
        with zipfile.ZipFile(wheel) as archive:
            for name in archive.namelist():
                if name.count("/") == 1 and name.endswith(".dist-info/entry_points.txt"):
                    entries.read_string(archive.read(name).decode())
    except (OSError, zipfile.BadZipFile, configparser.Error, UnicodeDecodeError):
        return []
    return list(entries["console_scripts"]) if entries.has_section("console_scripts") else []
