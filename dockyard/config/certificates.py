"""The PEM files that settings name: are they there, and can they be used? Errors say why, and quote nothing."""

import ssl
from pathlib import Path


def check_readable(path: str) -> None:
    """Raise ValueError for a file that cannot be read."""
    try:
        with Path(path).open("rb") as file:
            file.read(1)
    except OSError as exc:
        raise ValueError(f"cannot be read: {exc.strerror}") from exc


def check_authorities(path: str) -> None:
    """Raise ValueError for a file that holds no CA certificate."""
    check_readable(path)
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cafile=path)
    except OSError as exc:  # SSLError is one
        raise ValueError("must be a PEM file with CA certificates") from exc


def check_key_pair(certfile: str, keyfile: str) -> None:
    """Raise ValueError for a certificate and a private key that a server cannot use together."""
    try:
        # An encrypted key would make OpenSSL ask at the terminal.
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certfile, keyfile, password="")
    except (OSError, ValueError) as exc:
        reason = getattr(exc, "reason", None) or "it is not PEM, or it is encrypted"
        raise ValueError(f"cannot be used with server.certfile: {reason}") from exc
