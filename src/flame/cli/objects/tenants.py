"""Tenants on the screen: a tree, each with its share and what limits it."""

from __future__ import annotations

from collections.abc import Sequence

from flame.cli.limits import GUARANTEE, QUOTA, guarantee_text, quota_text
from flame.cli.objects.resources import amount_text, resources_document
from flame.cli.output import Column, Document, Kind
from flame.cli.times import local_time, utc_time
from flame.proto import types_pb2 as ty

_INDENT = "  "


def tree(tenants: Sequence[ty.Tenant]) -> tuple[list[ty.Tenant], dict[str, int]]:
    """Each tenant before those below it, siblings by name; and how deep each stands, the top at 0."""
    names = {entry.metadata.name for entry in tenants}
    below: dict[str, list[ty.Tenant]] = {}
    for entry in sorted(tenants, key=lambda entry: entry.metadata.name):
        below.setdefault(entry.spec.parent if entry.spec.parent in names else "", []).append(entry)
    ordered: list[ty.Tenant] = []
    depths: dict[str, int] = {}

    def walk(parent: str, depth: int) -> None:
        for entry in below.get(parent, ()):
            ordered.append(entry)
            depths[entry.metadata.name] = depth
            walk(entry.metadata.name, depth + 1)

    walk("", 0)
    return ordered, depths


def tenant_kind(depths: dict[str, int] | None = None) -> Kind[ty.Tenant]:
    """Tenants, their names indented by these depths in a table."""
    places = depths or {}

    def indented(tenant: ty.Tenant) -> str:
        return _INDENT * places.get(tenant.metadata.name, 0) + tenant.metadata.name

    return Kind[ty.Tenant](
        columns=(
            Column("Name", indented),
            Column("Weight", weight_text),
            Column("Share", lambda t: percent(t.status.share)),
            Column("Fair share", lambda t: percent(t.status.fair_share)),
            Column("Used", lambda t: amount_text(t.status.used)),
            Column("Sessions", lambda t: t.status.sessions),
            Column("Pending", lambda t: t.status.pending),
            Column("Executors", lambda t: t.status.executors),
            Column("Wanted", lambda t: t.status.wanted),
            Column("Parent", lambda t: t.spec.parent, wide=True),
            Column("Guarantee", lambda t: guarantee_text(t.spec.guarantee), wide=True),
            Column("Quota", lambda t: quota_text(t.spec.quota), wide=True),
            Column("Description", lambda t: t.spec.description, wide=True),
        ),
        document=_document,
        name=lambda t: t.metadata.name,
        page=_page,
    )


def weight_text(tenant: ty.Tenant) -> str:
    return f"{tenant.spec.weight or 1:g}"


def percent(share: float) -> str:
    """A share of the cluster, 0 to 1, for reading."""
    return f"{100 * share:.1f}%"


def _document(tenant: ty.Tenant) -> Document:
    spec, status = tenant.spec, tenant.status
    return {
        "name": tenant.metadata.name,
        "parent": spec.parent or None,
        "description": spec.description or None,
        "weight": spec.weight or 1.0,
        "guarantee": {name: getattr(spec.guarantee, name) for name in GUARANTEE},
        "quota": {name: getattr(spec.quota, name) if spec.quota.HasField(name) else None for name in QUOTA},  # pyright: ignore[reportArgumentType]
        "used": resources_document(status.used),
        "share": status.share,
        "fair_share": status.fair_share,
        "sessions": status.sessions,
        "pending": status.pending,
        "executors": status.executors,
        "wanted": status.wanted,
        "creation_time": utc_time(status.creation_time),
    }


def _page(tenant: ty.Tenant) -> list[tuple[str, object]]:
    spec, status = tenant.spec, tenant.status
    return [
        ("Name", tenant.metadata.name),
        ("Parent", spec.parent),
        ("Description", spec.description),
        ("Weight", weight_text(tenant)),
        ("Guarantee", guarantee_text(spec.guarantee)),
        ("Quota", quota_text(spec.quota)),
        ("Used", amount_text(status.used)),
        ("Share", f"{percent(status.share)} of the cluster, fair is {percent(status.fair_share)}"),
        ("Sessions", f"{status.sessions} open, {status.pending} tasks pending"),
        ("Executors", f"{status.executors} now, {status.wanted} more wanted"),
        ("Created", local_time(status.creation_time)),
    ]
