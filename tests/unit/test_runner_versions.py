"""Versions of Python that must agree between a program and the nodes."""

from __future__ import annotations

import sys

import pytest

from flame.model.errors import InvalidArgumentError
from flame.runner.versions import check_nodes

OURS = f"{sys.version_info.major}.{sys.version_info.minor}"


@pytest.mark.parametrize("nodes", [[], [OURS], [OURS, "3.99"], [None], [None, "3.99"]])
def test_a_program_that_some_node_may_serve_goes_on(nodes: list[str | None]) -> None:
    check_nodes(nodes)


def test_one_that_no_node_can_serve_learns_what_to_do() -> None:
    with pytest.raises(
        InvalidArgumentError, match=rf"runs Python {OURS}, the cluster's nodes have 3\.98 or 3\.99,"
    ) as raised:
        check_nodes(["3.99", "3.98", "3.99"])
    assert (
        raised.value.remedy == f"run the program with Python 3.98 or 3.99, or give the Runner python_version='{OURS}'"
    )
