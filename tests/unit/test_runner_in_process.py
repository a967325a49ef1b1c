"""What may be answered by who waits for it."""

from __future__ import annotations

from typing import Any

import pytest

from flame import Limits, ResourceRequirement, SessionAttributes
from flame.runner.in_process import fits_here


@pytest.mark.parametrize(
    ("asked", "fits"),
    [
        ({}, True),
        ({"resreq": "cpu=4,mem=2g"}, True),
        ({"tolerations": ["spot"], "tenant": "lab", "max_instances": 2}, True),
        ({"resreq": "cpu=1,gpu=1"}, False),
        ({"resreq": ResourceRequirement(cpu=1, gpu=1)}, False),
        ({"selector": {"zone": "a"}}, False),
        ({"isolation": "process"}, False),
        ({"network": ["example.com:443"]}, False),
        ({"limits": Limits(memory=1 << 30)}, False),
    ],
)
def test_what_asks_for_another_place_is_not(asked: dict[str, Any], fits: bool) -> None:
    assert fits_here(SessionAttributes("app", **asked)) is fits
