"""Addresses of packages: `SCHEME://...`, with an optional `#sha256=HEX` that pins the content."""

from __future__ import annotations

import re
from urllib.parse import unquote, urlsplit

import msgspec

from flame.model.errors import InvalidArgumentError

SCHEMES = ("file", "http", "https", "grpc", "grpcs", "s3")
DEFAULT_CACHE_PORT = 9090

_FRAGMENT = re.compile(r"sha256=([0-9a-fA-F]{64})")


class PackageUrl(msgspec.Struct, frozen=True):
    """`location` is the address without its fragment; `digest` the SHA-256 (64 hex digits) that it pins, or empty.

    `shown` is the location without a password, for people.
    """

    location: str
    scheme: str
    host: str
    port: int
    path: str
    name: str
    digest: str = ""
    shown: str = ""

    @property
    def pinned(self) -> str:
        """The whole address, as it stands in an application."""
        return f"{self.location}#sha256={self.digest}" if self.digest else self.location


def parse_package_url(text: str) -> PackageUrl:
    """Raises InvalidArgumentError with the address and what is wrong with it."""
    location, _, fragment = text.partition("#")
    digest = ""
    if fragment:
        match = _FRAGMENT.fullmatch(fragment)
        if match is None:
            raise _wrong(text, f"has the unknown part #{fragment[:40]}", "write #sha256= and 64 hex digits, or nothing")
        digest = match[1].lower()
    try:
        parts = urlsplit(location)
        port = parts.port
    except ValueError as error:
        raise _wrong(text, f"is not valid: {error}", "write SCHEME://HOST:PORT/PATH") from None
    if parts.scheme not in SCHEMES:
        raise _wrong(text, f"has no known scheme ({', '.join(SCHEMES)})", "write for example file:///srv/app.tar.gz")
    path = parts.path if parts.scheme in ("http", "https") else unquote(parts.path)
    name = unquote(parts.path).rsplit("/", 1)[-1]
    if not name:
        raise _wrong(text, "names no file", "end it with the file's name, such as app.tar.gz")
    if parts.scheme == "file":
        if parts.hostname not in (None, "", "localhost"):
            raise _wrong(text, "names a host", "write file:// and an absolute path that exists on every node")
    elif not parts.hostname:
        raise _wrong(text, "names no host", f"write {parts.scheme}://HOST:PORT/PATH")
    if "\0" in path:
        raise _wrong(text, "holds a zero byte", "leave it out")
    shown = location if parts.username is None else location.replace(parts.netloc, parts.netloc.rpartition("@")[2], 1)
    return PackageUrl(
        location, parts.scheme, parts.hostname or "", port or DEFAULT_CACHE_PORT, path, name, digest, shown
    )


def _wrong(text: str, problem: str, remedy: str) -> InvalidArgumentError:
    return InvalidArgumentError(f"package url {text[:200]!r} {problem}", remedy=remedy)
