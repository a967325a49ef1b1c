"""What of a folder is packed."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from flame.model.errors import InvalidArgumentError
from flame.packages.ignoring import GitIgnore

IGNORE_FILE = ".flameignore"
DEFAULT_EXCLUDES = (
    ".venv",
    "venv",
    "__pycache__",
    ".pytest_cache",
    ".ruff_cache",
    ".mypy_cache",
    ".import_linter_cache",
    ".ipynb_checkpoints",
    ".hypothesis",
    "*.egg-info",
    ".git",
    ".hg",
    ".svn",
    ".tox",
    ".nox",
    ".idea",
    ".vscode",
    "node_modules",
    "*.pyc",
    "*.pyo",
    ".DS_Store",
    IGNORE_FILE,
)


class Selection:
    """What of a folder is packed."""

    def __init__(self, excluded: Sequence[str], included: Sequence[str], git: GitIgnore | None) -> None:
        self._excluded = [pattern.strip("/") for pattern in excluded]
        self._included = [pattern.strip("/") for pattern in included]
        self._git = git

    @classmethod
    def of(cls, folder: Path, excludes: Sequence[str], *, gitignore: bool) -> Selection:
        """That of a package's folder. Raises InvalidArgumentError."""
        named = (*excludes, *_ignored(folder))
        return cls(
            (*DEFAULT_EXCLUDES, *(pattern for pattern in named if not pattern.startswith("!"))),
            [pattern[1:] for pattern in named if pattern.startswith("!")],
            GitIgnore.of(folder) if gitignore else None,
        )

    def inside(self, folder: Path, name: str = "") -> Selection:
        """That of the content of a folder, of this name in the one before."""
        if self._git is None:
            return self
        git = self._git.below(name) if name else self._git
        return Selection(self._excluded, self._included, git.inside(folder))

    def packs(self, path: str, *, folder: bool) -> bool:
        """Whether what has this path in the package's folder is packed."""
        if _named(path, self._included):
            return True
        if _named(path, self._excluded):
            return False
        return self._git is None or not self._git.leaves_out(path.rpartition("/")[2], folder=folder)


def _ignored(folder: Path) -> list[str]:
    try:
        lines = (folder / IGNORE_FILE).read_text().splitlines()
    except FileNotFoundError:
        return []
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidArgumentError(f"{folder / IGNORE_FILE} can't be read: {error}") from None
    return [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]


def _named(path: str, patterns: Sequence[str]) -> bool:
    name = path.rpartition("/")[2]
    return any(fnmatchcase(path, pattern) or fnmatchcase(name, pattern) for pattern in patterns)
