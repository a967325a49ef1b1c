"""Who asks: identities and their roles, found from certificate, token or socket."""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import re
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Callable, Mapping
from enum import StrEnum
from typing import Any

import msgspec

from flame.link.peer import PeerInfo
from flame.model.errors import UnauthenticatedError

ROLE_NAME = "flame:"  # begins the name of a role in a certificate
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
    """Credentials of instances: each is good for one session, as long as its executor lives.

    Nothing is kept: a token carries what it is good for, sealed with `secret`. With the same secret a restarted
    manager knows the tokens of instances that went on meanwhile.
    """

    def __init__(self, secret: bytes, is_alive: Callable[[str, str], bool]) -> None:
        """`is_alive` says whether (executor id, session id) is an executor that exists now."""
        self._secret = secret
        self._is_alive = is_alive

    def issue(self, executor_id: str, session_id: str) -> str:
        """The token for the instance of this executor, which serves this session."""
        claim = urlsafe_b64encode(json.dumps([executor_id, session_id]).encode()).decode()
        return f"{claim}.{self._seal(claim)}"

    def identify(self, token: str) -> Identity | None:
        """Whose token this is; None when it is forged or its executor is gone."""
        claim, _, seal = token.rpartition(".")
        if not hmac.compare_digest(seal.encode(), self._seal(claim).encode()):
            return None
        executor_id, session_id = json.loads(urlsafe_b64decode(claim))
        if not self._is_alive(executor_id, session_id):
            return None
        return Identity(executor_id, Role.INSTANCE, session_id)

    def _seal(self, claim: str) -> str:
        return hmac.new(self._secret, claim.encode(), hashlib.sha256).hexdigest()


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
        return Identity("loopback" if peer.loopback else "anonymous", Role.ADMIN)
    raise UnauthenticatedError("no client certificate was shown", remedy="configure cert_file and key_file")


def of_certificate(certificate: Mapping[str, Any]) -> Identity:
    """The identity in a verified certificate, given as `SSLSocket.getpeercert()` shows it.

    Raises UnauthenticatedError when it names no role that may connect.
    """
    pairs = [pair for part in certificate.get("subject", ()) for pair in part]
    organisation, name = _only(pairs, "organizationName"), _only(pairs, "commonName")
    role = organisation.removeprefix(ROLE_NAME)
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
