"""The host shim: an instance is a program that uses an SDK. It speaks the link, or listens on a gRPC socket.

A new process is started for an executor, or one that was started ahead (pool.py) is bound to it. Until then such a
process has an id and a token that mean something only between the two of them.
"""

from __future__ import annotations

import asyncio
from functools import partial
from pathlib import Path

from flame.model.errors import UnavailableError
from flame.model.states import BindCode
from flame.shims import grpc_dialect
from flame.shims.either_door import EitherDoor, EitherStream
from flame.shims.gvisor_root import NOBODY
from flame.shims.instance import ProgramInstance
from flame.shims.link_dialect import LinkDialect
from flame.shims.pool import Pool
from flame.shims.reception import Arrival, Reception
from flame.shims.shim import BindError, Dialect, Launch, Owner
from flame.shims.stdio_framed import FramedStream
from flame.shims.streams import StreamDoor
from flame.shims.warm import WarmLimits
from flame.shims.workplace import Workshop


class HostShim:
    """Starts programs that use an SDK."""

    missing = ""

    def __init__(self, workshop: Workshop, reception: Reception, warm: WarmLimits) -> None:
        self._workshop = workshop
        self._reception = reception
        self._pool: Pool[ProgramInstance] = Pool(self._spawn, warm)

    async def prepare(self, launch: Launch) -> Launch:
        """Install the application's package if it is not there yet. Raises BindError with code 10."""
        return await self._workshop.prepare(launch)

    async def start(self, launch: Launch, owner: Owner) -> ProgramInstance:
        """Start the application's command, or take a process of it that waits. Raises BindError with code 11."""
        instance = self._pool.starting(launch)
        try:
            if instance is None:
                instance = await self._spawn(launch, owner)
            else:
                await self._bind(instance, launch, owner)
        except BaseException:
            self._pool.over(launch.executor_id)
            raise
        instance.on_entered = partial(self._pool.entered, launch)
        instance.on_disposed = partial(self._pool.over, launch.executor_id)
        return instance

    async def close(self) -> None:
        """End the processes that wait for an executor, and start no more of them; returns when they are gone."""
        await self._pool.close()

    async def _bind(self, instance: ProgramInstance, launch: Launch, owner: Owner) -> None:
        try:
            instance.bind(owner)
            instance.place.claim(launch)
        except OSError as error:
            instance.kill()
            await instance.ended
            await instance.dispose()
            raise BindError(BindCode.START, f"can't make the executor's folder: {error}") from error

    async def _spawn(self, launch: Launch, owner: Owner) -> ProgramInstance:
        if self._workshop.confinement.streams(launch):
            return await self._spawn_with_streams(launch, owner)
        try:
            guests = (NOBODY,) if launch.root is not None else ()
            arrival = self._reception.expect(launch.executor_id, launch.token, link=True, guests=guests)
        except OSError as error:
            raise BindError(BindCode.START, f"can't make a folder for the instance's socket: {error}") from error
        door = HostDoor(self._reception, arrival, owner, self._workshop.surroundings.max_payload)
        try:
            link = arrival.link_path
            variables = {"FLAME_INSTANCE_LINK": str(link), "FLAME_INSTANCE_ENDPOINT": str(arrival.socket)}
            place = await self._workshop.open(launch, variables, [link, arrival.folder])
        except BaseException:
            await door.close()
            raise
        instance = ProgramInstance(place, door, owner)
        try:
            await instance.run(place.program)
        except BaseException:
            await instance.dispose()
            raise
        return instance

    async def _spawn_with_streams(self, launch: Launch, owner: Owner) -> ProgramInstance:
        """No socket of ours reaches where it runs."""
        inside = self._workshop.confinement.door(launch)
        if inside is not None:
            return await self._spawn_with_either(launch, owner, inside)
        place = await self._workshop.open(launch, {"FLAME_INSTANCE_STDIO": "framed"})
        door = StreamDoor(FramedStream(owner, place.max_payload, place.objects))
        return await door.start(place, owner)

    async def _spawn_with_either(self, launch: Launch, owner: Owner, inside: Path) -> ProgramInstance:
        """It may make a socket `inside`, which appears here."""
        try:
            arrival = self._reception.expect(launch.executor_id, launch.token, link=False)
        except OSError as error:
            raise BindError(BindCode.START, f"can't make a folder for the instance's socket: {error}") from error
        try:
            variables = {"FLAME_INSTANCE_STDIO": "framed", "FLAME_INSTANCE_ENDPOINT": str(inside)}
            place = await self._workshop.open(launch, variables, [arrival.folder])
        except BaseException:
            await self._reception.forget(arrival)
            raise
        stream = EitherStream(owner, place.max_payload, place.objects, partial(place.log.append, "stdout"))
        door = EitherDoor(stream, self._reception, arrival, owner, place.max_payload)
        return await door.start(place, owner)


class HostDoor:
    """The link, or a gRPC socket: whichever comes first."""

    def __init__(self, reception: Reception, arrival: Arrival, owner: Owner, max_payload: int) -> None:
        self.over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.over.set_result(None)
        self._reception = reception
        self._arrival = arrival
        self._owner = owner
        self._max_payload = max_payload

    @property
    def hint(self) -> str:
        return self._arrival.hint

    async def ready(self) -> Dialect:
        arrival = self._arrival
        await asyncio.wait({arrival.link, arrival.file}, return_when=asyncio.FIRST_COMPLETED)
        if arrival.link.done():
            dialect: Dialect = LinkDialect(arrival.link.result(), self._owner)
        else:
            dialect = await grpc_dialect.connect(arrival, self._owner, self._max_payload)
        self._reception.settled(arrival)
        return dialect

    def bind(self, owner: Owner) -> None:
        self._owner = owner

    def last_call(self) -> None:
        pass

    async def close(self) -> None:
        link = self._arrival.link
        if link.done() and not link.cancelled() and link.exception() is None:
            link.result().close(UnavailableError("the executor has ended"))
        await self._reception.forget(self._arrival)
