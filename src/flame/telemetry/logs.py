"""Logging of the daemons: one line per event that an operator acts on, on standard error."""

from __future__ import annotations

import logging
import os
import sys
import time

_LEVELS = {
    "trace": "DEBUG",
    "debug": "DEBUG",
    "info": "INFO",
    "warn": "WARNING",
    "warning": "WARNING",
    "error": "ERROR",
}


class _Lines(logging.Formatter):
    """`2026-01-31T09:30:00.123Z INFO flame.manager event key=value`; a traceback follows on lines of its own."""

    converter = time.gmtime
    default_time_format = "%Y-%m-%dT%H:%M:%S"
    default_msec_format = "%s.%03dZ"

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s %(message)s")


def log_level() -> int:
    """The level that FLAME_LOG, else RUST_LOG names (`info` when neither says anything known)."""
    for variable in ("FLAME_LOG", "RUST_LOG"):
        name = _LEVELS.get(os.environ.get(variable, "").strip().lower())
        if name is not None:
            return logging.getLevelNamesMapping()[name]
    return logging.INFO


def set_up_logging(level: int | None = None) -> None:
    """Send the log of this process to standard error; `level` None = as the environment says."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Lines())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("flame").setLevel(log_level() if level is None else level)
