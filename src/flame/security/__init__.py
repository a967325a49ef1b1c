"""Identities, roles, certificates. One table (`roles.TABLE`) says who may do what."""

from flame.security.certificates import Certificates, make_certificates
from flame.security.identity import ROLE_NAME, Identity, Role, Tokens, identify, of_certificate, subject_of_text
from flame.security.roles import TABLE, authorize
from flame.security.tls import (
    check_listener,
    client_ssl,
    grpc_channel_credentials,
    grpc_server_credentials,
    server_ssl,
)

__all__ = [
    "ROLE_NAME",
    "TABLE",
    "Certificates",
    "Identity",
    "Role",
    "Tokens",
    "authorize",
    "check_listener",
    "client_ssl",
    "grpc_channel_credentials",
    "grpc_server_credentials",
    "identify",
    "make_certificates",
    "of_certificate",
    "server_ssl",
    "subject_of_text",
]
