"""Compiled components of a node: made once, kept whole, bounded."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from components import CONDUCT, ECHO, binary, component
from flame.model.errors import NotFoundError
from flame.shims.furnished import Furnished
from flame.shims.shim import BindError
from flame.shims.wasm_modules import Modules
from flame.testing.shims import Bench, a_bench

ECHOING = binary(component(ECHO))


@asynccontextmanager
async def a_node(max_kept: int = 1 << 30) -> AsyncGenerator[tuple[Bench, Modules, Path]]:
    """A bench, its compiled components, and the file of one that is not compiled."""
    async with a_bench() as bench:
        source = bench.folder / "echo.wasm"
        source.write_bytes(ECHOING)
        yield bench, opened(bench, max_kept=max_kept), source


def opened(bench: Bench, version: str = "1", max_kept: int = 1 << 30) -> Modules:
    """As after a start of the node."""
    modules = Modules(bench.workshop, bench.folder / "wasm", version, max_kept)
    modules.open()
    return modules


def files(bench: Bench) -> set[str]:
    return {file.name for file in (bench.folder / "wasm").iterdir()}


def inode(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_ino, status.st_ctime_ns


async def test_a_component_is_compiled_once() -> None:
    async with a_node() as (bench, modules, source):
        first, second = await asyncio.gather(*(modules.provide(source, fuel=False) for _ in range(2)))
        assert first is second
        assert files(bench) == {f"{first.identity}.cwasm", f"{first.identity}.note"}
        made = first.path.stat().st_ino
        other = bench.folder / "elsewhere.wasm"
        other.write_bytes(ECHOING)
        assert (await modules.provide(other, fuel=False)).path == first.path
        assert (await opened(bench).provide(source, fuel=False)).path.stat().st_ino == made


async def test_instances_can_not_write_to_it() -> None:
    async with a_node() as (bench, modules, source):
        module = await modules.provide(source, fuel=False)
        assert module.path.stat().st_mode & 0o777 == 0o444
        assert (bench.folder / "wasm").stat().st_mode & 0o777 == 0o700


async def test_what_makes_other_code_is_another_one() -> None:
    async with a_node() as (bench, modules, source):
        plain = await modules.provide(source, fuel=False)
        fuelled = await modules.provide(source, fuel=True)
        portable = await modules.provide(source, fuel=False, portable=True)
        newer = await opened(bench, version="2").provide(source, fuel=False)
        source.write_bytes(binary(CONDUCT))
        changed = await modules.provide(source, fuel=False)
        assert len({module.identity for module in (plain, fuelled, portable, newer, changed)}) == 5


@pytest.mark.parametrize("damage", ["one byte", "cut", "no note", "note of nothing"])
async def test_what_was_damaged_is_compiled_again(damage: str) -> None:
    async with a_node() as (bench, modules, source):
        path = (await modules.provide(source, fuel=False)).path
        whole = path.read_bytes()
        note = path.with_suffix(".note")
        path.chmod(0o600)
        if damage == "one byte":
            path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        elif damage == "cut":
            path.write_bytes(whole[:100])
        elif damage == "no note":
            note.unlink()
        else:
            note.write_bytes(b"{}")
        again = await opened(bench).provide(source, fuel=False)
        assert again.path.read_bytes() == whole
        assert files(bench) == {path.name, note.name}


async def test_what_was_not_finished_is_removed_at_start() -> None:
    async with a_node() as (bench, modules, source):
        kept = await modules.provide(source, fuel=False)
        for name in ("0123.draft", "4567.note-draft", "89ab.cwasm"):
            (bench.folder / "wasm" / name).write_bytes(b"half")
        opened(bench)
        assert files(bench) == {f"{kept.identity}.cwasm", f"{kept.identity}.note"}


async def test_a_compiler_that_is_killed_is_told_and_leaves_nothing() -> None:
    async with a_node() as (bench, modules, source):
        many = "(func (result i64) (i64.mul (i64.const 3) (i64.const 5)))" * 50_000  # a while to compile
        source.write_bytes(binary(component(f"(core module {many}) {ECHO}")))
        providing = asyncio.ensure_future(modules.provide(source, fuel=False))
        pid = await compiler_of(bench)
        os.kill(pid, 9)
        with pytest.raises(BindError, match="the compiler was killed by SIGKILL"):
            await providing
        assert files(bench) == set()
        assert not list((bench.folder / "executors").iterdir())
        source.write_bytes(ECHOING)
        assert (await modules.provide(source, fuel=False)).path.exists()


async def test_who_gives_up_does_not_end_it_for_others() -> None:
    async with a_node() as (_, modules, source):
        first, second = (asyncio.ensure_future(modules.provide(source, fuel=False)) for _ in range(2))
        await asyncio.sleep(0)
        first.cancel()
        assert (await second).path.exists()


async def test_the_longest_unused_goes_when_there_is_no_room() -> None:
    async with a_node(max_kept=1) as (_, modules, source):
        held = await modules.provide(source, fuel=False)
        furnished = Furnished(None, held.identity, held.hold, held.release)
        furnished.hold()
        unused = await modules.provide(source, fuel=True)
        long_ago(held.path, unused.path)
        source.write_bytes(binary(CONDUCT))
        newest = await modules.provide(source, fuel=False)
        assert [module.path.exists() for module in (held, unused, newest)] == [True, False, True]
        with pytest.raises(NotFoundError):
            Furnished(None, unused.identity, unused.hold, unused.release).hold()
        furnished.release()
        long_ago(newest.path)
        source.write_bytes(ECHOING)
        assert (await modules.provide(source, fuel=True)).path.exists()
        assert not held.path.exists()


async def test_a_file_that_can_not_be_read() -> None:
    async with a_node() as (bench, modules, _):
        with pytest.raises(BindError, match=r"none\.wasm': No such file"):
            await modules.provide(bench.folder / "none.wasm", fuel=False)


async def compiler_of(bench: Bench) -> int:
    """The pid of the compiler that runs for this bench."""
    while True:
        for folder in (bench.folder / "executors").iterdir():
            for pid in _processes():
                if f"FLAME_INSTANCE_ID={folder.name}".encode() in _environment(pid):
                    return pid
        await asyncio.sleep(0.01)  # nobody tells


def long_ago(*paths: Path) -> None:
    """Nobody asked for them for a while."""
    for path in paths:
        os.utime(path, (0, 0))


def _processes() -> Iterator[int]:
    return (int(folder.name) for folder in Path("/proc").iterdir() if folder.name.isdecimal())


def _environment(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return b""
