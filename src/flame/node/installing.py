"""The packages of a node: the store in its folder, with installers that run below the node's keeper.

So an installer ends with everything it started when it is told to, and when the executor manager is killed.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import shutil
import signal
import sys
from pathlib import Path

from flame.node.settings import NodeSettings
from flame.packages.installers import Command, Run, Tools
from flame.packages.store import Store
from flame.shims.processes import Keeper, Program, describe_status


def open_store(settings: NodeSettings, keeper: Keeper, executors: Path) -> Store:
    """The node's packages. Raises OSError."""
    folder = settings.packages or settings.work_dir / "packages"
    tools = Tools(
        environ=os.environ, bin_dir=Path(sys.executable).parent, cache=folder / "cache", run=below(keeper, executors)
    )
    return Store(folder, tools, settings.package_limits, settings.cache_ca_file or settings.ca_file)


def below(keeper: Keeper, folder: Path) -> Run:
    """Runs commands as the keeper runs instances. Each has a folder in `folder` meanwhile, by whose name it is found
    after the keeper itself was killed (node/folders.py)."""

    async def run(command: Command, output: int) -> str:
        identity = f"install-{secrets.token_hex(8)}"
        own = folder / identity
        own.mkdir(mode=0o700)
        env = {**command.env, "FLAME_INSTANCE_ID": identity, "TMPDIR": str(own)}
        try:
            program = Program(command.argv[0], command.argv, env, str(command.cwd))
            process = await keeper.spawn(identity, program, output, output)
            try:
                status = await asyncio.shield(process.ended)
            except asyncio.CancelledError:
                process.signal(signal.SIGKILL)
                await asyncio.wait({process.ended})
                raise
        finally:
            await asyncio.to_thread(shutil.rmtree, own, ignore_errors=True)
        return describe_status(status) if status else ""

    return run
