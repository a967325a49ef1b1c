"""What instances have of their package: variables before their own, and none that was started for another content."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from flame.config import load_cluster
from flame.node.daemon import settings_of
from flame.packages.store import Package
from flame.proto import shim_pb2, types_pb2
from flame.shims.environment import Surroundings, environment
from flame.shims.shim import Launch
from flame.shims.warm import ahead, recipe

AROUND = Surroundings(environ={"PATH": "/usr/bin", "HOME": "/root"}, bin_dir=Path("/flame/bin"), max_payload=1)


def launch(package: Package | None = None, **environments: str) -> Launch:
    entries = [types_pb2.Environment(name=name, value=value) for name, value in environments.items()]
    application = types_pb2.ApplicationSpec(command="run", environments=entries)
    context = shim_pb2.SessionContext(session_id="s", application=shim_pb2.ApplicationContext(name="app"))
    return Launch("e-1", "token", application, context, package=package)


def variables(given: dict[str, str], **environments: str) -> dict[str, str]:
    return environment(launch(Package("1", given), **environments), AROUND, Path("/tmp"))


@pytest.mark.parametrize("name", ["PYTHONPATH", "LD_LIBRARY_PATH"])
def test_paths_of_the_package_go_before_those_of_the_application(name: str) -> None:
    assert variables({name: "/p:/q"}, **{name: "/mine"})[name] == "/p:/q:/mine"
    assert variables({name: "/p:/q"})[name] == "/p:/q"
    assert variables({name: "/p"}, **{name: ""})[name] == "/p"


def test_the_path_ends_with_that_of_the_application_or_of_the_node() -> None:
    assert variables({"PATH": "/p/bin"})["PATH"] == "/p/bin:/flame/bin:/usr/bin"
    assert variables({"PATH": "/p/bin"}, PATH="/mine:$PATH")["PATH"] == "/p/bin:/mine:/usr/bin"


def test_other_variables_are_the_applications_if_it_has_them() -> None:
    found = variables({"UV_CACHE_DIR": "/theirs", "FLAME_APP_DIR": "/p", "HOME": "/p"}, UV_CACHE_DIR="/mine")
    assert (found["UV_CACHE_DIR"], found["FLAME_APP_DIR"], found["HOME"]) == ("/mine", "/p", "/root")


def test_other_content_is_another_recipe_for_instances_that_wait() -> None:
    one, same, other = (launch(Package(identity, {})) for identity in ("1", "1", "2"))
    assert recipe(one) == recipe(same)
    assert len({recipe(one), recipe(other), recipe(launch())}) == 3
    waiting = ahead(one, "warm-1", "t")
    assert waiting.package is one.package
    assert recipe(waiting) == recipe(msgspec.structs.replace(one))


def test_without_a_package_nothing_is_added() -> None:
    found = environment(launch(), AROUND, Path("/tmp"))
    assert found["PATH"] == "/flame/bin:/usr/bin"
    assert not {"PYTHONPATH", "LD_LIBRARY_PATH", "FLAME_APP_DIR"} & found.keys()


def test_caches_may_have_an_authority_of_their_own(tmp_path: Path) -> None:
    file = tmp_path / "flame-cluster.yaml"
    cache = "cache: {endpoint: 'grpcs://cache:9090', tls: {ca_file: cache-ca.pem}}\n"
    file.write_text(f"cluster: {{name: c, endpoint: 'http://127.0.0.1:8080', storage: none}}\n{cache}")
    settings = settings_of(load_cluster(file), tmp_path)
    assert (settings.cache_ca_file, settings.ca_file) == (str(tmp_path / "cache-ca.pem"), "")
