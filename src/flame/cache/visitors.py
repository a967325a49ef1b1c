"""Who comes to a cache: found from the certificate over Flight, and handed on to the node's own door by the token that
this visitor is given there. What they may do says `flame.objects.rights`."""

from __future__ import annotations

import secrets

from flame.model.errors import PermissionDeniedError
from flame.objects.rights import Visitor
from flame.security import ROLE_NAME, Role

# Where no certificate is wanted, whoever reaches the cache may do everything.
ANYBODY = Visitor(Role.CLIENT)
_ROLES = {
    f"{ROLE_NAME}{Role.ADMIN}": Visitor(Role.ADMIN),
    f"{ROLE_NAME}{Role.CLIENT}": Visitor(Role.CLIENT),
    f"{ROLE_NAME}{Role.NODE}": Visitor(Role.NODE),
    f"{ROLE_NAME}server": Visitor(Role.NODE),  # another cache, which reads for those near it
}


def visitor_of(name: bytes) -> Visitor:
    """Who has a certificate whose first alternative name is this. One that names no role is a client's: it is all that
    Arrow shows of a certificate. Raises PermissionDeniedError for a role that may not come here."""
    text = name.decode(errors="replace")
    if not text.startswith(ROLE_NAME):
        return ANYBODY
    visitor = _ROLES.get(text)
    if visitor is None:
        raise PermissionDeniedError(
            f"the certificate is of the role {text[:40]!r}, which may not use the object cache",
            remedy=f"its first alternative name may be one of {', '.join(_ROLES)}",
        )
    return visitor


class Tokens:
    """What to say at the doors of a node: for each role something else, so that a door knows who is there."""

    def __init__(self, anybody: str | None = None) -> None:
        """`anybody`: the token of those who may do everything; made up if None."""
        first = secrets.token_hex(16) if anybody is None else anybody
        self._tokens = {Role.CLIENT: first, Role.ADMIN: first, Role.NODE: secrets.token_hex(16)}

    def of(self, visitor: Visitor) -> str:
        """The token for somebody."""
        return self._tokens[visitor.role]

    def visitor(self, token: str) -> Visitor | None:
        """Whose token this is; None when it is nobody's."""
        for role in (Role.CLIENT, Role.NODE):
            if secrets.compare_digest(self._tokens[role].encode(), token.encode(errors="replace")):
                return Visitor(role)
        return None
