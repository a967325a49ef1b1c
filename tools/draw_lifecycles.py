"""Write docs/lifecycles.md from the tables in flame.engine.lifecycles; with --check, fail when the file is stale."""

from __future__ import annotations

import sys
from pathlib import Path

from flame.engine import lifecycles
from flame.engine.lifecycles import S

TARGET = Path(__file__).resolve().parent.parent / "docs" / "lifecycles.md"
INTRO = """# Lifecycles

Generated from the tables in `src/flame/engine/lifecycles.py` by `tools/draw_lifecycles.py`; each arrow is one entry.
A change that has no arrow is refused with an error that names the state and what happened.
"""
WORDS = {
    "Session": "A session takes tasks until it is closed. Closing it twice is harmless.",
    "Task": "`return`: it was retracted unstarted, is retried, or its executor is lost.",
    "Executor": "One executor serves one session for life. `gone` can come at any time: the instance or its node died.",
    "Node": "A node that is away keeps its executors for a grace time, then they count as lost.",
}


def draw(title: str, table: dict[tuple[S, str], S]) -> str:
    """One table as a Mermaid state diagram."""
    lines = [f"\n## {title}\n", WORDS[title], "", "```mermaid", "stateDiagram-v2", "    direction LR"]
    arrows: dict[tuple[str, str], list[str]] = {}
    for (state, happened), new in table.items():
        arrows.setdefault((state.name, new.name), []).append(happened)
    for (state, new), happened in arrows.items():
        if state != new:
            lines.append(f"    {state} --> {new}: {', '.join(happened)}")
    return "\n".join([*lines, "```"]) + "\n"


def document() -> str:
    """The whole page."""
    parts = (
        draw("Session", lifecycles.SESSION),
        draw("Task", lifecycles.TASK),
        draw("Executor", lifecycles.EXECUTOR),
        draw("Node", lifecycles.NODE),
    )
    return INTRO + "".join(parts)


def main() -> int:
    """Write, or compare."""
    if "--check" not in sys.argv:
        TARGET.write_text(document())
        return 0
    if not TARGET.exists() or TARGET.read_text() != document():
        print("docs/lifecycles.md is stale; run python tools/draw_lifecycles.py", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
