"""A service of one function on Python objects; `--coroutines` makes it asynchronous."""

from __future__ import annotations

import asyncio
import sys
from dataclasses import dataclass
from typing import Any

from flame.service import FlameInstance

instance = FlameInstance()
coroutines = FlameInstance()


@dataclass
class Question:
    text: str


@dataclass
class Answer:
    text: str
    context: Any = None


@instance.entrypoint
def answer(question: Question) -> Answer | None:
    if question.text == "nothing":
        return None
    if question.text == "replace":
        instance.update_context("another")
    return Answer(question.text.upper(), instance.context())


@coroutines.entrypoint
async def sleep_and_answer(seconds: float) -> float:
    await asyncio.sleep(seconds)
    return seconds * 2


if __name__ == "__main__":
    (coroutines if "--coroutines" in sys.argv else instance).run()
