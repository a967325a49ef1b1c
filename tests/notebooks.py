"""Notebooks that a real Jupyter kernel executes.

async with notebook() as book:
    cell = await book.run("6 * 7")
    assert cell.result == "42"
"""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient
from nbformat.v4 import new_code_cell, new_notebook

PATIENCE = 60  # seconds for a cell


class Cell:
    """One cell that was executed, and what a reader of the notebook sees below it."""

    def __init__(self, outputs: list[Any], widgets: dict[str, Any]) -> None:
        self.outputs = outputs
        self._widgets = widgets

    @property
    def result(self) -> str | None:
        """The text of its last expression."""
        return next((one.data["text/plain"] for one in self.outputs if one.output_type == "execute_result"), None)

    @property
    def error(self) -> str | None:
        """The name of the exception that ended it."""
        return next((one.ename for one in self.outputs if one.output_type == "error"), None)

    def printed(self, stream: str = "stdout") -> str:
        """What it wrote."""
        return "".join(one.text for one in self.outputs if one.output_type == "stream" and one.name == stream)

    @property
    def bars(self) -> list[dict[str, Any]]:
        """The states of the progress bars that it shows as widgets."""
        found: list[dict[str, Any]] = []
        for one in self.outputs:
            view = one.get("data", {}).get("application/vnd.jupyter.widget-view+json")
            if view is not None:
                box = self._widgets[view["model_id"]]
                children = [self._widgets[child.removeprefix("IPY_MODEL_")] for child in box["children"]]
                found += [child for child in children if child["_model_name"] == "FloatProgressModel"]
        return found


class Notebook:
    """A kernel and the cells that it was given."""

    def __init__(self, client: NotebookClient, folder: Path) -> None:
        self._client = client
        self.folder = folder

    async def run(self, source: str) -> Cell:
        """Execute a further cell."""
        cells = self._client.nb.cells
        cells.append(new_code_cell(source))
        await self._client.async_execute_cell(cells[-1], len(cells) - 1)
        return Cell(cells[-1].outputs, self._client.widget_state)

    async def interrupted(self, source: str) -> Cell:
        """Execute a cell that writes to the FIFO `running` when it is time to interrupt it. `shown` is another one, for
        what happens before."""
        for name in ("running", "shown"):
            if not (self.folder / name).exists():
                os.mkfifo(self.folder / name)
        execution = asyncio.ensure_future(self.run(source))
        await asyncio.to_thread((self.folder / "running").read_bytes)
        await self._client.km.interrupt_kernel()
        return await execution


@asynccontextmanager
async def notebook() -> AsyncIterator[Notebook]:
    """A kernel in a folder of its own, with a local cluster of its own when it needs one."""
    folder = Path(tempfile.mkdtemp(prefix="fl", dir="/tmp"))  # short, for the sockets' sake
    places = dict.fromkeys(
        ("HOME", "XDG_RUNTIME_DIR", "XDG_STATE_HOME", "IPYTHONDIR", "JUPYTER_RUNTIME_DIR"), str(folder)
    )
    environment = {key: value for key, value in os.environ.items() if not key.startswith("FLAME_")} | places
    client = NotebookClient(
        new_notebook(),
        kernel_name="python3",
        timeout=PATIENCE,
        allow_errors=True,
        resources={"metadata": {"path": str(folder)}},
    )
    try:
        async with client.async_setup_kernel(env=environment):
            yield Notebook(client, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def cells_of(path: Path) -> list[str]:
    """The sources of the cells of code in a notebook."""
    return [cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
