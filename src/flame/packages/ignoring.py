"""What Git leaves out of a folder, by the files .gitignore in it and above it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from flame.model.errors import InvalidArgumentError

FILE = ".gitignore"


class _Rule(NamedTuple):
    """`pattern` matches paths relative to `base`, which is relative to the outermost folder."""

    base: str
    pattern: re.Pattern[str]
    brings_back: bool
    folders_only: bool


class GitIgnore:
    """The rules that hold in a folder. What lies below something that is left out is left out as well: do not ask."""

    def __init__(self, rules: tuple[_Rule, ...] = (), base: str = "") -> None:
        self._rules = rules
        self._base = base  # this folder's path in the outermost one, empty or with / at its end

    @classmethod
    def of(cls, folder: Path) -> GitIgnore:
        """The rules of the folders above it, up to the repository's; not its own. A folder that is left out by them
        itself has none. Raises InvalidArgumentError when one can't be read."""
        folder = folder.resolve()
        top = next((place for place in (folder, *folder.parents) if (place / ".git").exists()), folder)
        found = cls()
        path = top
        for name in folder.relative_to(top).parts:
            found = found.inside(path)
            if found.leaves_out(name, folder=True):
                return cls()
            found = found.below(name)
            path = path / name
        return found

    def inside(self, folder: Path) -> GitIgnore:
        """With the rules of this very folder."""
        rules = _read(folder / FILE, self._base)
        return GitIgnore((*self._rules, *rules), self._base) if rules else self

    def below(self, name: str) -> GitIgnore:
        """The rules that hold in the folder of this name."""
        return GitIgnore(self._rules, f"{self._base}{name}/")

    def leaves_out(self, name: str, *, folder: bool) -> bool:
        """Whether something of this name here is left out: the last rule that says something about it decides."""
        path = self._base + name
        for rule in reversed(self._rules):
            if (folder or not rule.folders_only) and rule.pattern.fullmatch(path, len(rule.base)):
                return not rule.brings_back
        return False


def _read(file: Path, base: str) -> tuple[_Rule, ...]:
    try:
        lines = file.read_text(errors="surrogateescape").splitlines()
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        return ()
    except OSError as error:
        raise InvalidArgumentError(f"{file} can't be read: {error.strerror}") from None
    return tuple(rule for rule in (_rule(line, base) for line in lines) if rule is not None)


def _rule(line: str, base: str) -> _Rule | None:
    line = re.sub(r"(?<!\\) +$", "", line)
    if not line or line.startswith("#"):
        return None
    brings_back = line.startswith("!")
    line = line.removeprefix("!") if brings_back else line
    folders_only = line.endswith("/")
    line = line.rstrip("/")
    anchored = "/" in line
    line = line.removeprefix("/")
    if not line:
        return None
    try:
        pattern = re.compile(("" if anchored else "(?:.*/)?") + _regex(line), re.DOTALL)
    except re.error:
        return None  # Git takes no notice of it either
    return _Rule(base, pattern, brings_back, folders_only)


_PARTS = re.compile(
    r"(?P<start>^\*\*/)|(?P<end>/\*\*$)|(?P<middle>/\*\*/)|\*+|\?|\[(?P<set>[!^]?\]?[^]]*)\]|\\?.", re.DOTALL
)


def _regex(pattern: str) -> str:
    return "".join(_part(match) for match in _PARTS.finditer(pattern))


def _part(match: re.Match[str]) -> str:
    text = match[0]
    if match["start"]:
        return "(?:.*/)?"
    if match["end"]:
        return "/.+"
    if match["middle"]:
        return "/(?:.*/)?"
    if text.startswith("*"):
        return "[^/]*"
    if text == "?":
        return "[^/]"
    if match["set"]:
        inside = match["set"]
        negated = inside[0] in "!^" and len(inside) > 1
        inside = inside[1:] if negated else inside
        return f"(?!/)[{'^' if negated else ''}{inside.replace(chr(92), chr(92) * 2).replace('[', chr(92) + '[')}]"
    return re.escape(text[1:] if text.startswith("\\") and len(text) > 1 else text)
