"""The object cache behind an isolation level: what an instance is allowed works, all else is out of reach."""

from __future__ import annotations

import json
import operator
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import yaml

import flame
from cache_daemon import CacheDaemon
from cluster import Cluster
from flame.objects import ObjectClient, ObjectRef
from flame.security import make_certificates
from flame.shims.levels import find_levels
from microvms import MIB, cached
from untrusted import require_sandboxes

SERVICES = Path(__file__).parent / "services"
LIMIT = 1 << 20  # bytes that a task carries at most
SECONDS = 60.0
LEVELS = ("process", "gvisor")
# Of a machine: emulated, it takes its time, and Arrow and numpy take memory.
MACHINE = {"limits": flame.Limits(memory=512 * MIB, pids=100), "isolation": "microvm"}
PATIENCE = 150.0  # seconds
LARGE = b"\x02" + bytes(3 << 20)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CacheDaemon]:
    """What the levels need has to be there: `make test` installs it."""
    folder = tmp_path_factory.mktemp("probe")
    require_sandboxes(folder)
    with cached(), CacheDaemon(tmp_path_factory.mktemp("cache")) as cache:
        assert [level.missing for level in find_levels(folder, names=("gvisor", "microvm"))] == ["", ""]
        yield cache


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory, cache: CacheDaemon) -> Iterator[Cluster]:
    settings = {"limits": {"max_payload": LIMIT}}
    folder = tmp_path_factory.mktemp("cluster")
    with Cluster(folder, storage="none", capacity="cpu=4,mem=8g", settings=settings, cache=cache.endpoint) as cluster:
        with flame.connect(cluster.endpoint) as connection:
            for name in ("large", "evaluating", "other"):
                script = "large.py" if name == "large" else "evaluating.py"
                arguments = [str(SERVICES / script)]
                document = {"command": sys.executable, "arguments": arguments, "start_timeout": PATIENCE}
                connection.register_application(name, document)
        yield cluster


@pytest.fixture
def connection(cluster: Cluster, cache: CacheDaemon, monkeypatch: pytest.MonkeyPatch) -> Iterator[flame.Connection]:
    monkeypatch.setenv("FLAME_CACHE_ENDPOINT", cache.endpoint)
    with flame.connect(cluster.endpoint) as connection:
        yield connection


def run(session: flame.Session, source: str, data: bytes = b"") -> str:
    return (session.invoke(source.encode() + b"\0" + data, SECONDS) or b"").decode(errors="replace")


# --- what works ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", LEVELS)
def test_payloads_of_any_size(connection: flame.Connection, level: str) -> None:
    with connection.create_session("large", common_data=LARGE, isolation=level) as session:
        assert session.invoke(LARGE, SECONDS) == LARGE * 2
        assert list(session.map([b"\x02", LARGE])) == [b"\x02" * 2, LARGE * 2]
        assert int(session.invoke(b"length", SECONDS) or b"") == len(LARGE)


def test_in_a_virtual_machine(connection: flame.Connection, cache: CacheDaemon) -> None:
    """No socket reaches inside, so its link carries them."""
    source = """
import flame
from concurrent.futures import ThreadPoolExecutor
from flame import objects
with ThreadPoolExecutor(20) as pool:
    refs = list(pool.map(lambda n: objects.put(f'evaluating/{session_id}', bytes([n]) * 300_000), range(40)))
    kept = [data[0] for data in pool.map(objects.get, refs)] == list(range(40))
try:
    objects.get(objects.ObjectRef(refs[0].endpoint, 'evaluating/another/secret'))
except flame.PermissionDeniedError:
    answer = data * 2 if kept else b''
"""
    cache.client().put("evaluating/another/secret", "secret")
    with connection.create_session("evaluating", **MACHINE) as session:
        assert session.invoke(source.encode() + b"\0" + LARGE, PATIENCE) == LARGE * 2


