"""Logs of the daemons."""

from flame.telemetry.logs import log_level, set_up_logging

__all__ = ["log_level", "set_up_logging"]
