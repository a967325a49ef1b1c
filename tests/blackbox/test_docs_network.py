"""The example of docs/network.md runs as it stands, and its document can be read."""

from __future__ import annotations

import re
from pathlib import Path

from blackbox.test_docs import BLOCK, ROOT, folder, run
from flame.config.application import parse_applications
from flame.model.network import parse
from untrusted import require_sandboxes

__all__ = ["folder"]

TEXT = (ROOT / "docs" / "network.md").read_text()


def test_a_sandbox_with_a_list(folder: Path, tmp_path: Path) -> None:
    require_sandboxes(tmp_path)
    [(name, program)] = BLOCK.findall(TEXT)
    (folder / name).write_text(program)
    assert run(folder, name).splitlines() == ["200", *["HTTP Error 403: Forbidden"] * 2]


def test_the_document() -> None:
    (document,) = re.findall(r"^```yaml\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
    [application] = parse_applications(ROOT / "docs" / "network.md", document)
    assert application.spec.network == "pypi.org, *.pythonhosted.org:443, 10.1.2.0/24"
    assert len(parse(application.spec.network)) == 3
