"""The examples of the guide to components run as they stand."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from blackbox.test_docs import BLOCK, ROOT, folder, run

__all__ = ["folder"]


def test_the_guide_to_components(folder: Path) -> None:
    text = (ROOT / "docs" / "wasm.md").read_text()
    (wit,) = re.findall(r"^```wit\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    (folder / "flame.wit").write_text(wit)
    for name, block in BLOCK.findall(text):
        (folder / name).write_text(block)
    (commands,) = re.findall(r"^```bash\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    install, *build = commands.splitlines()
    assert install == "pip install componentize-py"  # the environment of the tests has it
    path = f"PATH={Path(sys.executable).parent}:$PATH"
    subprocess.run(["bash", "-ec", "\n".join([path, *build])], cwd=folder, check=True, capture_output=True)
    assert run(folder, "client.py").splitlines() == ["b'cba'", "there is nothing to turn round"]
