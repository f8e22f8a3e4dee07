"""Which certificates and versions of TLS are accepted, and why one is not.

The rules are those of curl and of Go, on every version of Python. Python 3.13 by default also rejects certificates that
break RFC 5280 in form only (VERIFY_X509_STRICT): private certificate authorities without a keyUsage, certificates
without an authorityKeyIdentifier. Signature, dates, host name and chain are verified without it all the same.
"""

import ssl
from collections.abc import Iterable, Mapping
from enum import Enum, auto
from typing import Any

import attrs

MAX_NAMES = 10  # of a certificate, in a message
MAX_WRAPPED = 32  # exceptions that are looked at for the one of OpenSSL


def make_tls_context(ca_file: str | None = None) -> ssl.SSLContext:
    """Trust the certificates of the system (or of SSL_CERT_FILE), and those in `ca_file`. Raises OSError.

    A certificate in `ca_file` is trusted also when it is not the root of its chain.
    """
    context = ssl.create_default_context()
    context.minimum_version = ssl.TLSVersion.TLSv1_2  # that of Debian's Python is older
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    if ca_file is not None:
        context.load_verify_locations(cafile=ca_file)
    return context


class TLSProblem(Enum):
    """Why there is no trusted connection, as far as the cure depends on it."""

    UNKNOWN_CA = auto()
    SELF_SIGNED = auto()
    EXPIRED = auto()
    NOT_YET_VALID = auto()
    OTHER_NAME = auto()
    NO_TLS = auto()
    CLOSED = auto()
    OTHER = auto()


@attrs.frozen
class TLSFailure:
    """Why a TLS connection failed.

    `reason` is without host names and addresses. `error` is what OpenSSL says, which may contain them: for the log.
    """

    problem: TLSProblem
    reason: str
    error: str


# Error codes of X509_verify_cert (OpenSSL). The messages of OpenSSL for the last ones contain host names.
_UNKNOWN_CA = (TLSProblem.UNKNOWN_CA, "the certificate is not from a known certificate authority")
_CERTIFICATES = {
    9: (TLSProblem.NOT_YET_VALID, "the certificate is not valid yet"),
    10: (TLSProblem.EXPIRED, "the certificate has expired"),
    18: (TLSProblem.SELF_SIGNED, "the certificate is self-signed"),
    19: _UNKNOWN_CA,
    20: _UNKNOWN_CA,
    21: _UNKNOWN_CA,
    23: (TLSProblem.OTHER, "the certificate is revoked"),
    62: (TLSProblem.OTHER_NAME, "the certificate is for another host name"),
    64: (TLSProblem.OTHER_NAME, "the certificate is for another IP address"),
}

# Reasons of other errors of OpenSSL.
_NO_TLS = (TLSProblem.NO_TLS, "the server does not speak TLS on this port")
_OTHER_VERSION = (TLSProblem.OTHER, "the server supports no version of TLS that this machine accepts")
_CLIENT_CERTIFICATE = (TLSProblem.OTHER, "the server requires a client certificate, which Dockyard cannot send")
_HANDSHAKES = {
    "WRONG_VERSION_NUMBER": _NO_TLS,
    "HTTP_REQUEST": _NO_TLS,
    "UNKNOWN_PROTOCOL": _NO_TLS,
    "RECORD_LAYER_FAILURE": _NO_TLS,
    "PACKET_LENGTH_TOO_LONG": _NO_TLS,
    "TLSV1_ALERT_PROTOCOL_VERSION": _OTHER_VERSION,
    "UNSUPPORTED_PROTOCOL": _OTHER_VERSION,
    "WRONG_SSL_VERSION": _OTHER_VERSION,
    "NO_PROTOCOLS_AVAILABLE": _OTHER_VERSION,
    "TLSV13_ALERT_CERTIFICATE_REQUIRED": _CLIENT_CERTIFICATE,
}


def explain_failure(exc: BaseException) -> TLSFailure:
    """Why a TLS connection failed. Looks at causes and wrapped errors."""
    found = find_tls_error(exc)
    if isinstance(found, ssl.SSLCertVerificationError):
        code = getattr(found, "verify_code", 0)
        error = f"OpenSSL: {getattr(found, 'verify_message', '')} (verify error {code})"
        problem, reason = _CERTIFICATES.get(code) or (
            TLSProblem.OTHER,
            f"the certificate is rejected: {getattr(found, 'verify_message', '')}",
        )
        return TLSFailure(problem, reason, error)
    if found is None or isinstance(found, ssl.SSLEOFError | ssl.SSLZeroReturnError):
        error = "OpenSSL: unexpected eof while reading" if found else ""
        return TLSFailure(TLSProblem.CLOSED, "the connection was closed during the handshake", error)
    name = getattr(found, "reason", None) or "unknown reason"  # errors that Python itself raises have none
    problem, reason = _HANDSHAKES.get(name) or (
        TLSProblem.OTHER,
        f"the handshake failed: {name.lower().replace('_', ' ')}",
    )
    return TLSFailure(problem, reason, f"OpenSSL: {name.lower().replace('_', ' ')}")


def find_tls_error(exc: BaseException) -> ssl.SSLError | None:
    """The error of OpenSSL in an exception of urllib3."""
    pending: list[object] = [exc]
    for _ in range(MAX_WRAPPED):
        if not pending:
            break
        match pending.pop(0):
            case ssl.SSLError() as found:
                return found
            case BaseException() as outer:
                pending += [*outer.args, outer.__cause__, outer.__context__]
    return None


def make_unverified_context() -> ssl.SSLContext:
    """Accept any certificate: only to see which one a server has, or whether it speaks TLS. Nothing is sent."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def describe_certificate(connection: Any) -> str:
    """Subject, issuer, names and dates of the certificate of a connection that was made without verification.

    Python has no public method for that before 3.13, and later only one for the encoded certificate. Empty when the
    private one is missing.
    """
    connection = getattr(connection, "sslobj", connection)  # TLS within the TLS connection to a proxy
    try:
        certificate: Mapping[str, Any] = connection._sslobj.get_unverified_chain()[0].get_info()  # noqa: SLF001
    except (AttributeError, IndexError, TypeError, ssl.SSLError):
        return ""
    names = [value for kind, value in certificate.get("subjectAltName", ()) if kind in ("DNS", "IP Address")]
    listed = ", ".join(names[:MAX_NAMES]) + (", ..." if len(names) > MAX_NAMES else "")
    subject, issuer = _common_name(certificate.get("subject", ())), _common_name(certificate.get("issuer", ()))
    return (
        f"certificate of {subject}, issued by {issuer}, for {listed or 'no names'}, "
        f"valid from {certificate.get('notBefore')} to {certificate.get('notAfter')}"
    )


def _common_name(name: Iterable[Iterable[tuple[str, str]]]) -> str:
    """The common name in the name of a subject or issuer, else the whole name."""
    pairs = [pair for group in name for pair in group]
    common = [value for key, value in pairs if key == "commonName"]
    return common[0] if common else ", ".join(f"{key}={value}" for key, value in pairs) or "an empty name"
