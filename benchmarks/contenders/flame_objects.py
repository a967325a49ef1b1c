"""Flame's object cache in its default configuration: memory only, 1 GiB."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.contenders.data_job import LARGE, OPERATIONS, REPEATS, SMALL, large, mb_per_s, per_s, tell
from flame.objects import ObjectClient, ObjectRef, codecs
from flame.objects.links import Link
from flame.objects.messages import Options

READER = "read"


def start(folder: Path) -> tuple[subprocess.Popen[str], str]:
    """A cache of its own and its endpoint."""
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        endpoint = f"grpc://127.0.0.1:{probe.getsockname()[1]}"
    config = folder / "flame-cluster.yaml"
    config.write_text(
        "cluster: {name: bench, endpoint: 'http://127.0.0.1:8080', storage: none}\n"
        f"cache: {{endpoint: '{endpoint}'}}\n"
    )
    command = [sys.executable, "-m", "flame.cache.daemon", "--config", str(config)]
    daemon = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert daemon.stdout is not None
    assert "is ready" in daemon.stdout.readline()
    return daemon, endpoint


def read(endpoint: str) -> None:
    """The other process: for each key on standard input the seconds that a get took, and the array's sum as proof."""
    client = ObjectClient(endpoint)
    for line in sys.stdin:
        ref = ObjectRef(endpoint, line.strip(), 1)
        started = time.perf_counter()
        array = client.get(ref)
        took = time.perf_counter() - started
        print(json.dumps([took, int(array.sum()), array.flags.writeable]), flush=True)
        del array


def seconds_elsewhere(client: ObjectClient, array: np.ndarray) -> float:
    """The median of gets in a process that got another object before."""
    command = [sys.executable, "-m", "benchmarks.contenders.flame_objects", READER, client.endpoint]
    reader = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert reader.stdin is not None
    assert reader.stdout is not None
    times: list[float] = []
    for _ in range(REPEATS + 1):
        ref = client.put("bench/data", array)
        reader.stdin.write(f"{ref.key}\n")
        reader.stdin.flush()
        took, total, writeable = json.loads(reader.stdout.readline())
        assert total == int(array.sum())
        assert not writeable
        times.append(took)
        client.delete(ref)
    reader.stdin.close()
    reader.wait()
    return sorted(times[1:])[REPEATS // 2]


def main() -> None:
    """All figures of one run."""
    array = large()
    with tempfile.TemporaryDirectory(prefix="fl") as folder:
        daemon, endpoint = start(Path(folder))
        try:
            with ObjectClient(endpoint) as client:
                started = time.perf_counter()
                client.delete(client.put("bench/data", array))
                figures = {"first_put_mb_s": LARGE / 1e6 / (time.perf_counter() - started)}
                figures["put_mb_s"] = mb_per_s(lambda: client.put("bench/data", array), client.delete)
                figures["get_elsewhere_ms"] = seconds_elsewhere(client, array) * 1e3
                figures["small_puts_s"] = per_s([lambda: client.put("bench/small", SMALL)] * OPERATIONS)
                refs = [client.put("bench/small", SMALL) for _ in range(OPERATIONS)]
                figures["small_gets_s"] = per_s([lambda ref=ref: client.get(ref) for ref in refs])
                client.put("bench/data/tcp", array)
            remote = Link(endpoint, None, shared_memory=False)  # as from another node
            figures["tcp_get_mb_s"] = mb_per_s(
                lambda: codecs.decode(remote.get("bench/data/tcp").parts[0].payload, table=False)
            )
            figures["tcp_put_mb_s"] = mb_per_s(
                lambda: remote.put("bench/data/tcp", codecs.encode(array), Options(), again=False)
            )
            remote.close()
            tell(figures)
        finally:
            daemon.terminate()
            daemon.wait()


if __name__ == "__main__":
    if sys.argv[1:2] == [READER]:
        read(sys.argv[2])
    else:
        main()
