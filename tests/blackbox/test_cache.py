"""The object cache as a real daemon: killed, out of room, with bad files, and with clients that vanish."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
import pyarrow as pa
import pytest

from cache_daemon import CacheDaemon
from cluster import free_ports
from flame.model.errors import (
    ExhaustedError,
    FlameError,
    InternalError,
    InvalidStateError,
    NotFoundError,
    UnavailableError,
)
from flame.objects import AsyncObjectClient, InvalidKeyError, ObjectRef
from flame.objects.messages import Options
from flame.objects.remote import RemoteClient

MB = 1024 * 1024


def noise(size: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, size, dtype="u1")


def files(folder: Path) -> list[str]:
    """The names of the objects' files."""
    return sorted(path.name.partition("@")[0] for path in folder.glob("*/*/*") if not path.parts[-3].startswith("."))


def child(code: str, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def line_of(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.communicate()


# --- reading and writing ---------------------------------------------------------------------------------------------


def test_on_its_node_an_object_is_read_where_it_lies(tmp_path: Path) -> None:
    with CacheDaemon(tmp_path) as cache:
        client = cache.client()
        ref = client.put("app/session", noise(5 * MB))
        first, second = client.get(ref), client.get(ref)
        assert first.__array_interface__["data"][0] == second.__array_interface__["data"][0]
        assert np.array_equal(first, noise(5 * MB))
        assert not first.flags.writeable
        with pytest.raises(ValueError, match="read-only"):
            first[0] = 1
        assert client.status().leased > 5 * MB
        del first
        assert client.status().leased > 5 * MB
        del second
        assert client.status().leased == 0


def test_what_somebody_reads_stays_while_it_is_replaced_and_deleted(tmp_path: Path) -> None:
    with CacheDaemon(tmp_path, settings={"eviction": {"max_memory": "20M"}}) as cache:
        client = cache.client()
        ref = client.put("app/session", noise(5 * MB, 1))
        old = client.get(ref)
        for seed in range(2, 6):
            client.update(ref, noise(5 * MB, seed))
        client.delete(ref)
        client.put("app/session", noise(10 * MB, 9))
        assert np.array_equal(old, noise(5 * MB, 1))


def test_what_was_got_is_the_callers_own(tmp_path: Path) -> None:
    with CacheDaemon(tmp_path) as cache:
        client = cache.client()
        for value in ([1, 2], [b"x" * 100_000]):
            ref = client.put("app/session", value)
            got = client.get(ref)
            got.append("mine")
            assert client.get(ref) == value


def test_other_nodes_stream_and_remember(tmp_path: Path) -> None:
    with CacheDaemon(tmp_path) as cache:
        ref = cache.client().put("app/session", noise(9 * MB))
        remote = RemoteClient(cache.endpoint)
        fetched = remote.get(ref.key)
        assert fetched.parts[0].payload.size > 9 * MB
        assert remote.get(ref.key, fetched.version, fetched.born).parts == ()
        cache.client().patch(ref, "more")
        delta = remote.get(ref.key, fetched.version, fetched.born)
        assert (delta.full, len(delta.parts), delta.version) == (False, 1, 2)
        remote.close()


def test_an_object_born_again_is_not_taken_for_the_old_one(tmp_path: Path) -> None:
    with CacheDaemon(tmp_path) as cache:
        client, remote = cache.client(), RemoteClient(cache.endpoint)
        client.put("app/session/name", "old")
        old = remote.get("app/session/name")
        client.delete("app/session/name")
        client.put("app/session/name", "new")
        new = remote.get("app/session/name", old.version, old.born)
        assert (new.version, new.full) == (1, True)
        remote.close()


def test_exists_list_delete_by_reference(tmp_path: Path) -> None:
    with CacheDaemon(tmp_path) as cache:
        client = cache.client()
        refs = [client.put("app/one", number) for number in range(5)]
        client.put("app/two/named", pa.table({"a": [1]}))
        client.put("other/one", 1)
        for page in (2, 5, 0, -1, 10**9):
            assert [info.key for info in client.list("app/one", page=page)] == sorted(ref.key for ref in refs)
        assert len(list(client.list("app/*"))) == 6
        info = client.exists("app/two/named")
        assert info is not None
        assert (info.version, info.table, info.expires) == (1, True, None)
        client.delete(refs[0])
        assert client.exists(refs[0]) is None
        client.delete_many(refs[:3])  # one of them is gone already
        assert [client.exists(ref) is None for ref in refs] == [True, True, True, False, False]
        client.delete("app/*")
        assert list(client.list("app/*")) == []
        assert len(list(client.list("other/*"))) == 1


def test_files_go_in_and_come_out(tmp_path: Path) -> None:
    with CacheDaemon(tmp_path, storage=True, settings={"eviction": {"max_memory": "4M"}}) as cache:
        client = cache.client()
        for size in (0, 10, MB, 9 * MB):
            source, target = tmp_path / "source", tmp_path / "deep" / "target"
            source.write_bytes(noise(size).tobytes())
            ref = client.upload("app/pkg/file.bin", source)
            client.download(ref, target)
            assert target.read_bytes() == source.read_bytes()
        with pytest.raises(FileNotFoundError):
            client.upload("app/pkg", tmp_path / "missing")
        target.unlink()
        client.delete(ref)
        with pytest.raises(NotFoundError):
            client.download(ref, target)
        assert list(target.parent.iterdir()) == []


def test_keys_that_could_be_paths_are_refused(tmp_path: Path) -> None:
    with CacheDaemon(tmp_path, storage=True) as cache:
        client, remote = cache.client(), RemoteClient(cache.endpoint)
        for key in (
            "../x",
            "a/..",
            "/etc/passwd",
            "a/b/../../c",
            "a/b/c\0d",
            "a/b/" + "x" * 300,
            "a",
            "a/b/c/d",
            "a/./b",
        ):
            with pytest.raises(InvalidKeyError):
                client.put(key, 1)
            with pytest.raises(FlameError):
                remote.get(key)
            with pytest.raises(FlameError):
                remote.upload(key, [b"x"], Options())
        for key in (".hidden/.hidden/.hidden", "a%2F/b@1/c.flame", "ü/日本/…", "a:b/c:1/d:2"):
            assert client.get(client.put(key, key)) == key
        assert not (tmp_path / "x").exists()
        cache.daemon.kill()
        cache.start()
        assert sorted(info.key for info in client.list("a%2F/b@1")) == ["a%2F/b@1/c.flame"]
        assert client.get(ObjectRef(cache.endpoint, ".hidden/.hidden/.hidden")) == ".hidden/.hidden/.hidden"
        remote.close()


async def test_the_client_for_asyncio(tmp_path: Path) -> None:
    with CacheDaemon(tmp_path) as cache:
        async with AsyncObjectClient(cache.endpoint) as client:
            ref = await client.put("app/session", [1], ttl=1000)
            await client.patch(ref, [2])
            assert await client.get(ref, lambda base, deltas: sum(deltas, base)) == [1, 2]
            new = await client.update(ref, [3], expected=2)
            assert (new.version, await client.get(ref)) == (3, [3])
            assert [info.key async for info in client.list("app/session")] == [ref.key]
            await client.expire(ref, None)
            info = await client.exists(ref)
            assert info is not None
            assert info.expires is None
            path = tmp_path / "file"
            path.write_bytes(b"content")
            uploaded = await client.upload("app/session", path)
            await client.download(uploaded, tmp_path / "copy")
            assert (tmp_path / "copy").read_bytes() == b"content"
            await client.end_session("app/session", 0)
            await client.delete("app/*")
            assert (await client.status()).objects == 0


def test_a_fork_of_a_client_has_connections_of_its_own(tmp_path: Path) -> None:
    code = """
import os, sys
import numpy as np
from flame.objects import ObjectClient, ObjectRef
client = ObjectClient(sys.argv[1])
ref = client.put("app/session", np.arange(100_000))
mine = client.get(ref)
if os.fork() == 0:
    del mine
    os._exit(0 if client.get(ref)[7] == 7 else 1)
print(os.waitstatus_to_exitcode(os.wait()[1]), client.status().leased > 0, client.get(ref)[9])
"""
    with CacheDaemon(tmp_path) as cache:
        process = child(code, cache.endpoint)
        assert line_of(process) == "0 True 9"
        end(process)


# --- writers that meet -----------------------------------------------------------------------------------------------


def test_two_writers_of_a_key_both_succeed_and_one_is_last(tmp_path: Path) -> None:
    with CacheDaemon(tmp_path, storage=True) as cache:
        ref = cache.client().put("app/session/key", ("nobody", 0))
        versions: list[int] = []

        def write(name: str) -> None:
            client = cache.client()
            versions.extend(client.update(ref, (name, number)).version for number in range(50))

        writers = [threading.Thread(target=write, args=(name,)) for name in ("a", "b")]
        for writer in writers:
            writer.start()
        for writer in writers:
            writer.join()
        assert sorted(versions) == list(range(2, 102))
        assert cache.client().get(ref)[1] == 49
        assert files(cache.storage) == ["key"]


def test_with_an_expected_version_nothing_is_overwritten(tmp_path: Path) -> None:
    with CacheDaemon(tmp_path) as cache:
        start = cache.client().put("app/session/counter", 0, expected=0)
        with pytest.raises(InvalidStateError, match="has version 1, not 0"):
            cache.client().put("app/session/counter", 0, expected=0)

        def count() -> None:
            client = cache.client()
            for _ in range(30):
                while True:
                    info = client.exists(start)
                    assert info is not None
                    value = client.get(start)
                    try:
                        client.update(start, value + 1, expected=info.version)
                        break
                    except InvalidStateError:
                        continue

        counters = [threading.Thread(target=count) for _ in range(3)]
        for counter in counters:
            counter.start()
        for counter in counters:
            counter.join()
        assert cache.client().get(start) == 90


# --- memory ----------------------------------------------------------------------------------------------------------


def test_without_a_disk_nothing_is_dropped_for_others(tmp_path: Path) -> None:
    with CacheDaemon(tmp_path, settings={"eviction": {"max_memory": "10M"}}) as cache:
        client = cache.client()
        refs = [client.put("app/session", noise(2 * MB, seed)) for seed in range(4)]
        for way in (client, cache.client(shared_memory=False)):
            with pytest.raises(ExhaustedError, match=r"cache\.eviction\.max_memory"):
                way.put("app/session", noise(3 * MB))
            with pytest.raises(ExhaustedError, match="larger than"):
                way.put("app/session", noise(30 * MB))
        for seed, ref in enumerate(refs):
            assert np.array_equal(client.get(ref), noise(2 * MB, seed))
        client.delete(refs[0])
        client.put("app/session", noise(2 * MB))
        small = client.put("app/session", "small")
        assert client.get(small) == "small"


def test_with_a_disk_memory_is_only_a_part(tmp_path: Path) -> None:
    with CacheDaemon(tmp_path, storage=True, settings={"eviction": {"max_memory": "6M"}}) as cache:
        client = cache.client()
        refs = [client.put("app/session", noise(2 * MB, seed)) for seed in range(8)]
        large = client.put("app/session", noise(20 * MB, 99))
        table = client.put("app/session", pa.table({"a": np.arange(2_000_000)}))
        for seed, ref in enumerate(refs):
            assert np.array_equal(client.get(ref), noise(2 * MB, seed))
        assert np.array_equal(client.get(large), noise(20 * MB, 99))
        assert client.get(table).column("a")[1_999_999].as_py() == 1_999_999
        status = client.status()
        assert status.memory <= 6 * MB
        assert status.disk > 50 * MB
        # While all memory is being read, the rest still comes from disk.
        held = [client.get(ref) for ref in refs]
        for seed, array in enumerate(held):
            assert np.array_equal(array, noise(2 * MB, seed))


def test_max_objects(tmp_path: Path) -> None:
    with CacheDaemon(tmp_path, settings={"eviction": {"max_objects": 3}}) as cache:
        client = cache.client()
        refs = [client.put("app/session", number) for number in range(3)]
        with pytest.raises(ExhaustedError, match="3 objects"):
            client.put("app/session", 4)
        client.update(refs[0], "replacing is no new object")


def test_quotas(tmp_path: Path) -> None:
    with CacheDaemon(tmp_path, settings={"quotas": {"team": "1M"}}) as cache:
        client = cache.client()
        ref = client.put("app/session", noise(700_000), tenant="team")
        with pytest.raises(ExhaustedError, match=r"cache\.quotas\.team"):
            client.put("app/session", noise(700_000), tenant="team")
        client.put("app/session", noise(2_000_000))
        client.update(ref, noise(900_000))
        with pytest.raises(ExhaustedError, match="team"):
            client.update(ref, noise(1_200_000))
        assert client.status().tenants["team"] > 900_000
        client.delete(ref)
        client.put("app/session", noise(700_000), tenant="team")


# --- times -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("storage", [False, True])
def test_objects_go_away_in_time(tmp_path: Path, storage: bool) -> None:
    with CacheDaemon(tmp_path, storage=storage) as cache:
        client = cache.client()
        keep = client.put("app/session/keep", 1, ttl=1000)
        brief = client.put("app/session/brief", 2, ttl=0)
        with pytest.raises(NotFoundError):
            client.get(brief)
        cache.daemon.wait_for("objects_expired count=1")
        assert client.status().objects == 1
        info = client.exists(keep)
        assert info is not None
        assert info.expires is not None
        assert 900 < info.expires <= 1000
        client.expire(keep, 0)
        assert client.exists(keep) is None
        cache.daemon.wait_for("objects_expired", after=len(cache.daemon.lines))
        assert files(cache.storage) == []


def test_objects_of_a_closed_session_go_away(tmp_path: Path) -> None:
    with CacheDaemon(tmp_path, storage=True, settings={"session_retention": 500}) as cache:
        client = cache.client()
        ended, other = client.put("app/ended", 1), client.put("app/other", 2)
        client.end_session("app/ended")
        late = client.put("app/ended", 3)
        for ref in (ended, late):
            info = client.exists(ref)
            assert info is not None
            assert info.expires is not None
            assert 400 < info.expires <= 500
        cache.daemon.kill()
        cache.start()
        info = client.exists(ended)
        assert info is not None
        assert info.expires is not None
        client.end_session("app/ended", 0)
        with pytest.raises(NotFoundError):
            client.get(ended)
        assert client.get(other) == 2


# --- what fails ------------------------------------------------------------------------------------------------------


def test_killed_it_comes_back_with_all_that_was_acknowledged(tmp_path: Path) -> None:
    with CacheDaemon(tmp_path, storage=True) as cache:
        client = cache.client()
        known = client.put("app/session/known", "first")
        client.update(known, ["second"])
        client.patch(known, "delta")
        gone = client.put("app/session/gone", 1)
        client.delete(gone)
        stored: list[tuple[ObjectRef, int]] = []
        halfway = threading.Event()

        def write() -> None:
            writer = cache.client()
            for seed in range(1000):
                try:
                    stored.append((writer.put("app/many", noise(MB, seed)), seed))
                except UnavailableError:
                    return
                if seed == 5:
                    halfway.set()

        thread = threading.Thread(target=write)
        thread.start()
        assert halfway.wait(30)
        cache.daemon.kill()
        thread.join()
        cache.start()
        assert client.get(known, lambda base, deltas: (base, deltas)) == (["second"], ["delta"])
        assert client.exists(gone) is None
        for ref, seed in stored:
            assert np.array_equal(client.get(ref), noise(MB, seed))
        assert list((cache.storage / ".drafts").iterdir()) == []
        assert client.patch(known, "next").version == 4


def test_arrays_outlive_the_cache(tmp_path: Path) -> None:
    with CacheDaemon(tmp_path) as cache:
        client = cache.client()
        ref = client.put("app/session", noise(MB))
        array = client.get(ref)
        cache.daemon.kill()
        assert np.array_equal(array, noise(MB))
        with pytest.raises(UnavailableError):
            client.get(ref)
        cache.start()
        with pytest.raises(NotFoundError):
            client.get(ref)
        assert client.get(client.put("app/session", 1)) == 1


def test_a_client_elsewhere_finds_a_cache_again(tmp_path: Path) -> None:
    with CacheDaemon(tmp_path, storage=True) as cache:
        client = cache.client(shared_memory=False)
        ref = client.put("app/session", noise(MB))
        for _ in range(2):
            cache.daemon.kill()
            cache.start()
            assert np.array_equal(client.get(ObjectRef(ref.endpoint, ref.key)), noise(MB))
        cache.daemon.kill()
        with pytest.raises(UnavailableError, match="can't be reached"):
            client.get(ref)
        cache.start()
        assert client.patch(ref, "delta").version == 2


@pytest.mark.parametrize("shared_memory", [True, False])
def test_a_change_that_may_happen_once_only_finds_a_cache_again_too(tmp_path: Path, shared_memory: bool) -> None:
    with CacheDaemon(tmp_path, storage=True) as cache:
        client = cache.client(shared_memory=shared_memory)
        ref = client.put("app/session", [1])
        for version in (2, 3):
            cache.daemon.kill()
            cache.start()
            assert client.patch(ref, "delta").version == version


def test_where_the_plain_connection_is_closed_flight_is_used(tmp_path: Path) -> None:
    with CacheDaemon(tmp_path) as cache:
        client = cache.client(shared_memory=False)
        link = client._link(cache.endpoint)
        link.peers()
        assert link._door is not None
        link._door = msgspec.structs.replace(link._door, port=free_ports(1))
        ref = client.put("app/session", noise(MB))
        assert np.array_equal(client.get(ref), noise(MB))
        assert link._stream is None


def test_a_corrupted_file_is_never_served(tmp_path: Path) -> None:
    with CacheDaemon(tmp_path, storage=True) as cache:
        client = cache.client()
        refs = {name: client.put(f"app/session/{name}", noise(MB)) for name in ("bad", "short", "head", "good")}
        cache.daemon.stop()
        paths = {name: next(cache.storage.glob(f"app/session/{name}@*")) for name in refs}
        content = bytearray(paths["bad"].read_bytes())
        content[500_000] ^= 1
        paths["bad"].write_bytes(content)
        paths["short"].write_bytes(paths["short"].read_bytes()[:-1])
        paths["head"].write_bytes(b"nonsense")
        cache.start()
        with pytest.raises(InternalError, match=r"app/session/bad.*corrupted.*checksum") as error:
            client.get(refs["bad"])
        assert ".quarantine" in error.value.message
        with pytest.raises(InternalError, match="corrupted"):
            client.get(refs["bad"])
        for name in ("short", "head"):
            with pytest.raises(InternalError, match=rf"app/session/{name}' is corrupted.*\.quarantine") as error:
                client.get(refs[name])
            assert error.value.remedy == "put the object again"
        assert len(list((cache.storage / ".quarantine").iterdir())) == 3
        assert cache.daemon.log.count("object_corrupted") == 3
        assert np.array_equal(client.get(refs["good"]), noise(MB))
        for name in ("bad", "head"):
            client.put(f"app/session/{name}", "new")
            assert client.get(refs[name]) == "new"


def test_an_object_that_lost_one_of_its_patches_is_not_served_without(tmp_path: Path) -> None:
    with CacheDaemon(tmp_path, storage=True) as cache:
        client = cache.client()
        ref = client.put("app/session/log", ["first"])
        client.patch(ref, ["second"])
        cache.daemon.stop()
        next(cache.storage.glob("app/session/log@*.patch")).write_bytes(b"nonsense")
        cache.start()
        with pytest.raises(InternalError, match=r"app/session/log' is corrupted"):
            cache.client().get(ref)
        client.delete(ref)
        with pytest.raises(NotFoundError):
            cache.client().get(ref)


def test_a_broken_file_of_what_was_replaced_harms_nobody(tmp_path: Path) -> None:
    with CacheDaemon(tmp_path, storage=True) as cache:
        client = cache.client()
        ref = client.put("app/session/state", "old")
        old = next(cache.storage.glob("app/session/state@*"))
        client.update(ref, "new")
        cache.daemon.stop()
        old.write_bytes(b"nonsense")
        cache.start()
        assert cache.client().get(ref) == "new"
        assert cache.daemon.log.count("object_corrupted") == 1


def test_a_full_disk_refuses_and_forgets_nothing(tmp_path: Path) -> None:
    with CacheDaemon(tmp_path, storage=True, file_limit=2 * MB) as cache:
        client = cache.client()
        ref = client.put("app/session/key", noise(MB))
        for attempt in (lambda: client.update(ref, noise(3 * MB)), lambda: client.patch(ref, noise(3 * MB))):
            with pytest.raises(ExhaustedError, match=r"disk of the cache.* is full"):
                attempt()
        with pytest.raises(ExhaustedError, match="full"):
            cache.client(shared_memory=False).put("app/session/other", noise(3 * MB))
        assert np.array_equal(client.get(ref), noise(MB))
        assert client.update(ref, "small").version == 2
        assert files(cache.storage) == ["key"]
        assert list((cache.storage / ".drafts").iterdir()) == []
        assert client.status().memory < 2 * MB


HALF_A_STREAM = """
import sys, time
import pyarrow as pa, pyarrow.flight as flight
schema = pa.schema([("version", pa.uint64()), ("data", pa.binary())])
client = flight.FlightClient(sys.argv[1])
writer, _ = client.do_put(flight.FlightDescriptor.for_path("app", "session", "half"), schema)
for _ in range(3):
    writer.write_batch(pa.record_batch([pa.array([0], pa.uint64()), pa.array([b"x" * 100_000])], schema=schema))
print("written", flush=True)
sys.stdin.read()
"""

HALF_A_COMMIT = """
import sys
from flame.objects import ObjectClient
from flame.objects import messages as m
client = ObjectClient(sys.argv[1])
lent = client._link(client.endpoint)._try_shared()._ask(m.Reserve(5_000_000), m.Reserved)
print("written", flush=True)
sys.stdin.read()
"""

HALF_A_SEND = """
import sys
from flame.objects import ObjectClient
from flame.objects import messages as m
from flame.objects.streams import StreamClient, _ask
link = ObjectClient(sys.argv[1])._link(sys.argv[1])
link.peers()
channel = StreamClient(("127.0.0.1", link._door.port), link._door.token)._take()
_ask(channel, m.Send("app/session/half", m.Options(size=5_000_000)), m.Reserved)
channel.socket.sendall(bytes(300_000))
print("written", flush=True)
sys.stdin.read()
"""

READER = """
import sys
from flame.objects import ObjectClient, ObjectRef
array = ObjectClient(sys.argv[1]).get(ObjectRef(sys.argv[1], sys.argv[2]))
print("reading", flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("storage", [False, True])
@pytest.mark.parametrize(
    ("code", "said"),
    [
        (HALF_A_STREAM, "put_abandoned key=app/session/half"),
        (HALF_A_SEND, "put_abandoned key=app/session/half"),
        (HALF_A_COMMIT, "client_left leases=0 lent=1"),
    ],
)
def test_a_writer_that_vanishes_leaves_nothing(tmp_path: Path, storage: bool, code: str, said: str) -> None:
    with CacheDaemon(tmp_path, storage=storage) as cache:
        client = cache.client()
        process = child(code, cache.endpoint)
        assert line_of(process) == "written"
        end(process)
        cache.daemon.wait_for(said)
        assert client.exists("app/session/half") is None
        assert client.status().memory == 0
        assert files(cache.storage) == []


def test_a_writer_that_fails_leaves_nothing_and_says_why(tmp_path: Path) -> None:
    def pieces() -> Iterator[bytes]:
        yield b"x" * MB
        raise RuntimeError("the source is gone")

    with CacheDaemon(tmp_path, storage=True) as cache:
        client, remote = cache.client(), RemoteClient(cache.endpoint)
        with pytest.raises(RuntimeError, match="the source is gone"):
            remote.upload("app/session/half", pieces(), Options(size=2 * MB))
        cache.daemon.wait_for("put_abandoned key=app/session/half bytes=1048576")
        assert client.exists("app/session/half") is None
        assert client.status().memory == 0
        remote.close()


def test_a_reader_that_vanishes_gives_its_memory_back(tmp_path: Path) -> None:
    with CacheDaemon(tmp_path, settings={"eviction": {"max_memory": "10M"}}) as cache:
        client = cache.client()
        ref = client.put("app/session", noise(6 * MB))
        process = child(READER, cache.endpoint, ref.key)
        assert line_of(process) == "reading"
        client.delete(ref)
        with pytest.raises(ExhaustedError, match="by readers"):
            client.put("app/session", noise(6 * MB))
        end(process)
        cache.daemon.wait_for("client_left leases=1")
        client.put("app/session", noise(6 * MB))


def test_one_folder_has_one_cache(tmp_path: Path) -> None:
    with CacheDaemon(tmp_path, storage=True) as cache:
        command = [sys.executable, "-m", "flame.cache.daemon", "--config", str(cache.config)]
        second = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False, env=cache.environ())
        assert second.returncode != 0
        assert "another cache uses" in second.stderr


def test_a_port_that_is_taken(tmp_path: Path) -> None:
    with CacheDaemon(tmp_path) as cache:
        command = [sys.executable, "-m", "flame.cache.daemon", "--config", str(cache.config)]
        second = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False, env=cache.environ())
        assert second.returncode != 0
        assert f"can't listen at {cache.endpoint}" in second.stderr


def test_it_ends_cleanly(tmp_path: Path) -> None:
    cache = CacheDaemon(tmp_path, storage=True)
    cache.start()
    client = cache.client()
    client.put("app/session", noise(MB))
    assert cache.daemon.stop() == 0
    assert "Traceback" not in cache.daemon.log
    assert cache.daemon.process.returncode != -signal.SIGTERM
    client.close()


# --- files of foreign clients ----------------------------------------------------------------------------------------


def test_files_that_clients_write_into_the_folder(tmp_path: Path) -> None:
    with CacheDaemon(tmp_path, storage=True) as cache:
        refs = cache.foreign("cache.py", "drop", FLAME_CACHE_STORAGE=str(cache.storage)).split()
        client = cache.client()
        got = [client.get(ObjectRef.decode(bytes.fromhex(ref))) for ref in refs]
        assert got == ["dropped", pa.table({"a": [1, 2]})]
        link = cache.storage / "app" / "session" / "evil.arrow"
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to("/etc/passwd")
        (cache.storage / "app" / "session" / "broken.arrow").write_bytes(b"no arrow file")
        for name in ("evil", "broken"):
            with pytest.raises(NotFoundError):
                client.get(ObjectRef(cache.endpoint, f"app/session/{name}"))
        client.delete("app/*")
        assert not list(cache.storage.glob("app/*/*"))


# --- all at once -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("storage", [False, True])
def test_many_at_once_never_see_anything_else_than_was_written(tmp_path: Path, storage: bool) -> None:
    """Readers and writers of few keys, in memory that is too small for them: each array has one value throughout."""
    faults: list[str] = []
    counts = {"got": 0, "put": 0, "refused": 0}

    def play(number: int, cache: CacheDaemon) -> None:
        chance = np.random.default_rng(number)
        client = cache.client(shared_memory=number % 3 != 0)
        held: list[np.ndarray] = []
        for _ in range(120):
            ref = ObjectRef(client.endpoint, f"app/session/{chance.integers(8)}", int(chance.integers(2)))
            try:
                match int(chance.integers(6)):
                    case 0:
                        client.delete(ref)
                    case 1 | 2:
                        size = int(chance.integers(1, 3 * MB))
                        client.update(ref, np.full(size, chance.integers(256), dtype="u1"))
                        counts["put"] += 1
                    case _:
                        held.append(client.get(ref))
                        counts["got"] += 1
            except NotFoundError:
                continue
            except ExhaustedError:
                counts["refused"] += 1
                held.clear()
            faults.extend(f"{array[0]} and {array.max()}" for array in held if array.min() != array.max())
            del held[:-3]

    with CacheDaemon(tmp_path, storage=storage, settings={"eviction": {"max_memory": "16M"}}) as cache:
        players = [threading.Thread(target=play, args=(number, cache)) for number in range(6)]
        for player in players:
            player.start()
        for player in players:
            player.join()
        assert faults == []
        assert counts["got"] > 20
        assert counts["put"] > 20
        assert "Traceback" not in cache.daemon.log
        assert "corrupted" not in cache.daemon.log
        client = cache.client()
        client.delete("app/*")
        status = client.status()
        assert (status.objects, status.bytes, status.memory, status.leased, status.disk) == (0, 0, 0, 0, 0)
        assert files(cache.storage) == []
