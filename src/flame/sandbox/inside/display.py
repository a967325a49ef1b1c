"""How the kernel shows a value: as text, and in the formats that its type offers.

The kernel loads this before any code of the user, so it imports nothing but the standard library.
"""

from __future__ import annotations

import base64
import reprlib
import sys
from typing import Any, cast

MAX_TEXT = 1024 * 1024  # characters of one value's text
MAX_FORMATS = 32 * 1024**2  # of all formats of one value, bytes in base64
_METHODS = {
    "_repr_html_": "text/html",
    "_repr_markdown_": "text/markdown",
    "_repr_latex_": "text/latex",
    "_repr_svg_": "image/svg+xml",
    "_repr_png_": "image/png",
    "_repr_jpeg_": "image/jpeg",
    "_repr_json_": "application/json",
    "_repr_javascript_": "application/javascript",
    "_repr_pdf_": "application/pdf",
}


def shown(value: object) -> dict[str, Any]:
    """The value as the agent is told: text, and formats by MIME type; bytes as {"base64": ...}."""
    text, formats, room = _text(value), _formats(value), MAX_FORMATS
    for kind, data in list(formats.items()):
        size = len(data if isinstance(data, str) else data["base64"])
        if size <= room:
            room -= size
        else:
            del formats[kind]
            text += f" ({kind} left out: {size} characters)"
    return {"text": text, "formats": formats}


def figures(told: object) -> list[dict[str, Any]]:
    """The figures that matplotlib has open, as PNG, but for this value, which was told already; they are closed.
    Nothing where it is not in use."""
    pyplot = sys.modules.get("matplotlib.pyplot")
    if pyplot is None:
        return []
    found: list[dict[str, Any]] = []
    for number in pyplot.get_fignums():
        figure = pyplot.figure(number)
        if figure is not told:
            found.append({"text": _text(figure), "formats": {"image/png": _packed(_drawn(figure))}})
    pyplot.close("all")
    return found


def _drawn(figure: Any) -> bytes:
    import io

    file = io.BytesIO()
    figure.savefig(file, format="png", bbox_inches="tight")
    return file.getvalue()


def _is_figure(value: object) -> bool:
    """Whether it is one of matplotlib, open or not."""
    figure = getattr(sys.modules.get("matplotlib.figure"), "Figure", None)
    return isinstance(figure, type) and isinstance(value, figure)


def _text(value: object) -> str:
    try:
        text = repr(value)
    except Exception as error:
        text = f"<{reprlib.repr(type(value).__name__)} object whose repr raised {type(error).__name__}>"
    return cut(text)


def cut(text: str) -> str:
    """The beginning of what is too long."""
    return text if len(text) <= MAX_TEXT else f"{text[:MAX_TEXT]}... ({len(text) - MAX_TEXT} characters left out)"


def _formats(value: object) -> dict[str, Any]:
    """What the methods of its type give. One that raises, or that says None, is left out."""
    found: dict[str, Any] = {}
    if isinstance(value, type):
        return found  # its methods are for its instances
    bundle = _called(value, "_repr_mimebundle_")
    if isinstance(bundle, dict):
        formats = cast("dict[object, object]", bundle)
        found.update((str(kind), _packed(data)) for kind, data in formats.items() if kind != "text/plain")
    for method, kind in _METHODS.items():
        if kind not in found:
            data = _called(value, method)
            if data is not None:
                found[kind] = _packed(data)
    if _is_figure(value) and "image/png" not in found:
        try:
            found["image/png"] = _packed(_drawn(value))
        except Exception:
            pass  # as of a method that raises
    return {kind: data for kind, data in found.items() if data is not None}


def _called(value: object, method: str) -> object:
    """What the method gives, without the metadata that may go with it."""
    try:
        function = getattr(value, method, None)
        found: object = function() if callable(function) else None
    except Exception:
        return None
    if not isinstance(found, tuple):
        return found
    parts = cast("tuple[object, ...]", found)
    return parts[0] if parts else None


def _packed(data: object) -> Any:
    """Text as it is, bytes in base64, other things as JSON text; None for what is none of them."""
    if isinstance(data, str):
        return data
    if isinstance(data, (bytes, bytearray)):
        return {"base64": base64.b64encode(data).decode()}
    import json

    try:
        return json.dumps(data)
    except (TypeError, ValueError, RecursionError):
        return None
