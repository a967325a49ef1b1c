"""The object cache and what is around it: certificates, interfaces, other caches, an S3-compatible store."""

from __future__ import annotations

import os
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

from cache_daemon import CacheDaemon
from cluster import Daemon, free_ports
from flame.config import TlsConfig
from flame.model.errors import FlameError, NotFoundError, PermissionDeniedError
from flame.objects import ObjectClient, ObjectRef
from flame.objects import messages as m
from flame.objects.codecs import encode
from flame.objects.messages import LocalDoor
from flame.objects.remote import RemoteClient
from flame.objects.shared import SharedClient
from flame.objects.streams import StreamClient
from flame.security import Certificates, make_certificates

MB = 1024 * 1024
CREDENTIALS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_EC2_METADATA_DISABLED": "true"}


def noise(size: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, size, dtype="u1")


def run(cache: CacheDaemon, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "flame.cache.daemon", "--config", str(cache.config), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False, env=cache.environ())


# --- certificates ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return make_certificates(tmp_path_factory.mktemp("certificates"))


def tls_section(tls: TlsConfig) -> dict[str, object]:
    return {"cert_file": str(tls.cert_file), "key_file": str(tls.key_file), "ca_file": str(tls.ca_file)}


def test_a_cache_with_a_certificate(tmp_path: Path, certificates: Certificates) -> None:
    settings = {"tls": tls_section(certificates.server)}
    with CacheDaemon(tmp_path, scheme="grpcs", settings=settings) as cache:
        client = cache.client(TlsConfig(ca_file=certificates.server.ca_file))
        ref = client.put("app/session", noise(MB))
        assert ref.endpoint == cache.endpoint.replace("grpcs", "grpc+tls")
        assert np.array_equal(client.get(ref), noise(MB))
        with pytest.raises(FlameError):
            cache.client().put("app/session", 1)  # an authority that the system does not know
        with pytest.raises(FlameError):
            ObjectClient(cache.endpoint.replace("grpcs", "grpc")).put("app/session", 1)


def test_clients_may_have_to_show_certificates(tmp_path: Path, certificates: Certificates) -> None:
    settings = {"tls": {**tls_section(certificates.server), "verify_clients": True}}
    with CacheDaemon(tmp_path, scheme="grpcs", settings=settings) as cache:
        with pytest.raises(FlameError):
            cache.client(TlsConfig(ca_file=certificates.server.ca_file)).put("app/session", 1)
        client = cache.client(certificates.client)
        assert client.get(client.put("app/session", [1])) == [1]


@pytest.mark.parametrize("shared_memory", [True, False])
def test_what_a_certificate_may_do_is_its_role(tmp_path: Path, certificates: Certificates, shared_memory: bool) -> None:
    """The same through the door of the node as over the network."""
    settings = {"tls": {**tls_section(certificates.server), "verify_clients": True}}
    with CacheDaemon(tmp_path, scheme="grpcs", settings=settings) as cache:
        admin, client, node = (
            ObjectClient(cache.endpoint, tls=tls, shared_memory=shared_memory)
            for tls in (certificates.admin, certificates.client, certificates.node)
        )
        with admin, client, node:
            shared = client.put("app/shared/code", "code")
            ref = node.put("app/session/small", "small")
            large = node.put("app/session/large", noise(MB))
            assert np.array_equal(node.get(large), noise(MB))
            assert node.get(shared) == "code"
            assert [info.key for info in node.list("app/*")] == [large.key, ref.key, shared.key]
            node.delete(ref)
            refused = (
                lambda: node.update(shared, "mine"),
                lambda: node.update(shared, noise(MB)),
                lambda: node.patch(shared, "mine"),
                lambda: node.put("app/pkg", noise(MB)),
                lambda: node.delete(shared),
                lambda: node.delete("app/*"),
                lambda: node.delete_many([large, shared]),
                lambda: node.expire(shared, 0),
                lambda: node.end_session("app/session", 0),
            )
            for attempt in refused:
                with pytest.raises(PermissionDeniedError, match="a node may not"):
                    attempt()
            assert client.get(shared) == "code"
            client.end_session("app/session", 0)
            admin.delete("app/*")
            assert list(client.list("app/*")) == []


