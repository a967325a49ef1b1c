"""The session manager: journal and engine, and the listeners through which clients and nodes reach them."""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import uuid
from collections.abc import Sequence

from flame._version import __version__
from flame.engine import Engine, EngineSettings
from flame.engine.events import RegisterApplication
from flame.journal import Journal, JournalError, JournalWriter, SqliteJournal, open_journal
from flame.link import FRAME_SLACK, Address, Link, LinkServer, PeerInfo, serve
from flame.manager.built_in import BUILT_IN
from flame.manager.clients import Clients
from flame.manager.frontend import Frontend
from flame.manager.grpc_server import GrpcServer, grpc_address
from flame.manager.http_server import HttpServer
from flame.manager.log_reader import LogReader
from flame.manager.metrics import Metrics
from flame.manager.nodes import Nodes
from flame.manager.payloads import Payloads
from flame.manager.policies import load_policies
from flame.manager.settings import ManagerSettings
from flame.manager.tenants import check_tenants, set_up_tenants
from flame.manager.turns import Turns, wall_clock
from flame.manager.watches import Watches
from flame.model.errors import InvalidConfigError, ProtocolError, ReadOnlyError, UnavailableError
from flame.proto import frontend_pb2, link_pb2, values
from flame.scheduler.policy import Policy
from flame.security import Tokens, authorize, check_listener, identify, server_ssl

_log = logging.getLogger("flame.manager")

CLOSE_S = 10.0
SETTLE_S = 5.0


