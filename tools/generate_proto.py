"""Generate src/flame/proto from proto/flame/v1; with --check, fail when the committed files are stale.

The descriptors go into a pool of our own: a process may import `flame` beside another package that registers
messages of the same full names (`flamepy` does), and one pool can't hold both.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "proto"
TARGET = ROOT / "src" / "flame" / "proto"


def generate(into: Path) -> None:
    """Write <name>_pb2.py and .pyi for every file of the contract into the folder `into`."""
    names = sorted(str(path.relative_to(SOURCE)) for path in SOURCE.rglob("*.proto"))
    with tempfile.TemporaryDirectory() as scratch:
        command = [sys.executable, "-m", "grpc_tools.protoc", f"-I{SOURCE}", f"--python_out={scratch}"]
        subprocess.run([*command, f"--pyi_out={scratch}", *names], check=True)
        for made in sorted(Path(scratch, "flame", "v1").iterdir()):
            text = made.read_text()
            text = re.sub(r"from flame\.v1 import (\w+_pb2)", r"from flame.proto import \1", text)
            text = text.replace("_descriptor_pool.Default()", "POOL")
            if made.suffix == ".py":
                text = text.replace(
                    "from google.protobuf import descriptor_pool as _descriptor_pool",
                    "from flame.proto import POOL",
                )
            # Keep the runtime check out: it pins the exact minor version of protoc, the message API is stable.
            text = re.sub(r"_runtime_version\.ValidateProtobufRuntimeVersion\([^)]*\)\n", "", text)
            text = text.replace("from google.protobuf import runtime_version as _runtime_version\n", "")
            (into / made.name).write_text(text)


def main() -> int:
    if "--check" not in sys.argv:
        generate(TARGET)
        return 0
    with tempfile.TemporaryDirectory() as fresh:
        generate(Path(fresh))
        stale = [p.name for p in Path(fresh).iterdir() if not (TARGET / p.name).exists() or (TARGET / p.name).read_text() != p.read_text()]
    if stale:
        print(f"stale: {', '.join(sorted(stale))}; run python tools/generate_proto.py", file=sys.stderr)
    return 1 if stale else 0


if __name__ == "__main__":
    raise SystemExit(main())
