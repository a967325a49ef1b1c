"""flmctl deploy."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from flame.cli import completing
from flame.cli.bounds import whole
from flame.cli.options import Settings, all_options, settings_of
from flame.cli.session_options import env_option

if TYPE_CHECKING:
    from flame.cli.deploying import Deployment
    from flame.model.specs import ApplicationSchema, ApplicationSpec
    from flame.packages.detection import Detected
    from flame.packages.storage import PackageStorage

_TITLES = {
    "created": "Application <{}> deployed.",
    "updated": "Application <{}> deployed.",
    "unchanged": "Application <{}> is deployed already.",
}


@click.command()
@click.option(
    "--name", required=True, metavar="NAME", help="Of the application.", shell_complete=completing.applications
)
@click.option("--application", "path", metavar="PATH", help="A folder, an archive, a wheel or a program.")
@click.option("--rollback", is_flag=True, help="Go back to the package before the current one.")
@click.option("--keep", type=whole(1), metavar="N", help="Then remove all packages of it but the N youngest.")
@click.option("--dry-run", is_flag=True, help="Only say what would be done.")
@click.option("--storage", metavar="URL", help="Where packages are kept: file://, http(s)://, grpc(s):// or s3://.")
@click.option("--exclude", "excludes", multiple=True, metavar="PATTERN", help="What of a folder is left out.")
@click.option("--installer", metavar="NAME", help="python or binary (default: what the files tell).")
@click.option("--command", metavar="TEXT", help="What starts the service (default: what the files tell).")
@click.option("--argument", "arguments", multiple=True, metavar="TEXT", help="An argument of it; --argument=-m.")
@env_option
@click.option("--python", "python", metavar="VERSION", help="The version of Python, such as 3.12.")
@click.option("--shim", metavar="NAME", default="host", help="How instances run (host).")
@click.option("--image", metavar="TEXT", help="For shims that run images.")
@click.option("--description", metavar="TEXT", help="What it is for.")
@click.option("--label", "labels", multiple=True, metavar="TEXT", help="A label; may be repeated.")
@click.option("--working-directory", metavar="PATH", help="Where instances run (default: a folder for each).")
@click.option("--max-instances", type=whole(1), metavar="N", help="Instances of one session at most.")
@click.option("--delay-release", type=whole(), metavar="SECONDS", help="Idle instances wait so long (60).")
@click.option("--warm-instances", type=whole(), metavar="N", default=0, help="Started ahead on each node (0).")
@click.option("--schema-input", metavar="JSON", help="The JSON Schema of a task's input.")
@click.option("--schema-output", metavar="JSON", help="The JSON Schema of a task's output.")
@click.option("--schema-common-data", metavar="JSON", help="The JSON Schema of a session's common data.")
@all_options
@click.pass_context
def deploy(
    ctx: click.Context,
    name: str,
    path: str | None,
    rollback: bool,
    keep: int | None,
    dry_run: bool,
    storage: str | None,
    excludes: tuple[str, ...],
    **chosen: Any,
) -> None:
    """Package an application, send it to the cluster's nodes, and register it.

    What is there already is not sent again, and an application that would not change is left alone. Its registration
    changes last: when anything fails before, nothing has happened. An application with open sessions is not changed.

    --keep works alone, too. The package that is registered and the one for --rollback always stay.
    """
    if rollback if path is not None else not rollback and keep is None:
        raise click.UsageError("give one of --application and --rollback, or --keep", ctx)
    import tempfile

    from flame.cli.api import open_api
    from flame.cli.deploying import Deployer
    from flame.cli.progress import StatusLine
    from flame.engine.applications import check_name
    from flame.packages.detection import detect
    from flame.packages.sources import open_source

    settings = settings_of(ctx)
    settings.start = False  # a cluster that ends with this command needs no deployment
    check_name(name)
    place, left_out = _storage(settings, storage)
    if path is None:
        with open_api(settings) as api:
            deployer = Deployer(api, place, name, dry_run=dry_run)
            done = deployer.roll_back() if rollback else None
            removed = deployer.clean(keep, done) if keep is not None else []
        if done is not None:
            _show(name, "package in the storage", done, removed, settings.output, dry_run=dry_run)
        else:
            _show_removed(name, removed, settings.output, dry_run=dry_run)
        return
    with tempfile.TemporaryDirectory(prefix="flame-") as work:
        source = open_source(Path(path), Path(work), (*left_out, *excludes))
        spec = _spec(ctx, detect(source.folder, name), chosen)
        built = source.pack(Path(work) / "package")
        with open_api(settings) as api, StatusLine() as line:

            def progress(sent: int) -> None:
                line.show(f"sending {sent:,} of {built.size:,} bytes")

            deployer = Deployer(api, place, name, dry_run=dry_run)
            done = deployer.deploy(spec, built, progress)
            removed = deployer.clean(keep, done) if keep is not None else []
    _show(name, source.kind, done, removed, settings.output, dry_run=dry_run)


def _storage(settings: Settings, chosen: str | None) -> tuple[PackageStorage, tuple[str, ...]]:
    """Where packages go, and what the user's settings leave out of them. Raises InvalidConfigError.

    The cluster on this machine has a folder of this user for them unless something else is configured.
    """
    from flame.config import load_context
    from flame.local.folders import state_root
    from flame.model.errors import InvalidConfigError
    from flame.packages.storage import open_storage

    context = load_context(settings.config, context=settings.context)
    base = chosen or (context.package.storage if context.package is not None else None)
    if base is None and context.cache is not None:
        base = context.cache.endpoint
    if base is None and not (settings.endpoint or context.endpoint):
        base = (state_root() / "packages").absolute().as_uri()
    if base is None:
        raise InvalidConfigError(
            "there is no place for packages that the cluster's nodes can reach",
            remedy="give --storage, or set package.storage or cache.endpoint in ~/.flame/flame.yaml",
        )
    excludes = context.package.excludes if context.package is not None else ()
    return open_storage(base, context.cache.tls if context.cache is not None else context.tls), excludes


def _spec(ctx: click.Context, found: Detected, chosen: Mapping[str, Any]) -> ApplicationSpec:
    """The registration, from what the files tell and what was chosen. Raises click.UsageError, FlameError."""
    from flame.config.executors import SHIMS
    from flame.model.specs import DEFAULT_DELAY_RELEASE, DEFAULT_MAX_INSTANCES, ApplicationSpec
    from flame.packages.installers import PYTHON_VERSION, check_installer, python_version

    installer = check_installer(chosen["installer"] or found.installer)
    command, arguments = found.command, found.arguments
    if chosen["command"]:
        command, arguments = chosen["command"], chosen["arguments"]
    elif chosen["arguments"]:
        arguments = chosen["arguments"]
    if not command:
        raise click.UsageError(f"unable to detect the command: {found.why}; give it with --command", ctx)
    if chosen["shim"].lower() not in SHIMS:
        raise click.UsageError(f"unknown shim {chosen['shim']!r}; there are {', '.join(SHIMS)}", ctx)
    environments = dict(_variable(ctx, entry) for entry in chosen["env"])
    if chosen["python"]:
        environments[PYTHON_VERSION] = chosen["python"]
    python_version(environments)
    return ApplicationSpec(
        shim=SHIMS[chosen["shim"].lower()],
        description=chosen["description"],
        labels=chosen["labels"],
        image=chosen["image"],
        command=command,
        arguments=arguments,
        environments=environments,
        working_directory=chosen["working_directory"],
        max_instances=chosen["max_instances"] or DEFAULT_MAX_INSTANCES,
        delay_release=DEFAULT_DELAY_RELEASE if chosen["delay_release"] is None else chosen["delay_release"],
        schema=_schema(ctx, chosen),
        installer=installer,
        warm_instances=chosen["warm_instances"],
    )


def _schema(ctx: click.Context, chosen: Mapping[str, Any]) -> ApplicationSchema | None:
    import json

    from flame.model.specs import ApplicationSchema

    parts: dict[str, str | None] = {part: chosen[f"schema_{part}"] for part in ("input", "output", "common_data")}
    for part, text in parts.items():
        try:
            json.loads(text or "{}")
        except ValueError as error:
            raise click.UsageError(f"--schema-{part.replace('_', '-')} is not JSON: {error}", ctx) from None
    return ApplicationSchema(**parts) if any(parts.values()) else None


def _variable(ctx: click.Context, entry: str) -> tuple[str, str]:
    name, separator, value = entry.partition("=")
    if not name or not separator:
        raise click.UsageError(f"invalid environment {entry!r}; expected NAME=VALUE", ctx)
    return name, value


def _show_removed(name: str, removed: list[str], output: str, *, dry_run: bool) -> None:
    """Print which packages went."""
    from flame.cli.output import write_json, write_yaml

    if output in ("json", "yaml"):
        document = {"name": name, "removed": removed, "dry_run": dry_run}
        write_json(document) if output == "json" else write_yaml(document)
        return
    would = "would be " if dry_run else ""
    print("\n".join(removed) if output == "name" else f"<{len(removed)}> packages of <{name}> {would}removed.")


def _show(name: str, kind: str, done: Deployment, removed: list[str], output: str, *, dry_run: bool) -> None:
    """Print what was done in the chosen form; YAML is the document that `flmctl register` reads."""
    from flame.cli.objects.applications import APPLICATIONS
    from flame.cli.output import page, write_json, write_yaml
    from flame.proto import types_pb2 as ty
    from flame.proto.values import application_spec_message

    spec = done.spec
    message = ty.Application(metadata=ty.Metadata(id=name, name=name), spec=application_spec_message(spec))
    document = APPLICATIONS.document(message)
    del document["status"]
    if output == "yaml":
        write_yaml(document)
    elif output == "name":
        print(name)
    elif output == "json":
        write_json(
            {
                "name": name,
                "action": done.action,
                "input_kind": kind,
                "installer": spec.installer,
                "command": spec.command,
                "arguments": list(spec.arguments),
                "object_key": f"{name}/pkg/{done.name}",
                "url": spec.url,
                "sha256": done.digest,
                "sent": done.sent,
                "removed": removed,
                "dry_run": dry_run,
                "application": document,
            }
        )
    else:
        print(f"Application <{name}> deploy plan." if dry_run else _TITLES[done.action].format(name))
        rows: list[tuple[str, object]] = [
            ("Action", done.action),
            ("Input Kind", kind),
            ("Installer", spec.installer),
            ("Command", spec.command),
            ("Arguments", " ".join(spec.arguments)),
            ("Object", f"{name}/pkg/{done.name}" + ("" if done.sent else " (there already)")),
            ("SHA256", done.digest),
            ("URL", spec.url),
            ("Removed", ", ".join(removed)),
            ("Dry Run", "true" if dry_run else ""),
        ]
        for line in page([row for row in rows if row[1]]):
            print(line)
