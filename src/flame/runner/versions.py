"""Versions that must agree between who pickles and who loads.

Pickles of functions are good for one minor version of Python and one version of cloudpickle. Objects of libraries are
good for one major version of the library (of 0.x, one minor), as far as can be told. Instances load this module; it
needs little.
"""

from __future__ import annotations

import sys

from flame.model.errors import InvalidArgumentError

TYPE_CHECKING = False  # like typing's, without its import
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from flame.runner.payloads import Served

_OWN = frozenset({"flame", "cloudpickle", "__main__"})


def libraries() -> dict[str, str]:
    """The versions of the libraries that this process has loaded, by their module."""
    found: dict[str, str] = {}
    for name, module in list(sys.modules.items()):
        if "." in name or name in _OWN or name in sys.stdlib_module_names:
            continue
        # Not the attribute: modules make it up, with a warning.
        version = getattr(module, "__dict__", {}).get("__version__")
        if isinstance(version, str):
            found[name] = version
    return found


def check_nodes(nodes: Iterable[str | None]) -> None:
    """Raises InvalidArgumentError with the fix when nodes have other versions of Python than this process, and all do.

    None: a node that does not say. What runs on some of them only, their instances find out (`check_versions`).
    """
    versions = set(nodes)
    ours = f"{sys.version_info[0]}.{sys.version_info[1]}"
    if versions and not versions & {ours, None}:
        theirs = " or ".join(sorted(str(version) for version in versions))
        raise InvalidArgumentError(
            f"this program runs Python {ours}, the cluster's nodes have {theirs}, and functions travel between equals",
            remedy=f"run the program with Python {theirs}, or give the Runner python_version={ours!r}",
        )


def check_versions(served: Served) -> None:
    """Raises InvalidArgumentError with the fix when Python or cloudpickle differ from the client's."""
    from importlib.metadata import version

    here_python = sys.version_info[:2]
    if served.python != here_python:
        ours, theirs = (".".join(map(str, numbers)) for numbers in (here_python, served.python))
        raise InvalidArgumentError(
            f"the client runs Python {theirs}, this executor Python {ours}, and functions travel between equal ones",
            remedy=f"run the client with Python {ours}, or give the Runner python_version={theirs!r}",
        )
    ours = version("cloudpickle")
    if served.cloudpickle != ours:
        raise InvalidArgumentError(
            f"the client has cloudpickle {served.cloudpickle}, this executor has {ours}",
            remedy=f"pip install cloudpickle=={ours} where the client runs",
        )


def check_libraries(wanted: Mapping[str, str]) -> None:
    """Raises InvalidArgumentError with the fix when a library that is loaded here is of another series."""
    loaded = libraries()
    for name, theirs in wanted.items():
        ours = loaded.get(name, theirs)
        if _series(ours) != _series(theirs):
            raise InvalidArgumentError(
                f"the client has {name} {theirs}, this executor has {ours}",
                remedy=f"install the same {name} on both sides, or give the Runner dependencies=['{name}=={theirs}']",
            )


def _series(version: str) -> tuple[str, ...]:
    """What must be equal: the first number, and after a 0 the next one, too."""
    numbers = version.split(".")
    return tuple(numbers[:2]) if numbers[0] == "0" else tuple(numbers[:1])
