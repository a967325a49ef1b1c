"""Where a sandbox has its files."""

from __future__ import annotations

from pathlib import Path

import pytest

from flame.sandbox.inside.places import working_folder


@pytest.fixture(autouse=True)
def forget() -> None:
    working_folder.cache_clear()


def test_its_folder_is_a_new_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert working_folder() == str(tmp_path / "work")
    assert working_folder() == str(tmp_path / "work")


def test_what_is_shown_in_its_place_is_not_taken_for_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "work" / "checkout").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    folder = working_folder()
    assert folder.startswith(str(tmp_path / "work-"))
    assert not list(Path(folder).iterdir())
