"""The link: frames between clients, session manager, executor managers and instances."""

from flame.link.address import BACKEND_OFFSET, HTTP_OFFSET, LINK_OFFSET, Address, parse, tcp, unix
from flame.link.connection import HIGH_WATER, Link
from flame.link.dialing import connect
from flame.link.errors import from_wire, to_wire
from flame.link.frames import DEFAULT_MAX_PAYLOAD, FRAME_SLACK, MORE, Frame, Kind
from flame.link.peer import PeerInfo
from flame.link.server import LinkServer, serve, serve_few

__all__ = [
    "BACKEND_OFFSET",
    "DEFAULT_MAX_PAYLOAD",
    "FRAME_SLACK",
    "HIGH_WATER",
    "HTTP_OFFSET",
    "LINK_OFFSET",
    "MORE",
    "Address",
    "Frame",
    "Kind",
    "Link",
    "LinkServer",
    "PeerInfo",
    "connect",
    "from_wire",
    "parse",
    "serve",
    "serve_few",
    "tcp",
    "to_wire",
    "unix",
]