def test_a_certificate_that_is_missing(tmp_path: Path) -> None:
    assert "needs a certificate" in run(CacheDaemon(tmp_path, scheme="grpcs")).stderr


# --- interfaces ------------------------------------------------------------------------------------------------------


def test_it_does_not_listen_for_others_without_a_certificate(tmp_path: Path) -> None:
    cache = CacheDaemon(tmp_path, host="cache.example", settings={"network_interface": "lo"})
    refused = run(cache)
    assert refused.returncode == 2
    assert "refusing to listen" in refused.stderr
    assert "--insecure" in refused.stderr


def test_references_say_the_address_of_the_interface(tmp_path: Path) -> None:
    cache = CacheDaemon(tmp_path, host="cache.example", settings={"network_interface": "l[a-z]"})
    command = [sys.executable, "-m", "flame.cache.daemon", "--config", str(cache.config), "--insecure"]
    daemon = Daemon("flame-object-cache", command, cache.environ(), tmp_path)
    try:
        daemon.wait_for(f"is ready at grpc://127.0.0.1:{cache.port}")
    finally:
        daemon.stop()


def test_an_interface_that_is_not_there(tmp_path: Path) -> None:
    cache = CacheDaemon(tmp_path, host="cache.example", settings={"network_interface": "nothing9"})
    refused = run(cache, "--insecure")
    assert refused.returncode == 2
    assert "choose one of lo" in refused.stderr


# --- several caches --------------------------------------------------------------------------------------------------


@pytest.fixture
def two(tmp_path: Path) -> Iterator[tuple[CacheDaemon, CacheDaemon]]:
    """A cache far away, and one nearby that knows it."""
    (tmp_path / "far").mkdir()
    (tmp_path / "near").mkdir()
    with CacheDaemon(tmp_path / "far") as far:
        settings = {"peers": [far.endpoint], "eviction": {"max_memory": "16M"}}
        with CacheDaemon(tmp_path / "near", settings=settings) as near:
            yield far, near


def test_the_nearest_cache_fetches_what_is_elsewhere(two: tuple[CacheDaemon, CacheDaemon]) -> None:
    far, near = two
    ref = far.client().put("app/session", noise(4 * MB))
    client = near.client()
    assert np.array_equal(client.get(ref), noise(4 * MB))
    assert client.status().memory > 4 * MB
    first, second = client.get(ref), client.get(ref)
    assert first.__array_interface__["data"][0] == second.__array_interface__["data"][0]
    assert client.status().objects == 0


def test_a_copy_follows_its_original(two: tuple[CacheDaemon, CacheDaemon]) -> None:
    far, near = two
    writer, reader = far.client(), near.client()
    ref = writer.put("app/session", ["base", b"x" * MB])
    assert reader.get(ref)[0] == "base"
    writer.patch(ref, "one")
    assert reader.get(ref, lambda base, deltas: (base[0], deltas)) == ("base", ["one"])
    writer.update(ref, "anew")
    assert reader.get(ref) == "anew"
    assert reader.status().memory < MB
    assert reader.update(ref, "through").version == 4
    assert writer.get(ref) == "through"
    writer.delete(ref)
    with pytest.raises(NotFoundError):
        reader.get(ref)
    assert reader.status().memory == 0


def test_copies_are_the_first_to_go(two: tuple[CacheDaemon, CacheDaemon]) -> None:
    far, near = two
    ref = far.client().put("app/session", noise(10 * MB))
    client = near.client()
    assert np.array_equal(client.get(ref), noise(10 * MB))
    own = client.put("app/session", noise(12 * MB, 1))
    assert np.array_equal(client.get(ref), noise(10 * MB))  # there is no room for a copy now
    assert np.array_equal(client.get(own), noise(12 * MB, 1))


