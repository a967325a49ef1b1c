"""The session manager's HTTP port as probes, Prometheus and people see it."""

from __future__ import annotations

import re
import resource
import ssl
import urllib.error
import urllib.request
from pathlib import Path

import pytest

import flame
from blackbox.trouble import ask, connect, echoes, instances, numbers, register, until
from cluster import ROOT, Cluster
from flame.config import TlsConfig
from flame.security import client_ssl, make_certificates

ROW = re.compile(r"^\| `(\w+)` \| (\w+) \| (.*?) \| (.*) \|$", re.MULTILINE)


def get(url: str, tls: ssl.SSLContext | None = None) -> tuple[int, str]:
    """Status and text of one GET request."""
    try:
        with urllib.request.urlopen(url, timeout=30, context=tls) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def measure(cluster: Cluster) -> dict[str, float]:
    """All samples, as they stand in the text."""
    status, text = get(f"{cluster.http}/metrics")
    assert status == 200
    lines = [line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#")]
    return {name: float(value) for name, value in lines}


def test_the_numbers_are_those_of_the_work_that_was_done(tmp_path: Path) -> None:
    with Cluster(tmp_path) as cluster, connect(cluster) as connection:
        assert get(f"{cluster.http}/healthz") == (200, "alive\n")
        assert get(f"{cluster.http}/readyz") == (200, "ready\n")
        register(connection)
        done = connection.create_session("trouble")
        assert numbers(done.map(echoes(300))) == list(range(300))
        with pytest.raises(flame.FlameError):
            done.invoke(ask("raise"))
        done.close()
        session = connection.create_session("trouble", min_instances=2)
        until(lambda: len(instances(connection, session.id)) == 2, "two instances")
        running = [session.submit(ask("sleep", seconds=60)) for _ in range(2)]
        until(lambda: (session.refresh(), session.running == 2)[1], "both to work")
        waiting = [session.submit(ask()) for _ in range(5)]
        until(lambda: (session.refresh(), session.pending == 5)[1], "the others to wait")
        values = measure(cluster)
        assert values['flame_sessions{state="open"}'] == values['flame_sessions{state="closed"}'] == 1
        assert values['flame_tasks{state="running"}'] == 2
        assert values['flame_tasks{state="pending"}'] == 5
        assert values['flame_tasks_ended_total{state="succeed"}'] == 300
        assert values['flame_tasks_ended_total{state="failed"}'] == 1
        assert values['flame_tasks_ended_total{state="cancelled"}'] == 0
        assert values['flame_executors{state="bound"}'] == values["flame_allocated_cpu_cores"] == 2
        assert values['flame_nodes{state="ready"}'] == 1
        assert (values["flame_capacity_cpu_cores"], values["flame_capacity_memory_bytes"]) == (2, 4 << 30)
        assert values["flame_clients_connected"] == 1
        assert values["flame_journal_written_bytes_total"] > 300 * len(ask(n=100))
        assert values["process_resident_memory_bytes"] > 10 << 20
        for future in running + waiting:
            future.cancel()
        until(lambda: (session.refresh(), session.cancelled == 7)[1], "the rest to be cancelled")
        assert measure(cluster)['flame_tasks_ended_total{state="cancelled"}'] == 7
        session.close()


def test_every_metric_stands_in_the_documentation_and_nothing_else(tmp_path: Path) -> None:
    with Cluster(tmp_path) as cluster:
        _, text = get(f"{cluster.http}/metrics")
    helps = dict(re.findall(r"^# HELP (\w+) (.*)$", text, re.MULTILINE))
    types = dict(re.findall(r"^# TYPE (\w+) (\w+)$", text, re.MULTILINE))
    labels = {name: re.search(rf"^{name}\{{(\w+)=", text, re.MULTILINE) for name in types}
    shown = {name: (types[name], f"`{label[1]}`" if (label := labels[name]) else "", helps[name]) for name in types}
    documented = {name: tuple(rest) for name, *rest in ROW.findall((ROOT / "docs" / "metrics.md").read_text())}
    assert documented == shown


def test_a_journal_that_can_not_be_written_shows_in_readyz(tmp_path: Path) -> None:
    with Cluster(tmp_path, nodes=0) as cluster, connect(cluster) as connection:
        register(connection)
        session = connection.create_session("trouble")
        unlimited = resource.prlimit(cluster.manager.pid, resource.RLIMIT_FSIZE, (8192, -1))
        session.submit(bytes(100_000))
        until(lambda: get(f"{cluster.http}/readyz")[0] == 503, "the manager to be not ready")
        assert get(f"{cluster.http}/readyz")[1].startswith("not ready: the journal can't be written: ")
        assert get(f"{cluster.http}/healthz")[0] == 200
        assert measure(cluster)["flame_journal_read_only"] == 1
        resource.prlimit(cluster.manager.pid, resource.RLIMIT_FSIZE, (-1, unlimited[1]))
        until(lambda: get(f"{cluster.http}/readyz") == (200, "ready\n"), "the manager to be ready again")


def test_with_tls_only_certificates_are_let_in(tmp_path: Path) -> None:
    certificates = make_certificates(tmp_path / "certificates")
    files = {key: str(getattr(certificates.server, key)) for key in ("cert_file", "key_file", "ca_file")}
    cluster = Cluster(tmp_path, nodes=0, settings={"tls": files}, scheme="https")
    with cluster:
        url = cluster.http.replace("127.0.0.1", "localhost")
        with pytest.raises((urllib.error.URLError, ConnectionError, ssl.SSLError)):
            get(f"{url}/healthz", client_ssl(TlsConfig(ca_file=certificates.server.ca_file)))
        with pytest.raises((urllib.error.URLError, ConnectionError)):
            get(f"{url.replace('https', 'http')}/healthz")
        assert get(f"{url}/readyz", client_ssl(certificates.client)) == (200, "ready\n")
        assert get(f"{url}/metrics", client_ssl(certificates.client))[0] == 200
        assert get(f"{url}/metrics", client_ssl(certificates.node)) == (403, "node 'node' may not call Metrics\n")


def test_a_manager_that_nobody_asks_does_not_pay_for_it(tmp_path: Path) -> None:
    with Cluster(tmp_path, nodes=0, storage="none") as cluster:
        maps = Path(f"/proc/{cluster.manager.pid}/maps")
        assert "aiohttp" not in maps.read_text()
        assert get(f"{cluster.http}/healthz")[0] == 200
        assert "aiohttp" in maps.read_text()
