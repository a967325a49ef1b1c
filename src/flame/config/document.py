"""Reading of YAML documents key by key, with errors that name the file, the line, the key and what was meant.

A reader asks a `Section` for the keys that it knows and calls `finish`; every key that nobody asked for is an error.
So the keys that exist are written down in one place only: the code that reads them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from flame.model.errors import FlameError, InvalidConfigError
from flame.model.resources import Resources, parse_resources, parse_size

if TYPE_CHECKING:
    from yaml.nodes import MappingNode, Node

_NULL = "tag:yaml.org,2002:null"
_BOOL = "tag:yaml.org,2002:bool"
_TRUE = frozenset(("true", "yes", "on"))

D = TypeVar("D")


class Note(NamedTuple):
    """Something about a file that is no error but that its author wants to know. `where` is `file:line: key`."""

    where: str
    text: str


def read_text(file: Path) -> str:
    """The text of a settings file. Raises InvalidConfigError when it can't be read."""
    try:
        return file.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise InvalidConfigError(f"{file} is not a file") from None
    except IsADirectoryError:
        raise InvalidConfigError(f"{file} is not a file but a directory") from None
    except UnicodeDecodeError as error:
        raise InvalidConfigError(f"{file} is not UTF-8 text: {error.reason} at byte {error.start}") from None
    except OSError as error:
        raise InvalidConfigError(f"{file} can't be read: {error.strerror}") from None


def parse_documents(file: Path, text: str) -> list[Section]:
    """The mappings of all YAML documents in `text`; empty documents are left out. `file` is for messages only."""
    import yaml

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        nodes: list[Node | None] = list(yaml.compose_all(text, Loader=loader))
    except yaml.MarkedYAMLError as error:
        line = f":{error.problem_mark.line + 1}" if error.problem_mark else ""
        raise InvalidConfigError(f"{file}{line}: not valid YAML: {error.problem or error}") from None
    except yaml.YAMLError as error:
        raise InvalidConfigError(f"{file}: not valid YAML: {error}") from None
    notes: list[Note] = []
    return [_section(file, "", node, notes) for node in nodes if node is not None and node.tag != _NULL]


