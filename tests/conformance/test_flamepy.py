"""The unmodified client of the reference system, version 0.6.0, in a process and an environment of its own.

What it checks stands in `foreign/`; each check is a test here. The services of those checks are written with it too.
"""

from __future__ import annotations

import ast
import functools
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cluster import FOREIGN_SCRIPTS, Cluster

SCRIPTS = ("applications.py", "sessions.py", "tasks.py")


def checks_of(script: str) -> list[str]:
    tree = ast.parse((FOREIGN_SCRIPTS / script).read_text())
    names = [node.name for node in tree.body if isinstance(node, ast.FunctionDef)]
    return [name for name in names if name.startswith("check_")]


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], dict[str, str]]]:
    """What became of the checks of a script: an error text, empty when all was well."""
    folder: Path = tmp_path_factory.mktemp("flamepy")
    with Cluster(folder) as cluster:

        @functools.cache
        def run(script: str) -> dict[str, str]:
            lines = [json.loads(line) for line in cluster.foreign(script).splitlines()]
            return {line["check"]: line["error"] for line in lines}

        yield run


@pytest.mark.parametrize(("script", "check"), [(script, check) for script in SCRIPTS for check in checks_of(script)])
def test_foreign_client(outcomes: Callable[[str], dict[str, str]], script: str, check: str) -> None:
    error = outcomes(script)[check]
    assert not error, error