@pytest.mark.parametrize("level", LEVELS)
def test_an_executor_and_a_runner(
    connection: flame.Connection, level: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # which is what they pack
    array = np.arange(500_000)

    class Sum:
        """Keeps what is larger than a task carries."""

        def __init__(self) -> None:
            self.total: np.ndarray | int = 0

        def add(self, array: np.ndarray) -> np.ndarray:
            self.total = self.total + array
            return self.total

    with flame.Executor(connection=connection, isolation=level) as executor:
        assert np.array_equal(executor.submit(operator.neg, array).result(SECONDS), -array)
    with flame.Runner("isolated", connection=connection) as runner:
        service = runner.service(operator.neg, isolation=level)
        assert np.array_equal(service(service(array)).get(SECONDS), array)
        state = runner.service(Sum, isolation=level)
        assert np.array_equal(state.add(array).get(SECONDS), array)


def test_a_remote_function(connection: flame.Connection, cluster: Cluster, cache: CacheDaemon, tmp_path: Path) -> None:
    script = tmp_path / "negated.py"
    script.write_text("""
import flame
import numpy as np

@flame.function(session={"isolation": "process"})
def negated(array):
    return -array

array = np.arange(500_000)
assert np.array_equal(negated.remote(array).get(60), -array)
print("equal")
""")
    environ = cluster.environ(FLAME_CACHE_ENDPOINT=cache.endpoint)
    done = subprocess.run(
        [sys.executable, str(script)],
        env=environ,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    assert done.stdout == "equal\n", done.stderr


def test_objects_of_its_own(connection: flame.Connection, cache: CacheDaemon) -> None:
    with connection.create_session("evaluating", isolation="process") as session:
        own = f"evaluating/{session.id}"
        run(session, "import numpy as np; from flame import objects; from pathlib import Path")
        encoded = session.invoke(f"ref = objects.put('{own}', np.arange(500_000)); answer = ref.encode()".encode())
        ref = ObjectRef.decode(encoded or b"")
        client = cache.client()
        assert ref.endpoint == client.put(own, 1).endpoint
        assert np.array_equal(client.get(ref), np.arange(500_000))
        ref = client.update(ref, np.ones(300_000))
        assert run(session, "array = objects.get(ref); answer = (array.sum(), array.flags.writeable)") in (
            "(300000.0, False)",
            "(np.float64(300000.0), False)",
        )
        assert run(session, "ref = objects.update(ref, 'a', expected=2); answer = ref.version") == "3"
        assert "has version 3, not 1" in run(session, "objects.update(ref, 'b', expected=1)")
        assert run(session, "objects.patch(ref, 'b'); answer = objects.get(ref, lambda a, b: [a, b])") == "['a', ['b']]"
        assert run(session, "answer = objects.exists(ref).patches") == "1"
        assert run(session, f"answer = [i.key == ref.key for i in objects.list_objects('{own}')].count(True)") == "1"
        assert run(session, "objects.delete(ref); answer = objects.exists(ref)") == "None"
        assert "NotFoundError" in run(session, "objects.get(ref)")


def test_files(connection: flame.Connection) -> None:
    with connection.create_session("evaluating", isolation="process") as session:
        run(session, "from flame import objects; from pathlib import Path; import os")
        run(session, "Path('/tmp/a').write_bytes(os.urandom(3_000_000))")
        run(session, "ref = objects.upload(f'evaluating/{session_id}/weights', '/tmp/a')")
        run(session, "objects.download(ref, '/tmp/b')")
        assert run(session, "answer = Path('/tmp/a').read_bytes() == Path('/tmp/b').read_bytes()") == "True"


def test_processes_and_threads_of_an_instance(connection: flame.Connection) -> None:
    source = """
import multiprocessing, threading
from concurrent.futures import ThreadPoolExecutor
from flame import objects
refs = [objects.put(f'evaluating/{session_id}', bytes([n]) * 300_000) for n in range(40)]
def get(n):
    return objects.get(refs[n])[0] == n
with ThreadPoolExecutor(40) as pool:
    first = all(pool.map(get, range(40)))
with multiprocessing.get_context('fork').Pool(6) as pool:
    answer = first, [data[0] for data in pool.map(objects.get, refs)] == list(range(40))
"""
    with connection.create_session("evaluating", isolation="process") as session:
        assert run(session, source) == "(True, True)"


def test_for_asyncio(connection: flame.Connection) -> None:
    source = """
import asyncio
from flame.objects import AsyncObjectClient
async def main():
    async with AsyncObjectClient() as client:
        refs = await asyncio.gather(*(client.put(f'evaluating/{session_id}', n) for n in range(10)))
        return sum(await asyncio.gather(*(client.get(ref) for ref in refs)))
answer = asyncio.run(main())
"""
    with connection.create_session("evaluating", isolation="process") as session:
        assert run(session, source) == "45"


def test_an_instance_that_was_started_ahead(connection: flame.Connection) -> None:
    """It has the objects of the session that it gets, and none before: it did not know which that would be."""
    arguments = [str(SERVICES / "evaluating.py")]
    document = {"command": sys.executable, "arguments": arguments, "isolation": "process", "warm_instances": 1}
    connection.register_application("ahead", document)
    for _ in range(100):
        with connection.create_session("ahead") as session:
            source = (
                "from flame import objects; ref = objects.put(f'ahead/{session_id}', data); answer = objects.get(ref)"
            )
            assert run(session, source, b"mine") == "mine"
            said = run(session, "objects.get(objects.ObjectRef(ref.endpoint, 'ahead/another/object'))")
            assert said.startswith(f"PermissionDeniedError: an instance of session '{session.id}'")
            if run(session, "answer = ahead") == "True":
                return
    raise AssertionError("none was started ahead")


@pytest.mark.parametrize("level", LEVELS)
def test_what_its_application_shares_is_read(connection: flame.Connection, cache: CacheDaemon, level: str) -> None:
    shared = cache.client().put("evaluating/shared", LARGE)
    with connection.create_session("evaluating", isolation=level) as session:
        run(session, "from flame import objects")
        source = "answer = str(len(objects.get(objects.ObjectRef.decode(data)))).encode()"
        assert run(session, source, shared.encode()) == str(len(LARGE))


@pytest.mark.parametrize("level", LEVELS)
def test_what_its_session_and_its_application_let_it_read(
    connection: flame.Connection, cache: CacheDaemon, level: str
) -> None:
    client = cache.client()
    array = client.put("datasets/shared/train", np.arange(500_000))
    one = client.put("datasets/s7/one", "one")
    model = client.put("models/s1/weights", "weights")
    arguments = [str(SERVICES / "evaluating.py")]
    document = {"command": sys.executable, "arguments": arguments, "start_timeout": PATIENCE}
    connection.register_application(f"let-{level}", {**document, "readable_objects": ["models/*"]})
    readable = ["datasets/shared", one.key]
    with connection.create_session(f"let-{level}", isolation=level, readable_objects=readable) as session:
        run(session, "from flame import objects")
        source = "answer = int(objects.get(objects.ObjectRef.decode(data)).sum())"
        assert run(session, source, array.encode()) == str(np.arange(500_000).sum())
        source = "answer = objects.get(objects.ObjectRef.decode(data))"
        assert [run(session, source, ref.encode()) for ref in (one, model)] == ["'one'", "'weights'"]
        source = "answer = [info.key for info in objects.list_objects('datasets/shared')]"
        assert run(session, source) == "['datasets/shared/train']"
        for change in ("objects.update(ref, 1)", "objects.delete(ref)", "objects.put('datasets/shared', 1)"):
            said = run(session, f"ref = objects.ObjectRef.decode(data); {change}", array.encode())
            assert said.startswith("PermissionDeniedError"), change
        assert run(session, "answer = objects.list_objects('datasets/s7')").startswith("PermissionDeniedError")
        two = client.put("datasets/s7/two", "two")
        said = run(session, "answer = objects.get(objects.ObjectRef.decode(data))", two.encode())
        assert said.startswith("PermissionDeniedError")
        assert "readable_objects=['datasets/s7']" in said
    assert np.array_equal(client.get(array), np.arange(500_000))


@pytest.mark.parametrize("level", LEVELS)
def test_a_sandbox_reads_what_it_is_let(
    connection: flame.Connection, cluster: Cluster, cache: CacheDaemon, level: str
) -> None:
    ref = cache.client().put("datasets/shared/numbers", [1, 2, 3])
    code = f"from flame import objects; objects.get(objects.ObjectRef({ref.endpoint!r}, {ref.key!r}))"
    flmctl = str(Path(sys.executable).parent / "flmctl")
    made = subprocess.run(
        [flmctl, "sandbox", "create", "--isolation", level, "--readable-objects", "datasets/shared", "-o", "json"],
        env=cluster.environ(),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=True,
    )
    with flame.Sandbox.open(json.loads(made.stdout)["id"], connection=connection) as sandbox:
        assert sandbox.run_code(code).text == "[1, 2, 3]"
        with sandbox.fork() as other:
            assert other.run_code(code).text == "[1, 2, 3]"
        sandbox.close()
    with flame.Sandbox.create(connection=connection, isolation=level, readable_objects=["models/*"]) as sandbox:
        error = sandbox.run_code(code).error
        assert error is not None
        assert error.name == "PermissionDeniedError"


def test_an_instance_that_waited_reads_what_its_session_lets_it(
    connection: flame.Connection, cache: CacheDaemon
) -> None:
    """Sessions that let their instances read something else are served by the same ones that were started ahead."""
    refs = [cache.client().put(f"datasets/ahead-{n}", n) for n in range(2)]
    arguments = [str(SERVICES / "evaluating.py")]
    document = {"command": sys.executable, "arguments": arguments, "isolation": "process", "warm_instances": 1}
    connection.register_application("ahead-reading", document)
    source = "from flame import objects; answer = objects.get(objects.ObjectRef.decode(data))"
    for number in range(100):
        mine, other = refs[number % 2], refs[1 - number % 2]
        prefix = mine.key.rpartition("/")[0]
        with connection.create_session("ahead-reading", readable_objects=[prefix]) as session:
            assert run(session, source, mine.encode()) == str(number % 2)
            assert run(session, source, other.encode()).startswith("PermissionDeniedError")
            if run(session, "answer = ahead") == "True":
                return
    raise AssertionError("none was started ahead")


def test_what_no_session_can_let_read(connection: flame.Connection) -> None:
    for wrong in (["datasets"], ["datasets/../x"], ["*/shared"], ["a/b/c/d"]):
        with pytest.raises(flame.InvalidArgumentError, match="readable_objects"):
            connection.create_session("evaluating", isolation="process", readable_objects=wrong)
    with pytest.raises(flame.InvalidArgumentError, match="must be a list of texts, not 'datasets/shared'"):
        connection.create_session("evaluating", readable_objects="datasets/shared")


# --- what is out of reach --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", LEVELS)
def test_objects_of_others(connection: flame.Connection, cache: CacheDaemon, level: str) -> None:
    client = cache.client()
    with (
        connection.create_session("evaluating", isolation=level) as mine,
        connection.create_session("evaluating", isolation="process") as another,
        connection.create_session("other", isolation="process") as foreign,
    ):
        run(mine, "from flame import objects")
        prefixes = (
            f"evaluating/{another.id}",
            f"parcels/{another.id}",
            f"other/{foreign.id}",
            f"other/{mine.id}",
            "other/shared",
        )
        for prefix in prefixes:
            ref = client.put(f"{prefix}/secret", "secret")
            for source in (
                "answer = objects.get(objects.ObjectRef.decode(data))",
                "objects.download(objects.ObjectRef.decode(data), '/tmp/secret')",
                "objects.update(objects.ObjectRef.decode(data), 1)",
                "objects.patch(objects.ObjectRef.decode(data), 1)",
                "objects.delete(objects.ObjectRef.decode(data))",
                "answer = objects.exists(objects.ObjectRef.decode(data))",
                f"answer = objects.list_objects('{prefix}')",
                f"objects.put('{prefix}', 1)",
                f"objects.delete('{prefix}')",
                f"objects.end_session('{prefix}', 0)",
            ):
                said = run(mine, source, ref.encode())
                assert said.startswith(f"PermissionDeniedError: an instance of session '{mine.id}' may not "), source
                assert f"use evaluating/{mine.id}" in said
            assert client.get(ref) == "secret"
            assert [info.key for info in client.list(prefix)] == [ref.key]
        for source in ("objects.delete('evaluating/*')", "answer = objects.list_objects('evaluating/*')"):
            assert run(mine, source).startswith("PermissionDeniedError")
        assert run(mine, "answer = objects.default_client().status()").startswith("PermissionDeniedError")


def test_what_is_shared_is_not_changed(connection: flame.Connection, cache: CacheDaemon) -> None:
    client: ObjectClient = cache.client()
    ref = client.put("evaluating/shared/code", "mine")
    with connection.create_session("evaluating", isolation="process") as session:
        run(session, "from flame import objects")
        for source in ("objects.update(ref, 1)", "objects.delete(ref)", "objects.put('evaluating/shared', 1)"):
            said = run(session, f"ref = objects.ObjectRef.decode(data); {source}", ref.encode())
            assert said.startswith("PermissionDeniedError")
    assert client.get(ref) == "mine"


def test_other_caches(connection: flame.Connection, cache: CacheDaemon, tmp_path: Path) -> None:
    """An instance can not make its node connect to an address of its choice."""
    with (
        CacheDaemon(tmp_path) as elsewhere,
        connection.create_session("evaluating", isolation="process") as session,
    ):
        ref = elsewhere.client().put(f"evaluating/{session.id}", "there")
        run(session, "from flame import objects")
        said = run(session, "answer = objects.get(objects.ObjectRef.decode(data))", ref.encode())
        assert said.startswith("PermissionDeniedError: this cache does not fetch objects of")
        assert "from a sandbox" in run(session, "objects.delete(objects.ObjectRef.decode(data))", ref.encode())


def test_a_session_does_not_fill_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with CacheDaemon(tmp_path, settings={"session_quota": "5M"}) as cache:
        monkeypatch.setenv("FLAME_CACHE_ENDPOINT", cache.endpoint)
        with (
            Cluster(tmp_path / "cluster", storage="none", cache=cache.endpoint) as cluster,
            flame.connect(cluster.endpoint) as connection,
        ):
            arguments = [str(SERVICES / "evaluating.py")]
            connection.register_application("evaluating", {"command": sys.executable, "arguments": arguments})
            with connection.create_session("evaluating", isolation="process") as session:
                run(session, "from flame import objects; own = f'evaluating/{session_id}'")
                assert run(session, "ref = objects.put(own, bytes(3_000_000)); answer = 1") == "1"
                said = run(session, "objects.put(own, bytes(3_000_000))")
                assert f"ExhaustedError: session '{session.id}' has 3000" in said
                assert "cache.session_quota" in said
                run(session, RAW)
                source = (
                    "channel = enter(); channel.send(m.Send(own, m.Options(size=2**40))); answer = channel.receive()"
                )
                assert "Failure" in run(session, source)  # and not one of so many bytes is asked for
                cache.client().put(f"evaluating/{session.id}", bytes(3_000_000))
                assert "ExhaustedError" in run(session, "objects.put(own, b'1')")
                assert run(session, "objects.delete(own); ref = objects.put(own, bytes(3_000_000)); answer = 1") == "1"


# --- when something goes wrong ---------------------------------------------------------------------------------------

RAW = """
import os, socket, struct, time
import msgspec
from flame import objects
from flame.objects import messages as m
from flame.objects.wire import Channel
PATH = os.environ['FLAME_CACHE_ENDPOINT'].removeprefix('relay:')
def connect():
    sock = socket.socket(socket.AF_UNIX)
    sock.connect(PATH)
    return sock
def enter():
    channel = Channel(connect())
    channel.send(m.Hello(''))
    channel.receive()
    return channel
"""


def test_a_cache_that_ends_in_the_middle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with CacheDaemon(tmp_path) as cache:
        monkeypatch.setenv("FLAME_CACHE_ENDPOINT", cache.endpoint)
        with (
            Cluster(tmp_path / "cluster", storage="none", cache=cache.endpoint) as cluster,
            flame.connect(cluster.endpoint) as connection,
        ):
            arguments = [str(SERVICES / "evaluating.py")]
            connection.register_application("evaluating", {"command": sys.executable, "arguments": arguments})
            with connection.create_session("evaluating", isolation="process") as session:
                run(session, RAW)
                source = "ref = objects.put(f'evaluating/{session_id}', 'here'); answer = objects.get(ref)"
                assert run(session, source) == "'here'"
                half = """
channel = enter()
channel.send(m.Send(f'evaluating/{session_id}/half', m.Options(size=2_000_000)))
channel.receive()
channel.socket.sendall(bytes(1_000_000))
"""
                run(session, half)
                cache.daemon.kill()
                rest = "channel.socket.sendall(bytes(1_000_000)); answer = channel.receive()"
                assert "the cache of this node is gone" in run(session, rest)
                said = run(session, "objects.get(ref)")
                assert said.startswith("UnavailableError: the cache at grpc://127.0.0.1:")
                assert "can't be reached" in said
                cache.start()
                assert (
                    run(session, "ref = objects.put(f'evaluating/{session_id}', 1); answer = objects.get(ref)") == "1"
                )


def test_where_everybody_has_a_certificate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The executor manager shows its own, and bytes take the way over the network."""
    made = make_certificates(tmp_path / "certificates")
    server, node, client = (
        {name: str(getattr(tls, name)) for name in ("cert_file", "key_file", "ca_file")}
        for tls in (made.server, made.node, made.client)
    )
    settings = {"tls": {**server, "verify_clients": True}}
    with (
        CacheDaemon(tmp_path, scheme="grpcs", settings=settings) as cache,
        Cluster(
            tmp_path / "cluster", nodes=0, settings={"tls": server}, scheme="https", cache=cache.endpoint
        ) as cluster,
    ):
        own = yaml.safe_load(cluster.config.read_text())
        own["cluster"]["tls"] = node
        own["cache"] = {"endpoint": cache.endpoint, "tls": node}
        (tmp_path / "node.yaml").write_text(yaml.safe_dump(own))
        cluster.start_node("node-1", "--config", str(tmp_path / "node.yaml"))
        with flame.connect(cluster.endpoint, flame.FlameClientTls(**client)) as connection:
            arguments = [str(SERVICES / "evaluating.py")]
            connection.register_application("evaluating", {"command": sys.executable, "arguments": arguments})
            shared = cache.client(made.client).put("evaluating/shared", bytes(20_000_000))
            with connection.create_session("evaluating", isolation="process") as session:
                run(session, "from flame import objects")
                source = "answer = len(objects.get(objects.ObjectRef.decode(data)))"
                assert run(session, source, shared.encode()) == "20000000"
                source = (
                    "ref = objects.put(f'evaluating/{session_id}', bytes(20_000_000)); answer = len(objects.get(ref))"
                )
                assert run(session, source) == "20000000"
                said = run(session, "objects.put('evaluating/shared', 1)")
                assert said.startswith("PermissionDeniedError: an instance of session")


def test_an_instance_that_lies(connection: flame.Connection, cluster: Cluster) -> None:
    lies = """
for request in (m.Hello(''), m.Put('a/b', b'', m.Options()), m.Reserve(10), m.Commit(1, 'a/b', m.Options()),
                m.Cancel(1), m.Release((1,)), m.Send('evaluating/x', m.Options(size=10))):
    channel = enter()
    channel.send(request)
    reply = channel.receive()
    assert b'Failure' in reply, (request, reply)
    channel.send(m.Get(f'evaluating/{session_id}/nothing'))
    assert b'Failure' in channel.receive()
    channel.socket.close()
own = f'evaluating/{session_id}'
for request in (m.Send(own, m.Options()), m.Send(f'{own}/../x', m.Options(size=3)), m.Send(own, m.Options(size=-5))):
    channel = enter()
    channel.send(request)
    assert b'Failure' in channel.receive()
    channel.socket.close()
no_time = msgspec.msgpack.encode(['Send', own, [None, float('nan')]])
for nonsense in (b'', struct.pack('<I', len(no_time)) + no_time,
                 b'\\xff' * 1000, struct.pack('<I', 2**32 - 1), struct.pack('<I', 100) + b'x',
                 struct.pack('<I', 3) + b'abc'):
    for channel in (Channel(connect()), enter()):
        channel.socket.sendall(nonsense)
        channel.socket.shutdown(socket.SHUT_WR)
        while channel.socket.recv(100_000):
            pass
        channel.socket.close()
# What is begun and not ended is nowhere.
for _ in range(40):
    channel = enter()
    channel.send(m.Send(own + '/never', m.Options(size=10_000_000)))
    channel.receive()
    channel.socket.sendall(bytes(1_000_000))
    channel.socket.close()
assert objects.exists(own + '/never') is None
# One that does not go on holds up the next large one, and no other.
first, second = enter(), enter()
first.send(m.Send(own + '/first', m.Options(size=10_000_000)))
first.receive()
second.send(m.Send(own + '/second', m.Options(size=10_000_000)))
second.socket.settimeout(0.2)
try:
    second.receive()
    raise AssertionError('two are stored at once')
except TimeoutError:
    pass
objects.delete(objects.put(own, 'small'))
first.socket.close()
second.socket.settimeout(20)
second.receive()
second.socket.close()
channel = enter()
channel.send(m.Send(own + '/huge', m.Options(size=2**60)))
channel.receive()
channel.socket.close()
answer = len(objects.list_objects(own))
"""
    with (
        connection.create_session("evaluating", isolation="process") as session,
        connection.create_session("large", isolation="process") as another,
    ):
        run(session, RAW)
        assert run(session, lies) == "0"
        assert another.invoke(LARGE, SECONDS) == LARGE * 2
    assert "Traceback" not in cluster.nodes["node-1"].log


def test_an_instance_that_takes_all_connections(connection: flame.Connection) -> None:
    """It costs itself, and nobody else."""
    flood = """
kept = []
try:
    while len(kept) < 300:
        sock = connect()
        sock.setblocking(False)
        kept.append(sock)
        sock.send(b'?')
except OSError as error:
    pass
answer = len(kept)
"""
    strangers = """
try:
    for _ in range(1000):
        sock = connect()
        sock.shutdown(socket.SHUT_WR)
        sock.recv(1)
        sock.close()
    answer = 'still'
except OSError as error:
    answer = type(error).__name__
"""
    with (
        connection.create_session("evaluating", isolation="process") as session,
        connection.create_session("evaluating", isolation="process") as stranger,
        connection.create_session("large", isolation="process") as another,
    ):
        for each in (session, stranger):
            run(each, RAW)
        assert run(stranger, strangers) != "'still'"
        assert "nothing passes on to the object cache here" in run(
            stranger, "objects.put(f'evaluating/{session_id}', 1)"
        )
        flooding = session.submit(flood.encode())
        assert another.invoke(LARGE, SECONDS) == LARGE * 2
        flooding.cancel()
