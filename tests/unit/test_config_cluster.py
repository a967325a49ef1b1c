"""The cluster's settings: what is accepted, what is refused and in which words."""

from __future__ import annotations

from pathlib import Path

import pytest

from flame.config import load_cluster, read_cluster
from flame.model.errors import InvalidConfigError
from flame.model.resources import Resources
from flame.model.states import Shim

FULL = """
cluster:
  name: prod
  endpoint: "https://flame.example:8080"
  resreq: "cpu=2,mem=4g,gpu=1"
  policies: [priority]
  storage: sqlite://state/flame.db
  schedule_interval: 250
  executors:
    shim: WASM
    limits:
      max_executors: 7
  limits:
    max_sessions: 10
    max_executors: 64
    max_payload: 128Mi
  recovery:
    session:
      retry_limits: 2
    task:
      max_kills: 1
    node:
      drain: 5
  retention: 60
  tls:
    cert_file: certs/server.crt
    key_file: certs/server.key
    ca_file: /etc/flame/ca.crt
  pprof:
    port: 6060
cache:
  endpoint: grpcs://flame.example:9090
  network_interface: lo
  storage: cache
  eviction:
    policy: none
    max_memory: 2G
    max_objects: 100
  tls:
    ca_file: ca.crt
"""


def write(folder: Path, text: str) -> Path:
    file = folder / "flame-cluster.yaml"
    file.write_text(text)
    return file


def refused(folder: Path, text: str) -> str:
    with pytest.raises(InvalidConfigError) as caught:
        load_cluster(write(folder, text))
    error = caught.value
    return f"{error.message}; {error.remedy}".replace(str(folder) + "/", "")


def minimal(*lines: str) -> str:
    return "\n".join(["cluster:", "  name: c", "  endpoint: http://127.0.0.1:8080", *lines, ""])


def test_all_keys_of_the_reference_are_read(tmp_path: Path) -> None:
    config = load_cluster(write(tmp_path, FULL))
    cluster = config.cluster
    assert (cluster.name, cluster.host, cluster.port) == ("prod", "flame.example", 8080)
    assert cluster.resreq == Resources(cpu=2, memory=4 * 1024**3, gpu=1)
    assert cluster.policies == ("priority",)
    assert (cluster.executors.shim, cluster.executors.limits.max_executors) == (Shim.WASM, 7)
    assert (cluster.limits.max_sessions, cluster.limits.max_executors) == (10, 64)
    assert cluster.limits.max_payload == 128 * 1024**2
    recovery = cluster.recovery
    assert (recovery.session.retry_limits, recovery.task.max_kills, recovery.node.drain) == (2, 1, 5)
    assert cluster.retention == 60
    assert config.cache is not None
    assert (config.cache.network_interface, config.cache.eviction.policy) == ("lo", "none")
    assert (config.cache.eviction.max_memory, config.cache.eviction.max_objects) == (2 * 1024**3, 100)


def test_relative_paths_start_at_the_file(tmp_path: Path) -> None:
    config = load_cluster(write(tmp_path, FULL))
    assert config.cluster.storage == f"sqlite://{tmp_path}/state/flame.db"
    assert config.cluster.tls is not None
    assert config.cluster.tls.cert_file == tmp_path / "certs/server.crt"
    assert config.cluster.tls.ca_file == Path("/etc/flame/ca.crt")
    assert config.cache is not None
    assert config.cache.storage == tmp_path / "cache"


def test_keys_without_effect_are_noted_with_their_line(tmp_path: Path) -> None:
    _, notes = read_cluster(write(tmp_path, FULL))
    assert [note.where.rsplit("/", 1)[1] for note in notes] == [
        "flame-cluster.yaml:8: cluster.schedule_interval",
        "flame-cluster.yaml:29: cluster.pprof",
    ]


def test_a_missing_default_file_means_the_defaults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    config = load_cluster()
    assert config.cluster.endpoint == "http://127.0.0.1:8080"
    assert config.cluster.resreq == Resources(cpu=1, memory=1024**3)
    assert config.cluster.storage == f"sqlite://{tmp_path}/.flame/flame.db"
    assert config.cache is None


