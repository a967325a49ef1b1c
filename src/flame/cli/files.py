"""Application files that commands read: a path, or `-` for standard input."""

from __future__ import annotations

import sys
from pathlib import Path

from flame.config.application import ApplicationDocument, parse_applications
from flame.config.document import read_text
from flame.model.errors import InvalidConfigError


def read_applications(name: str) -> list[ApplicationDocument]:
    """All applications of the file, at least one. Raises InvalidConfigError; then nothing was sent anywhere."""
    file = Path("<stdin>") if name == "-" else Path(name)
    text = sys.stdin.read() if name == "-" else read_text(file)
    applications = parse_applications(file, text)
    if not applications:
        raise InvalidConfigError(f"{file} holds no application", remedy="write metadata.name and spec")
    return applications
