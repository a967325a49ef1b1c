"""Who somebody is: token, certificate, socket; and what each role may do."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest

from flame.link.peer import PeerInfo
from flame.model.errors import PermissionDeniedError, UnauthenticatedError
from flame.proto import frontend_pb2
from flame.security import TABLE, Identity, Role, Tokens, authorize, identify, subject_of_text


def tokens() -> Tokens:
    """Tokens whose executors all live."""
    return Tokens(b"secret", lambda executor_id, session_id: True)


def certificate(organisation: str, name: str = "somebody") -> dict[str, object]:
    return {"subject": ((("countryName", "DE"),), (("organizationName", organisation),), (("commonName", name),))}


@pytest.mark.parametrize("role", [Role.ADMIN, Role.CLIENT, Role.NODE])
def test_a_certificate_names_its_role(role: Role) -> None:
    peer = PeerInfo(certificate=certificate(f"flame:{role}", "n1"), address="192.0.2.1:9")
    assert identify(peer, "", tokens(), tls=True) == Identity("n1", role)


@pytest.mark.parametrize(
    "organisation", ["", "flame", "flame:", "flame:server", "flame:instance", "admin", "x flame:admin"]
)
def test_a_certificate_without_a_role_is_refused(organisation: str) -> None:
    with pytest.raises(UnauthenticatedError, match="names no role"):
        identify(PeerInfo(certificate=certificate(organisation), loopback=True), "", tokens(), tls=True)


def test_a_certificate_with_two_organisations_is_refused() -> None:
    subject = ((("organizationName", "flame:client"), ("organizationName", "flame:admin")), (("commonName", "x"),))
    with pytest.raises(UnauthenticatedError, match="names no role"):
        identify(PeerInfo(certificate={"subject": subject}), "", tokens(), tls=True)


@pytest.mark.parametrize(
    ("text", "pairs"),
    [
        ("CN=client,O=flame:client", [("commonName", "client"), ("organizationName", "flame:client")]),
        (r"CN=a\,O=flame:admin,O=flame:node", [("commonName", "a,O=flame:admin"), ("organizationName", "flame:node")]),
        (r"CN=a\2CO\3Db+C=DE", [("commonName", "a,O=b"), ("C", "DE")]),
        ("", []),
    ],
)
def test_the_text_form_of_a_subject(text: str, pairs: list[tuple[str, str]]) -> None:
    assert subject_of_text(text) == {"subject": tuple((pair,) for pair in pairs)}


@pytest.mark.parametrize("uid", [0, os.geteuid()])
def test_the_own_user_and_root_are_admin_on_a_unix_socket(uid: int) -> None:
    assert identify(PeerInfo(uid=uid, pid=1, loopback=True), "", tokens(), tls=True).role is Role.ADMIN


def test_another_user_is_refused_on_a_unix_socket() -> None:
    peer = PeerInfo(uid=os.geteuid() + 4242, pid=1, loopback=True)
    with pytest.raises(UnauthenticatedError, match="may not use this socket"):
        identify(peer, "", tokens(), insecure=True)


def test_the_loopback_is_trusted_only_without_tls() -> None:
    peer = PeerInfo(address="127.0.0.1:9", loopback=True)
    assert identify(peer, "", tokens()) == Identity("loopback", Role.ADMIN)
    with pytest.raises(UnauthenticatedError, match="no client certificate"):
        identify(peer, "", tokens(), tls=True)


def test_strangers_come_in_only_when_the_user_insists() -> None:
    peer = PeerInfo(address="192.0.2.1:9")
    with pytest.raises(UnauthenticatedError):
        identify(peer, "", tokens())
    assert identify(peer, "", tokens(), insecure=True).role is Role.ADMIN


ADMIN = PeerInfo(uid=os.geteuid(), pid=1, loopback=True)


def test_a_token_is_good_for_its_session_while_its_executor_lives() -> None:
    alive = {("exec-1", "s1"), ("exec-2", "s2")}
    tokens = Tokens(b"secret", lambda *pair: pair in alive)
    token = tokens.issue("exec-1", "s1")
    other = tokens.issue("exec-2", "s2")
    assert identify(ADMIN, token, tokens) == Identity("exec-1", Role.INSTANCE, "s1")
    assert identify(ADMIN, other, tokens).session_id == "s2"
    alive.remove(("exec-1", "s1"))
    with pytest.raises(UnauthenticatedError, match="token is not known"):
        identify(ADMIN, token, tokens)
    assert identify(ADMIN, other, tokens).session_id == "s2"


def test_a_restarted_manager_with_the_same_secret_knows_its_tokens() -> None:
    token = tokens().issue("exec-1", "s1")
    assert tokens().identify(token) == Identity("exec-1", Role.INSTANCE, "s1")
    assert Tokens(b"another", lambda *pair: True).identify(token) is None


@pytest.mark.parametrize(
    "spoil", [lambda t: t[1:], lambda t: t[:-1], lambda t: t + "0", lambda t: "x", lambda t: "ü.é"]
)
def test_a_forged_token_is_refused(spoil: Callable[[str], str]) -> None:
    with pytest.raises(UnauthenticatedError, match="token is not known"):
        identify(ADMIN, spoil(tokens().issue("exec-1", "s1")), tokens())


def test_a_token_of_one_session_can_not_be_turned_into_that_of_another() -> None:
    mine, other = tokens().issue("exec-1", "s1"), tokens().issue("exec-1", "s2")
    mixed = other.partition(".")[0] + "." + mine.partition(".")[2]
    assert tokens().identify(mixed) is None


def test_the_table_covers_every_call_of_the_frontend() -> None:
    calls = {method.name for method in frontend_pb2.DESCRIPTOR.services_by_name["Frontend"].methods}
    assert calls <= set(TABLE)
    assert set(TABLE) - calls == {"ClientLink", "NodeLink", "Attach", "Health", "Metrics"}


ALLOWED = {
    Role.ADMIN: set(TABLE),
    Role.CLIENT: set(TABLE) - {"NodeLink", "MarkNode", "CreateTenant", "UpdateTenant", "DeleteTenant"},
    Role.NODE: {"GetCluster", "NodeLink", "Health"},
    Role.INSTANCE: {
        "GetCluster", "ClientLink", "Attach", "OpenSession", "GetSession", "WatchSession", "GetLogs", "Explain",
        "CreateTask", "GetTask", "WatchTask", "ListTask", "CancelTask",
    },
}  # fmt: skip


@pytest.mark.parametrize("role", list(Role))
@pytest.mark.parametrize("method", sorted(TABLE))
def test_each_role_may_do_what_the_table_says(role: Role, method: str) -> None:
    identity = Identity("x", role, "s1" if role is Role.INSTANCE else "")
    if method in ALLOWED[role]:
        authorize(identity, method, "s1")
    else:
        with pytest.raises(PermissionDeniedError, match=f"{role} 'x' may not call {method}"):
            authorize(identity, method, "s1")


@pytest.mark.parametrize("session_id", ["s2", "", "s1/../s2"])
def test_an_instance_touches_its_own_session_only(session_id: str) -> None:
    identity = Identity("exec-1", Role.INSTANCE, "s1")
    with pytest.raises(PermissionDeniedError, match="its own session 's1'"):
        authorize(identity, "GetTask", session_id)


def test_unknown_calls_are_refused() -> None:
    with pytest.raises(PermissionDeniedError):
        authorize(Identity("x", Role.ADMIN), "Shutdown")
