"""flmadm check, and the parts of flmadm that need no cluster."""

from __future__ import annotations

from pathlib import Path

import pytest

from flame.cli.admin.check import is_loopback
from flame.cli.flmadm import COMMANDS, flmadm
from flame.cli.program import run


def admin(*arguments: str) -> int:
    return run(flmadm, "flmadm", arguments)


def write(folder: Path, name: str, text: str) -> str:
    file = folder / name
    file.write_text(text)
    return str(file)


def test_each_kind_of_file_is_known_by_its_keys(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cluster = write(tmp_path, "a", "cluster: {name: c, endpoint: 'http://127.0.0.1:1', storage: none}\n")
    client = write(tmp_path, "b", "current-context: x\ncontexts:\n- {name: x}\n")
    applications = write(tmp_path, "c", "metadata: {name: pi}\n---\nmetadata: {name: e}\n")
    assert admin("check", cluster, client, applications) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"{cluster}: cluster settings of 'c', valid, with 1 note",
        "  cluster.storage: none keeps nothing: all sessions are lost when the session manager ends",
        f"{client}: client settings with 1 context, valid",
        f"{applications}: applications pi, e, valid",
    ]


def test_what_to_know_of_an_object_cache(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    head = "cluster: {name: c, endpoint: 'http://127.0.0.1:1'}\n"
    for cache, notes in (
        ("{endpoint: 'grpc://127.0.0.1:2', storage: /tmp}", []),
        ("{}", ["cache.storage: none keeps nothing: all objects are lost when the object cache ends"]),
        ("{endpoint: 'grpc://h:2', storage: /tmp}", ["cache: flame-object-cache would not start here: refusing to"]),
    ):
        file = write(tmp_path, "a", f"{head}cache: {cache}\n")
        assert admin("check", file) == 0
        first, *said = capsys.readouterr().out.splitlines()
        assert first.startswith(f"{file}: cluster settings of 'c', valid")
        assert [line.strip()[: len(note)] for line, note in zip(said, notes, strict=True)] == notes


def test_a_wrong_file_does_not_hide_the_next(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wrong = write(tmp_path, "a", "cluster: {nam: c}\n")
    right = write(tmp_path, "b", "contexts: []\ncurrent-context:\n")
    assert admin("check", wrong, right) == 2
    first, second, _ = capsys.readouterr().out.splitlines()
    assert first == f"{wrong}:1: cluster: name is required"
    assert second.startswith(f"{right}: client settings")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("endpoint: 'http://0.0.0.0:1'", "cluster.endpoint: 0.0.0.0 is not this machine and there is no cluster.tls"),
        ("endpoint: 'http://h:1'\n  storage: sqlite:///proc/x/y.db", "h is not this machine"),
        (
            "endpoint: 'http://[::1]:1'\n  policies: [priorty]",
            "a: unknown policy 'priorty' in cluster.policies (did you",
        ),
        (
            "endpoint: 'http://[::1]:1'\n  tenants: {a: {quota: {cpu: 1}, tenants: {b: {guarantee: cpu=2}}}}",
            "a: cluster.tenants: the tenants below a are guaranteed 2 cpu together, its quota is 1 cpu (guarantee less",
        ),
        ("endpoint: 'https://h:1'\n  tls: {cert_file: a, key_file: b, ca_file: c}", "cluster.tls: "),
    ],
)
def test_what_would_not_start_is_wrong(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, message: str
) -> None:
    assert admin("check", write(tmp_path, "a", f"cluster:\n  name: c\n  {text}\n")) == 2
    assert message in capsys.readouterr().out


def test_insecure_is_allowed_and_noted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write(tmp_path, "a", "cluster:\n  name: c\n  endpoint: http://0.0.0.0:1\n  insecure: true\n  pprof: {}\n")
    assert admin("check", file) == 0
    out = capsys.readouterr().out
    assert "anybody who reaches the ports may do everything" in out
    assert "a:5: cluster.pprof: has no effect" in out


def test_without_files_there_is_nothing_to_check(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert admin("check") == 4
    assert "hint: name a file" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("host", "expected"),
    [("127.0.0.1", True), ("127.9.9.9", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("h", False)],
)
def test_loopback(host: str, expected: bool) -> None:
    assert is_loopback(host) is expected


def test_the_summaries_are_those_of_the_commands() -> None:
    for name, entry in COMMANDS.items():
        command = flmadm.get_command(None, name)  # pyright: ignore[reportArgumentType]
        assert command is not None
        assert (command.help or "").startswith(entry.summary.rstrip(".").split(",")[0]), name
