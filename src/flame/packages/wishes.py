"""What applications ask for: an installer, a version of Python, a package."""

from __future__ import annotations

import hashlib

import msgspec

from flame.model.errors import InvalidArgumentError
from flame.packages.installers import INSTALLERS, check_installer, python_version
from flame.packages.url import PackageUrl, parse_package_url
from flame.proto import types_pb2

_LAYOUT = "1"  # of an installed package's folder; a change makes all of them anew


class Wish(msgspec.Struct, frozen=True):
    """What an application asks for."""

    installer: str
    python: str
    url: PackageUrl | None


def wish_of(name: str, application: types_pb2.ApplicationSpec) -> Wish | None:
    """What the application asks for, None = nothing. Raises InvalidArgumentError."""
    if not application.installer:
        if application.url:
            raise InvalidArgumentError(
                f"application {name} has a url but no installer, so nothing would be done with {application.url!r}",
                remedy=f"set its installer ({' or '.join(INSTALLERS)}), or leave the url out",
            )
        return None
    installer = check_installer(application.installer)
    url = parse_package_url(application.url) if application.url else None
    if installer == "python":
        return Wish(installer, python_version({item.name: item.value for item in application.environments}), url)
    return Wish(installer, "", url) if url is not None else None


def identity_of(wish: Wish, digest: str) -> str:
    """What a package is known by on a node: 64 hex digits."""
    parts = (_LAYOUT, wish.installer, wish.python, digest)
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()