def test_the_default_file_is_that_of_the_home_at_run_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".flame").mkdir()
    write(tmp_path / ".flame", minimal("  storage: none"))
    assert load_cluster().cluster.storage == "none"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("  enpoint: x", "flame-cluster.yaml:4: cluster.enpoint: unknown key; did you mean 'endpoint'?"),
        ("  name: twice", "flame-cluster.yaml:4: cluster.name: stands twice, first in line 2; "),
        ("  resreq: cpu=1,mem=lots", "flame-cluster.yaml:4: cluster.resreq: invalid size 'lots'; write a number"),
        ("  resreq: cpu=1,disk=3", "flame-cluster.yaml:4: cluster.resreq: unknown resource 'disk'"),
        ("  policies: [drf, drf]", "flame-cluster.yaml:4: cluster.policies: 'drf' stands twice"),
        ("  policies: priority", "flame-cluster.yaml:4: cluster.policies: has to be a list; "),
        ("  storage: postgres", "flame-cluster.yaml:4: cluster.storage: unknown storage 'postgres'; write none"),
        ("  storage: sqlite://", "flame-cluster.yaml:4: cluster.storage: 'sqlite://' names no path"),
        ("  schedule_interval: soon", "flame-cluster.yaml:4: cluster.schedule_interval: 'soon' is not a whole number"),
        ("  insecure: 1", "flame-cluster.yaml:4: cluster.insecure: '1' is neither true nor false"),
        ("  limits: {max_sessions: 0}", "flame-cluster.yaml:4: cluster.limits.max_sessions: 0 is out of range"),
        ("  limits: {max_payload: 2Gi}", "flame-cluster.yaml:4: cluster.limits.max_payload: 2147483648 is out of"),
        ("  limits: [1]", "flame-cluster.yaml:4: cluster.limits: has to be a mapping"),
        ("  executors: {shim: hots}", "flame-cluster.yaml:4: cluster.executors.shim: unknown value 'hots'; did you"),
        ("  recovery: {session: {retries: 1}}", "cluster.recovery.session.retries: unknown key; did you mean"),
        ("  tls: {cert_file: a, key_file: b}", "cluster.tls: ca_file is required"),
        ("  name: [a", "flame-cluster.yaml:5: not valid YAML: "),
    ],
)
def test_mistakes_are_named(tmp_path: Path, line: str, message: str) -> None:
    assert message in refused(tmp_path, minimal(line))


def test_scheme_and_tls_have_to_agree(tmp_path: Path) -> None:
    tls = "  tls: {cert_file: a, key_file: b, ca_file: c}"
    assert "is http but there is cluster.tls" in refused(tmp_path, minimal(tls))
    https = minimal().replace("http:", "https:")
    assert "is https but there is no cluster.tls" in refused(tmp_path, https)


@pytest.mark.parametrize("endpoint", ["127.0.0.1:8080", "ftp://h:1", "http://", "http://h:99999", "http://h:1/path"])
def test_addresses_are_checked(tmp_path: Path, endpoint: str) -> None:
    text = f"cluster:\n  name: c\n  endpoint: {endpoint}\n"
    assert f"cluster.endpoint: invalid address '{endpoint}'" in refused(tmp_path, text)


def test_required_keys(tmp_path: Path) -> None:
    assert "cluster is required" in refused(tmp_path, "")
    assert "cluster: name is required" in refused(tmp_path, "cluster:\n  endpoint: http://h:1\n")
    assert "cluster: endpoint is required" in refused(tmp_path, "cluster:\n  name: c\n")


def test_files_that_can_not_be_read(tmp_path: Path) -> None:
    with pytest.raises(InvalidConfigError, match=r"missing\.yaml is not a file"):
        load_cluster(tmp_path / "missing.yaml")
    with pytest.raises(InvalidConfigError, match="is not a file but a directory"):
        load_cluster(tmp_path)
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InvalidConfigError, match="not UTF-8"):
        load_cluster(tmp_path / "binary.yaml")
