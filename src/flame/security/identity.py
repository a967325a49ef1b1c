"""Who asks: identities and their roles, found from certificate, token or socket."""

from __future__ import annotations

import hashlib
import os
import re
import secrets
from collections.abc import Mapping
from enum import StrEnum
from typing import Any

import msgspec

from flame.link.peer import PeerInfo
from flame.model.errors import UnauthenticatedError

_ORGANISATION = "flame:"
_ATTRIBUTE = re.compile(r"(?:[^,+\\]|\\.)+")
_ESCAPE = re.compile(r"\\(?:([^0-9A-Fa-f])|([0-9A-Fa-f]{2}))")


class Role(StrEnum):
    """What a peer is to the cluster; `authorize` says what each may do."""

    ADMIN = "admin"
    CLIENT = "client"
    NODE = "node"
    INSTANCE = "instance"


class Identity(msgspec.Struct, frozen=True):
    """One authenticated peer. `session_id` is set for instances: the only session they may touch."""

    name: str
    role: Role
    session_id: str = ""


class Tokens:
    """Credentials of instances: each is good for one session, until it is revoked.

    Only digests are kept, so that a dump of the manager's memory gives no credential away.
    """

    def __init__(self) -> None:
        self._identities: dict[bytes, Identity] = {}
        self._digests: dict[str, bytes] = {}

    def issue(self, executor_id: str, session_id: str) -> str:
        """A new token for the instance of this executor; an earlier one of the same executor ends."""
        self.revoke(executor_id)
        token = secrets.token_urlsafe(32)
        digest = _digest(token)
        self._identities[digest] = Identity(executor_id, Role.INSTANCE, session_id)
        self._digests[executor_id] = digest
        return token

    def revoke(self, executor_id: str) -> None:
        """End the token of this executor, if it has one."""
        digest = self._digests.pop(executor_id, None)
        if digest is not None:
            del self._identities[digest]

    def identify(self, token: str) -> Identity | None:
        """Whose token this is."""
        return self._identities.get(_digest(token))


def identify(peer: PeerInfo, token: str, tokens: Tokens, *, tls: bool = False, insecure: bool = False) -> Identity:
    """The identity behind a connection. Raises UnauthenticatedError.

    In this order: a token is an instance's; a certificate names its role (O = "flame:<role>") and name (CN); on a
    unix socket the user who runs the manager, and root, are admin; without `tls` peers on the loopback are admin, and
    with `insecure` all peers are.
    """
    if token:
        identity = tokens.identify(token)
        if identity is None:
            raise UnauthenticatedError("the token is not known", remedy="its executor may have been released")
        return identity
    if peer.certificate is not None:
        return of_certificate(peer.certificate)
    if peer.uid is not None:
        if peer.uid in (0, os.geteuid()):
            return Identity(f"uid:{peer.uid}", Role.ADMIN)
        raise UnauthenticatedError(f"user id {peer.uid} may not use this socket", remedy="use the user who started it")
    if insecure or (peer.loopback and not tls):
        return Identity(peer.address, Role.ADMIN)
    raise UnauthenticatedError("no client certificate was shown", remedy="configure cert_file and key_file")


def of_certificate(certificate: Mapping[str, Any]) -> Identity:
    """The identity in a verified certificate, given as `SSLSocket.getpeercert()` shows it.

    Raises UnauthenticatedError when it names no role that may connect.
    """
    pairs = [pair for part in certificate.get("subject", ()) for pair in part]
    organisation, name = _only(pairs, "organizationName"), _only(pairs, "commonName")
    role = organisation.removeprefix(_ORGANISATION)
    if role == organisation or role not in (Role.ADMIN, Role.CLIENT, Role.NODE) or not name:
        raise UnauthenticatedError(
            f"the certificate of {name!r} names no role (its organisation is {organisation!r})",
            remedy='its subject must have O = "flame:admin", "flame:client" or "flame:node", and a CN',
        )
    return Identity(name, Role(role))


def subject_of_text(text: str) -> dict[str, Any]:
    """The same form of a certificate from its subject in the text form of RFC 2253, which gRPC gives."""
    names = {"O": "organizationName", "CN": "commonName"}
    pairs: list[tuple[str, str]] = []
    for attribute in map(str, _ATTRIBUTE.findall(text)):
        key, _, value = attribute.partition("=")
        pairs.append((names.get(key.strip(), key), _ESCAPE.sub(_unescape, value)))
    return {"subject": tuple((pair,) for pair in pairs)}


def _unescape(match: re.Match[str]) -> str:
    return str(match[1] or chr(int(match[2], 16)))


def _only(pairs: list[tuple[str, str]], name: str) -> str:
    """The value of an attribute that stands exactly once: with two of them it is not clear who is meant."""
    values = [value for key, value in pairs if key == name]
    return values[0] if len(values) == 1 else ""


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()
