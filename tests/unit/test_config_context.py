"""The client's settings: contexts of the file, and the environment over them."""

from __future__ import annotations

from pathlib import Path

import pytest

from flame.config import TlsConfig, load_context, read_contexts
from flame.model.errors import InvalidConfigError

FILE = """
current-context: dev
contexts:
  - name: dev
    cluster:
      endpoint: http://127.0.0.1:8080
    cache:
      endpoint: grpc://127.0.0.1:9090
      storage: /shared/cache
    package:
      excludes: ["*.log"]
  - name: prod
    cluster:
      endpoint: https://flame.example:8080
      tls:
        ca_file: ca.crt
        cert_file: me.crt
        key_file: me.key
    runner:
      template: gpu-run
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "flame.yaml"
    path.write_text(FILE)
    return path


def test_the_current_context_is_used(file: Path) -> None:
    context = load_context(file, environ={})
    assert (context.name, context.endpoint, context.tls) == ("dev", "http://127.0.0.1:8080", None)
    assert context.cache is not None
    assert context.cache.storage == Path("/shared/cache")
    assert context.package is not None
    assert "*.log" in context.package.excludes
    assert ".venv" in context.package.excludes
    assert context.runner.template == "flmrun"


def test_another_context_by_argument_or_variable(file: Path, tmp_path: Path) -> None:
    for context in (
        load_context(file, context="prod", environ={}),
        load_context(file, environ={"FLAME_CONTEXT": "prod"}),
    ):
        assert context.endpoint == "https://flame.example:8080"
        assert context.tls == TlsConfig(tmp_path / "me.crt", tmp_path / "me.key", tmp_path / "ca.crt")
        assert context.runner.template == "gpu-run"


def test_the_environment_goes_over_the_file(file: Path, tmp_path: Path) -> None:
    environ = {
        "FLAME_ENDPOINT": "http://elsewhere:9",
        "FLAME_CACHE_ENDPOINT": "grpcs://cache:1",
        "FLAME_CACHE_STORAGE": "/mnt",
        "FLAME_CA_FILE": "/env/ca.crt",
    }
    context = load_context(file, environ=environ)
    assert context.endpoint == "http://elsewhere:9"
    assert context.cache is not None
    assert (context.cache.endpoint, context.cache.storage) == ("grpcs://cache:1", Path("/mnt"))
    assert context.tls == TlsConfig(ca_file=Path("/env/ca.crt"))
    assert context.cache.tls == TlsConfig(ca_file=Path("/env/ca.crt"))


def test_the_environments_ca_does_not_replace_the_files(file: Path, tmp_path: Path) -> None:
    context = load_context(file, context="prod", environ={"FLAME_CA_FILE": "/env/ca.crt"})
    assert context.tls is not None
    assert context.tls.ca_file == tmp_path / "ca.crt"


def test_a_cache_from_the_environment_is_trusted_like_the_cluster(file: Path, tmp_path: Path) -> None:
    context = load_context(file, context="prod", environ={"FLAME_CACHE_ENDPOINT": "grpcs://cache:1"})
    assert context.cache is not None
    assert context.cache.tls is not None
    assert context.cache.tls.ca_file == tmp_path / "ca.crt"


def test_without_a_file_everything_is_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert load_context(environ={}).endpoint is None
    assert load_context(environ={"FLAME_ENDPOINT": "unix:/run/f"}).endpoint == "unix:/run/f"
    with pytest.raises(InvalidConfigError, match="context 'prod' not found"):
        load_context(context="prod", environ={})


def test_the_file_can_come_from_the_environment(file: Path) -> None:
    assert load_context(environ={"FLAME_CONFIG": str(file)}).name == "dev"
    with pytest.raises(InvalidConfigError, match="is not a file"):
        load_context(environ={"FLAME_CONFIG": str(file) + "x"})


def test_empty_variables_count_as_absent(file: Path) -> None:
    assert load_context(file, environ={"FLAME_ENDPOINT": "", "FLAME_CONTEXT": ""}).endpoint == "http://127.0.0.1:8080"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("contexts: []\ncurrent-context: dev\n", "current-context: context 'dev' not found"),
        ("contexts:\n- name: a\n", "current-context is not set"),
        ("current-contxt: a\n", "current-contxt: unknown key; did you mean 'current-context'?"),
        ("contexts:\n- {name: a}\n- {name: a}\n", "contexts[1].name: there is another context 'a'"),
        ("contexts:\n- cluster: {}\n", "contexts[0]: name is required"),
        ("contexts:\n- name: a\n  cluster: {endpoint: 'tcp://x'}\n", "contexts[0].cluster.endpoint: invalid address"),
        ("contexts:\n- name: a\n  cluster: {tls: {key_file: k}}\n", "cert_file and key_file belong together"),
        ("contexts:\n- name: a\n  cache: {endpoint: 'http://x:1'}\n", "contexts[0].cache.endpoint: invalid address"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "flame.yaml"
    path.write_text(text)
    with pytest.raises(InvalidConfigError) as caught:
        load_context(path, environ={})
    assert message in f"{caught.value.message}; {caught.value.remedy}"


def test_a_misspelt_context_gets_the_nearest_name(file: Path) -> None:
    with pytest.raises(InvalidConfigError, match="did you mean 'prod'"):
        load_context(file, context="prd", environ={})


def test_all_contexts_can_be_listed(file: Path) -> None:
    current, contexts, notes = read_contexts(file)
    assert (current, [entry.name for entry in contexts], notes) == ("dev", ["dev", "prod"], [])
