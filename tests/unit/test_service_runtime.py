"""How a service's process starts: what it imports, and what it says when nobody started it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from flame.model.errors import InvalidArgumentError, InvalidStateError
from flame.service import FlameService, run

SOURCE = Path(__file__).parent.parent.parent / "src"


def test_a_program_that_no_executor_manager_started_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FLAME_INSTANCE_LINK", raising=False)
    monkeypatch.delenv("FLAME_INSTANCE_ENDPOINT", raising=False)
    with pytest.raises(InvalidStateError, match="no executor manager started this process"):
        run(FlameService())


def test_concurrency_is_at_least_one() -> None:
    with pytest.raises(InvalidArgumentError, match="concurrency must be at least 1, not 0"):
        run(FlameService(), concurrency=0)


def test_a_simple_service_loads_nothing_that_takes_long() -> None:
    program = "import sys, flame.service.flmping, flame.service.sequential; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program], env={"PYTHONPATH": str(SOURCE)}, capture_output=True, text=True, check=True
    )
    heavy = {"asyncio", "ssl", "grpc", "msgspec", "inspect", "traceback", "json", "logging", "pathlib", "subprocess"}
    assert heavy.isdisjoint(done.stdout.split())
