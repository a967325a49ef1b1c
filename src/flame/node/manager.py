"""The executor manager: its link to the session manager, and the executors behind it.

While the link is down the executors go on. What they say meanwhile waits in the outbox and leaves after the next
WELCOME, and HELLO reports every executor and task that the session manager has not heard the last of.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import sys
import uuid
from collections.abc import AsyncIterator, Coroutine
from pathlib import Path

import msgspec
from google.protobuf.message import DecodeError

from flame.link import Frame, Kind, Link
from flame.model.errors import FlameError, InvalidConfigError, NotFoundError, ProtocolError
from flame.model.resources import Resources
from flame.model.states import ExecutorState
from flame.node import capacity
from flame.node.description import LOOPBACK, describe, own_address
from flame.node.dialer import Dialer
from flame.node.executor import Executor
from flame.node.folders import Folders
from flame.node.installing import open_store
from flame.node.relay import open_relay
from flame.node.settings import NodeSettings
from flame.node.shims import choose, find_shims, labels, missing
from flame.proto import frontend_pb2, link_pb2, types_pb2
from flame.shims.environment import Surroundings
from flame.shims.host import HostShim
from flame.shims.isolation import Confinement
from flame.shims.logs import LogStore
from flame.shims.processes import Keeper
from flame.shims.reception import Reception, default_socket_root
from flame.shims.warm import WarmLimits
from flame.shims.workplace import Workshop

logger = logging.getLogger("flame.node")

# Results that the session manager has not taken; above, instances must wait with theirs.
_MAX_AHEAD = 8 * 1024 * 1024
_PRUNE_S = 60.0


class ExecutorManager:
    """One node. `start` returns when it is ready to connect; it goes on connecting for ever until `stop`."""

    def __init__(self, settings: NodeSettings) -> None:
        self.settings = settings
        self.executors: dict[int, Executor] = {}  # by channel; those whose Released was not sent too
        self.connected = asyncio.Event()
        self._boot_id = uuid.uuid4().hex
        self._machine = capacity.Machine(Resources())
        self._link: Link | None = None
        self._outbox: list[Frame] = []
        self._unsent = 0  # bytes in it
        self._paused = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._lives: set[asyncio.Task[None]] = set()  # of executors, to the end of their cleaning up
        self._address = LOOPBACK
        self._dialer: Dialer

    @property
    def boot_id(self) -> str:
        """Made anew for each object."""
        return self._boot_id

    @property
    def congested(self) -> bool:
        """Whether instances wait with their results because the session manager does not read."""
        return self._paused

    async def start(self) -> None:
        """Set up what instances need and begin to connect. Raises InvalidConfigError."""
        settings = self.settings
        self._dialer = Dialer(settings)
        found = await asyncio.to_thread(capacity.detect)
        self._machine = capacity.offered(found, settings.capacity, settings.devices, settings.gpu_fraction)
        root = settings.socket_dir or default_socket_root()
        try:
            self._folders = await asyncio.to_thread(Folders.take, settings.work_dir, root)
        except OSError as error:
            raise InvalidConfigError(f"can't use the folders of this node: {error}") from error
        try:
            self._logs = LogStore(settings.work_dir / "logs", settings.log_bytes, settings.log_keep)
            self._reception = Reception(self._folders.sockets, settings.max_payload, self._folders.doors)
            await self._reception.open()
        except OSError as error:
            self._folders.release()
            raise InvalidConfigError(f"can't use the folders of this node: {error}") from error
        except BaseException:
            self._folders.release()
            raise
        hidden = [settings.work_dir, root]
        try:
            self._confinement = await asyncio.to_thread(Confinement.find, settings.work_dir / "isolation", hidden)
        except OSError as error:
            await self._reception.close()
            self._folders.release()
            raise InvalidConfigError(f"can't use the folders of this node: {error}") from error
        self._able = self._confinement.labels()
        for why in self._confinement.missing():
            logger.info("node %s: %s", settings.name, why)
        self._keeper = Keeper(remove=[self._folders.sockets, self._folders.doors])
        try:
            self._packages = await asyncio.to_thread(open_store, settings, self._keeper, self._folders.executors)
        except OSError as error:
            await self._reception.close()
            self._folders.release()
            raise InvalidConfigError(f"can't use the folder of this node's packages: {error}") from error
        self._keeper.start()
        surroundings = Surroundings(
            environ=os.environ,
            bin_dir=Path(sys.executable).parent,
            max_payload=settings.max_payload,
            endpoint=settings.endpoint,
            cache_endpoint=settings.cache_endpoint,
            ca_file=settings.ca_file,
        )
        warm = WarmLimits(
            budget=settings.warm_instances,
            idle=settings.warm_idle,
            start_timeout=settings.start_timeout,
            terminate_grace=settings.terminate_grace,
        )
        self._objects = open_relay(settings, self._folders.sockets)
        workshop = Workshop(
            self._keeper,
            self._logs,
            self._folders.executors,
            self._folders.sockets,
            surroundings,
            self._packages,
            self._confinement,
            self._objects,
        )
        self._host = HostShim(workshop, self._reception, warm)
        self._shims = await asyncio.to_thread(
            find_shims, self._host, workshop, self._reception, settings.work_dir / "shims", settings.image_limits
        )
        self._able.update(labels(self._shims))
        for why in missing(self._shims):
            logger.info("node %s: %s", settings.name, why)
        self._background(self._stay_connected())
        self._background(self._prune_logs())

    async def stop(self) -> None:
        """End all executors and the link; returns when no process of this node runs any more."""
        for executor in list(self.executors.values()):
            executor.stop("the node stops", self.settings.stop_grace)
        await self._host.close()
        await self._packages.close()
        if self._lives:
            await asyncio.wait(self._lives)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._link is not None:
            link, self._link = self._link, None
            link.close()
            await link.wait_closed()
        self.connected.clear()
        await self._reception.close()
        if self._objects is not None:
            await asyncio.to_thread(self._objects.close)
        await self._keeper.close()
        await asyncio.to_thread(self._confinement.release)
        self._folders.release()

    def _background(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # --- the link --------------------------------------------------------------------------------------------------

    async def _stay_connected(self) -> None:
        settings = self.settings
        wait = settings.reconnect_min
        while True:
            lost: asyncio.Future[FlameError | None] = asyncio.get_running_loop().create_future()

            def on_closed(link: Link, error: FlameError | None, lost: asyncio.Future[FlameError | None] = lost) -> None:
                self._disconnected(link)
                if not lost.done():
                    lost.set_result(error)

            self._address = await own_address(settings.manager)
            try:
                link = await self._dialer.dial(self._hello, self._on_frames, on_closed, self._on_call)
            except FlameError as error:
                logger.warning("can't reach the session manager at %s: %s", settings.manager, error)
            else:
                wait = settings.reconnect_min
                beating = asyncio.get_running_loop().create_task(self._beat(link))
                try:
                    self._welcomed(link)
                    error = await lost
                finally:
                    beating.cancel()
                logger.warning("the link to the session manager ended: %s", error)
            # Jitter: the nodes of a cluster must not all come back in the same moment.
            await asyncio.sleep(wait * random.uniform(0.5, 1.0))
            wait = min(wait * 2, settings.reconnect_max)

    def _hello(self) -> link_pb2.Hello:
        unsent: dict[int, dict[int, int]] = {}
        for frame in self._outbox:
            if frame.kind == Kind.RESULTS:
                results = link_pb2.Results.FromString(frame.body)
                attempts = results.attempts or [1] * len(results.task_ids)
                unsent.setdefault(frame.channel, {}).update(zip(results.task_ids, attempts, strict=True))
            elif frame.kind == Kind.RETRACTED:
                ids = link_pb2.Retracted.FromString(frame.body).task_ids
                unsent.setdefault(frame.channel, {}).update(dict.fromkeys(ids, 1))
        held = [executor.held(unsent.get(channel, {})) for channel, executor in self.executors.items()]
        described = describe(self.settings, self._machine, self._address, self._able)
        node = link_pb2.NodeHello(node=described, boot_id=self._boot_id, executors=held)
        settings = self.settings
        return link_pb2.Hello(role="node", id=settings.name, token=settings.token, software="flame", node=node)

    def _welcomed(self, link: Link) -> None:
        """Send what waits, except for executors that nobody wants any more."""
        discard = set(link.welcome.discard)
        for channel in discard & self.executors.keys():
            executor = self.executors[channel]
            if executor.state is ExecutorState.RELEASED:
                del self.executors[channel]
            else:
                executor.stop("the session manager does not want it any more", 0)
        outbox, self._outbox = self._outbox, []
        self._unsent = 0
        self._link = link
        self.connected.set()
        for frame in outbox:
            if frame.channel not in discard:
                link.send(frame.kind, frame.channel, frame.body)
        for channel, executor in list(self.executors.items()):
            if executor.state is ExecutorState.RELEASED:
                del self.executors[channel]
        if self._paused:
            link.when_drained(self._resume)

    def _disconnected(self, link: Link) -> None:
        if self._link is link:
            self._link = None
            self.connected.clear()
            self._resume()

    async def _beat(self, link: Link) -> None:
        """Tell the session manager regularly that this node is well, and what it may use by now."""
        interval = link.welcome.heartbeat_ms / 1000 or self.settings.heartbeat
        while not link.closed:
            await asyncio.sleep(interval)
            if self.settings.capacity is None:
                cpu, memory = capacity.limits()
                resources = msgspec.structs.replace(self._machine.resources, cpu=cpu, memory=memory)
                self._machine = msgspec.structs.replace(self._machine, resources=resources)
            status = describe(self.settings, self._machine, self._address).status
            link.send(Kind.NODE_STATUS, 0, status.SerializeToString())

    # --- flame.node.executor.Uplink --------------------------------------------------------------------------------

    def send(self, kind: Kind, channel: int, body: bytes) -> None:
        link = self._link
        if link is None:
            self._outbox.append(Frame(kind, channel, body))
            self._unsent += len(body)
            if self._unsent > _MAX_AHEAD:
                self._pause()
            return
        link.send(kind, channel, body)
        if link.buffered > _MAX_AHEAD and not self._paused:
            self._pause()
            link.when_drained(self._resume)

    def released(self, executor: Executor) -> None:
        executor.state = ExecutorState.RELEASED
        if self._link is not None:
            self.executors.pop(executor.channel, None)

    def _pause(self) -> None:
        if not self._paused:
            self._paused = True
            for executor in self.executors.values():
                executor.pause()

    def _resume(self) -> None:
        if self._paused:
            self._paused = False
            for executor in self.executors.values():
                executor.resume()

    # --- what the session manager says -----------------------------------------------------------------------------

    def _on_frames(self, link: Link, frames: list[Frame]) -> None:
        for kind, channel, body, _ in frames:
            executor = self.executors.get(channel)
            if kind == Kind.TASKS:
                if executor is not None:
                    executor.tasks(body)
            elif kind == Kind.START:
                if executor is not None:
                    raise ProtocolError(f"channel {channel} is in use")
                self._start(channel, link_pb2.Start.FromString(body))
            elif kind == Kind.STOP:
                stop = link_pb2.Stop.FromString(body)
                if executor is not None and executor.state is not ExecutorState.RELEASED:
                    executor.stop(stop.reason, stop.grace_ms / 1000)
                else:
                    report = link_pb2.Report(state=types_pb2.ExecutorReleased)
                    self.send(Kind.REPORT, channel, report.SerializeToString())
            elif executor is not None:
                if kind == Kind.CANCEL:
                    executor.cancel(body)
                elif kind == Kind.RETRACT:
                    executor.retract(body)

    def _start(self, channel: int, start: link_pb2.Start) -> None:
        shim = choose(self._shims, start.application.shim)
        executor = Executor(channel, start, self._machine.visible(start.gpus), shim, self, self.settings)
        self.executors[channel] = executor
        self._lives.add(executor.life)
        executor.life.add_done_callback(self._lives.discard)

    def _on_call(self, link: Link, method: str, request: bytes) -> AsyncIterator[bytes]:
        if method != "ReadLog":
            raise NotFoundError(f"no method {method!r} here")
        try:
            wanted = frontend_pb2.GetLogsRequest.FromString(request)
        except DecodeError:
            raise ProtocolError("the request is no GetLogsRequest") from None
        return self._read_log(wanted)

    async def _read_log(self, wanted: frontend_pb2.GetLogsRequest) -> AsyncIterator[bytes]:
        async for chunk in self._logs.read(wanted):
            yield chunk.SerializeToString()

    async def _prune_logs(self) -> None:
        while True:
            await asyncio.sleep(_PRUNE_S)
            self._logs.prune()
