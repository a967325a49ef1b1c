"""Getting what a package's address names."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.flight as flight
import pytest

from flame.model.errors import (
    FlameError,
    InvalidArgumentError,
    InvalidConfigError,
    NotFoundError,
    TimedOutError,
    TooLargeError,
    UnavailableError,
)
from flame.packages.fetch import Fetched, fetch
from flame.packages.limits import StoreLimits
from flame.packages.url import parse_package_url
from flame.security import make_certificates
from package_builder import WebServer

CONTENT = os.urandom(3_000_000)
DIGEST = hashlib.sha256(CONTENT).hexdigest()
LIMITS = StoreLimits(max_download=4_000_000, fetch_timeout=30, stall_timeout=30)


@pytest.fixture
def web() -> Iterator[WebServer]:
    with WebServer().serving() as server:
        server.files["/app.tgz"] = CONTENT
        yield server


async def get(url: str, limits: StoreLimits = LIMITS, validator: str = "") -> tuple[Fetched, bytes, list[str]]:
    into, said = io.BytesIO(), list[str]()
    found = await fetch(parse_package_url(url), into, limits, said.append, validator=validator)
    return found, into.getvalue(), said


async def refused(kind: type[FlameError], url: str, limits: StoreLimits = LIMITS) -> FlameError:
    with pytest.raises(kind) as raised:
        await get(url, limits)
    return raised.value


# --- addresses --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("app.tgz", "has no known scheme"),
        ("ftp://host/app.tgz", "has no known scheme"),
        ("http:///app.tgz", "names no host"),
        ("http://host:port/app.tgz", "is not valid"),
        ("http://host/", "names no file"),
        ("file://host/app.tgz", "names a host"),
        ("file:///app.tgz#sha256=12", "has the unknown part #sha256=12"),
        ("file:///app.tgz#md5=12", "has the unknown part #md5=12"),
        ("file:///a%00b.tgz", "holds a zero byte"),
    ],
)
def test_addresses_that_are_none(url: str, message: str) -> None:
    with pytest.raises(InvalidArgumentError) as raised:
        parse_package_url(url)
    assert message in raised.value.message
    assert raised.value.remedy


def test_passwords_are_not_shown() -> None:
    url = parse_package_url(f"https://me:secret@host/a/app.tgz#sha256={DIGEST.upper()}")
    assert (url.shown, url.name, url.digest) == ("https://host/a/app.tgz", "app.tgz", DIGEST)
    assert url.pinned == f"https://me:secret@host/a/app.tgz#sha256={DIGEST}"


# --- files ------------------------------------------------------------------------------------------------------------


async def test_a_file_is_copied_and_its_status_tells_whether_it_changed(tmp_path: Path) -> None:
    file = tmp_path / "a file.tgz"
    file.write_bytes(CONTENT)
    url = f"file://{tmp_path}/a%20file.tgz"
    found, content, said = await get(url)
    assert (found.digest, found.size, content) == (DIGEST, len(CONTENT), CONTENT)
    assert said == [f"fetching {url}", f"fetched 3,000,000 bytes, sha256 {DIGEST}"]
    again, nothing, _ = await get(url, validator=found.validator)
    assert (again.unchanged, nothing) == (True, b"")
    file.write_bytes(CONTENT[::-1])
    other, content, _ = await get(url, validator=found.validator)
    assert (other.unchanged, content) == (False, CONTENT[::-1])


async def test_files_that_can_not_be_read(tmp_path: Path) -> None:
    error = await refused(NotFoundError, f"file://{tmp_path}/no.tgz")
    assert error.message == f"file://{tmp_path}/no.tgz does not exist on this node"
    assert "on every node" in error.remedy
    assert "is not a file" in (await refused(InvalidArgumentError, f"file://{tmp_path}")).message
    assert "Not a directory" in (await refused(UnavailableError, "file:///etc/passwd/x")).message


async def test_a_digest_is_verified(tmp_path: Path) -> None:
    file = tmp_path / "a.tgz"
    file.write_bytes(CONTENT)
    assert (await get(f"file://{file}#sha256={DIGEST}"))[0].digest == DIGEST
    error = await refused(InvalidArgumentError, f"file://{file}#sha256={'0' * 64}")
    assert error.message == f"file://{file} has the SHA-256 {DIGEST}, its address says {'0' * 64}"


async def test_a_package_that_is_too_large_is_refused_while_it_comes(tmp_path: Path) -> None:
    file = tmp_path / "a.tgz"
    file.write_bytes(CONTENT)
    error = await refused(TooLargeError, f"file://{file}", StoreLimits(max_download=1000))
    assert "a package may have 1,000" in error.message


# --- HTTP -------------------------------------------------------------------------------------------------------------


async def test_http_with_and_without_a_change(web: WebServer) -> None:
    url = f"{web.url}/app.tgz"
    found, content, _ = await get(url)
    assert (found.digest, content) == (DIGEST, CONTENT)
    again, _, said = await get(url, validator=found.validator)
    assert again == Fetched(validator=found.validator, unchanged=True)
    assert said[-1] == "it is unchanged"
    web.files["/app.tgz"] = b"new"
    assert (await get(url, validator=found.validator))[1] == b"new"
    web.etags = False
    assert (await get(url))[0].validator == ""


@pytest.mark.parametrize(
    ("status", "kind", "text"),
    [
        (404, NotFoundError, "the server answered 404 Not Found"),
        (403, UnavailableError, "the server answered 403 Forbidden"),
        (500, UnavailableError, "the server answered 500 Internal Server Error"),
    ],
)
async def test_what_a_server_refuses(web: WebServer, status: int, kind: type[FlameError], text: str) -> None:
    web.status = status
    error = await refused(kind, f"{web.url}/app.tgz")
    assert error.message == f"{web.url}/app.tgz can't be fetched: {text}"
    assert error.remedy


async def test_a_server_that_is_not_there_or_says_nothing(web: WebServer) -> None:
    assert "can't be fetched" in (await refused(UnavailableError, "http://127.0.0.1:1/a.tgz")).message
    web.hung.set()
    stalled = StoreLimits(stall_timeout=0.2)
    assert "said nothing for 0.2 s" in (await refused(UnavailableError, f"{web.url}/app.tgz", stalled)).message
    late = StoreLimits(fetch_timeout=0.2)
    assert "was not fetched within 0.2 s" in (await refused(TimedOutError, f"{web.url}/app.tgz", late)).message


async def test_a_size_that_is_announced_is_refused_at_once(web: WebServer) -> None:
    error = await refused(TooLargeError, f"{web.url}/app.tgz", StoreLimits(max_download=1000))
    assert error.message == f"{web.url}/app.tgz has 3,000,000 bytes; a package may have 1,000"


# --- S3 ---------------------------------------------------------------------------------------------------------------


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The part of an address that names the store."""
    import boto3
    from moto.server import ThreadedMotoServer

    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        client = boto3.client("s3", endpoint_url=f"http://{host}:{port}")
        client.create_bucket(Bucket="packages")
        for name in ("app.tgz", "app.tar.gz"):
            client.put_object(Bucket="packages", Key=f"deep/{name}", Body=CONTENT)
        client.close()
        yield f"?scheme=http&region=us-east-1&endpoint_override={host}:{port}"
    finally:
        server.stop()


