"""`flame-session-manager` as a process: how it starts, refuses to start, and ends."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import pytest

from cluster import Cluster, free_ports


def start(folder: Path, config: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the daemon with this configuration until it ends by itself."""
    file = folder / "flame-cluster.yaml"
    file.write_text(config)
    command = [sys.executable, "-m", "flame.manager.daemon", "--config", str(file), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, cwd=folder)


def config(endpoint: str, storage: str = "none", more: str = "") -> str:
    return f"cluster:\n  name: test\n  endpoint: {endpoint}\n  storage: {storage}\n{more}"


def complaint(done: subprocess.CompletedProcess[str]) -> str:
    """The last line, which says why it did not start; there is no traceback."""
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    return done.stderr.splitlines()[-1]


def test_it_ends_well_on_sigterm_and_goes_on_where_it_was(tmp_path: Path) -> None:
    with Cluster(tmp_path, nodes=0) as cluster:
        assert "generation=1" in cluster.manager.log
        assert cluster.manager.stop() == 0
        assert "Traceback" not in cluster.manager.log
        cluster.start_manager()
        assert "generation=2" in cluster.manager.log


def test_it_recovers_from_being_killed(tmp_path: Path) -> None:
    with Cluster(tmp_path, nodes=0) as cluster:
        cluster.manager.kill()
        cluster.start_manager()
        assert "generation=2" in cluster.manager.log


def test_a_journal_in_use_is_named(tmp_path: Path) -> None:
    with Cluster(tmp_path, nodes=0):
        other = config(f"http://127.0.0.1:{free_ports(4)}", f"sqlite://{tmp_path}/flame.db")
        (tmp_path / "other").mkdir()
        done = start(tmp_path / "other", other)
    assert complaint(done) == (
        f"flame-session-manager: the journal {tmp_path}/flame.db is in use by another session manager; "
        "stop that one first"
    )
    assert done.returncode == 7


@pytest.mark.parametrize("offset", [0, 1, 2, 3])
def test_a_port_in_use_is_named(tmp_path: Path, offset: int) -> None:
    port = free_ports(4)
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind(("127.0.0.1", port + offset))
        taken.listen()
        done = start(tmp_path, config(f"http://127.0.0.1:{port}"))
    assert f"127.0.0.1:{port + offset}" in complaint(done)
    assert done.returncode == 2


def test_a_damaged_journal_is_named(tmp_path: Path) -> None:
    (tmp_path / "flame.db").write_bytes(b"garbage" * 1000)
    done = start(tmp_path, config(f"http://127.0.0.1:{free_ports(4)}", f"sqlite://{tmp_path}/flame.db"))
    assert f"the journal {tmp_path}/flame.db is damaged" in complaint(done)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("cluster:\n  name: x\n  endpoint: http://127.0.0.1:1\n  storge: none\n", "storge"),
        ("nonsense", "flame-cluster.yaml"),
        (config("http://0.0.0.0:8080"), "refusing to listen on 0.0.0.0 without TLS"),
        (config("http://cluster.example:8080"), "refusing to listen on 0.0.0.0 without TLS"),
    ],
)
def test_a_configuration_that_can_not_work_is_explained(tmp_path: Path, text: str, words: str) -> None:
    done = start(tmp_path, text)
    assert words in complaint(done)
    assert done.returncode == 2


def test_tls_files_that_are_missing_are_named(tmp_path: Path) -> None:
    tls = f"  tls: {{cert_file: {tmp_path}/c.pem, key_file: {tmp_path}/k.pem, ca_file: {tmp_path}/ca.pem}}\n"
    done = start(tmp_path, config(f"https://127.0.0.1:{free_ports(4)}", more=tls))
    assert f"{tmp_path}/c.pem" in complaint(done)
