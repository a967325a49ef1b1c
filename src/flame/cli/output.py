"""Printing: tables without borders, JSON, YAML, names."""

from __future__ import annotations

import base64
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

T = TypeVar("T")
Document = dict[str, Any]


@dataclass(frozen=True)
class Column(Generic[T]):
    """One column of a table; `wide` ones are left out unless asked for."""

    title: str
    value: Callable[[T], object]
    wide: bool = False


@dataclass(frozen=True)
class Kind(Generic[T]):
    """How one kind of object is printed: the columns of its list, its document, its name, the page about one."""

    columns: Sequence[Column[T]]
    document: Callable[[T], Document]
    name: Callable[[T], str]
    page: Callable[[T], Sequence[tuple[str, object]]]


def show_list(items: Sequence[T], kind: Kind[T], output: str) -> None:
    """Print many objects in the chosen form."""
    if output == "json":
        write_json([kind.document(item) for item in items])
    elif output == "yaml":
        write_yaml([kind.document(item) for item in items])
    elif output == "name":
        for item in items:
            print(kind.name(item))
    else:
        columns = [column for column in kind.columns if output == "wide" or not column.wide]
        rows = [[_cell(column.value(item)) for column in columns] for item in items]
        for line in table([column.title for column in columns], rows):
            print(line)


def show_one(item: T, kind: Kind[T], output: str) -> None:
    """Print one object in the chosen form."""
    if output == "json":
        write_json(kind.document(item))
    elif output == "yaml":
        write_yaml(kind.document(item))
    elif output == "name":
        print(kind.name(item))
    else:
        for line in page(kind.page(item)):
            print(line)


def table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a table: one blank before, two between the columns, nothing after the last."""
    widths = [max(len(title), *(len(row[i]) for row in rows)) if rows else len(title) for i, title in enumerate(titles)]
    lines: list[str] = []
    for row in (titles, *rows):
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        lines.append((" " + "  ".join(cells)).rstrip())
    return lines


def page(rows: Sequence[tuple[str, object]]) -> list[str]:
    """Lines of `Label:  value`; the further lines of a long value stand below its first."""
    width = max((len(label) for label, _ in rows), default=0) + 3
    lines: list[str] = []
    for label, value in rows:
        head = f"{label}:" if label else ""
        text = _cell(value)
        lines.extend(
            (head.ljust(width) if index == 0 else " " * width) + part for index, part in enumerate(text.split("\n"))
        )
    return [line.rstrip() for line in lines]


def bytes_document(data: bytes | None) -> Document | None:
    """Bytes for JSON: base64 always, and `text` beside it when they are UTF-8."""
    if data is None:
        return None
    document: Document = {"base64": base64.b64encode(data).decode("ascii")}
    try:
        document["text"] = data.decode("utf-8")
    except UnicodeDecodeError:
        pass
    return document


def write_json(value: object) -> None:
    """Print indented JSON."""
    json.dump(value, sys.stdout, indent=2, ensure_ascii=False)
    print()


def write_json_line(value: object) -> None:
    """Print one line of JSON at once, for streams of objects."""
    print(json.dumps(value, ensure_ascii=False), flush=True)


def write_yaml(value: object) -> None:
    """Print YAML in the order of the keys."""
    import yaml

    yaml.safe_dump(value, sys.stdout, sort_keys=False, allow_unicode=True)


def _cell(value: object) -> str:
    return "-" if value is None or value == "" else str(value)
