"""Who comes to a cache."""

from __future__ import annotations

import pytest

from flame.cache.visitors import ANYBODY, Tokens, visitor_of
from flame.model.errors import PermissionDeniedError
from flame.objects.rights import Visitor
from flame.security import Role


@pytest.mark.parametrize(
    ("name", "role"),
    [(b"flame:admin", Role.ADMIN), (b"flame:client", Role.CLIENT), (b"flame:node", Role.NODE),
     (b"flame:server", Role.NODE), (b"", Role.CLIENT), (b"localhost", Role.CLIENT), (b"\xff", Role.CLIENT)],
)  # fmt: skip
def test_the_first_name_of_a_certificate_says_the_role(name: bytes, role: Role) -> None:
    assert visitor_of(name).role == role


@pytest.mark.parametrize("name", [b"flame:instance", b"flame:", b"flame:guest", b"flame:node2"])
def test_other_roles_have_no_business_here(name: bytes) -> None:
    with pytest.raises(PermissionDeniedError, match="may not use the object cache") as refused:
        visitor_of(name)
    assert "flame:client" in refused.value.remedy


def test_a_token_tells_a_door_who_is_there() -> None:
    tokens = Tokens()
    for visitor in (ANYBODY, Visitor(Role.NODE)):
        assert tokens.visitor(tokens.of(visitor)) == visitor
    assert tokens.of(Visitor(Role.ADMIN)) == tokens.of(ANYBODY)
    assert tokens.of(Visitor(Role.NODE)) != tokens.of(ANYBODY)
    for nonsense in ("", "x", "\udcff", tokens.of(ANYBODY)[:-1]):
        assert tokens.visitor(nonsense) is None
    assert Tokens("").visitor("") == ANYBODY
