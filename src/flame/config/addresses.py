"""What several sections have alike: addresses, and the files of TLS."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlsplit

import msgspec

from flame.config.document import Section


class TlsConfig(msgspec.Struct, frozen=True):
    """PEM files: the own certificate and its key, and the authority that the other side's certificate is checked with.

    Servers have all three; a client may have the authority only.
    """

    cert_file: Path | None = None
    key_file: Path | None = None
    ca_file: Path | None = None


def read_client_tls(section: Section) -> TlsConfig:
    """The tls section of a client: the authority, and a certificate with its key or neither."""
    files = {key: section.file_path(key) for key in ("cert_file", "key_file", "ca_file")}
    if (files["cert_file"] is None) != (files["key_file"] is None):
        raise section.error("", "cert_file and key_file belong together")
    return TlsConfig(**files)


def read_url(section: Section, key: str, schemes: tuple[str, ...], text: str) -> str:
    """An address with a known scheme, a host and perhaps a port; returned as it was written."""
    try:
        parts = urlsplit(text)
        if parts.port == 0:
            raise ValueError("port 0")
    except ValueError as error:
        raise section.error(key, f"invalid address {text!r}: {error}") from None
    if parts.scheme not in schemes or not parts.hostname:
        raise section.error(key, f"invalid address {text!r}", f"write {schemes[0]}://HOST:PORT ({', '.join(schemes)})")
    if parts.path not in ("", "/") or parts.query or parts.username:
        raise section.error(
            key, f"invalid address {text!r}", "an address has a scheme, a host and a port, nothing else"
        )
    return text.rstrip("/")
