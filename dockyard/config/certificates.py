"""Checks of the PEM files that settings refer to. No error quotes the content of a file."""

import contextlib
import os
import re
import ssl
from collections.abc import Iterator
from pathlib import Path

import attrs

from dockyard.config.access import explain
from dockyard.config.files import read_file

MAX_PEM_BYTES = 2**20

_DELIMITER = re.compile(rb"-----(BEGIN|END) [A-Z0-9 ]+-----")
_NOT_ASCII = re.compile(rb"[^\x00-\x7f]")


class KeyPairError(ValueError):
    """A certificate or its key cannot be used. `key` is the setting that names the file, `path` the file."""

    def __init__(self, key: str, path: str, reason: str) -> None:
        super().__init__(reason)
        self.key = key
        self.path = path


@attrs.frozen
class KeyPair:
    """The server's certificate with its chain and the private key, as PEM. They belong together.

    `client_authorities` are the CA certificates of clients; empty: clients need no certificate.
    """

    certificate: bytes = attrs.field(repr=False)
    private_key: bytes = attrs.field(repr=False)
    client_authorities: bytes = attrs.field(default=b"", repr=False)

    @contextlib.contextmanager
    def as_files(self) -> Iterator[tuple[str, str]]:
        """Yield the paths of two files in memory with certificate and key; forked processes can open them as well."""
        with _file_in_memory(self.certificate) as certfile, _file_in_memory(self.private_key) as keyfile:
            yield certfile, keyfile

    @contextlib.contextmanager
    def authorities_as_file(self) -> Iterator[str | None]:
        """Yield the path of a file in memory with the CA certificates of clients; None if they need no certificate."""
        if not self.client_authorities:
            yield None
            return
        with _file_in_memory(self.client_authorities) as path:
            yield path


def check_readable(path: str) -> None:
    """Raise ValueError unless the file can be read."""
    try:
        with Path(path).open("rb") as file:
            file.read(1)
    except OSError as exc:
        raise ValueError(f"cannot be read: {explain(exc, Path(path))}") from exc


def check_authorities(path: str) -> None:
    """Raise ValueError unless the file contains CA certificates."""
    check_readable(path)
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cafile=path)
    except OSError as exc:  # includes SSLError
        raise ValueError("must be a PEM file with CA certificates") from exc


def read_key_pair(certfile: str, keyfile: str, client_ca: str = "") -> KeyPair:
    """Read `server.certfile`, `server.keyfile` and `server.client_ca`, each opened once.

    Raises KeyPairError unless they are usable. A file that is only partly written, a key of another certificate and an
    encrypted key are not usable.
    """
    authorities = _read("server.client_ca", client_ca) if client_ca else b""
    pair = KeyPair(_read("server.certfile", certfile), _read("server.keyfile", keyfile), authorities)
    for key, path, pem in (
        ("server.certfile", certfile, pair.certificate),
        *([("server.client_ca", client_ca, authorities)] if client_ca else []),
    ):
        try:
            _check_certificates(pem)
        except ValueError as exc:
            raise KeyPairError(key, path, str(exc)) from exc
    with pair.as_files() as paths:
        try:
            # Without a password OpenSSL would prompt for that of an encrypted key.
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(*paths, password="")
        except (OSError, ValueError) as exc:
            reason = getattr(exc, "reason", None) or "it is not PEM, or it is encrypted"
            if reason == "KEY_VALUES_MISMATCH":
                reason = "it is the key of another certificate"
            raise KeyPairError("server.keyfile", keyfile, f"cannot be used with server.certfile: {reason}") from exc
    return pair


def _read(key: str, path: str) -> bytes:
    try:
        return read_file(path, MAX_PEM_BYTES)[0]
    except ValueError as exc:
        raise KeyPairError(key, path, str(exc)) from exc


def _check_certificates(pem: bytes) -> None:
    """Raise ValueError unless the file contains certificates, all of them whole."""
    delimiters = [line.strip() for line in pem.splitlines() if line.startswith(b"-")]
    is_whole = len(delimiters) % 2 == 0 and all(_DELIMITER.fullmatch(line) for line in delimiters)
    if not is_whole:
        raise ValueError("is not complete: a line that begins with -----END is missing")
    try:
        text = _NOT_ASCII.sub(b"?", pem).decode("ascii")
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=text)
    except (OSError, ValueError) as exc:  # OSError includes SSLError
        raise ValueError("must be a PEM file with certificates") from exc


@contextlib.contextmanager
def _file_in_memory(data: bytes) -> Iterator[str]:
    fd = os.memfd_create("dockyard")
    try:
        os.write(fd, data)
        yield f"/proc/self/fd/{fd}"
    finally:
        os.close(fd)
