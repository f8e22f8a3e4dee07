"""Certificates: which are trusted, and what is said about the others."""

import ipaddress
import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from urllib3.exceptions import ProtocolError, ProxyError, SSLError

from dockyard.http1.tls import explain_failure, make_tls_context


class Authority:
    """A private certificate authority without keyUsage, whose certificates have no authorityKeyIdentifier."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Corporate CA")])
        builder = self._builder(self._name, self._key).add_extension(x509.BasicConstraints(True, None), True)
        self.ca_file = self._write("ca.pem", builder.sign(self._key, hashes.SHA256()))

    def server(self, days: int = 10, address: str = "127.0.0.1") -> ssl.SSLContext:
        """A server's context with a certificate for an address, valid until so many days from now."""
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "server")])
        builder = self._builder(name, key, days).add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(address))]), False
        )
        certificate = self._write("server.pem", builder.sign(self._key, hashes.SHA256()))
        (self._directory / "key.pem").write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, self._directory / "key.pem")
        return context

    def _builder(self, name: x509.Name, key: ec.EllipticCurvePrivateKey, days: int = 10) -> x509.CertificateBuilder:
        now = datetime.now(UTC)
        builder = x509.CertificateBuilder().subject_name(name).issuer_name(self._name).public_key(key.public_key())
        builder = builder.serial_number(x509.random_serial_number())
        return builder.not_valid_before(now - timedelta(days=20)).not_valid_after(now + timedelta(days=days))

    def _write(self, name: str, certificate: x509.Certificate) -> str:
        path = self._directory / name
        path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        return str(path)


def handshake(client: ssl.SSLContext, server: ssl.SSLContext, host: str = "127.0.0.1") -> None:
    """A handshake in memory. Raises ssl.SSLError of the client."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ours = client.wrap_bio(to_client, to_server, server_hostname=host)
    theirs = server.wrap_bio(to_server, to_client, server_side=True)
    for _ in range(5):
        for side in (ours, theirs):
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                continue
            if side is ours:
                return
    pytest.fail("the handshake does not end")


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    """A private authority as companies have them."""
    return Authority(tmp_path)


def test_a_private_authority_of_an_old_form_is_trusted(authority: Authority) -> None:
    """As by curl and Go; Python 3.13 rejects it by default."""
    handshake(make_tls_context(authority.ca_file), authority.server())
    strict = make_tls_context(authority.ca_file)
    strict.verify_flags |= ssl.VERIFY_X509_STRICT
    with pytest.raises(ssl.SSLCertVerificationError) as caught:
        handshake(strict, authority.server())
    assert explain_failure(caught.value).reason.startswith("the certificate is rejected: ")


@pytest.mark.parametrize("version", ["TLSv1_2", "TLSv1_3"])
def test_the_context_has_the_same_rules_on_each_python(version: str) -> None:
    """Verification is on; TLS 1.2 and 1.3 are allowed."""
    context = make_tls_context()
    assert not context.verify_flags & ssl.VERIFY_X509_STRICT
    assert context.verify_flags & ssl.VERIFY_X509_PARTIAL_CHAIN
    assert (context.verify_mode, context.check_hostname) == (ssl.CERT_REQUIRED, True)
    assert context.minimum_version <= ssl.TLSVersion[version]


def test_old_versions_of_tls_are_not_accepted() -> None:
    """Debian builds Python with the versions of OpenSSL's own settings."""
    assert make_tls_context().minimum_version is ssl.TLSVersion.TLSv1_2


def test_each_reason_is_in_the_error(authority: Authority) -> None:
    """Expired, another authority, another address, another name."""
    trusting, other = make_tls_context(authority.ca_file), make_tls_context()
    cases = [
        (trusting, authority.server(days=-1), "127.0.0.1", "the certificate has expired"),
        (trusting, authority.server(address="127.0.0.9"), "127.0.0.1", "the certificate is for another IP address"),
        (trusting, authority.server(), "registry.test", "the certificate is for another host name"),
        (other, authority.server(), "127.0.0.1", "the certificate is not from a known certificate authority"),
    ]
    for client, server, host, reason in cases:
        with pytest.raises(ssl.SSLError) as caught:
            handshake(client, server, host)
        assert explain_failure(caught.value).reason == reason
        assert explain_failure(ProxyError("no tunnel", SSLError(caught.value))).reason == reason


def test_what_is_no_tls_is_in_the_error() -> None:
    """A plain response, a closed connection, an alert; and a loop of causes ends."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = make_tls_context().wrap_bio(incoming, outgoing, server_hostname="registry.test")
    incoming.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
    with pytest.raises(ssl.SSLError) as caught:
        client.do_handshake()
    assert explain_failure(caught.value).reason == "the server does not speak TLS on this port"
    assert explain_failure(ssl.SSLEOFError("eof")).reason == "the connection was closed during the handshake"
    assert explain_failure(ProtocolError("x", ConnectionResetError())).reason.startswith("the connection was closed")
    assert explain_failure(ssl.SSLError("bad record")).reason == "the handshake failed: unknown reason"
    first, second = ValueError(), ValueError()
    first.__cause__, second.__cause__ = second, first
    assert explain_failure(first).reason == "the connection was closed during the handshake"
