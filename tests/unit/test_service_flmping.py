"""The service behind flmping."""

from __future__ import annotations

import json
import os
import time

import pytest

from flame.service import TaskContext
from flame.service.flmping import PingService, parse

HOST = os.uname().nodename


def ask(data: bytes | None) -> str:
    return json.loads(PingService().on_task_invoke(TaskContext("1", "s", data)))["message"]


@pytest.mark.parametrize("data", [None, b"", b"{}", b'{"duration": null, "memory": null}', b'{"duration": 0}'])
def test_nothing_to_do_is_answered_at_once(data: bytes | None) -> None:
    assert ask(data) == f"Completed on <{HOST}> in <0> milliseconds with <0> memory"


def test_it_sleeps_and_allocates_as_told(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr(time, "sleep", slept.append)
    message = ask(b'{"duration": 250, "memory": 2097152}')
    assert message == f"Completed on <{HOST}> in <250> milliseconds with <2Mi> memory"
    assert slept == [0.25]


def test_each_task_gets_what_it_asked_for() -> None:
    service = PingService()
    inputs = [b'{"memory": 1024}', b'{"memory": 2048}', b'{"memory": 1024}']
    texts = [service.on_task_invoke(TaskContext("1", "s", data)).decode() for data in inputs]
    assert ["<1Ki>" in text for text in texts] == [True, False, True]


@pytest.mark.parametrize("data", [b"[]", b"no json", b'{"duration": "1s"}', b'{"memory": -1}', b'{"duration": 1.5}'])
def test_nonsense_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse(data)
