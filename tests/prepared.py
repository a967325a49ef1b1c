"""Services that prepare themselves before they know of a session, to be saved then and copied."""

from __future__ import annotations

from untrusted import SERVICE

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