class Section:
    """One mapping of a settings file. Each reading method remembers the key as known; `finish` rejects the others."""

    def __init__(self, file: Path, path: str, node: MappingNode | None, notes: list[Note]) -> None:
        self.file = file
        self.path = path
        self.notes = notes
        self._line = node.start_mark.line + 1 if node is not None else 1
        self._known: list[str] = []
        self._children: list[Section] = []
        self._nodes: dict[str, Node] = {}
        self._lines: dict[str, int] = {}
        for key_node, value in node.value if node is not None else ():
            key = str(key_node.value)
            if key in self._nodes:
                self._lines[key] = key_node.start_mark.line + 1
                raise self.error(key, f"stands twice, first in line {self._nodes[key].start_mark.line + 1}")
            self._nodes[key] = value
            self._lines[key] = key_node.start_mark.line + 1

    def where(self, key: str = "") -> str:
        """`file:line: path.of.the.key`, how every message about this file begins."""
        path = ".".join(part for part in (self.path, key) if part)
        line = self._lines.get(key, self._line)
        return f"{self.file}:{line}: {path}" if path else f"{self.file}:{line}"

    def error(self, key: str, text: str, remedy: str = "") -> InvalidConfigError:
        """An error about one key of this section (`key` empty: about the section itself)."""
        return InvalidConfigError(f"{self.where(key)}: {text}", remedy=remedy)

    def note(self, key: str, text: str) -> None:
        """Remember something for `flmadm check`, if the key is there."""
        if key in self._nodes:
            self.notes.append(Note(self.where(key), text))

    def __contains__(self, key: str) -> bool:
        return self._node(key) is not None

    def finish(self) -> None:
        """Reject keys that nobody asked for, here and in the sections below. Raises InvalidConfigError."""
        for key in self._nodes:
            if key not in self._known:
                raise self.error(key, "unknown key", nearest(key, self._known))
        for child in self._children:
            child.finish()

    # --- values ---------------------------------------------------------------------------------------------------

    def text(self, key: str, default: D = None) -> str | D:
        """A scalar as its text; `default` when it is absent or null."""
        node = self._node(key)
        return default if node is None else self._scalar(key, node)

    def required(self, key: str) -> str:
        """A scalar that has to be there and not be empty."""
        value = self.text(key)
        if not value:
            raise self.error(key if key in self._nodes else "", f"{key} is required")
        return value

    def choice(self, key: str, known: Sequence[str], default: str) -> str:
        """One of the known words, in any case."""
        value = self.text(key, default).lower()
        if value not in known:
            raise self.error(key, f"unknown value {value!r}", nearest(value, [word for word in known if word]))
        return value

    def integer(self, key: str, default: D = None, *, minimum: int = 0, maximum: int = 2**31 - 1) -> int | D:
        """A whole number in [minimum, maximum]."""
        node = self._node(key)
        if node is None:
            return default
        text = self._scalar(key, node)
        digits = text.removeprefix("-").replace("_", "")
        if not (digits.isascii() and digits.isdigit()):
            raise self.error(key, f"{text!r} is not a whole number")
        value = -int(digits) if text.startswith("-") else int(digits)
        if not minimum <= value <= maximum:
            raise self.error(key, f"{value} is out of range", f"it may be {minimum} to {maximum}")
        return value

    def number(self, key: str, default: float, *, positive: bool = False, maximum: float = 1e9) -> float:
        """A number in [0, maximum], or in (0, maximum]."""
        node = self._node(key)
        if node is None:
            return default
        text = self._scalar(key, node)
        try:
            value = float(text)
        except ValueError:
            raise self.error(key, f"{text!r} is not a number") from None
        if not 0 <= value <= maximum or (positive and value == 0):  # nan compares false
            least = "more than 0" if positive else "0"
            raise self.error(key, f"{text} is out of range", f"it may be {least}, up to {maximum:g}")
        return value

    def flag(self, key: str, default: bool = False) -> bool:
        """true or false."""
        node = self._node(key)
        if node is None:
            return default
        text = self._scalar(key, node)
        if node.tag != _BOOL:
            raise self.error(key, f"{text!r} is neither true nor false")
        return text.lower() in _TRUE

    def size(self, key: str, default: D = None) -> int | D:
        """Bytes from a number or from text such as 64Mi."""
        text = self.text(key)
        if text is None:
            return default
        try:
            return parse_size(text)
        except FlameError as error:
            raise self.error(key, error.message, error.remedy) from None

    def resources(self, key: str) -> Resources | None:
        """A request such as `cpu=1,mem=2Gi`."""
        text = self.text(key)
        if text is None:
            return None
        try:
            return parse_resources(text)
        except FlameError as error:
            raise self.error(key, error.message, error.remedy) from None

    def file_path(self, key: str) -> Path | None:
        """A path; a relative one starts at the folder of the settings file, `~` is the home directory."""
        text = self.text(key)
        return None if not text else self.resolve(key, text)

    def resolve(self, key: str, text: str) -> Path:
        """The absolute path that `text` means in this file."""
        try:
            return self.file.parent.absolute() / Path(text).expanduser()
        except RuntimeError:
            raise self.error(key, f"{text!r} names the home directory of an unknown user") from None

    def texts(self, key: str, default: tuple[str, ...] = ()) -> tuple[str, ...]:
        """A list of scalars."""
        from yaml.nodes import SequenceNode

        node = self._node(key)
        if node is None:
            return default
        if not isinstance(node, SequenceNode):
            raise self.error(key, "has to be a list")
        return tuple(self._scalar(key, item) for item in node.value)

    def text_or_texts(self, key: str) -> str | tuple[str, ...]:
        """A scalar, or a list of them; empty when there is none."""
        from yaml.nodes import SequenceNode

        return self.texts(key) if isinstance(self._node(key), SequenceNode) else self.text(key, "")

    def mapping(self, key: str) -> dict[str, str]:
        """A mapping from text to text with keys that are the user's own."""
        node = self._node(key)
        if node is None:
            return {}
        section = self._child(key, node)
        return {name: section.text(name, "") for name in section.names()}

    def names(self) -> list[str]:
        """The keys of a section whose keys are the user's own, in their order; `section` or `text` reads them."""
        return list(self._nodes)

    # --- sections --------------------------------------------------------------------------------------------------

    def section(self, key: str) -> Section | None:
        """The mapping below `key`, None when it is absent. `key:` without a value is an empty section."""
        if key not in self._nodes:
            self._node(key)
            return None
        self._node(key)
        return self._child(key, self._nodes[key])

    def section_or_empty(self, key: str) -> Section:
        """Like `section`, but with an empty one in place of None."""
        section = self.section(key)
        return (
            section if section is not None else Section(self.file, f"{self.path}.{key}".lstrip("."), None, self.notes)
        )

    def sections(self, key: str) -> list[Section]:
        """The mappings of a list."""
        from yaml.nodes import SequenceNode

        node = self._node(key)
        if node is None:
            return []
        if not isinstance(node, SequenceNode):
            raise self.error(key, "has to be a list")
        return [self._child(f"{key}[{index}]", item) for index, item in enumerate(node.value)]

    # --- inside ----------------------------------------------------------------------------------------------------

    def _node(self, key: str) -> Node | None:
        if key not in self._known:
            self._known.append(key)
        node = self._nodes.get(key)
        return None if node is None or node.tag == _NULL else node

    def _child(self, key: str, node: Node) -> Section:
        path = f"{self.path}.{key}" if self.path else key
        section = _section(self.file, path, node, self.notes)
        self._children.append(section)
        return section

    def _scalar(self, key: str, node: Node) -> str:
        from yaml.nodes import ScalarNode

        if not isinstance(node, ScalarNode):
            raise self.error(key, "has to be a single value")
        return str(node.value)


def nearest(word: str, known: Sequence[str]) -> str:
    """What to say about an unknown word: the known one that looks like it, or all of them."""
    import difflib

    with contextlib.suppress(IndexError):
        return f"did you mean {difflib.get_close_matches(word, known, n=1, cutoff=0.6)[0]!r}?"
    return f"the known ones are {', '.join(sorted(known))}" if known else "nothing is known here"


def _section(file: Path, path: str, node: Node, notes: list[Note]) -> Section:
    from yaml.nodes import MappingNode

    if node.tag == _NULL:
        return Section(file, path, None, notes)
    if not isinstance(node, MappingNode):
        where = f"{file}:{node.start_mark.line + 1}"
        raise InvalidConfigError(f"{where}: {path}: has to be a mapping" if path else f"{where}: has to be a mapping")
    return Section(file, path, node, notes)
