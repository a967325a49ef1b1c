"""Functions and classes of cells, in a real kernel: they travel as they are, with a bar, `await` and interrupts."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from notebooks import Notebook, cells_of, notebook

EXAMPLE = Path(__file__).parent.parent.parent / "examples" / "notebook.ipynb"


@pytest.fixture
async def book() -> AsyncIterator[Notebook]:
    async with notebook() as book:
        await book.run("import asyncio, flame")
        yield book


async def test_the_example_notebook(book: Notebook) -> None:
    cells = [await book.run(source) for source in cells_of(EXAMPLE)]
    for cell in cells:
        assert cell.error is None, cell.outputs
        assert cell.printed("stderr") == ""
    parties, sizes, awaited, state = cells[1:5]

    def shares(people: int, seed: int) -> bool:
        dice = random.Random(seed)
        return len({dice.randrange(365) for _ in range(people)}) < people

    found = sum(shares(23, seed) for seed in range(2000)) / 2000
    assert parties.printed() == f"of 23 people, two share a birthday in {found:.0%} of the cases\n"
    assert [(bar["value"], bar["max"], bar["bar_style"]) for bar in parties.bars] == [(2000, 2000, "success")]
    assert sizes.printed() == f"with this seed it takes {next(n for n in range(60) if shares(n, 1))}\n"
    assert [(bar["value"], bar["max"], bar["bar_style"]) for bar in sizes.bars] == [(59, 59, "success")]
    assert awaited.result == "[False, True]"
    assert state.result == f"(100, {sum(shares(23, seed) for seed in range(100))})"


async def test_a_cell_that_runs_again_with_another_function(book: Notebook) -> None:
    await book.run("offset = 10\n@flame.function\ndef shift(number):\n    return number + offset")
    assert (await book.run("list(shift.map(range(3)))")).result == "[10, 11, 12]"
    await book.run("@flame.function\ndef shift(number):\n    return number - 1")
    assert (await book.run("[*shift.map(range(3)), await shift.aio(10)]")).result == "[-1, 0, 1, 9]"
    await book.run("executor = flame.Executor()\ndef double(number): return 2 * number")
    assert (await book.run("list(executor.map(double, range(3)))")).result == "[0, 2, 4]"
    await book.run("def double(number): return number * 20")
    assert (await book.run("[executor.submit(double, 1).result(), *executor.map(double, [2])]")).result == "[20, 40]"


async def test_the_loop_of_the_kernel_goes_on_while_a_cell_waits(book: Notebook) -> None:
    await book.run("def double(number): return 2 * number")
    inside = await book.run(
        "with flame.Executor() as executor:\n"
        "    loop = asyncio.get_running_loop()\n"
        "    results = [executor.submit(double, 1).result(), *executor.map(double, [2]),\n"
        "               await loop.run_in_executor(executor, double, 3), await executor.submit(double, 4)]\n"
        "results"
    )
    assert inside.result == "[2, 4, 6, 8]"
    await book.run("function = flame.function(double)\nasking = asyncio.create_task(function.aio(21))")
    assert (await book.run("await asking")).result == "42"
    cancelled = await book.run(
        "import time\n"
        "slow = flame.function(time.sleep)\n"
        "asking = asyncio.create_task(slow.aio(100))\n"
        "while not (tasks := [task for session in flame.list_sessions() for task in\n"
        "                     flame.open_session(session.id).list_tasks() if task.state.name == 'RUNNING']):\n"
        "    await asyncio.sleep(0.01)\n"
        "asking.cancel()\n"
        "await asyncio.wait([asking])\n"
        "list(flame.open_session(tasks[0].session_id).watch_task(tasks[0].id))[-1].state.name"
    )
    assert cancelled.result == "'CANCELLED'"


# Calls of 0 say that they run; those of 1 wait until the cell has begun with its bar, and say so then.
SLOW = """
import pathlib, time
def slow(number):
    import pathlib
    if number == 1:
        pathlib.Path("shown").read_text()
    if number in (0, 1):
        pathlib.Path("running").write_text("it runs")
    if number >= 0:
        time.sleep(100)
    return "quick"
function = flame.function(slow)
def unfinished():
    return [task.state.name for session in flame.list_sessions()
            for task in flame.open_session(session.id).list_tasks() if not task.state.terminal]
"""


@pytest.mark.parametrize(
    "cell",
    [
        "list(function.map((0, 2, 3, 4)))",
        "for _ in flame.progress(function.map((-1, 1, 2, 3)), total=4): pathlib.Path('shown').write_text('it moves')",
        (
            "with flame.Executor() as executor:\n"
            "    futures = [executor.submit(slow, number) for number in (-1, 1, 2, 3)]\n"
            "    for future in flame.progress(futures): pathlib.Path('shown').write_text('it moves')"
        ),
        "executor = flame.Executor()\nlist(executor.map(slow, (0, 2, 3, 4)))",
        "with flame.Runner('cell') as runner:\n    runner.service(slow)(0).get()",
    ],
)
async def test_an_interrupt_cancels_what_a_cell_waits_for(book: Notebook, cell: str) -> None:
    await book.run(SLOW)
    interrupted = await book.interrupted(cell)
    assert interrupted.error == "KeyboardInterrupt"
    assert [bar["bar_style"] for bar in interrupted.bars] == ["danger"] * ("progress" in cell)
    assert (await book.run("function.remote(-1).get(30)")).result == "'quick'"  # there is room again
    assert (await book.run("unfinished()")).result == "[]"


@pytest.mark.parametrize(
    ("missing", "shown"),
    [("ipywidgets", "squares: 100%|██████████| 20/20"), ("tqdm", f"squares: {'#' * 30} 20/20\n")],
)
async def test_a_bar_of_text_where_something_is_missing(book: Notebook, missing: str, shown: str) -> None:
    names = [missing] if missing == "ipywidgets" else ["tqdm", "tqdm.auto", "tqdm.std"]
    await book.run(f"import sys\nsys.modules.update(dict.fromkeys({names}))")
    await book.run("@flame.function\ndef square(number): return number * number")
    cell = await book.run(
        "futures = [square.remote(number) for number in range(20)]\n"
        "sum(future.get() for future in flame.progress(futures, 'squares'))"
    )
    assert cell.error is None, cell.outputs
    assert cell.result == "2470"
    assert shown in cell.printed("stderr")
