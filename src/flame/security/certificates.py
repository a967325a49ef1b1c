"""Certificates for a cluster: one authority, and one certificate for each role. For tests and first steps."""

from __future__ import annotations

import datetime as dt
import ipaddress
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from flame.config import TlsConfig
from flame.model.errors import InvalidConfigError
from flame.security.identity import ROLE_NAME, Role

if TYPE_CHECKING:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric import ec

_CLOCK_SKEW = dt.timedelta(minutes=5)


class Certificates(msgspec.Struct, frozen=True):
    """What `make_certificates` made, ready for `server_ssl` and `client_ssl`."""

    server: TlsConfig
    admin: TlsConfig
    client: TlsConfig
    node: TlsConfig


def make_certificates(
    folder: Path, *, hosts: Sequence[str] = ("localhost", "127.0.0.1", "::1"), days: float = 365
) -> Certificates:
    """Write `ca.pem` and `<role>.pem` with `<role>.key` for server, admin, client and node into `folder`.

    `hosts` are the names and addresses under which the servers are reached. The first alternative name of each
    certificate is its role, `flame:ROLE`. Keys are readable by their owner only.
    Raises InvalidConfigError when the package `cryptography` is not installed.
    """
    try:
        from cryptography.hazmat.primitives.asymmetric import ec
    except ImportError as error:
        raise InvalidConfigError(
            "making certificates needs the package cryptography", remedy="pip install flame-engine[certs]"
        ) from error
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    key = ec.generate_private_key(ec.SECP256R1())
    authority = _certificate("flame", "ca", key, None, (), days)
    _write(folder / "ca.pem", _pem(authority), 0o644)

    def issue(role: str) -> TlsConfig:
        own = ec.generate_private_key(ec.SECP256R1())
        certificate = _certificate(f"{ROLE_NAME}{role}", role, own, (authority, key), hosts, days)
        _write(folder / f"{role}.pem", _pem(certificate), 0o644)
        _write(folder / f"{role}.key", _key_pem(own), 0o600)
        return TlsConfig(folder / f"{role}.pem", folder / f"{role}.key", folder / "ca.pem")

    return Certificates(issue("server"), issue(Role.ADMIN), issue(Role.CLIENT), issue(Role.NODE))


def _certificate(
    organisation: str,
    name: str,
    key: ec.EllipticCurvePrivateKey,
    issuer: tuple[x509.Certificate, ec.EllipticCurvePrivateKey] | None,
    hosts: Sequence[str],
    days: float,
) -> x509.Certificate:
    """A certificate of `key`; without an issuer one of an authority, signed by itself."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

    subject = x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, organisation),
            x509.NameAttribute(NameOID.COMMON_NAME, name),
        ]
    )
    signer = issuer[1] if issuer else key
    now = dt.datetime.now(dt.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer[0].subject if issuer else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _CLOCK_SKEW)
        .not_valid_after(now + dt.timedelta(days=days))
        .add_extension(x509.BasicConstraints(ca=issuer is None, path_length=0 if issuer is None else None), True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), False)
        .add_extension(_usage(authority=issuer is None), True)
    )
    if issuer is not None:
        usages = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
        builder = builder.add_extension(x509.ExtendedKeyUsage(usages), False)
        # The first name is all that an object cache sees of a certificate.
        names = [x509.UniformResourceIdentifier(organisation), *map(_general_name, hosts)]
        builder = builder.add_extension(x509.SubjectAlternativeName(names), False)
    return builder.sign(signer, hashes.SHA256())


def _usage(*, authority: bool) -> x509.KeyUsage:
    from cryptography import x509

    return x509.KeyUsage(
        digital_signature=True,
        key_cert_sign=authority,
        crl_sign=authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _general_name(host: str) -> x509.GeneralName:
    from cryptography import x509

    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _pem(certificate: x509.Certificate) -> bytes:
    from cryptography.hazmat.primitives.serialization import Encoding

    return certificate.public_bytes(Encoding.PEM)


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _write(file: Path, content: bytes, mode: int) -> None:
    file.unlink(missing_ok=True)
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(descriptor, "wb") as stream:
        stream.write(content)
