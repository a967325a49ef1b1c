"""What a client of sandboxes does with answers, also those of a sandbox that lies."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flame.model.errors import FlameError, InvalidStateError, ProtocolError, TooLargeError
from flame.sandbox import SandboxLostError, Snapshot, code, commands, files, transfer, wire
from flame.sandbox.steps import Ask, AskAll, Steps, Tell

FILE, FOLDER = "file", "folder"


def run(steps: Steps[Any], answer: Callable[[Any], Any]) -> Any:
    """Carry out the steps with these answers."""
    value: Any = None
    while True:
        try:
            step = steps.send(value)
        except StopIteration as end:
            return end.value
        if isinstance(step, Ask):
            value = answer(step.call)
        elif isinstance(step, AskAll):
            value = [answer(ask.call) for ask in step.asks]
        else:
            raise AssertionError(step)


def entry(name: str, kind: str = FILE) -> wire.File:
    return wire.File(name, name, kind, 1, 0o644, 0.0)


def lying(names: list[wire.File]) -> Callable[[Any], Any]:
    """A sandbox with one folder of these entries; all files hold `x`, all folders the same entries."""

    def answer(call: Any) -> Any:
        if isinstance(call, wire.Stat):
            return wire.Files([entry("d", FOLDER)])
        if isinstance(call, wire.ListFolder):
            return wire.Files(names)
        assert isinstance(call, wire.ReadFile)
        return wire.Content(b"x" if call.offset == 0 else b"", 1, 7)

    return answer


@pytest.mark.parametrize("name", ["../outside", "..", ".", "", "/outside", "a/b", "a\0b"])
def test_names_that_no_file_has_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ProtocolError):
        run(transfer.download("d", tmp_path / "here", 1000), lying([entry(name)]))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["here"]
    assert list((tmp_path / "here").iterdir()) == []


def test_a_name_that_comes_twice_with_another_kind_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="a"):
        run(transfer.download("d", tmp_path / "here", 1000), lying([entry("a"), entry("a", FOLDER)]))


def test_folders_without_end_are_given_up(tmp_path: Path) -> None:
    with pytest.raises(TooLargeError):
        run(transfer.download("d", tmp_path / "here", 1000), lying([entry("a", FOLDER)]))


def test_files_without_end_are_given_up(tmp_path: Path) -> None:
    def answer(call: Any) -> Any:
        if isinstance(call, wire.Stat):
            return wire.Files([entry("f")])
        return wire.Content(b"x" * wire.PIECE, 10**15, 7)

    with pytest.raises(TooLargeError):
        run(transfer.download("f", tmp_path / "f", 10 * wire.PIECE), answer)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(TooLargeError):
        run(files.read("f", 10 * wire.PIECE), answer)


def test_a_file_that_is_replaced_while_it_is_read_is_told() -> None:
    contents = iter([wire.Content(b"x" * wire.PIECE, 2 * wire.PIECE, 1), wire.Content(b"y", 2 * wire.PIECE, 2)])
    with pytest.raises(InvalidStateError, match="was replaced"):
        run(files.read("f", 10**9), lambda call: next(contents))


def test_a_file_that_shrinks_while_it_is_read_ends_there() -> None:
    there = b"x" * wire.PIECE + b"y"

    def answer(call: Any) -> Any:
        return wire.Content(there[call.offset : call.offset + call.size], 10 * wire.PIECE, 1)

    assert run(files.read("f", 10**9), answer) == there


def test_a_file_is_written_in_pieces_of_which_the_last_one_says_so() -> None:
    calls: list[Any] = []
    data = os.urandom(3 * wire.PIECE + 5)
    run(files.write("f", data, 0o600), lambda call: calls.append(call) or wire.Done())
    assert b"".join(call.data for call in calls) == data
    assert [call.offset for call in calls] == [0, wire.PIECE, 2 * wire.PIECE, 3 * wire.PIECE]
    assert [call.last for call in calls] == [False, False, False, True]
    assert len({call.id for call in calls}) == 1
    calls.clear()
    run(files.write("f", b"", None), lambda call: calls.append(call) or wire.Done())
    assert [(call.data, call.last) for call in calls] == [(b"", True)]


def test_who_gives_up_waiting_interrupts_the_code_and_ends_the_command() -> None:
    for steps, kind in (
        (code.run("1", None, None, None, None, None), wire.Interrupt),
        (commands.run("true", None, None, None, None, None, None), wire.Kill),
    ):
        first = next(steps)
        assert isinstance(first, Ask)
        told = steps.throw(KeyboardInterrupt())
        assert isinstance(told, Tell)
        assert isinstance(told.call, kind)
        assert told.call.id == first.call.id  # type: ignore[union-attr]
        with pytest.raises(KeyboardInterrupt):
            next(steps)


def test_the_output_of_a_command_that_is_kept_has_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commands, "MAX_KEPT", 5)
    heard: list[bytes] = []
    answers = iter([wire.Output(b"123", b"", 3, 0), wire.Output(b"4567", b"", 7, 0, 0, wire.Exit(0))])
    found = run(commands.run("x", None, None, None, None, heard.append, None), lambda call: next(answers))
    assert (found.stdout, found.dropped, heard) == (b"12345", 2, [b"123", b"4567"])


@pytest.mark.parametrize("data", [None, b"", b"\0", b"\0\xc1", b"\1nonsense", b"\0\x93\x01\x02\x03"])
def test_answers_that_are_none_are_refused(data: bytes | None) -> None:
    with pytest.raises(ProtocolError):
        wire.decode_answer(data, wire.Output)


def test_calls_and_answers_survive_their_way() -> None:
    call = wire.StartCommand("id", ["a", "b"], b"\xff", "", {"A": "b"}, "/", 1.5, (2, 3), followed=True)
    assert wire.decode_call(wire.encode_call(call)) == call
    shown = wire.Shown("text", {"text/html": "<b>"}, {"image/png": b"\xff"}, value=True)
    progress = wire.Progress([wire.Piece("out"), wire.Piece(shown=shown)], wire.Ended())
    assert wire.decode_answer(wire.encode_answer(progress), wire.Progress) == progress
    fault = wire.Fault(5, "no", "do")
    assert wire.decode_answer(wire.encode_answer(fault), wire.Progress) == fault
    error = fault.error()
    assert (type(error).__name__, error.message, error.remedy) == ("NotFoundError", "no", "do")


def test_a_lost_sandbox_is_told_in_other_processes_too() -> None:
    import pickle

    error = pickle.loads(pickle.dumps(SandboxLostError("gone", remedy="again")))
    assert isinstance(error, SandboxLostError)
    assert isinstance(error, FlameError)
    assert (error.message, error.remedy) == ("gone", "again")


def test_snapshots_are_saved_and_loaded(tmp_path: Path) -> None:
    made = Snapshot({"lock": "no"})
    made.add(b"x" * (wire.PIECE + 1))
    made.add(b"y")
    made.save(tmp_path / "s")
    again = Snapshot.load(tmp_path / "s")
    assert (again.skipped, again.size) == (made.skipped, made.size)
    assert b"".join(again.pieces()) == b"x" * (wire.PIECE + 1) + b"y"
    assert [path.name for path in tmp_path.iterdir()] == ["s"]
