"""The wasm shim: an instance is a worker process of ours that runs a component (docs/wasm.md).

The worker (flame.wasm.worker) is a program of the host shim, at any level of isolation, and may be started ahead. This
module only finds the component and has it compiled before.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import sys
from pathlib import Path

import msgspec

from flame.model.errors import InvalidArgumentError
from flame.model.states import BindCode
from flame.proto import types_pb2
from flame.shims.environment import environment, expand
from flame.shims.furnished import Furnished
from flame.shims.host import HostShim
from flame.shims.shim import BindError, Instance, Launch, Owner
from flame.shims.wasm_modules import Modules
from flame.shims.wasm_options import WasmOptions, options_of
from flame.shims.workplace import Workshop, in_words

_WORKER = ("-I", "-m", "flame.wasm.worker")
_OTHER_PROCESSORS = ("gvisor", "microvm")  # levels where some of what this machine's processor can do is missing


class WasmShim:
    """Starts workers for components."""

    def __init__(self, host: HostShim, workshop: Workshop, modules: Modules, missing: str = "") -> None:
        self.missing = missing
        self._host = host
        self._workshop = workshop
        self._modules = modules

    @classmethod
    def find(cls, host: HostShim, workshop: Workshop, folder: Path) -> WasmShim:
        """Look whether this node can compile and run components. What it compiles is kept in `folder`. Raises
        OSError."""
        if importlib.util.find_spec("wasmtime") is None:
            missing = "wasmtime is not installed; pip install 'flame-engine[wasm]'"
            return cls(host, workshop, Modules(workshop, folder, ""), missing)
        modules = Modules(workshop, folder, importlib.metadata.version("wasmtime"))
        modules.open()
        return cls(host, workshop, modules)

    async def prepare(self, launch: Launch) -> Launch:
        """Install the application's package, compile its component, if they are not there yet. Raises BindError."""
        launch = await self._workshop.prepare(launch)
        application = launch.application
        try:
            options = options_of(application.labels, self._workshop.confinement.held(launch).memory)
        except InvalidArgumentError as error:
            raise BindError(BindCode.START, in_words(error)) from None
        component = self._component(launch)
        module = await self._modules.provide(
            component, fuel=bool(options.fuel), portable=application.isolation in _OTHER_PROCESSORS
        )
        launch = msgspec.structs.replace(
            launch, package=Furnished(launch.package, module.identity, module.hold, module.release)
        )
        return msgspec.structs.replace(launch, application=_worker(application, module.path, options))

    async def start(self, launch: Launch, owner: Owner) -> Instance:
        """Start a worker for what was compiled, or take one that waits. Raises BindError with code 11."""
        return await self._host.start(launch, owner)

    def _component(self, launch: Launch) -> Path:
        """The file that the command names: below the package, if there is one, else below the working directory."""
        around = self._workshop.confinement.surroundings(launch, self._workshop.surroundings)
        env = environment(launch, around, Path("/tmp"))
        command = expand(launch.application.command, env, around.environ)
        if not command:
            raise BindError(BindCode.START, "the application has no command: it must name the file of a component")
        package = launch.package.variables.get("FLAME_APP_DIR", "") if launch.package is not None else ""
        below = package or launch.application.working_directory
        path = Path(below, command)
        if not path.is_absolute():
            raise BindError(
                BindCode.START,
                f"component {command!r} is no absolute path; only those of packages, or with a working_directory, are"
                " relative",
            )
        if not path.is_file():
            raise BindError(BindCode.START, f"component {str(path)!r} does not exist on this node")
        return path


def _worker(application: types_pb2.ApplicationSpec, compiled: Path, options: WasmOptions) -> types_pb2.ApplicationSpec:
    """The application as the worker is started for it."""
    found = types_pb2.ApplicationSpec()
    found.CopyFrom(application)
    found.command = sys.executable
    variables = "=".join(dict.fromkeys(item.name for item in application.environments))
    arguments = [str(compiled), str(options.fuel), str(options.memory), variables, application.command]
    found.arguments[:] = [*_WORKER, *arguments, *application.arguments]
    found.working_directory = ""  # a component sees no folder
    return found
