"""The SDK for clients: connections, sessions, futures; synchronous, and for asyncio in `flame.aio`."""
