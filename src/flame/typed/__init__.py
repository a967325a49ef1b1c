"""Services of one function that takes a Python object and gives one, and their clients.

`FlameInstance` serves it, `Session` calls it; both also as `flame.service.FlameInstance` and `flame.service.Session`.
"""

from flame.typed.instance import FlameInstance
from flame.typed.session import Session

__all__ = ["FlameInstance", "Session"]