class SessionManager:
    """One session manager in the running event loop."""

    def __init__(self, settings: ManagerSettings) -> None:
        self.settings = settings
        self.addresses: list[Address] = []
        """Where the framed link listens, with real ports; known after `start`."""
        self.grpc_addresses: list[str] = []
        """Where gRPC listens, with real ports; known after `start`."""
        self.http_address: Address | None = None
        """Where HTTP is served, with the real port; known after `start`."""
        self._id = str(uuid.uuid4())
        self._started = wall_clock()
        self._servers: list[LinkServer] = []
        self._grpc: GrpcServer | None = None
        self._http: HttpServer | None = None
        self._unready = "its listeners are not up yet"
        self._journal: JournalWriter
        self._turns: Turns
        self._fault: asyncio.Future[BaseException] = asyncio.get_running_loop().create_future()

    async def start(self) -> None:
        """Recover what the journal holds, then listen.

        Raises InvalidConfigError for settings that can't work (an address in use, TLS files missing, an unknown policy,
        tenants that can't be), JournalError when the journal is in use or damaged.
        """
        settings = self.settings
        self._check_listeners()
        policies = load_policies(settings.policies)
        check_tenants(settings.tenants)
        journal = open_journal(settings.storage)
        try:
            self._recover(journal, policies)
        except BaseException:
            journal.close()
            raise
        try:
            await self._listen()
        except BaseException:
            await self.stop()
            raise
        _log.info(
            "started name=%s generation=%d storage=%s sessions=%d addresses=%s",
            settings.name,
            self._turns.engine.generation,
            settings.storage,
            len(self._turns.engine.sessions),
            ",".join([*map(str, self.addresses), *self.grpc_addresses]),
        )
        if self.http_address is not None:
            _log.info("http address=%s", self.http_address)
        if settings.storage == "none":
            _log.warning("storage_none nothing survives the end of this process")

    async def stop(self) -> None:
        """Say what can be said, end all connections, write the journal out."""
        self._unready = "it is shutting down"
        shutdown = UnavailableError("the session manager is shutting down", remedy="connect again when it is back")
        try:
            async with asyncio.timeout(SETTLE_S):
                await self._turns.durable(self._turns.engine.seq)
        except (TimeoutError, ReadOnlyError) as error:
            _log.error("stopped_unsettled some of what was asked is not durable: %s", error)
        if self._grpc is not None:
            await self._grpc.stop(0.2)
        for server in self._servers:
            server.close(shutdown)
        for server in self._servers:
            await server.wait_closed()
        if self._http is not None:
            await self._http.stop()
        self._turns.close()
        if not await asyncio.to_thread(self._journal.close, CLOSE_S):
            _log.error("journal_unwritten records of the last moments are lost")
        _log.info("stopped name=%s", self.settings.name)

    async def wait_failed(self) -> BaseException:
        """Wait for a fault after which only a restart helps."""
        return await self._fault

    # --- start -------------------------------------------------------------------------------------------------------

    def _check_listeners(self) -> None:
        settings = self.settings
        addresses = list(settings.links)
        addresses += [grpc_address(text) for text in (settings.frontend, settings.backend) if text is not None]
        if not addresses:
            raise InvalidConfigError("there is no address to listen at")
        if settings.http is not None:
            addresses.append(grpc_address(settings.http))
        for address in addresses:
            check_listener(address, settings.tls, insecure=settings.insecure)

    def _doors(self) -> tuple[tuple[str, int], ...]:
        """Where whoever comes from this machine is an administrator, and nobody has said that this is all right."""
        settings = self.settings
        if settings.tls is not None or settings.insecure:
            return ()
        addresses = [*settings.links, *map(grpc_address, filter(None, (settings.frontend, settings.backend)))]
        return tuple((address.host, address.port) for address in addresses if not address.unix)

    def _recover(self, journal: Journal, policies: Sequence[Policy]) -> None:
        settings = self.settings
        engine = Engine(
            EngineSettings(
                resreq=settings.resreq,
                retry_limits=settings.retry_limits,
                max_kills=settings.max_kills,
                drain_ms=settings.drain_ms,
                retention_s=settings.retention_s,
                max_sessions=settings.max_sessions,
                max_pending=settings.max_pending,
                policies=settings.policies,
                preemption_grace_ms=settings.preemption_grace_ms,
                unsatisfiable_ms=settings.unsatisfiable_ms,
                gang_ports=settings.gang_ports,
                doors=self._doors(),
            ),
            lambda: str(uuid.uuid4()),
            policies,
        )
        for record in journal.replay():
            engine.replay(record)
        engine.seq = max(engine.seq, journal.last_seq)

        def on_trouble(error: JournalError | None) -> None:
            turns.journal_trouble(error)

        writer = self._journal = JournalWriter(journal, asyncio.get_running_loop(), on_trouble)
        payloads = Payloads(writer, durable=journal.durable)
        turns = self._turns = Turns(engine, writer, payloads, self._failed)
        self._tokens = Tokens(_secret(journal), self._is_alive)
        self._clients = Clients(turns, payloads, max_payload=settings.max_payload)
        self._nodes = Nodes(turns, payloads, self._tokens)
        self._nodes.on_released = self._clients.end_identity
        watches = Watches(turns)
        self._frontend = Frontend(
            turns,
            payloads,
            watches,
            LogReader(turns, self._nodes, watches),
            self._cluster_info,
            max_payload=settings.max_payload,
        )
        self._metrics = Metrics(turns, lambda: self._clients.count)
        writer.start()
        turns.begin(engine.recovered(turns.now()))
        for name, spec in BUILT_IN.items():
            turns.post(RegisterApplication(0, name, spec, builtin=True))
        turns.run_now()
        set_up_tenants(turns, settings.tenants)

    async def _listen(self) -> None:
        settings = self.settings
        context = server_ssl(settings.tls) if settings.tls is not None else None
        for address in settings.links:
            server = await serve(
                address,
                self._accept,
                ssl=None if address.unix else context,
                max_frame=settings.max_payload + FRAME_SLACK,
                heartbeat=settings.heartbeat,
            )
            self._servers.append(server)
            self.addresses.append(server.address)
        grpc_addresses = [text for text in (settings.frontend, settings.backend) if text is not None]
        if grpc_addresses:
            self._grpc = GrpcServer(
                self._frontend,
                self._accept,
                self._tokens,
                tls=settings.tls,
                insecure=settings.insecure,
                max_payload=settings.max_payload,
            )
            await self._grpc.start(grpc_addresses)
            self.grpc_addresses = self._grpc.addresses
        if settings.http is not None:
            self._http = HttpServer(self._admit, self._why_unready, self._metrics)
            context = server_ssl(settings.tls) if settings.tls is not None else None
            await self._http.start(grpc_address(settings.http), context)
            self.http_address = self._http.address
        self._unready = ""

    # --- links -------------------------------------------------------------------------------------------------------

    async def _accept(self, link: Link) -> link_pb2.Welcome:
        """Who is it, may it, and whose side is it on."""
        settings = self.settings
        tls = settings.tls is not None
        identity = identify(link.peer, link.hello.token, self._tokens, tls=tls, insecure=settings.insecure)
        if link.hello.role == "client":
            authorize(identity, "ClientLink")
            self._clients.accept(link, identity)
        elif link.hello.role == "node":
            authorize(identity, "NodeLink")
            self._nodes.accept(link)
        else:
            raise ProtocolError(f"role {link.hello.role!r} has no place here", remedy="say client or node")
        link.on_call = lambda _, method, body: self._frontend.serve_bytes(method, body, identity)
        return link_pb2.Welcome(
            server_id=self._id, generation=self._turns.engine.generation, max_payload=settings.max_payload
        )

    # --- HTTP --------------------------------------------------------------------------------------------------------

    def _admit(self, peer: PeerInfo, call: str) -> None:
        settings = self.settings
        tls = settings.tls is not None
        authorize(identify(peer, "", self._tokens, tls=tls, insecure=settings.insecure), call)

    def _why_unready(self) -> str:
        """Why no work is accepted now, or nothing. Whoever can ask knows that the journal is replayed."""
        if self._fault.done():
            return "the engine is broken, only a restart helps"
        trouble = self._turns.trouble
        return self._unready or (f"the journal can't be written: {trouble.message}" if trouble is not None else "")

    # --- what others ask for -----------------------------------------------------------------------------------------

    def _failed(self, error: BaseException) -> None:
        if not self._fault.done():
            self._fault.set_result(error)

    def _is_alive(self, executor_id: str, session_id: str) -> bool:
        executors = self._turns.engine.executors.values()
        return any(executor.id == executor_id and executor.session.id == session_id for executor in executors)

    def _cluster_info(self) -> frontend_pb2.ClusterInfo:
        settings, trouble = self.settings, self._turns.trouble
        return frontend_pb2.ClusterInfo(
            name=settings.name,
            version=__version__,
            generation=self._turns.engine.generation,
            start_time=self._started,
            unit=values.resources_message(settings.resreq),
            storage=settings.storage,
            read_only=trouble is not None,
            read_only_reason=trouble.message if trouble is not None else "",
            max_payload=settings.max_payload,
            endpoint=settings.endpoint,
            policies=settings.policies,
        )


def _secret(journal: Journal) -> bytes:
    """What seals the tokens of instances; kept beside a durable journal, so that they outlive a restart."""
    if not isinstance(journal, SqliteJournal):
        return secrets.token_bytes(32)
    file = journal.path.with_name(f"{journal.path.name}-secret")
    try:
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return file.read_bytes()
    with os.fdopen(descriptor, "wb") as stream:
        stream.write(secrets.token_bytes(32))
    return file.read_bytes()
