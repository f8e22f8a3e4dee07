"""Certificates that a client must not accept, each for its own reason."""

import datetime as dt
import ssl
import warnings
from pathlib import Path

import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

ADDRESS = "127.0.0.1"


def make_authority() -> trustme.CA:
    """An authority that nothing trusts."""
    return trustme.CA(organization_name="ISSUER", organization_unit_name="ISSUER")


def days(count: int) -> dt.datetime:
    """The time so many days from now."""
    return dt.datetime.now(dt.UTC) + dt.timedelta(days=count)


def self_signed_pair(directory: Path) -> tuple[Path, Path]:
    """A certificate that is its own issuer, and its key, as files."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, ADDRESS)])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(days(-1))
        .not_valid_after(days(30))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    files = directory / "self-signed.crt", directory / "self-signed.key"
    files[0].write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    files[1].write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return files


def self_signed(directory: Path) -> ssl.SSLContext:
    """The context of a server with such a certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*self_signed_pair(directory))
    return context


def issued(authority: trustme.CA, *names: str, first_day: int = -1, last_day: int = 30) -> ssl.SSLContext:
    """The context of a server with a certificate of an authority, valid in these days counted from today."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certificate = authority.issue_cert(
        *(names or (ADDRESS,)), common_name="SUBJECT", not_before=days(first_day), not_after=days(last_day)
    )
    certificate.configure_cert(context)
    return context


def old_protocol(authority: trustme.CA) -> ssl.SSLContext:
    """The context of a server that speaks TLS 1.1 at most."""
    context = issued(authority)
    context.set_ciphers("DEFAULT:@SECLEVEL=0")
    with warnings.catch_warnings(action="ignore", category=DeprecationWarning):
        context.minimum_version = ssl.TLSVersion.TLSv1
        context.maximum_version = ssl.TLSVersion.TLSv1_1
    return context
