"""Runs the checks of a script in the environment of the foreign client and prints what became of each as JSON lines.

A check is a function named `check_...`; it fails by raising. Nothing here knows our packages.
"""

import json
import random
import string
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flamepy
import grpc

SERVICE = str(Path(__file__).with_name("service.py"))


def unique(prefix: str) -> str:
    """A name that no other check uses."""
    return f"{prefix}-{''.join(random.choices(string.ascii_lowercase, k=8))}"


def raised(action: Callable[[], Any]) -> flamepy.FlameError:
    """The FlameError that the action must raise."""
    try:
        result = action()
    except flamepy.FlameError as error:
        return error
    raise AssertionError(f"no error, but {result!r}")


def refused(action: Callable[[], Any]) -> tuple[grpc.StatusCode, str]:
    """Status and text of the gRPC error that the action must raise."""
    try:
        result = action()
    except grpc.RpcError as error:
        return error.code(), error.details()
    raise AssertionError(f"no error, but {result!r}")


def service_application() -> str:
    """The application whose instances run service.py, registered once per process."""
    global _service
    if not _service:
        _service = unique("service")
        attributes = flamepy.ApplicationAttributes(command=sys.executable, arguments=[SERVICE])
        flamepy.register_application(_service, attributes)
    return _service


_service = ""


def main(names: dict[str, Any]) -> None:
    """Run all checks among `names` (the globals of a script) against a cluster."""
    service_application()
    run_checks(names)


def run_checks(names: dict[str, Any]) -> None:
    """Run all checks among `names`."""
    for name, check in names.items():
        if name.startswith("check_"):
            error = ""
            try:
                check()
            except BaseException:
                error = traceback.format_exc()
            sys.stdout.write(json.dumps({"check": name, "error": error}) + "\n")