async def test_an_object_of_s3(bucket: str) -> None:
    found, content, _ = await get(f"s3://packages/deep/app.tgz{bucket}")
    assert (found.digest, content) == (DIGEST, CONTENT)
    again, nothing, _ = await get(f"s3://packages/deep/app.tgz{bucket}", validator=found.validator)
    assert (again.unchanged, nothing) == (True, b"")
    found, content, _ = await get(f"s3://packages/deep/app.tar.gz{bucket}")
    assert (found.digest, content) == (DIGEST, CONTENT)
    error = await refused(NotFoundError, f"s3://packages/other.tgz{bucket}")
    assert error.message.startswith("s3://packages/other.tgz")


# --- the object cache -------------------------------------------------------------------------------------------------


class Cache(flight.FlightServerBase):
    """Objects by their key, in pieces, as the object cache gives them."""

    def __init__(self, certificate: tuple[bytes, bytes] | None = None) -> None:
        if certificate is None:
            super().__init__("grpc://127.0.0.1:0")
        else:
            super().__init__("grpc+tls://127.0.0.1:0", tls_certificates=[certificate])
        self.objects: dict[str, list[bytes]] = {}
        self.tickets: list[str] = []

    def do_get(self, context: object, ticket: flight.Ticket) -> flight.RecordBatchStream:
        self.tickets.append(ticket.ticket.decode())
        key = self.tickets[-1].partition(":")[0]
        if key not in self.objects:
            raise KeyError(f"no object {key}")
        rows = self.objects[key]
        columns = {"version": [0] * len(rows), "kind": ["base"] * len(rows), "data": rows}
        schema = pa.schema([("version", pa.uint64()), ("kind", pa.string()), ("data", pa.binary())])
        return flight.RecordBatchStream(pa.table(columns, schema=schema))


async def test_an_object_of_the_cache_is_all_its_pieces() -> None:
    with Cache() as cache:
        cache.objects["app/pkg/app.tgz"] = [CONTENT[:1000], CONTENT[1000:]]
        cache.objects["app/pkg/empty"] = []
        base = f"grpc://127.0.0.1:{cache.port}"
        found, content, _ = await get(f"{base}/app/pkg/app.tgz")
        assert (found, content) == (Fetched(DIGEST, len(CONTENT), ""), CONTENT)
        assert cache.tickets == ["app/pkg/app.tgz:0"]
        error = await refused(NotFoundError, f"{base}/app/pkg/other.tgz")
        assert f"{base}/app/pkg/other.tgz is not in the cache: no object app/pkg/other.tgz" in error.message
        assert "is empty" in (await refused(NotFoundError, f"{base}/app/pkg/empty")).message
        too_large = await refused(TooLargeError, f"{base}/app/pkg/app.tgz", StoreLimits(max_download=10_000))
        assert "a package may have 10,000" in too_large.message
    gone = await refused(UnavailableError, f"{base}/app/pkg/app.tgz", StoreLimits(fetch_timeout=5))
    assert "check that this node reaches the cache" in gone.remedy


async def test_a_cache_with_a_certificate_is_checked(tmp_path: Path) -> None:
    tls = make_certificates(tmp_path / "certs").server
    assert tls.cert_file is not None
    assert tls.key_file is not None
    with Cache((tls.cert_file.read_bytes(), tls.key_file.read_bytes())) as cache:
        cache.objects["app/pkg/app.tgz"] = [CONTENT]
        url = parse_package_url(f"grpcs://127.0.0.1:{cache.port}/app/pkg/app.tgz")
        into = io.BytesIO()
        found = await fetch(url, into, LIMITS, str, ca_file=str(tls.ca_file))
        assert (found.digest, into.getvalue()) == (DIGEST, CONTENT)
        with pytest.raises(UnavailableError):
            await fetch(url, io.BytesIO(), StoreLimits(fetch_timeout=5), str)
        with pytest.raises(InvalidConfigError, match="can't be read"):
            await fetch(url, io.BytesIO(), LIMITS, str, ca_file=str(tmp_path / "no"))
