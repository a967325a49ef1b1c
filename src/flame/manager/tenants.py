"""The tenants of the cluster's settings: looked at before anything is opened, set up when the journal is replayed."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from flame.engine import Engine, EngineSettings
from flame.engine.events import SetTenant
from flame.engine.tenant_rules import unkept, why_not
from flame.manager.turns import Turns
from flame.model.errors import InvalidConfigError
from flame.model.tenants import TenantSpec

_log = logging.getLogger("flame.manager")

Tenants = Sequence[tuple[str, TenantSpec]]


def check_tenants(tenants: Tenants) -> None:
    """Raises InvalidConfigError when they could not be set up in a new cluster."""
    engine = Engine(EngineSettings(), lambda: "")
    for name, spec in tenants:
        event = SetTenant(0, name, spec, configured=True)
        error = why_not(engine, event)
        if error is not None:
            raise InvalidConfigError(f"cluster.tenants: {error.message}", remedy=error.remedy)
        engine.turn(0, [event])
    for text in _unkept(engine):
        raise InvalidConfigError(f"cluster.tenants: {text}", remedy="guarantee less, or raise what is above")


def set_up_tenants(turns: Turns, tenants: Tenants) -> None:
    """Make those that are missing and give the others their configured spec.

    One that can't be because of what the journal holds (its parent has open sessions of its own) is named in the log.
    """
    for name, spec in tenants:
        event = SetTenant(0, name, spec, configured=True)
        error = why_not(turns.engine, event)
        if error is not None:
            _log.error("tenant_not_set_up name=%s reason=%r remedy=%r", name, error.message, error.remedy)
            continue
        turns.post(event)
        turns.run_now()
    for text in _unkept(turns.engine):
        _log.warning("tenants_promised_too_much %s", text)


def _unkept(engine: Engine) -> list[str]:
    return list(unkept({name: tenant.spec for name, tenant in engine.tenants.items()}))
