"""What an instance needs besides its package: an image, a compiled component."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from flame.model.errors import FlameError
from flame.shims.shim import Package


class Furnished:
    """A package, or none, and something else of the node, held together: that is a package, too.

    `identity` is the something's. `hold` keeps it until `release` and raises FlameError when it is gone.
    """

    def __init__(
        self, package: Package | None, identity: str, hold: Callable[[], None], release: Callable[[], None]
    ) -> None:
        self._package = package
        self._hold = hold
        self._release = release
        self.identity = f"{package.identity if package is not None else ''}+{identity}"
        self.variables: Mapping[str, str] = package.variables if package is not None else {}

    def hold(self) -> None:
        """Raises FlameError when one of them is gone."""
        if self._package is not None:
            self._package.hold()
        try:
            self._hold()
        except FlameError:
            if self._package is not None:
                self._package.release()
            raise

    def release(self) -> None:
        self._release()
        if self._package is not None:
            self._package.release()
