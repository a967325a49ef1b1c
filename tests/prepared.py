"""Services that prepare themselves before they know of a session, to be saved then and copied."""

from __future__ import annotations

import time
from pathlib import Path

from scripted_manager import Node
from untrusted import SERVICE, ask

PREPARED = SERVICE.replace(
    "class Untrusted(FlameService):",
    """import random, secrets, ssl, uuid
    state = []
    class Untrusted(FlameService):
        def on_prepare(self):
            state.append(time.monotonic())
            state.append('FLAME_EXECUTOR_ID' in os.environ or 'FLAME_INSTANCE_TOKEN' in os.environ)""",
)
ASYNC = """
    import asyncio
    class Waiting(FlameService):
        async def on_prepare(self):
            await asyncio.sleep(0)
            self.loop = asyncio.get_running_loop()
        async def on_task_invoke(self, context):
            return b'the same' if asyncio.get_running_loop() is self.loop else b'another'
    run(Waiting())
"""
FAILS = """
    class Failing(FlameService):
        def on_prepare(self):
            raise RuntimeError('no model here')
    run(Failing())
"""


def program(folder: Path, source: str, name: str) -> str:
    """The path of a program with one of these services, the same for all that give it this name."""
    file = folder / f"{name}.py"
    if not file.exists():
        file.write_text("import os, sys, time\nfrom flame.service import *\n" + source.replace("\n    ", "\n"))
    return str(file)


async def are_apart(node: Node, one: int, other: int) -> None:
    """Assert that two copies of PREPARED share nothing but that."""
    # What one session leaves behind is not another's.
    assert await ask(node, one, "state.append('mine'); open('/tmp/mine', 'w').close(); answer = len(state)") == 3
    assert await ask(node, other, "answer = [len(state), os.path.exists('/tmp/mine')]") == [2, False]
    # Who it is, what time it is, and chance.
    for channel in (one, other):
        known = await ask(node, channel, "answer = [os.environ['FLAME_EXECUTOR_ID'], os.environ['FLAME_SESSION_ID']]")
        assert known == [node.manager.executor_id(channel), f"session-{channel}"]
        assert await ask(node, channel, "answer = 'FLAME_SNAPSHOT_FD' in os.environ") is False
        assert abs(await ask(node, channel, "answer = time.time()") - time.time()) < 5
    for source in ("random.random()", "secrets.token_hex()", "str(uuid.uuid4())", "ssl.RAND_bytes(8).hex()"):
        drawn = [await ask(node, channel, f"answer = {source}") for channel in (one, other)]
        assert drawn[0] != drawn[1], source
