"""The wasm shim: the suite of all shims, what is different for a component, and what becomes of one that traps."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import pytest

from components import CONDUCT, ECHO, binary, component
from flame.model.errors import InvalidArgumentError
from flame.model.states import BindCode
from flame.proto import types_pb2
from flame.shims.host import HostShim
from flame.shims.shim import Shim
from flame.shims.warm import WarmLimits
from flame.shims.wasm import WasmShim
from flame.shims.wasm_options import OWN_MEMORY, WasmOptions, options_of
from flame.testing.shims import Bench, Desk, ShimConformance, a_bench
from scripted_manager import NodeLog


class OfWasm(ShimConformance):
    """A component is no program: it can't start one, it knows but one exit status, it says nothing before its session
    is entered. What ends it fails its task and nothing else."""

    content = binary(CONDUCT)
    isolation = ""
    labels: Sequence[str] = ()

    def make(self, bench: Bench) -> Shim:
        warm = WarmLimits(budget=0, idle=1, start_timeout=1, terminate_grace=1)
        host = HostShim(bench.workshop, bench.reception, warm)
        return WasmShim.find(host, bench.workshop, bench.folder / "wasm")

    def service(self, folder: Path) -> types_pb2.ApplicationSpec:
        file = folder / "service.wasm"
        file.write_bytes(self.content)
        return types_pb2.ApplicationSpec(
            command=str(file),
            shim=types_pb2.Wasm,
            isolation=self.isolation,
            labels=self.labels,
            environments=[types_pb2.Environment(name="MODEL", value="$HOME/small")],
        )

    async def test_a_program_that_ends_in_a_task(self) -> None:
        async with self.desk() as desk:
            failure, after = await desk.run(b"exit 3", b"echo after")
            assert failure.message == "the component exited with status 1 in on-task-invoke"
            assert after == b"after"

    async def test_a_program_that_ends_before_it_is_ready(self) -> None:
        async with self.desk("dies") as desk:
            desk.give(b"echo never")
            report = await desk.gone()
            assert (report.code, report.crashed) == (BindCode.ENTER, False)
            assert report.message == "the component exited with status 1 in on-session-enter"
            assert not desk.answers

    async def test_a_program_that_is_never_ready(self) -> None:
        async with self.desk("sleep", start_timeout_ms=1500) as desk:
            desk.give(b"echo never")
            report = await desk.gone()
            assert report.code == BindCode.ENTER
            assert "did not enter its session (on_session_enter) within 1.5 s" in report.message

    async def test_a_program_that_talks_nonsense(self) -> None:
        async with self.desk() as desk:
            failure, after = await desk.run(b"beyond", b"echo after")
            assert failure.message == "the component trapped in on-task-invoke: list content out-of-bounds"
            assert after == b"after"

    async def test_nothing_is_left_when_it_is_stopped(self) -> None:
        async with self.desk() as desk:
            assert await desk.run(b"echo once") == [b"once"]
            report = await desk.stop()
            assert not report.crashed
            assert not report.code
            assert not _runs(report.pid)

    async def test_nothing_is_left_when_its_executor_manager_ends(self) -> None:
        async with self.desk() as desk:
            assert await desk.run(b"echo once") == [b"once"]
            desk.give(b"hang")
            await desk.bench.keeper.close()
            assert not _runs(desk.reports[-1].pid)


class TestWasm(OfWasm):
    async def test_what_it_knows_of_its_node(self) -> None:
        async with self.desk() as desk:
            found = await desk.run(b"env MODEL", b"env PATH", b"env HOME", b"env FLAME_INSTANCE_TOKEN")
            assert found == [f"{os.environ['HOME']}/small".encode(), b"", b"", b""]

    async def test_none_and_empty_are_told_apart(self) -> None:
        async with self.desk() as desk:
            assert await desk.run(b"none", b"echo ", None) == [None, b"", None]

    async def test_large_payloads_are_whole(self) -> None:
        async with self.desk() as desk:
            data = bytes(range(256)) * 4000
            assert await desk.run(b"echo " + data, b"echo after") == [data, b"after"]

    async def test_an_instance_lasts_until_it_traps(self) -> None:
        async with self.desk() as desk:
            assert await desk.run(b"count", b"count") == [b"1", b"2"]
            (failure,) = await desk.run(b"trap")
            assert failure.message == (
                "the component trapped in on-task-invoke: wasm `unreachable` instruction executed"
            )
            assert "wasm backtrace" in failure.traceback
            assert not failure.retryable
            assert await desk.run(b"count", b"common") == [b"1", b"shared"]

    async def test_traps_say_what_happened(self) -> None:
        async with self.desk() as desk:
            divided, recursed = await desk.run(b"divide", b"recurse")
            assert "integer divide by zero" in divided.message
            assert "call stack exhausted" in recursed.message

    async def test_a_task_whose_time_is_over_leaves_the_worker_alive(self) -> None:
        async with self.desk() as desk:
            before = (await desk.bound()).pid
            failure, after = await desk.run(b"hang", b"count", timeout_ms=300)
            assert (failure.message, failure.retryable) == ("task timed out after 300 ms", True)
            assert after == b"1"
            assert (await desk.stop()).pid == before

    async def test_fuel(self) -> None:
        self.labels = ["wasm-fuel=100000"]
        async with self.desk() as desk:
            before, failure, after = await desk.run(b"echo before", b"hang", b"echo after")
            assert (before, after) == (b"before", b"after")
            assert failure.message == "the component trapped in on-task-invoke: it used all of its fuel of 100000"

    async def test_memory(self) -> None:
        self.labels = ["wasm-memory=2Mi"]
        async with self.desk() as desk:
            failure, after = await desk.run(b"size 3000000", b"size 1000000")
            assert "trapped" in failure.message
            assert after == bytes(1_000_000)

    async def test_what_it_prints_is_its_log(self) -> None:
        async with self.desk() as desk:
            assert await desk.run(b"log 2") == [b"logged"]
            await desk.stop()
            (log,) = (desk.bench.folder / "logs").rglob("stderr.*")
            assert log.read_text() == "logged\nlogged\nleft\n"

    async def test_a_session_that_it_refuses(self) -> None:
        async with self.desk("refuse") as desk:
            report = await desk.gone()
            assert (report.code, report.message) == (BindCode.ENTER, "last words")

    async def test_files_that_are_no_component_of_ours(self) -> None:
        core = '(module (func (export "invoke")))'
        service = "component:flame/service"
        cases: dict[bytes, str] = {
            b"#!/bin/sh\n": "it is no WebAssembly",
            b"": "it is no WebAssembly",
            binary(core): "it is a core module, not a component",
            binary("(component)"): f"it does not export the interface {service}; it exports nothing",
            binary(component(ECHO, interface="other:flame/service")): "it exports other:flame/service",
            binary(component(ECHO))[:-200]: "it is no valid component",
            binary(component(ECHO, wasi='(import "my:own/thing" (func))')): "it imports my:own/thing;",
            binary(f'(component (instance $none) (export "{service}" (instance $none)))'): (
                f"its interface {service} lacks the function on-session-enter: func(record{{session-id: string"
            ),
        }
        for content, words in cases.items():
            self.content = content
            async with self.desk() as desk:
                report = await desk.gone()
                assert report.code == BindCode.START
                assert "service.wasm': " in report.message
                assert words in report.message

    async def test_a_function_of_another_type(self) -> None:
        self.content = binary(component(ECHO).replace("list u8", "list u16"))
        async with self.desk() as desk:
            report = await desk.gone()
            assert "on-session-enter of its interface" in report.message
            assert "option<list<u16>>" in report.message

    async def test_labels_that_mean_nothing(self) -> None:
        self.labels = ["wasm-fuel=much"]
        async with self.desk() as desk:
            report = await desk.gone()
            assert (report.code, "wasm-fuel=much is no number" in report.message) == (BindCode.START, True)


class TestWasmInASandbox(OfWasm):
    """The suite again."""

    isolation = "process"
    levels = ("process",)


async def test_a_worker_that_was_started_ahead_serves_the_next_session(tmp_path: Path) -> None:
    component_file = tmp_path / "service.wasm"
    component_file.write_bytes(binary(CONDUCT))
    application = types_pb2.ApplicationSpec(
        command=str(component_file), arguments=["serve"], shim=types_pb2.Wasm, warm_instances=1
    )
    async with a_bench() as bench:
        host = HostShim(
            bench.workshop, bench.reception, WarmLimits(budget=1, idle=30, start_timeout=30, terminate_grace=1)
        )
        shim = WasmShim.find(host, bench.workshop, bench.folder / "wasm")
        with NodeLog() as log:
            first = Desk(bench, shim, application, common_data=b"of the first")
            await first.bound()
            await log.until("waits for a session")
        second = Desk(bench, shim, application, common_data=b"of the second")
        bound = await second.bound()
        assert f"process {bound.pid} waits for a session" in log.text
        own = second.executor.id.encode()
        assert await second.run(b"common", b"count", b"env FLAME_EXECUTOR_ID") == [b"of the second", b"2", own]
        for desk in (first, second):
            await desk.stop()
        await host.close()


def _runs(pid: int) -> bool:
    """Whether the process is there, and no zombie that nobody has asked for yet."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] not in "ZX"
    except OSError:
        return False