def test_tables_and_small_objects_of_elsewhere(two: tuple[CacheDaemon, CacheDaemon]) -> None:
    far, near = two
    for value in (pa.table({"a": [1, 2]}), pa.table({"a": np.arange(300_000)}), "small", None):
        ref = far.client().put("app/session", value)
        for _ in range(2):
            assert near.client().get(ref) == value


def test_only_caches_that_were_named_are_asked(two: tuple[CacheDaemon, CacheDaemon]) -> None:
    far, near = two
    ref = near.client().put("app/session", 1)
    remote = RemoteClient(far.endpoint)
    with pytest.raises(PermissionDeniedError, match=r"cache\.peers"):
        remote.get(ref.key, origin=near.endpoint)
    remote.close()
    assert far.client().get(ref) == 1  # straight from its own


# --- the second tier -------------------------------------------------------------------------------------------------


@pytest.fixture
def bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A bucket in a real S3-compatible server."""
    port = free_ports(1)
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    server = Daemon("moto", command, dict(os.environ), tmp_path)
    try:
        server.wait_for("Running on")
        for name, value in CREDENTIALS.items():
            monkeypatch.setenv(name, value)
        from pyarrow.fs import S3FileSystem

        place = f"127.0.0.1:{port}"
        files = S3FileSystem(endpoint_override=place, scheme="http", region="us-east-1", allow_bucket_creation=True)
        files.create_dir("objects")
        yield f"s3://objects/cache?endpoint_override={place}&scheme=http&region=us-east-1"
    finally:
        server.stop()


def test_what_the_disk_has_no_room_for_goes_to_the_object_store(tmp_path: Path, bucket: str) -> None:
    settings = {"max_disk": "5M", "object_store": bucket, "eviction": {"max_memory": "3M"}}
    with CacheDaemon(tmp_path, storage=True, settings=settings, environ=CREDENTIALS) as cache:
        client = cache.client()
        refs = [client.put("app/session", noise(2 * MB, seed)) for seed in range(6)]
        cache.daemon.wait_for("files_sent_away")
        for seed, ref in enumerate(refs):
            assert np.array_equal(client.get(ref), noise(2 * MB, seed))
        cache.daemon.wait_for("files_sent_away", after=len(cache.daemon.lines))
        assert client.status().disk <= 5 * MB
        cache.daemon.kill()
        cache.start()
        for seed, ref in enumerate(refs):
            assert np.array_equal(client.get(ref), noise(2 * MB, seed))
        client.patch(refs[0], "delta")
        client.delete("app/*")
        assert client.status().disk == 0
        assert list(client.list("app/*")) == []


def test_a_store_that_is_away_loses_nothing(tmp_path: Path) -> None:
    away = "s3://objects/cache?endpoint_override=127.0.0.1:1&scheme=http&region=us-east-1"
    settings = {"max_disk": "1M", "object_store": away}
    environ = {**CREDENTIALS, "AWS_MAX_ATTEMPTS": "1"}
    with CacheDaemon(tmp_path, storage=True, settings=settings, environ=environ) as cache:
        client = cache.client()
        ref = client.put("app/session", noise(2 * MB))
        cache.daemon.wait_for("object_store_fails")
        assert np.array_equal(client.get(ref), noise(2 * MB))
        assert client.exists(ObjectRef(ref.endpoint, ref.key)) is not None


# --- who may come in -------------------------------------------------------------------------------------------------

STRANGER = """
import encodings.idna, os, sys
from flame.objects import ObjectClient, ObjectRef
os.setgroups([])
os.setgid(65534)
os.setuid(65534)
client = ObjectClient(sys.argv[1])
array = client.get(ObjectRef(sys.argv[1], sys.argv[2]))
link = client._link(client.endpoint)
try:
    open(link._door.path)
