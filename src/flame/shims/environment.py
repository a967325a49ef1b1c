"""What a program finds when it starts as an instance: environment, arguments, folders."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path

import msgspec

from flame.model.states import BindCode
from flame.proto import types_pb2
from flame.shims.processes import Program
from flame.shims.shim import BindError, Launch

_VARIABLE = re.compile(r"\$(?:(\w+)|\{(\w+)\})", re.ASCII)
_DEFAULT_PATH = "/usr/local/bin:/usr/bin:/bin"
_LISTS = ("PATH", "PYTHONPATH", "LD_LIBRARY_PATH")  # what a package brings goes before the rest


class Surroundings(msgspec.Struct, frozen=True):
    """What is the same for all instances of a node. `environ` is the executor manager's own environment; of it only
    what `environment` names is passed on."""

    environ: Mapping[str, str]
    bin_dir: Path  # goes first in PATH: the commands that were installed beside Flame
    max_payload: int
    endpoint: str = ""
    cache_endpoint: str = ""
    ca_file: str = ""


def expand(text: str, *sources: Mapping[str, str]) -> str:
    """`$NAME` and `${NAME}` replaced by the value in the first source that has it; others stay as they are."""

    def value(match: re.Match[str]) -> str:
        name = match[1] or match[2]
        return next((source[name] for source in sources if name in source), match[0])

    return _VARIABLE.sub(value, text)


def environment(launch: Launch, around: Surroundings, tmp: Path) -> dict[str, str]:
    """The environment of an instance, but for how it is talked to. `tmp` is its own folder."""
    own = around.environ
    level = own.get("RUST_LOG", "info")
    context = launch.context
    as_written = launch.as_written.variables
    found = {
        item.name: item.value if item.name in as_written else expand(item.value, own)
        for item in launch.application.environments
    }
    defaults = {
        "PATH": f"{around.bin_dir}:{own.get('PATH') or _DEFAULT_PATH}",
        "HOME": own.get("HOME", "/"),
        "TMPDIR": str(tmp),
        "TEMP": str(tmp),
        "TMP": str(tmp),
        # What a service prints shall be in its log at once, and all of it when it is killed.
        "PYTHONUNBUFFERED": "1",
        **_for_torch(context.gang),
    }
    fixed = {
        "RUST_LOG": level,
        "FLAME_LOG": own.get("FLAME_LOG", level),
        "FLAME_INSTANCE_TOKEN": launch.token,
        # Stays what it is for all that the instance starts: the keeper knows them by it.
        "FLAME_INSTANCE_ID": launch.executor_id,
        "FLAME_EXECUTOR_ID": launch.executor_id,
        "FLAME_APPLICATION": context.application.name,
        "FLAME_MAX_PAYLOAD": str(around.max_payload),
    }
    if context.HasField("gang"):
        fixed["FLAME_GANG_RANK"] = str(context.gang.rank)
        fixed["FLAME_GANG_SIZE"] = str(context.gang.world_size)
        fixed["FLAME_GANG_ADDRESSES"] = ",".join(context.gang.addresses)
    optional = {
        "FLAME_SESSION_ID": context.session_id,  # not known yet when it is started ahead
        "FLAME_ENDPOINT": around.endpoint,
        "FLAME_CACHE_ENDPOINT": around.cache_endpoint,
        "FLAME_CA_FILE": around.ca_file,
    }
    fixed.update((name, value) for name, value in optional.items() if value)
    if launch.devices is not None:
        fixed["CUDA_VISIBLE_DEVICES"] = launch.devices
    merged = {**defaults, **found, **fixed}
    package: Mapping[str, str] = launch.package.variables if launch.package is not None else {}
    for name, value in package.items():
        if name in _LISTS:
            own = merged.get(name)
            merged[name] = f"{value}:{own}" if own else value
        else:
            merged.setdefault(name, value)
    return merged


def _for_torch(gang: types_pb2.Gang) -> dict[str, str]:
    """What programs for `torch.distributed` look for. Each member sees its own GPUs only, so it is the first, and the
    only one, of those that share them."""
    if not gang.world_size:
        return {}
    found = {
        "RANK": str(gang.rank),
        "WORLD_SIZE": str(gang.world_size),
        "LOCAL_RANK": "0",
        "LOCAL_WORLD_SIZE": "1",
    }
    if gang.addresses:
        host, _, port = gang.addresses[0].rpartition(":")
        found["MASTER_ADDR"], found["MASTER_PORT"] = host.strip("[]"), port
    return found


def working_directory(application: types_pb2.ApplicationSpec, own: Path) -> Path:
    """The application's working directory, made if it is missing, else the executor's own. Raises BindError."""
    if not application.working_directory:
        return own
    path = Path(application.working_directory)
    if not path.is_absolute():
        raise BindError(BindCode.START, f"working_directory {str(path)!r} is not an absolute path")
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BindError(BindCode.START, f"can't use working_directory {str(path)!r}: {error.strerror}") from error
    return path


def program(
    application: types_pb2.ApplicationSpec, env: dict[str, str], own_environ: Mapping[str, str], cwd: Path
) -> Program:
    """The program that the application's command names. Raises BindError."""
    command = expand(application.command, env, own_environ)
    if not command:
        raise BindError(BindCode.START, "the application has no command")
    if "/" in command:
        path = cwd / command
        if not path.is_file():
            raise BindError(BindCode.START, f"command {command!r} does not exist on this node")
        if not os.access(path, os.X_OK):
            raise BindError(BindCode.START, f"command {command!r} is not executable")
        found = str(path)
    else:
        found = shutil.which(command, path=env["PATH"])
        if found is None:
            raise BindError(BindCode.START, f"command {command!r} was not found in PATH ({env['PATH']})")
    arguments = [expand(argument, env, own_environ) for argument in application.arguments]
    return Program(found, [command, *arguments], env, str(cwd))


def program_of_image(
    application: types_pb2.ApplicationSpec, env: dict[str, str], cwd: Path, as_written: int = 0
) -> Program:
    """The program of a command that is a path in an image. `cwd` is where it is started from outside, and the first
    arguments, `as_written` of them, are the image's own."""
    given = application.arguments
    arguments = [*given[:as_written], *(expand(argument, env) for argument in given[as_written:])]
    return Program(application.command, [application.command, *arguments], env, str(cwd))
