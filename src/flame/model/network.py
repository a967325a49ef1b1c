"""What an instance may reach: nothing, what its node reaches, or a list of hosts and addresses.

A list is a text of rules with commas between them. Decisions only; the proxy that carries them out is
`flame.shims.egress_proxy`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

import msgspec

from flame.model.errors import InvalidArgumentError

Address = IPv4Address | IPv6Address

WORDS = ("none", "host")  # all else is a list
FORM = "none|host|HOST[,HOST...]"  # as it is written on a command line
MAX_RULES = 256
ANY = "*"
_LABEL = r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"
_NAME = re.compile(rf"(?=.{{1,253}}\Z)(?:{_LABEL}\.)*{_LABEL}")
_NUMERIC = re.compile(r"[0-9]+|0x[0-9a-f]*")  # names that end so are taken for addresses by who looks them up
_PORTS = re.compile(r"([0-9]{1,5})(?:-([0-9]{1,5}))?")
_LAST_PORT = 65535
# Where clouds tell machines their secrets, although the address is public or was (Azure, Oracle); prefixes that stand
# for addresses of the network that they are used in, and some that older versions of Python take for public.
_NEVER = (
    IPv4Network("168.63.129.16/32"),
    IPv4Network("192.0.0.0/24"),
    *map(IPv6Network, ("64:ff9b:1::/48", "::/96", "::ffff:0:0:0/96", "fec0::/10", "3fff::/20", "5f00::/16")),
)
# Prefixes of IPv6 that stand for an address of IPv4, and where in the 128 bits it begins.
_TRANSLATED = ((IPv6Network("::ffff:0:0/96"), 96), (IPv6Network("64:ff9b::/96"), 96), (IPv6Network("2002::/16"), 16))

# What leads to a listener of the own machine, at a loopback or at all addresses.
_OF_THIS_MACHINE = ("127.0.0.1", "0.0.0.0", "::1", "::")


class Rule(msgspec.Struct, frozen=True):
    """One entry of a list. Either `name` is said ("*" is every one, "*.example.com" all below that), or `network`."""

    text: str
    name: str = ""
    network: str = ""
    first: int = 1  # of the ports
    last: int = _LAST_PORT

    def covers(self, other: Rule) -> bool:
        """Whether it allows all that the other does."""
        if not self.first <= other.first <= other.last <= self.last:
            return False
        if self.name:
            return bool(other.name) and (self.name == other.name or _below(other.name.removeprefix("*."), self.name))
        own, its = ip_network(self.network), ip_network(other.network) if other.network else None
        if isinstance(own, IPv4Network):
            return isinstance(its, IPv4Network) and its.subnet_of(own)
        return isinstance(its, IPv6Network) and its.subnet_of(own)


class Refusal(msgspec.Struct, frozen=True):
    """Why something can't be reached."""

    why: str


def is_list(network: str) -> bool:
    """Whether it is neither a word nor nothing."""
    return network not in ("", *WORDS)


def joined(network: str | Iterable[str]) -> str:
    """A list in one text, or the text itself; an empty list is "none". Raises InvalidArgumentError."""
    if isinstance(network, str):
        return network
    rules = list(network)
    for rule in rules:
        if not isinstance(rule, str) or not rule.strip() or "," in rule or rule.strip() in WORDS:  # pyright: ignore[reportUnnecessaryIsInstance]
            raise InvalidArgumentError(
                f"{rule!r} is no host or address of a network",
                remedy='write a list such as ["pypi.org", "10.1.2.0/24:443"]',
            )
    return ", ".join(rule.strip() for rule in rules) or WORDS[0]


def parse(network: str) -> tuple[Rule, ...]:
    """The rules of a list. Raises InvalidArgumentError."""
    texts = [text.strip() for text in network.split(",")]
    if len(texts) > MAX_RULES:
        raise InvalidArgumentError(f"network: {len(texts)} rules are more than {MAX_RULES}")
    return tuple(_rule(text) for text in texts)


def within(application: str, session: str) -> str:
    """Why what a session says is more than what its application says; empty when it is not."""
    if not session or application in ("", "host") or session == "none":
        return ""
    if application == "none" or session == "host":
        return f"network {application}"
    allowed = parse(application)
    for rule in parse(session):
        if not any(each.covers(rule) for each in allowed):
            return f"a network without {rule.text}"
    return ""


def way_to(network: str, host: str, port: int) -> str:
    """By what an instance of this network reaches a listener at a loopback of its node; empty when by nothing. Raises
    InvalidArgumentError."""
    if not is_list(network):
        return network if network == "host" else ""
    rules = parse(network)
    for name in (host, *_OF_THIS_MACHINE):
        found = admit(rules, name, port) if address_of(name) is not None else None
        if isinstance(found, Rule):
            return found.text
    return ""


