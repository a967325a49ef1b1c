"""Scenario files: a cluster, what happens in it, who holds what then, and what explain says, as text that a user reads.

`load` reads a file and refuses what it does not know with the nearest word that it does; playing.py plays it against
the real scheduler. The words are described in tests/scenarios/README.md.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar, cast

import msgspec
import yaml

from flame.model.errors import InvalidConfigError
from flame.model.resources import Resources, parse_resources, parse_size
from flame.model.specs import UNIT, SessionSpec
from flame.model.tenants import Quota, TenantSpec
from flame.scheduler.policies import BUILT_IN
from flame.scheduler.policy import Policy

DEFAULT_POLICIES = ("drf", "priority", "gang", "locality", "binpack")
MEMORY_PER_CPU = 16 * 1024**3  # of a node that says nothing of its memory: cpu is what is scarce
EVENTS = (
    "join", "away", "back", "lost", "cordon", "uncordon", "drain", "tenants", "drop_tenants", "open", "close", "want",
    "gone", "idle", "busy", "found", "left", "load", "wait",
)  # fmt: skip
_T = TypeVar("_T")


class NodeText(msgspec.Struct, forbid_unknown_fields=True):
    """A node as written. `mem` such as 64Gi, `limit` of executors."""

    cpu: int = 0
    mem: str | int = ""
    gpu: int = 0
    labels: dict[str, str] = {}
    taints: list[str] = []
    limit: int = 0

    @property
    def capacity(self) -> Resources:
        memory = parse_size(str(self.mem)) if self.mem != "" else self.cpu * MEMORY_PER_CPU
        return Resources(self.cpu, memory, self.gpu)


class TenantText(msgspec.Struct, forbid_unknown_fields=True):
    """A tenant as written. `guarantee` and `quota` such as cpu=4,mem=8Gi; what a quota does not name has none."""

    parent: str = ""
    weight: float = 1.0
    guarantee: str = ""
    quota: str = ""

    @property
    def spec(self) -> TenantSpec:
        guarantee = parse_resources(self.guarantee) if self.guarantee else Resources()
        named = {"mem": "memory"}
        keys = [key.partition("=")[0].strip() for key in self.quota.split(",") if key]
        most = parse_resources(self.quota) if self.quota else Resources()
        quota = Quota(**{(name := named.get(key, key)): getattr(most, name) for key in keys})
        return TenantSpec(self.parent, self.weight, guarantee, quota)


class SessionText(msgspec.Struct, forbid_unknown_fields=True):
    """A session as written. `want`: executors that it could use in all."""

    app: str = "app"
    tenant: str = ""
    priority: int = 0
    resreq: str = ""
    min: int = 0
    max: int | None = None
    gang: bool = False
    topology: str = ""
    selector: dict[str, str] = {}
    tolerations: list[str] = []
    prefer: list[str] = []
    want: int = 0

    @property
    def spec(self) -> SessionSpec:
        return SessionSpec(
            self.app,
            tenant=self.tenant,
            priority=self.priority,
            resreq=parse_resources(self.resreq) if self.resreq else UNIT,
            min_instances=self.min,
            max_instances=self.max,
            gang=self.gang,
            topology=self.topology,
            selector=self.selector,
            tolerations=tuple(self.tolerations),
            prefer_nodes=tuple(self.prefer),
        )


class ExplainText(msgspec.Struct, forbid_unknown_fields=True):
    """What explain has to say. `first` and `help`: parts of the first reason and of what would help; `whole`: all of
    the first reason; `any`: each is part of some reason; `nodes`: part of what it says of a node."""

    first: str = ""
    whole: str = ""
    rule: str = ""
    help: str = ""
    any: list[str] = []
    nodes: dict[str, str] = {}


class Then(msgspec.Struct, forbid_unknown_fields=True):
    """How a step has to end; what is not named may be anything. Executors that stay count, unless `leaving`."""

    holds: dict[str, Any] = {}  # session: number, or {node: number}
    nodes: dict[str, dict[str, int]] = {}  # node: {session: number}, all of it
    leaving: dict[str, int] = {}
    tenants: dict[str, int] = {}
    wants_more: dict[str, bool] = {}
    explain: dict[str, Any] = {}  # session: part of the first reason, nothing, or an ExplainText
    impossible: dict[str, str] = {}  # session: part of the reason why no node could ever run it; "" = one could
    faults: dict[str, str] = {}  # policy: part of what it failed with
    restless: bool = False  # executors that started in this step were told to leave in it


class Step(msgspec.Struct):
    """Events in the order of the file, passes, and the end."""

    line: str
    events: list[tuple[str, Any]]
    passes: str | int  # "calm", or how many
    then: Then | None


class Scenario(msgspec.Struct):
    """One file."""

    name: str
    story: str
    policies: tuple[str, ...]
    prompt: bool
    applications: dict[str, int]
    nodes: dict[str, NodeText]
    tenants: dict[str, TenantSpec]
    sessions: dict[str, SessionText]
    steps: list[Step]

    def make_policies(self, more: Mapping[str, Callable[[], Policy]]) -> list[Policy]:
        known = {**BUILT_IN, **more}
        for name in self.policies:
            if name not in known:
                raise InvalidConfigError(f"{self.name}: policies: unknown policy {name!r}{_near(name, known)}")
        return [known[name]() for name in self.policies]


def load(path: Path) -> Scenario:
    """Read a scenario. Raises InvalidConfigError, naming the place and the nearest known word."""
    where = path.name
    document = _mapping(yaml.safe_load(path.read_text()), where)
    known = ("story", "policies", "leaving", "applications", "nodes", "tenants", "sessions", "steps")
    _check_keys(document, known, where)
    for needed in ("story", "steps"):
        if needed not in document:
            raise InvalidConfigError(f"{where}: {needed} is missing")
    leaving = document.get("leaving", "at once")
    if leaving not in ("at once", "when told"):
        raise InvalidConfigError(f"{where}: leaving: {leaving!r} is neither 'at once' nor 'when told'")
    return Scenario(
        path.stem,
        str(document["story"]),
        tuple(_convert(list[str], document.get("policies", list(DEFAULT_POLICIES)), f"{where}: policies")),
        leaving == "at once",
        _convert(dict[str, int], document.get("applications", {}), f"{where}: applications"),
        _named(NodeText, document.get("nodes", {}), f"{where}: nodes"),
        {name: t.spec for name, t in _named(TenantText, document.get("tenants", {}), f"{where}: tenants").items()},
        _named(SessionText, document.get("sessions", {}), f"{where}: sessions"),
        [_step(step, f"{where}: step {n}") for n, step in enumerate(_list(document["steps"], f"{where}: steps"), 1)],
    )


def _step(value: object, where: str) -> Step:
    step = _mapping(value, where)
    _check_keys(step, (*EVENTS, "note", "passes", "then"), where)
    events = [(key, _event(key, item, f"{where}: {key}")) for key, item in step.items() if key in EVENTS]
    passes = step.get("passes", "calm")
    if passes != "calm" and not (isinstance(passes, int) and passes >= 0):
        raise InvalidConfigError(f"{where}: passes: {passes!r} is neither calm nor a number")
    then = _then(step["then"], f"{where}: then") if "then" in step else None
    return Step(where, events, cast("str | int", passes), then)


def _event(kind: str, value: object, where: str) -> object:
    if kind == "join":
        return _named(NodeText, value, where)
    if kind == "open":
        return _named(SessionText, value, where)
    if kind == "tenants":
        return {name: text.spec for name, text in _named(TenantText, value, where).items()}
    if kind == "want":
        return _convert(dict[str, int], value, where)
    if kind in ("gone", "idle", "busy", "found", "load"):
        return _convert(dict[str, int | dict[str, int]], value, where)
    if kind == "wait":
        return milliseconds(value, where)
    return _convert(list[str], value, where)


def _then(value: object, where: str) -> Then:
    then = _convert(Then, value, where)
    for session, text in then.explain.items():
        if text is None or text == "nothing":
            then.explain[session] = None
        elif isinstance(text, str):
            then.explain[session] = ExplainText(first=text)
        else:
            then.explain[session] = _convert(ExplainText, text, f"{where}: explain: {session}")
    for session, held in then.holds.items():
        then.holds[session] = _convert(int | dict[str, int], held, f"{where}: holds: {session}")  # type: ignore[arg-type]
    return then


def milliseconds(value: object, where: str) -> int:
    """From text such as 50ms, 2s or 1m."""
    text = str(value).strip()
    for unit, factor in (("ms", 1), ("s", 1_000), ("m", 60_000)):
        if text.endswith(unit) and text[: -len(unit)].strip().isdigit():
            return int(text[: -len(unit)]) * factor
    raise InvalidConfigError(f"{where}: {value!r} is no time such as 50ms, 2s or 1m")


# --- strictness ------------------------------------------------------------------------------------------------------


def _near(word: str, known: Sequence[str] | Mapping[str, object]) -> str:
    near = get_close_matches(word, list(known), 1)
    return f"; did you mean {near[0]}?" if near else f"; known: {', '.join(known)}"


def _check_keys(value: Mapping[str, object], known: Sequence[str], where: str) -> None:
    for key in value:
        if key not in known:
            raise InvalidConfigError(f"{where}: unknown key {key!r}{_near(str(key), known)}")


def _mapping(value: object, where: str) -> dict[str, object]:
    if not isinstance(value, dict):
        raise InvalidConfigError(f"{where}: {value!r} is no mapping")
    return cast("dict[str, object]", value)


def _list(value: object, where: str) -> list[object]:
    if not isinstance(value, list):
        raise InvalidConfigError(f"{where}: {value!r} is no list")
    return cast("list[object]", value)


def _named(kind: type[_T], value: object, where: str) -> dict[str, _T]:
    items = _mapping(value, where)
    return {name: _convert(kind, {} if item is None else item, f"{where}: {name}") for name, item in items.items()}


def _convert(kind: type[_T], value: object, where: str) -> _T:
    fields: tuple[str, ...] = getattr(kind, "__struct_fields__", ())
    if fields:
        _check_keys(_mapping(value, where), fields, where)
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        raise InvalidConfigError(f"{where}: {error}") from error
