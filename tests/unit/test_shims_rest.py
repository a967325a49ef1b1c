"""What an application's labels tell the rest shim."""

from __future__ import annotations

import pytest

from flame.model.errors import InvalidArgumentError
from flame.shims.rest import RestOptions, options_of
from flame.shims.rest_dialect import Pages


def test_labels_choose_pages_and_concurrency() -> None:
    assert options_of(["team", "stdio=once"]) == RestOptions(Pages("/healthz", "/invoke"), None)
    chosen = options_of(["rest-ready=/", "rest-invoke=/v1/run?fast=1", "concurrency=16"])
    assert chosen == RestOptions(Pages("/", "/v1/run?fast=1"), 16)


@pytest.mark.parametrize(
    ("label", "words"),
    [
        ("rest-invoke=http://elsewhere/", "rest-invoke=http://elsewhere/ is no path"),
        ("rest-invoke=//elsewhere/", "is no path"),
        ("rest-ready=", "rest-ready= is no path"),
        ("concurrency=1e3", "not '1e3'"),
    ],
)
def test_labels_that_mean_nothing_are_refused(label: str, words: str) -> None:
    with pytest.raises(InvalidArgumentError, match=words):
        options_of([label])
