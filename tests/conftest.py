"""What holds for all tests."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def no_client_of_objects_is_left() -> Iterator[None]:
    """Each test may have a cache of its own: the client that the process made for one test is not the next one's."""
    yield
    default = sys.modules.get("flame.objects.default")
    if default is not None:
        default.close()
