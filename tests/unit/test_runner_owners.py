"""Whose sessions are whose."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from flame.runner import owners


def test_a_process_that_lives_is_not_gone() -> None:
    assert not owners._gone(owners.labels()[owners.OWNER])


def test_one_that_has_ended_is() -> None:
    program = "from flame.runner import owners; print(owners.labels()[owners.OWNER])"
    owner = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.strip()
    assert owners._gone(owner)


def test_another_one_with_its_number_is_not_it() -> None:
    place, pid, start = owners.labels()[owners.OWNER].split("/")
    assert owners._gone(f"{place}/{pid}/{int(start) - 1}")


@pytest.mark.parametrize("owner", ["elsewhere/1/1", "nonsense", "a/b", "", f"elsewhere/{os.getpid()}/1"])
def test_nothing_is_said_of_others(owner: str) -> None:
    assert not owners._gone(owner)
