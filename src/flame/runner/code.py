"""Where the instances of an application find the code in front of the user.

- Inside of an instance: where that instance has it.
- In a cluster on this machine: where this process has it. Instances use the same interpreter, the same `sys.path` and
  the same working directory, so nothing is sent, and what is on disk when they start is what they run.
- Elsewhere, for a project (a folder with pyproject.toml, setup.py or setup.cfg), or one that `package` names: it is
  packed and installed there. Packages are named by a digest of what is in them.
- Elsewhere, for everything else: what the user typed, and modules that lie in the working directory, travel inside of
  the pickles.
"""

from __future__ import annotations

import os
import site
import sys
import sysconfig
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from flame.client.values import ApplicationAttributes
from flame.runner.pickling import cloudpickle

_FLAME = str(Path(__file__).parents[1])


def local_attributes(environments: Mapping[str, str]) -> ApplicationAttributes:
    """An application whose instances run on this machine with what this process has."""
    path = {"PYTHONPATH": os.pathsep.join(import_path())}
    return ApplicationAttributes(
        command=sys.executable,
        arguments=["-m", "flame.runner.runpy"],
        environments={**path, **environments},
        working_directory=str(Path.cwd()),
    )


def import_path() -> list[str]:
    """Where this process looks for modules, without the places that its interpreter knows by itself."""
    known = {sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib"), *site.getsitepackages()}
    known |= {str(Path(sysconfig.get_path("platstdlib")) / "lib-dynload"), site.getusersitepackages()}
    found = [str(Path(place).absolute()) if place else str(Path.cwd()) for place in sys.path]
    return [place for place in dict.fromkeys(found) if place not in known and not place.endswith(".zip")]


def ship_local_modules() -> None:
    """Let functions and classes of modules that lie in the working directory travel inside of pickles.

    That counts for all pickles that cloudpickle makes in this process from now on.
    """
    registered = cloudpickle()
    for module in list(sys.modules.values()):
        file = getattr(module, "__file__", None)
        if file is not None and _is_local(file) and module.__name__ not in registered.list_registry_pickle_by_value():
            registered.register_pickle_by_value(module)


def _is_local(file: str) -> bool:
    path = Path(file).absolute()
    own = Path.cwd()
    return path.is_relative_to(own) and not any(
        path.is_relative_to(place) for place in (sys.prefix, sys.base_prefix, _FLAME) if place != str(own)
    )


def with_environments(attributes: ApplicationAttributes, environments: Mapping[str, str]) -> ApplicationAttributes:
    """The same with more variables."""
    return replace(attributes, environments={**(attributes.environments or {}), **environments})
