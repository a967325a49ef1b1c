"""Where the sandbox's programs run and what they know."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

# Of the instance's environment, what nobody inside needs to know. FLAME_INSTANCE_ID tells what the sandbox started.
_SECRET = ("FLAME_INSTANCE_TOKEN", "FLAME_INSTANCE_LINK", "FLAME_INSTANCE_ENDPOINT", "FLAME_INSTANCE_STDIO")


def working_folder() -> str:
    """Where the sandbox's files lie; made if it is missing. Raises OSError."""
    folder = Path.cwd() / "work"
    folder.mkdir(exist_ok=True)
    return str(folder)


def environment(environ: Mapping[str, str], folder: str) -> dict[str, str]:
    """What the programs of the sandbox know."""
    return {**{name: value for name, value in environ.items() if name not in _SECRET}, "PWD": folder}
