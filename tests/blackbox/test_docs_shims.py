"""The examples of the guide to shims run as they stand."""

from __future__ import annotations

import re
from pathlib import Path

from blackbox.test_docs import ROOT, folder, run

__all__ = ["folder"]

BLOCK = re.compile(r"^```(?:python|bash)(?: file=(\S+))?\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def test_the_guide_to_shims(folder: Path) -> None:
    program = [f"folder = {str(folder)!r}\n"]
    for name, block in BLOCK.findall((ROOT / "docs" / "shims.md").read_text()):
        if name:
            (folder / name).write_text(block)
        else:
            program.append(block)
    assert len(program) == 4
    (folder / "guide.py").write_text("\n".join([*program, "connection.close()\nprint('done')\n"]))
    assert run(folder, "guide.py") == "done\n"
