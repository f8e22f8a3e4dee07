"""Checks of the PEM files that settings refer to. No error quotes the content of a file."""

import ssl
from pathlib import Path


def check_readable(path: str) -> None:
    """Raise ValueError unless the file can be read."""
    try:
        with Path(path).open("rb") as file:
            file.read(1)
    except OSError as exc:
        raise ValueError(f"cannot be read: {exc.strerror}") from exc


def check_authorities(path: str) -> None:
    """Raise ValueError unless the file contains CA certificates."""
    check_readable(path)
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cafile=path)
    except OSError as exc:  # includes SSLError
        raise ValueError("must be a PEM file with CA certificates") from exc


def check_key_pair(certfile: str, keyfile: str) -> None:
    """Raise ValueError unless the private key is unencrypted and belongs to the certificate."""
    try:
        # Without a password OpenSSL would prompt for that of an encrypted key.
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certfile, keyfile, password="")
    except (OSError, ValueError) as exc:
        reason = getattr(exc, "reason", None) or "it is not PEM, or it is encrypted"
        raise ValueError(f"cannot be used with server.certfile: {reason}") from exc
