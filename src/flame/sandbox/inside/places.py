"""Where the sandbox's programs run and what they know."""

from __future__ import annotations

import os
from functools import cache

TYPE_CHECKING = False  # like typing's, without its import
if TYPE_CHECKING:
    from collections.abc import Mapping

# Of the instance's environment, what nobody inside needs to know. FLAME_INSTANCE_ID tells what the sandbox started.
_SECRET = ("FLAME_INSTANCE_TOKEN", "FLAME_INSTANCE_LINK", "FLAME_INSTANCE_ENDPOINT", "FLAME_INSTANCE_STDIO")


@cache
def working_folder() -> str:
    """The folder where this process's sandbox has its files: made when somebody asks first. Raises OSError."""
    folder = os.path.join(os.getcwd(), "work")
    try:
        os.mkdir(folder)
    except FileExistsError:  # something of the node that a sandbox is shown lies there
        import tempfile

        return tempfile.mkdtemp(prefix="work-", dir=os.getcwd())
    return folder


def environment(environ: Mapping[str, str], folder: str) -> dict[str, str]:
    """What the programs of the sandbox know."""
    return {**{name: value for name, value in environ.items() if name not in _SECRET}, "PWD": folder}
