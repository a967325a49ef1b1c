"""What tests of the Runner serve: importable by instances, as the modules of a project are."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
import time
from pathlib import Path
from types import ModuleType
from typing import Any


def add(a: Any, b: Any = 0) -> Any:
    return a + b


def total(numbers: list[int]) -> int:
    return sum(numbers)


def deep(value: dict[str, Any]) -> Any:
    return value["list"][0] + value["tuple"][0]


async def add_later(a: int, b: int) -> int:
    return a + b


class RefusedError(Exception):
    """Takes two arguments, of which its text shows one."""

    def __init__(self, text: str, number: int) -> None:
        super().__init__(text, number)
        self.number = number


class StrangeError(Exception):
    """It has no pickle: one of its arguments has none."""

    def __init__(self, first: int, second: int) -> None:
        super().__init__(first, second, threading.Lock())

    def __str__(self) -> str:
        return "strange"


def refuse(number: int) -> None:
    raise RefusedError("no", number)


def fail_strangely() -> None:
    raise StrangeError(1, 2)


def fail_with_a_class_of_here() -> None:
    made: type[Exception] = type("OnlyThereError", (Exception,), {"__module__": "only_there"})
    sys.modules["only_there"] = module = ModuleType("only_there")
    module.OnlyThereError = made  # type: ignore[attr-defined]
    raise made("you can't have it")


def end_the_program() -> None:
    sys.exit("that is all")


async def be_cancelled() -> None:
    raise asyncio.CancelledError


def fail_at_length(count: int) -> None:
    raise RefusedError("x" * count, 1)


def give_a_lock() -> Any:
    return threading.Lock()


def give_bytes(count: int) -> bytes:
    return bytes(count)


def wait_for(path: str) -> str:
    """Says that it runs, and waits until the file is gone."""
    Path(path + ".runs").touch()
    while Path(path).exists():
        time.sleep(0.005)
    return "done"


def pid_of() -> int:
    return os.getpid()


class Unloadable:
    """Loads nowhere."""

    def __reduce__(self) -> Any:
        return int, ("no number",)


class Counter:
    def __init__(self, start: int = 0) -> None:
        self.value = start

    def add(self, amount: int = 1) -> int:
        self.value += amount
        return self.value

    def fail_after_adding(self) -> None:
        self.value += 100
        raise ValueError("too late")

    def die(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def leave(self) -> None:
        self.value += 10
        sys.exit(3)

    def pid(self) -> int:
        return os.getpid()


def nested_sum(name: str, numbers: list[int]) -> int:
    """Opens a Runner inside of a call of one."""
    from flame.runner import Runner

    with Runner(name) as runner:
        service = runner.service(add)
        return sum(runner.get([service(number, 1) for number in numbers]))


def nested_map(count: int) -> list[int]:
    """Uses an Executor inside of a call of one."""
    import flame

    with flame.Executor() as executor:
        futures = [executor.submit(add, number, 1) for number in range(count)]
        return [future.result() for future in futures]


def nested_wait(count: int) -> list[int]:
    """Waits with what `concurrent.futures` has for that."""
    import concurrent.futures

    import flame

    with flame.Executor() as executor:
        futures = [executor.submit(add, number, 1) for number in range(count)]
        concurrent.futures.wait(futures)
        return [future.result() for future in concurrent.futures.as_completed(futures)]


async def nested_await(count: int) -> list[int]:
    """Awaits, and gives a future to another call."""
    import asyncio

    import flame

    with flame.Executor() as executor:
        futures = [executor.submit(add, number, 1) for number in range(count)]
        loop = asyncio.get_running_loop()
        other = await loop.run_in_executor(executor, add, executor.submit(add, 1, 1), 0)
        return [await future for future in futures] + [other]


def nested_gpu(patience: str) -> str:
    """Wants what no node has."""
    import flame

    os.environ["FLAME_NESTED_PATIENCE"] = patience
    with flame.Executor(resreq="cpu=1,gpu=1") as executor:
        return str(executor.submit(add, 1).exception())


def nested_exit(folder: str, count: int) -> str:
    """Waits without a thread for a call that ends its program, which nobody but this process has room for."""
    import concurrent.futures

    import flame

    _meet(folder, count)
    with flame.Executor() as executor:
        future = executor.submit(end_the_program)
        concurrent.futures.wait([future])
        return str(future.exception())


def nested_waits_deep(depth: int) -> int:
    """Each level waits for the next one."""
    import concurrent.futures

    import flame

    if not depth:
        return 0
    with flame.Executor() as executor:
        future = executor.submit(nested_waits_deep, depth - 1)
        concurrent.futures.wait([future])
        return future.result() + 1


def die_with_an_executor(file: str) -> str:
    """The first time it is killed with its Executor open; the second time it says what is left of that."""
    import flame

    executor = flame.Executor()
    if not Path(file).exists():
        executor.submit(add, 1, 1).result()
        Path(file).write_text(executor.session_id)
        os.kill(os.getpid(), signal.SIGKILL)
    with executor:
        return executor.session_id


def die_for_good(file: str) -> None:
    """Killed with its Executor open, however often it is tried."""
    import flame

    executor = flame.Executor()
    executor.submit(add, 1, 1).result()
    Path(file).write_text(executor.session_id)
    os.kill(os.getpid(), signal.SIGKILL)


_remembered: list[str] = []


def remember(text: str) -> None:
    _remembered.append(text)


def remembered() -> list[str]:
    return _remembered


def array_of(count: int) -> Any:
    import numpy as np

    return np.arange(count)


def sizes(*values: Any) -> list[int]:
    """Bytes of arrays and bytes; of a list, those of its first item."""
    found = [value[0] if isinstance(value, list) else value for value in values]
    return [value.nbytes if hasattr(value, "nbytes") else len(value) for value in found]


def is_writable(array: Any) -> bool:
    return bool(array.flags.writeable)


class Journal:
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)

    def all(self) -> list[str]:
        return self.notes


class Tally:
    """Counts what it is given."""

    def __init__(self, start: int = 0) -> None:
        self.total = start

    def add(self, number: int) -> int:
        self.total += number
        return self.total

    async def later(self, number: int) -> int:
        return self.add(number)


def _meet(folder: str, count: int) -> None:
    """Wait until so many calls are here: each has an executor then."""
    Path(folder, f"{os.getpid()}").touch()
    while len(list(Path(folder).iterdir())) < count:
        time.sleep(0.01)


def nested_class(name: str, folder: str, count: int) -> list[int]:
    """Calls methods of a class from inside of a call."""
    _meet(folder, count)
    from flame import Runner

    with Runner(name) as runner:
        tally = runner.service(Tally, args=(100,))
        return [tally.add(1).get(), tally.later(1).get()]


def nested_object(name: str, patience: str, folder: str, count: int) -> list[int]:
    """Calls methods of an object from inside of a call."""
    _meet(folder, count)
    os.environ["FLAME_NESTED_PATIENCE"] = patience
    from flame import Runner

    with Runner(name) as runner:
        tally = runner.service(Tally(100))
        return [tally.add(1).get(), tally.later(1).get()]
