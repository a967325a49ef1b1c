"""flmctl tenant: who shares the cluster."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from flame.cli import completing
from flame.cli.options import all_options, settings_of
from flame.cli.program import Lazy, LazyGroup

if TYPE_CHECKING:
    from flame.proto import types_pb2 as ty

_HERE = "flame.cli.commands.tenant"

COMMANDS = {
    "create": Lazy(f"{_HERE}:create", "Create a tenant."),
    "update": Lazy(f"{_HERE}:update", "Change a tenant; what is not named stays as it is."),
    "delete": Lazy(f"{_HERE}:delete", "Delete a tenant that has no tenants below it and no sessions."),
    "list": Lazy(f"{_HERE}:list_tenants", "List the tenants as a tree, with their shares."),
    "view": Lazy(f"{_HERE}:view", "Show one tenant in full."),
}

F = TypeVar("F", bound=Callable[..., Any])


@click.group(cls=LazyGroup, lazy=COMMANDS, invoke_without_command=True)
@all_options
@click.pass_context
def tenant(ctx: click.Context) -> None:
    """Manage tenants: who shares the cluster, and how."""
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


def _spec_options(function: F) -> F:
    for option in (
        click.option("--description", metavar="TEXT", help="What it is for."),
        click.option(
            "--quota",
            multiple=True,
            metavar="LIMITS",
            help="Never exceeded: cpu=N,mem=SIZE,gpu=N,sessions=N,pending=N; `cpu=none`, or `none` for no limit.",
        ),
        click.option(
            "--guarantee",
            multiple=True,
            metavar="AMOUNTS",
            help="Taken back from whoever borrowed it: cpu=N,mem=SIZE,gpu=N; `cpu=none`, or `none` for nothing.",
        ),
        click.option(
            "--weight", type=float, callback=_positive, metavar="NUMBER", help="Of its share among its siblings (1)."
        ),
        click.option(
            "--parent", metavar="NAME", help='The tenant above it; "" = none.', shell_complete=completing.tenants
        ),
    ):
        function = option(function)
    return function


def _positive(ctx: click.Context, param: click.Parameter, value: float | None) -> float | None:
    if value is not None and not (math.isfinite(value) and value > 0):
        raise click.BadParameter(f"{value:g} is not a number over 0", ctx, param)
    return value


@click.command()
@click.argument("name")
@_spec_options
@all_options
@click.pass_context
def create(ctx: click.Context, name: str, **choices: Any) -> None:
    """Create a tenant."""
    from flame.cli.api import open_api
    from flame.proto import types_pb2 as ty

    spec = ty.TenantSpec(weight=1.0)
    _change(spec, **choices)
    with open_api(settings_of(ctx)) as api:
        _done(ctx, api.create_tenant(name, spec), "was created")


@click.command()
@click.argument("name", shell_complete=completing.tenants)
@_spec_options
@all_options
@click.pass_context
def update(ctx: click.Context, name: str, **choices: Any) -> None:
    """Change a tenant; what is not named stays as it is."""
    if all(value in (None, ()) for value in choices.values()):
        raise click.UsageError("nothing to change: name one of the options", ctx)
    from flame.cli.api import open_api
    from flame.proto import types_pb2 as ty

    # What is wrong in the options is found before anything is asked.
    _change(ty.TenantSpec(), **choices)
    with open_api(settings_of(ctx)) as api:
        spec = api.tenant(name).spec
        _change(spec, **choices)
        _done(ctx, api.update_tenant(name, spec), "was updated")


@click.command()
@click.argument("name", shell_complete=completing.tenants)
@all_options
@click.pass_context
def delete(ctx: click.Context, name: str) -> None:
    """Delete a tenant that has no tenants below it and no sessions."""
    from flame.cli.api import open_api

    with open_api(settings_of(ctx)) as api:
        _done(ctx, api.delete_tenant(name), "was deleted")


@click.command("list")
@all_options
@click.pass_context
def list_tenants(ctx: click.Context) -> None:
    """List the tenants as a tree, with their shares."""
    from flame.cli.api import open_api
    from flame.cli.objects.tenants import tenant_kind, tree
    from flame.cli.output import show_list

    settings = settings_of(ctx)
    with open_api(settings) as api:
        tenants, depths = tree(api.tenants())
    show_list(tenants, tenant_kind(depths), settings.output)


@click.command()
@click.argument("name", shell_complete=completing.tenants)
@all_options
@click.pass_context
def view(ctx: click.Context, name: str) -> None:
    """Show one tenant in full."""
    from flame.cli.api import open_api
    from flame.cli.objects.tenants import tenant_kind
    from flame.cli.output import show_one

    settings = settings_of(ctx)
    with open_api(settings) as api:
        show_one(api.tenant(name), tenant_kind(), settings.output)


def _change(
    spec: ty.TenantSpec,
    *,
    parent: str | None,
    weight: float | None,
    guarantee: tuple[str, ...],
    quota: tuple[str, ...],
    description: str | None,
) -> None:
    """Write the chosen options into the spec. Raises InvalidArgumentError."""
    from flame.cli.limits import GUARANTEE, QUOTA, change_guarantee, change_quota, read_limits

    if parent is not None:
        spec.parent = parent
    if weight is not None:
        spec.weight = weight
    if description is not None:
        spec.description = description
    change_guarantee(spec.guarantee, read_limits(guarantee, GUARANTEE, "guarantee"))
    change_quota(spec.quota, read_limits(quota, QUOTA, "quota"))


def _done(ctx: click.Context, tenant: ty.Tenant, what: str) -> None:
    from flame.cli.objects.tenants import tenant_kind
    from flame.cli.output import show_one

    output = settings_of(ctx).output
    if output in ("table", "wide"):
        print(f"Tenant <{tenant.metadata.name}> {what}.")
    else:
        show_one(tenant, tenant_kind(), output)