def admit(rules: Sequence[Rule], host: str, port: int) -> Rule | Refusal:
    """Which rule lets a name or an address be asked for at all. What a name stands for is looked at by `reachable`."""
    if not 1 <= port <= _LAST_PORT:
        return Refusal(f"{port} is no port")
    address = address_of(host)
    if address is not None:
        return reachable(rules, None, address, port)
    name = name_of(host)
    if not name:
        return Refusal("it is no name of a host")
    matching = [rule for rule in rules if rule.name and _matches(rule.name, name)]
    for rule in matching:
        if rule.first <= port <= rule.last:
            return rule
    return Refusal(f"{matching[0].text} does not list port {port}" if matching else "it is not listed")


def reachable(rules: Sequence[Rule], by: Rule | None, address: Address, port: int) -> Rule | Refusal:
    """Which rule lets an address be connected to. `by` is the one that admitted a name that stands for it, None when
    the address itself was asked for."""
    meant = plain(address)
    for rule in rules:
        if rule.network and meant in ip_network(rule.network) and rule.first <= port <= rule.last:
            return rule
    if not meant.is_global or meant.is_multicast or any(meant in each for each in _NEVER):
        return Refusal(f"{address} is no public address, and not listed as an address")
    for rule in rules if by is None else (by,):
        if (by is not None or rule.name == ANY) and rule.first <= port <= rule.last:
            return rule
    return Refusal("it is not listed")


def plain(address: Address) -> Address:
    """The address of IPv4 that one of IPv6 stands for, or the address itself."""
    if isinstance(address, IPv6Address):
        for prefix, begin in _TRANSLATED:
            if address in prefix:
                return IPv4Address(int(address) >> (96 - begin) & 0xFFFFFFFF)
    return address


def address_of(host: str) -> Address | None:
    """The address that a text is, also in brackets; None when it is none. Zones of IPv6 are none of our business."""
    text = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    try:
        return ip_address(text) if "%" not in text else None
    except ValueError:
        return None


def name_of(host: str) -> str:
    """A host's name as rules have it: in lower case, without the last dot, in ASCII; empty when it is none."""
    name = host.lower().removesuffix(".")
    if not name.isascii():
        try:
            name = name.encode("idna").decode()
        except UnicodeError:
            return ""
    return name if _NAME.fullmatch(name) else ""


def _rule(text: str) -> Rule:
    host, ports = _parted(text)
    first, last = _ports(text, ports) if ports else (1, _LAST_PORT)
    try:
        if "%" not in host:
            return Rule(text, network=str(ip_network(host, strict=False)), first=first, last=last)
    except ValueError:
        pass
    name = host if host == ANY else _wildcard(host)
    # A single word is more likely a mistake than a host; with a port it is meant.
    if not name or _NUMERIC.fullmatch(name.rpartition(".")[2]) or ("." not in name and name != ANY and not ports):
        raise InvalidArgumentError(
            f"unknown network {text!r}",
            remedy="write none, host, or a list of such as pypi.org, *.example.com:443, 10.1.2.0/24, [2001:db8::1]:80;"
            " names without a dot have a port",
        )
    return Rule(text, name=name, first=first, last=last)


def _parted(text: str) -> tuple[str, str]:
    """Host and ports. IPv6 with a port stands in brackets."""
    if text.startswith("["):
        inside, bracket, rest = text[1:].partition("]")
        length, colon, ports = rest.partition(":")
        if bracket and (not length or length.startswith("/")) and (bool(colon) == bool(ports)):
            return inside + length, ports
        return "", ""
    if text.count(":") == 1:
        host, _, ports = text.partition(":")
        return (host, ports) if ports else ("", "")
    return text, ""


def _ports(text: str, ports: str) -> tuple[int, int]:
    match = _PORTS.fullmatch(ports)
    first, last = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
    if not 1 <= first <= last <= _LAST_PORT:
        raise InvalidArgumentError(
            f"unknown network {text!r}: its end is no port and no range of ports", remedy="write :443 or :8000-8010"
        )
    return first, last


def _wildcard(host: str) -> str:
    rest = host.removeprefix("*.")
    name = name_of(rest)
    return f"*.{name}" if name and rest != host else name


def _matches(pattern: str, name: str) -> bool:
    return pattern == name or _below(name, pattern)


def _below(name: str, pattern: str) -> bool:
    """Whether a name is below the one that a pattern ends with."""
    return pattern == ANY or (pattern.startswith("*.") and name.endswith(pattern[1:]))
