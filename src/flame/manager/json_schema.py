"""Whether a text is a JSON Schema: the keywords of draft 7 and 2020-12 have values of the right form.

Schemas describe an application to its users; nothing here is ever applied to data.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, cast

_TYPES = frozenset({"array", "boolean", "integer", "null", "number", "object", "string"})


def check_json_schema(text: str) -> None:
    """Raises ValueError that says what is wrong, and where."""
    try:
        document = json.loads(text)
        _schema(document, "#")
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _fail(where: str, what: str) -> None:
    raise ValueError(f"{what} at {where}")


def _schema(value: Any, where: str) -> None:
    if isinstance(value, bool):
        return
    for keyword, content in _object(value, where, "a schema must be an object or a boolean").items():
        check = _KEYWORDS.get(keyword)
        if check is not None:
            check(content, f"{where}/{keyword}")


def _string(value: Any, where: str) -> None:
    if not isinstance(value, str):
        _fail(where, "a string is expected")


def _boolean(value: Any, where: str) -> None:
    if not isinstance(value, bool):
        _fail(where, "true or false is expected")


def _number(value: Any, where: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        _fail(where, "a number is expected")


def _positive(value: Any, where: str) -> None:
    _number(value, where)
    if value <= 0:
        _fail(where, "a number above 0 is expected")


def _count(value: Any, where: str) -> None:
    _number(value, where)
    if value < 0 or value % 1 != 0:
        _fail(where, "a whole number, 0 or more, is expected")


def _object(value: Any, where: str, expected: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        _fail(where, expected)
    return cast("dict[str, Any]", value)


def _list(value: Any, where: str) -> None:
    if not isinstance(value, list):
        _fail(where, "a list is expected")


def _strings(value: Any, where: str) -> None:
    _list(value, where)
    for index, item in enumerate(value):
        _string(item, f"{where}/{index}")
    if len(set(value)) != len(value):
        _fail(where, "the same string stands twice")


def _schemas(value: Any, where: str) -> None:
    _list(value, where)
    if not value:
        _fail(where, "at least one schema is expected")
    for index, item in enumerate(value):
        _schema(item, f"{where}/{index}")


def _schema_or_schemas(value: Any, where: str) -> None:
    (_schemas if isinstance(value, list) else _schema)(value, where)


def _schema_by_name(value: Any, where: str) -> None:
    for name, item in _object(value, where, "an object is expected").items():
        _schema(item, f"{where}/{name}")


def _dependencies(value: Any, where: str) -> None:
    for name, item in _object(value, where, "an object is expected").items():
        (_strings if isinstance(item, list) else _schema)(item, f"{where}/{name}")


def _type(value: Any, where: str) -> None:
    names = cast("list[Any]", value) if isinstance(value, list) else [value]
    if not names or not all(isinstance(name, str) and name in _TYPES for name in names):
        _fail(where, f"{json.dumps(value)} is no type")
    _strings(names, where)


_KEYWORDS: dict[str, Callable[[Any, str], None]] = {
    "type": _type,
    "enum": _list,
    "examples": _list,
    "required": _strings,
    "multipleOf": _positive,
    "items": _schema_or_schemas,
    "dependencies": _dependencies,
    **dict.fromkeys(("properties", "patternProperties", "definitions", "$defs", "dependentSchemas"), _schema_by_name),
    **dict.fromkeys(("allOf", "anyOf", "oneOf", "prefixItems"), _schemas),
    **dict.fromkeys(
        ("not", "if", "then", "else", "contains", "propertyNames", "additionalItems", "additionalProperties"), _schema
    ),
    **dict.fromkeys(("unevaluatedItems", "unevaluatedProperties"), _schema),
    **dict.fromkeys(("maximum", "minimum", "exclusiveMaximum", "exclusiveMinimum"), _number),
    **dict.fromkeys(
        (
            "maxLength",
            "minLength",
            "maxItems",
            "minItems",
            "maxProperties",
            "minProperties",
            "maxContains",
            "minContains",
        ),
        _count,
    ),
    **dict.fromkeys(("$id", "$schema", "$ref", "$anchor", "$comment", "title", "description", "format"), _string),
    **dict.fromkeys(("pattern", "contentEncoding", "contentMediaType"), _string),
    **dict.fromkeys(("uniqueItems", "readOnly", "writeOnly", "deprecated"), _boolean),
}
