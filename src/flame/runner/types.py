"""What describes a service of a Runner and a call of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

MAX_SESSION_ID = 128  # characters


@dataclass
class SessionContext:
    """Attach one as `_session_context` to a function, class or object to choose the session that serves it.

    Services with the same `session_id` share a session: who comes second uses what the first one made.
    `application_name` is for people who read logs.
    """

    session_id: str | None = None
    application_name: str | None = None

    def __post_init__(self) -> None:
        session_id = self.session_id
        if session_id is None:
            return
        if not isinstance(session_id, str):  # pyright: ignore[reportUnnecessaryIsInstance] - whoever checks no types
            raise ValueError(f"session_id must be a string, not {type(session_id).__name__}")
        if not session_id:
            raise ValueError("session_id cannot be empty")
        if len(session_id) > MAX_SESSION_ID:
            raise ValueError(f"session_id is too long: {len(session_id)} characters of at most {MAX_SESSION_ID}")


@dataclass
class RunnerContext:
    """What a service serves, and how many instances it may have.

    Functions and classes are stateless: any number of instances, from `warmup` up (`autoscale`), or exactly
    max(1, warmup). An object is stateful and has one instance, ready from the start. `args` and `kwargs` are what a
    class is called with, once per instance. Raises ValueError for what goes not together.
    """

    execution_object: Any
    stateful: bool | None = None
    autoscale: bool | None = None
    warmup: int = 0
    args: Sequence[Any] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict[str, Any])
    min_instances: int = field(init=False)
    max_instances: int | None = field(init=False)

    def __post_init__(self) -> None:
        if self.warmup < 0:
            raise ValueError(f"warmup must be at least 0, not {self.warmup}")
        if (self.args or self.kwargs) and not isinstance(self.execution_object, type):
            raise ValueError("only a class takes constructor arguments")
        if is_stateless(self.execution_object):
            self._stateless()
        else:
            self._stateful()

    def _stateless(self) -> None:
        kind = "class" if isinstance(self.execution_object, type) else "function"
        if self.stateful:
            raise ValueError(f"a {kind} is always stateless; give an object of it, or say instances=1")
        self.stateful = False
        self.autoscale = True if self.autoscale is None else self.autoscale
        self.min_instances = self.warmup or (0 if self.autoscale else 1)
        self.max_instances = None if self.autoscale else self.min_instances

    def _stateful(self) -> None:
        if self.stateful is False:
            raise ValueError("an object is always stateful; give its class instead")
        if self.autoscale:
            raise ValueError("an object is always fixed to its instances; give its class to scale")
        if self.warmup > 1:
            raise ValueError(f"objects only support warmup=0 or warmup=1, not {self.warmup}")
        self.stateful, self.autoscale = True, False
        self.min_instances = self.max_instances = 1


@dataclass
class RunnerRequest:
    """A call: of the served callable itself (`method` None) or of a method. Raises ValueError."""

    method: str | None = None
    args: Sequence[Any] | None = None
    kwargs: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        method, args, kwargs = (self.method, self.args, self.kwargs)
        checks: tuple[tuple[str, object, type | tuple[type, ...], str], ...] = (
            ("method", method, str, "a string"),
            ("args", args, (tuple, list), "a tuple or a list"),
            ("kwargs", kwargs, dict, "a dict"),
        )
        for name, value, kinds, wanted in checks:
            if value is not None and not isinstance(value, kinds):
                raise ValueError(f"{name} must be {wanted}, not {type(value).__name__}")


def is_stateless(target: Any) -> bool:
    """Whether it is a class or something to call, rather than an object with a state of its own."""
    return callable(target)