# --- what an application's labels say -------------------------------------------------------------------------------


def test_labels_set_limits() -> None:
    assert options_of(["team", "stdio=once"], 0) == WasmOptions()
    assert options_of(["wasm-memory=64Mi", "wasm-fuel=1000"], 0) == WasmOptions(64 * 1024**2, 1000)
    assert options_of(["wasm-memory=65536"], 2 * OWN_MEMORY) == WasmOptions(65536, 0)


def test_the_limit_of_the_instance_leaves_the_worker_its_own_memory() -> None:
    assert options_of([], 256 * 1024**2) == WasmOptions(256 * 1024**2 - OWN_MEMORY)


@pytest.mark.parametrize(
    ("labels", "limit", "words"),
    [
        (["wasm-memory=1k"], 0, "wasm-memory=1k is no size"),
        (["wasm-memory=65535"], 0, "at least 65536 bytes"),
        (["wasm-memory=999999999999999Gi"], 0, "is no size"),
        (["wasm-memroy=64Mi"], 0, "unknown label wasm-memroy=64Mi; the known ones are wasm-memory=, wasm-fuel="),
        (["wasm-fuel=0"], 0, "wasm-fuel=0 is no number"),
        (["wasm-fuel=-1"], 0, "is no number"),
        (["wasm-fuel=9999999999999999999"], 0, "is no number"),
        ([], OWN_MEMORY, "leave nothing to a component"),
    ],
)
def test_labels_that_mean_nothing_are_refused(labels: list[str], limit: int, words: str) -> None:
    with pytest.raises(InvalidArgumentError, match=words):
        options_of(labels, limit)
