"""Lists of what an instance may reach: how they are written, and what each lets through."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from flame.model.errors import InvalidArgumentError
from flame.model.network import Refusal, Rule, admit, is_list, joined, name_of, parse, reachable, within


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("pypi.org", Rule("pypi.org", name="pypi.org")),
        ("PyPI.org.", Rule("PyPI.org.", name="pypi.org")),
        ("*.example.com:443", Rule("*.example.com:443", name="*.example.com", first=443, last=443)),
        ("host:8000-8010", Rule("host:8000-8010", name="host", first=8000, last=8010)),
        ("*", Rule("*", name="*")),
        ("bücher.example", Rule("bücher.example", name="xn--bcher-kva.example")),
        ("10.1.2.3", Rule("10.1.2.3", network="10.1.2.3/32")),
        ("10.1.2.0/24:80", Rule("10.1.2.0/24:80", network="10.1.2.0/24", first=80, last=80)),
        ("10.1.2.3/24", Rule("10.1.2.3/24", network="10.1.2.0/24")),
        ("2001:db8::1", Rule("2001:db8::1", network="2001:db8::1/128")),
        ("[2001:db8::]/32:443", Rule("[2001:db8::]/32:443", network="2001:db8::/32", first=443, last=443)),
        ("[::1]", Rule("[::1]", network="::1/128")),
    ],
)
def test_how_rules_are_written(text: str, rule: Rule) -> None:
    assert parse(text) == (rule,)


@pytest.mark.parametrize(
    "text",
    [
        "", "pypi.org,", "a b", "http://pypi.org", "pypi.org/simple", "user@host", "*example.com", "a.*.com", "**",
        "host", "*.*", "host:", "host:0", "host:65536", "host:9-8", "host:http", "10.1.2.0/33", "10.1.2", "127.1",
        "2130706433:80", "a.0x7f", "[::1", "[::1]x", "[::1]:", "::1:80:", "fe80::1%eth0", "-a.com", "a..b",
        "x" * 64 + ".com", "a\nb",
    ],
)  # fmt: skip
def test_what_is_no_rule_is_refused(text: str) -> None:
    with pytest.raises(InvalidArgumentError, match="unknown network "):
        parse(text)


def test_lists_are_joined() -> None:
    assert joined(["pypi.org ", "10.0.0.0/8"]) == "pypi.org, 10.0.0.0/8"
    assert joined([]) == "none"
    assert joined("host") == "host"
    assert [is_list(text) for text in ("", "none", "host", "pypi.org")] == [False, False, False, True]
    for item in ("host", "a,b", " "):
        with pytest.raises(InvalidArgumentError, match="is no host or address"):
            joined([item])


LIST = parse("pypi.org, *.example.com:443, 10.1.2.0/24, [fd00::]/16:80, localhost:8000")
NOT_LISTED, NOT_PUBLIC = "it is not listed", "no public address"


@pytest.mark.parametrize(
    ("host", "port", "found"),
    [
        ("pypi.org", 443, "pypi.org"),
        ("PYPI.ORG.", 80, "pypi.org"),
        ("files.pypi.org", 443, NOT_LISTED),
        ("notpypi.org", 443, NOT_LISTED),
        ("pypi.org.evil.com", 443, NOT_LISTED),
        ("a.example.com", 443, "*.example.com:443"),
        ("a.b.example.com", 443, "*.example.com:443"),
        ("example.com", 443, NOT_LISTED),
        ("a.example.com", 80, "*.example.com:443 does not list port 80"),
        ("10.1.2.77", 5432, "10.1.2.0/24"),
        ("::ffff:10.1.2.77", 5432, "10.1.2.0/24"),
        ("10.1.3.1", 80, NOT_PUBLIC),
        ("127.0.0.1", 80, NOT_PUBLIC),
        ("[fd00::5]", 80, "[fd00::]/16:80"),
        ("[fd00::5]", 81, NOT_PUBLIC),
        ("169.254.169.254", 80, NOT_PUBLIC),
        ("8.8.8.8", 53, NOT_LISTED),
        ("127.1", 80, NOT_LISTED),
        ("2130706433", 80, NOT_LISTED),
        ("0x7f.1", 80, NOT_LISTED),
        ("fe80::1%lo", 80, "it is no name of a host"),
        ("pypi.org\0.evil.com", 443, "it is no name of a host"),
        ("", 443, "it is no name of a host"),
        ("pypi.org", 0, "0 is no port"),
        ("pypi.org", 65536, "65536 is no port"),
    ],
)
def test_what_may_be_asked_for(host: str, port: int, found: str) -> None:
    verdict = admit(LIST, host, port)
    if isinstance(verdict, Rule):
        assert verdict.text == found
    else:
        assert found in verdict.why


@pytest.mark.parametrize(
    ("address", "port", "found"),
    [
        ("151.101.0.223", 443, "pypi.org"),
        ("2a04:4e42::223", 443, "pypi.org"),
        ("10.1.2.9", 443, "10.1.2.0/24"),
        ("10.1.3.9", 443, NOT_PUBLIC),
        ("127.0.0.1", 443, NOT_PUBLIC),
        ("::1", 443, NOT_PUBLIC),
        ("0.0.0.0", 443, NOT_PUBLIC),
        ("::", 443, NOT_PUBLIC),
        ("169.254.169.254", 80, NOT_PUBLIC),
        ("fd00:ec2::254", 443, NOT_PUBLIC),
        ("168.63.129.16", 80, NOT_PUBLIC),
        ("100.100.100.200", 80, NOT_PUBLIC),
        ("224.0.0.1", 80, NOT_PUBLIC),
        ("ff02::1", 80, NOT_PUBLIC),
        ("255.255.255.255", 80, NOT_PUBLIC),
        ("fe80::1", 80, NOT_PUBLIC),
        ("::ffff:127.0.0.1", 80, NOT_PUBLIC),
        ("::ffff:151.101.0.223", 80, "pypi.org"),
        ("64:ff9b::7f00:1", 80, NOT_PUBLIC),
        ("64:ff9b::a9fe:a9fe", 80, NOT_PUBLIC),
        ("64:ff9b:1::1", 80, NOT_PUBLIC),
        ("2002:7f00:1::", 80, NOT_PUBLIC),
        ("2002:a9fe:a9fe::1", 80, NOT_PUBLIC),
        ("::127.0.0.1", 80, NOT_PUBLIC),
        ("::ffff:0:169.254.169.254", 80, NOT_PUBLIC),
        ("2001:0:7f00:1::1", 80, NOT_PUBLIC),
        ("fec0::1", 80, NOT_PUBLIC),
        ("5f00::1", 80, NOT_PUBLIC),
        ("192.0.0.192", 80, NOT_PUBLIC),
    ],
)
def test_what_a_listed_name_may_stand_for(address: str, port: int, found: str) -> None:
    verdict = reachable(LIST, LIST[0], ip_address(address), port)
    if isinstance(verdict, Rule):
        assert verdict.text == found
    else:
        assert isinstance(verdict, Refusal)
        assert found in verdict.why


def test_what_is_never_public_can_be_listed_as_an_address() -> None:
    for address in ("::1", "fec0::1", "168.63.129.16", "192.0.0.192"):
        assert isinstance(admit(parse(address), address, 80), Rule)


def test_everything_public() -> None:
    rules = parse("*:443")
    assert admit(rules, "any.where", 443) == rules[0]
    assert admit(rules, "8.8.8.8", 443) == rules[0]
    for host, port in (("any.where", 80), ("8.8.8.8", 80), ("10.0.0.1", 443), ("169.254.169.254", 443)):
        assert isinstance(admit(rules, host, port), Refusal)


@pytest.mark.parametrize(
    ("application", "session"),
    [
        ("", "host"),
        ("", "pypi.org"),
        ("host", "none"),
        ("host", "pypi.org"),
        ("none", ""),
        ("none", "none"),
        ("pypi.org", ""),
        ("pypi.org", "none"),
        ("pypi.org, *.example.com", "*.a.example.com, b.example.com:443"),
        ("*.example.com", "*.example.com"),
        ("10.0.0.0/8", "10.1.0.0/16:80, 10.1.2.3"),
        ("fd00::/8", "fd00::1"),
        ("*", "*.com, pypi.org:443"),
        ("host.x:80-90", "host.x:85"),
    ],
)
def test_a_session_may_ask_for_as_much_or_less(application: str, session: str) -> None:
    assert within(application, session) == ""


@pytest.mark.parametrize(
    ("application", "session", "words"),
    [
        ("none", "host", "network none"),
        ("none", "pypi.org", "network none"),
        ("pypi.org", "host", "network pypi.org"),
        ("pypi.org", "pypi.org, example.com", "a network without example.com"),
        ("*.example.com", "example.com", "without example.com"),
        ("*.example.com", "*", "without *"),
        ("a.example.com", "*.example.com", "without *.example.com"),
        ("pypi.org:443", "pypi.org", "without pypi.org"),
        ("10.1.0.0/16", "10.0.0.0/8", "without 10.0.0.0/8"),
        ("10.0.0.0/8", "pypi.org", "without pypi.org"),
        ("*", "10.0.0.0/8", "without 10.0.0.0/8"),
        ("10.0.0.0/8", "fd00::1", "without fd00::1"),
    ],
)
def test_a_session_may_not_ask_for_more(application: str, session: str, words: str) -> None:
    assert words in within(application, session)


@pytest.mark.parametrize(
    ("text", "name"), [("A.B.", "a.b"), ("_dmarc.x", "_dmarc.x"), ("é.fr", "xn--9ca.fr"), ("a b", ""), ("..", "")]
)
def test_names_are_written_in_one_way(text: str, name: str) -> None:
    assert name_of(text) == name
