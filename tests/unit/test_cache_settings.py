"""The section `cache` of a cluster file, and where a cache listens."""

from __future__ import annotations

import shutil
from pathlib import Path

import msgspec
import pytest

from flame.cache.addresses import interface_address, place
from flame.cache.daemon import settings_of
from flame.cache.running import session_quota
from flame.cache.settings import CacheSettings
from flame.config import CacheSection, TlsConfig, load_cluster
from flame.config.cache import with_environment
from flame.model.errors import InvalidConfigError

CLUSTER = "cluster: {name: t, endpoint: 'http://127.0.0.1:8080'}\n"


def section(tmp_path: Path, text: str) -> CacheSection:
    file = tmp_path / "flame-cluster.yaml"
    file.write_text(f"{CLUSTER}cache:\n{text}")
    cache = load_cluster(file).cache
    assert cache is not None
    return cache


def test_everything(tmp_path: Path) -> None:
    cache = section(
        tmp_path,
        """
  endpoint: grpc://127.0.0.1:9191
  storage: fs:///var/objects
  max_disk: 10G
  object_store: s3://bucket/prefix
  session_retention: 60
  quotas: {team: 1G}
  session_quota: 3G
  peers: [grpc://other:9090]
  eviction: {policy: none, max_memory: 2G, max_objects: 7}
""",
    )
    assert cache.storage == Path("/var/objects")
    assert (cache.max_disk, cache.object_store) == (10 * 1024**3, "s3://bucket/prefix")
    assert (cache.session_retention, cache.quotas, cache.peers) == (60, (("team", 1024**3),), ("grpc://other:9090",))
    settings = settings_of(load_cluster(tmp_path / "flame-cluster.yaml"), {})
    assert (settings.location, settings.endpoint) == ("grpc://127.0.0.1:9191",) * 2
    assert (settings.evict, settings.max_memory, settings.max_objects) == (False, 2 * 1024**3, 7)
    assert settings.session_quota == 3 * 1024**3


def test_the_quota_of_a_session_is_half_of_what_there_is(tmp_path: Path) -> None:
    settings = CacheSettings("grpc://h:1", "grpc://h:1", max_memory=1000)
    assert session_quota(settings) == 500
    on_disk = msgspec.structs.replace(settings, storage=tmp_path / "not" / "there")
    assert session_quota(on_disk) == shutil.disk_usage(tmp_path).total // 2
    assert session_quota(msgspec.structs.replace(on_disk, session_quota=7)) == 7


@pytest.mark.parametrize(
    ("storage", "path"), [("none", None), ("''", None), ("/x", "/x"), ("file:///x", "/x"), ("objects", "objects")]
)
def test_storage(tmp_path: Path, storage: str, path: str | None) -> None:
    assert section(tmp_path, f"  storage: {storage}\n").storage == (tmp_path / path if path else None)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("  max_disk: 1G\n", "needs cache.storage"),
        ("  storage: /x\n  max_disk: 1G\n", "belong together"),
        ("  storage: /x\n  object_store: ftp://x\n  max_disk: 1G\n", "unknown object store"),
        ("  peers: [http://x]\n", "grpc://"),
        ("  evictoin: {}\n", "did you mean 'eviction'"),
        ("  tls: {verify_client: true}\n", "did you mean 'verify_clients'"),
    ],
)
def test_mistakes(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InvalidConfigError) as error:
        section(tmp_path, text)
    assert message in str(error.value)


def test_the_environment_goes_over_the_file() -> None:
    changed = with_environment(
        CacheSection(storage=Path("/old")),
        {
            "FLAME_CACHE_STORAGE": "/new",
            "FLAME_CACHE_EVICTION_POLICY": "none",
            "FLAME_CACHE_EVICTION_MAX_MEMORY": "5M",
            "FLAME_CACHE_EVICTION_MAX_OBJECTS": "3",
        },
    )
    assert changed.storage == Path("/new")
    assert (changed.eviction.policy, changed.eviction.max_memory) == ("none", 5 * 1024**2)
    assert changed.eviction.max_objects == 3
    assert with_environment(CacheSection(storage=Path("/old")), {"FLAME_CACHE_STORAGE": "none"}).storage is None
    for name, value in (("POLICY", "x"), ("MAX_MEMORY", "x"), ("MAX_OBJECTS", "0")):
        with pytest.raises(InvalidConfigError, match=f"FLAME_CACHE_EVICTION_{name}"):
            with_environment(CacheSection(), {f"FLAME_CACHE_EVICTION_{name}": value})


TLS = TlsConfig(Path("c"), Path("k"))


@pytest.mark.parametrize(
    ("endpoint", "tls", "location"),
    [
        ("http://127.0.0.1:9090", None, "grpc://127.0.0.1:9090"),
        ("grpc://localhost", None, "grpc://localhost:9090"),
        ("grpc://[::1]:1", None, "grpc://[::1]:1"),
        ("grpcs://127.0.0.1:1", TLS, "grpc+tls://127.0.0.1:1"),
        ("grpcs://cache.example:1", TLS, "grpc+tls://127.0.0.1:1"),
    ],
)
def test_places(endpoint: str, tls: TlsConfig | None, location: str) -> None:
    cache = CacheSection(endpoint=endpoint, network_interface="lo", tls=tls)
    assert place(cache, insecure=False) == (location, location)


def test_places_that_are_refused() -> None:
    with pytest.raises(InvalidConfigError, match="refusing to listen"):
        place(CacheSection(endpoint="grpc://cache.example:1"), insecure=False)
    with pytest.raises(InvalidConfigError, match="needs a certificate"):
        place(CacheSection(endpoint="grpcs://127.0.0.1:1"), insecure=True)
    with pytest.raises(InvalidConfigError, match="needs the authority"):
        place(CacheSection(endpoint="grpcs://127.0.0.1:1", tls=TLS, verify_clients=True), insecure=False)
    with pytest.raises(InvalidConfigError, match="no regular expression"):
        interface_address("[")
    with pytest.raises(InvalidConfigError, match="choose one of"):
        interface_address("none-such")
    assert interface_address("l.") == "127.0.0.1"
