"""What `import flame` gives, and what it costs."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import flame

FLAMEPY_NAMES = """
TaskID SessionID ApplicationID Message TaskInput TaskOutput CommonData DEFAULT_FLAME_CONF DEFAULT_FLAME_ENDPOINT
DEFAULT_FLAME_CACHE_ENDPOINT FLAME_INSTANCE_ENDPOINT SessionState TaskState ApplicationState Shim FlameErrorCode
FlameError Event ResourceRequirement SessionAttributes ApplicationSchema ApplicationAttributes Task Application
FlamePackage FlameContextRunner TaskInformer FlameContext connect create_session open_session register_application
unregister_application list_applications list_executors list_nodes get_application list_sessions get_session
close_session Connection Session TaskWatcher ApplicationContext SessionContext TaskContext FlameService run ObjectRef
get_object put_object update_object
"""


@pytest.mark.parametrize("name", FLAMEPY_NAMES.split())
def test_names_of_flamepy_exist(name: str) -> None:
    assert hasattr(flame, name)


def test_every_public_name_is_there_and_listed() -> None:
    for name in flame.__all__:
        assert getattr(flame, name) is not None
        assert name in dir(flame)
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        flame.nonsense  # type: ignore[attr-defined]  # noqa: B018


def test_type_checkers_see_every_public_name_where_it_comes_from() -> None:
    assert flame.__file__ is not None
    package = Path(flame.__file__).parent
    assert (package / "py.typed").exists()
    tree = ast.parse(Path(flame.__file__).read_text())
    (checked,) = (node for node in tree.body if isinstance(node, ast.If))
    imports = [node for node in checked.body if isinstance(node, ast.ImportFrom)]
    seen = {alias.name: node.module for node in imports for alias in node.names if node.module != "typing"}
    assert seen.pop("aio") == "flame"
    assert seen == flame._SOURCE_OF
    assert {*seen, "aio", "__version__"} == set(flame.__all__)


def test_importing_the_package_loads_nothing_heavy() -> None:
    code = "import sys, flame; print(*sorted(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    for module in ("asyncio", "grpc", "google.protobuf", "msgspec", "yaml", "typing", "logging", "ssl"):
        assert module not in loaded


def test_connecting_needs_neither_grpc_nor_yaml() -> None:
    code = "import sys, flame; flame.connect, flame.aio; print(*sorted(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "asyncio" in loaded
    for module in ("grpc", "yaml", "cryptography", "flame.manager", "flame.engine", "flame.node", "flame.security"):
        assert module not in loaded


def test_short_names_have_the_prefix_and_differ() -> None:
    first, second = flame.short_name("app"), flame.short_name("app")
    assert first.startswith("app-")
    assert len(first) == 10
    assert first != second


def test_the_context_has_defaults_without_a_file(monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("FLAME_ENDPOINT", "FLAME_CACHE_ENDPOINT", "FLAME_CA_FILE", "FLAME_CONFIG", "FLAME_CONTEXT"):
        monkeypatch.delenv(name, raising=False)
    context = flame.FlameContext()
    assert context.endpoint == flame.DEFAULT_FLAME_ENDPOINT
    assert context.configured_endpoint is None
    assert context.cache_endpoint == flame.DEFAULT_FLAME_CACHE_ENDPOINT
    assert context.tls is None
    assert context.runner.template == "flmrun"
    monkeypatch.setenv("FLAME_ENDPOINT", "https://h:1")
    monkeypatch.setenv("FLAME_CA_FILE", "/ca.pem")
    context = flame.FlameContext()
    assert context.endpoint == "https://h:1"
    assert context.tls is not None
    assert context.tls.ca_file == "/ca.pem"
