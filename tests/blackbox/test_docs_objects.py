"""The examples of the guide to objects run as they stand."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from cache_daemon import CacheDaemon
from cluster import Cluster

ROOT = Path(__file__).parent.parent.parent
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def test_the_guide_to_objects(tmp_path: Path) -> None:
    program = tmp_path / "guide.py"
    program.write_text("\n".join(BLOCK.findall((ROOT / "docs" / "objects.md").read_text())))
    with (
        CacheDaemon(tmp_path, storage=True) as cache,
        Cluster(tmp_path / "cluster", storage="none", cache=cache.endpoint) as cluster,
    ):
        done = subprocess.run(
            [sys.executable, "-W", "error", str(program)],
            cwd=tmp_path,
            env={**os.environ, **cluster.environ(**cache.environ())},
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        )
    assert done.returncode == 0, done.stderr


def test_every_setting_is_described() -> None:
    text = (ROOT / "docs" / "objects.md").read_text()
    from flame.config.cache import CacheSection

    for name in CacheSection.__struct_fields__:
        assert f"`{name}" in text or f".{name}`" in text, name