except OSError as error:
    print(int(array.sum()), link._shared is None, type(error).__name__)
"""


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become somebody else")
def test_other_users_of_the_node_stream(tmp_path: Path) -> None:
    with CacheDaemon(tmp_path) as cache:
        ref = cache.client().put("app/session", noise(MB))
        done = subprocess.run(
            [sys.executable, "-c", STRANGER, cache.endpoint, ref.key],
            env=cache.environ(HOME="/"),
            cwd="/",
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.stdout.split() == [str(int(noise(MB).sum())), "True", "PermissionError"], done.stderr


def test_strangers_and_nonsense_at_the_door(tmp_path: Path) -> None:
    with CacheDaemon(tmp_path) as cache:
        client = cache.client()
        ref = client.put("app/session", noise(MB))
        door = client._link(client.endpoint)._door
        assert door is not None
        assert stat.S_IMODE(Path(door.path).stat().st_mode) == 0o600
        assert stat.S_IMODE(Path(door.path).parent.stat().st_mode) == 0o700
        with pytest.raises(PermissionDeniedError):
            SharedClient(LocalDoor(door.path, "another token", door.uid))
        for nonsense in (
            b"",
            b"\x00",
            b"\x04\x00\x00\x00none",
            b"\xff\xff\xff\xff",
            b"GET / HTTP/1.1\r\n",
            bytes(10_000),
        ):
            with socket.socket(socket.AF_UNIX) as visitor:
                visitor.connect(door.path)
                visitor.sendall(nonsense)
                visitor.shutdown(socket.SHUT_WR)
                while visitor.recv(4096):
                    pass
            with socket.create_connection(("127.0.0.1", door.port)) as visitor:
                visitor.sendall(nonsense)
                visitor.shutdown(socket.SHUT_WR)
                while visitor.recv(4096):
                    pass
        with pytest.raises(PermissionDeniedError):
            StreamClient(("127.0.0.1", door.port), "another token")
        stream = StreamClient(("127.0.0.1", door.port), door.token)
        with pytest.raises(FlameError):
            stream.get("app/../key")
        with pytest.raises(FlameError):
            stream.put("app/*", encode(1), m.Options())
        assert stream.get(ref.key).parts[0].payload.size > MB
        stream.close()
        shared = SharedClient(door)
        commit = m.Commit(77, "app/session", m.Options())
        for request in (m.Reserve(-1), commit, m.Hello(door.token), m.Call("NONE", b"")):
            with pytest.raises(FlameError):
                shared._ask(request, m.Stored)
        assert np.array_equal(client.get(ref), noise(MB))


def test_a_program_may_end_with_arrays_in_its_hands(tmp_path: Path) -> None:
    code = """
import sys
import numpy as np
from flame.objects import ObjectClient
client = ObjectClient(sys.argv[1])
array = client.get(client.put("app/session", np.arange(100_000)))
table = [client.get(client.put("app/session", np.arange(100_000)))]
table.append(table)
"""
    with CacheDaemon(tmp_path) as cache:
        command = [sys.executable, "-W", "error", "-c", code, cache.endpoint]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert (done.returncode, done.stderr) == (0, "")


def test_frames_in_shared_memory_can_not_be_changed_for_others(tmp_path: Path) -> None:
    with CacheDaemon(tmp_path) as cache:
        client = cache.client()
        for frame, change in (
            (pd.DataFrame({"a": np.arange(200_000.0)}), lambda got: got.iloc.__setitem__((0, 0), 99)),
            (pl.DataFrame({"a": np.arange(200_000.0)}), lambda got: got.__setitem__((0, "a"), 99)),
        ):
            ref = client.put("app/session", frame)
            got = client.get(ref)
            change(got)
            assert not got.equals(frame)
            assert client.get(ref).equals(frame)
            with pytest.raises(ValueError, match="read-only"):
                client.get(ref)["a"].to_numpy()[0] = 99
