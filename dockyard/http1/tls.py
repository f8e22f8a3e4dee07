"""Which certificates are trusted, and why one is not.

The rules are those of curl and of Go, on every version of Python. Python 3.13 by default also rejects certificates that
break RFC 5280 in form only (VERIFY_X509_STRICT): private certificate authorities without a keyUsage, certificates
without an authorityKeyIdentifier. Signature, dates, host name and chain are verified without it all the same.
"""

import ssl

MAX_WRAPPED = 32  # exceptions that are looked at for the one of OpenSSL


def make_tls_context(ca_file: str | None = None) -> ssl.SSLContext:
    """Trust the certificates of the system (or of SSL_CERT_FILE), and those in `ca_file`. Raises OSError.

    A certificate in `ca_file` is trusted also when it is not the root of its chain.
    """
    context = ssl.create_default_context()
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    if ca_file is not None:
        context.load_verify_locations(cafile=ca_file)
    return context


# Error codes of X509_verify_cert (OpenSSL). The messages of OpenSSL for the last ones contain host names.
_UNKNOWN_CA = "the certificate is not from a known certificate authority"
_REASONS = {
    9: "the certificate is not valid yet",
    10: "the certificate has expired",
    18: "the certificate is self-signed",
    19: _UNKNOWN_CA,
    20: _UNKNOWN_CA,
    21: _UNKNOWN_CA,
    23: "the certificate is revoked",
    62: "the certificate is for another host name",
    64: "the certificate is for another IP address",
}

_NO_TLS = {"WRONG_VERSION_NUMBER", "HTTP_REQUEST", "UNKNOWN_PROTOCOL", "RECORD_LAYER_FAILURE"}


def describe_failure(exc: BaseException) -> str:
    """Why a TLS connection failed, in words without host names and addresses. Looks at causes and wrapped errors."""
    found = _find_tls_error(exc)
    if isinstance(found, ssl.SSLCertVerificationError):
        code = getattr(found, "verify_code", 0)
        return _REASONS.get(code) or f"the certificate is rejected: {getattr(found, 'verify_message', '')}"
    if found is None or isinstance(found, ssl.SSLEOFError | ssl.SSLZeroReturnError):
        return "the connection was closed during the handshake"
    reason = getattr(found, "reason", None) or "unknown reason"  # errors that Python itself raises have none
    if reason in _NO_TLS:
        return "the server does not speak TLS on this port"
    return f"the handshake failed: {reason.lower().replace('_', ' ')}"


def _find_tls_error(exc: BaseException) -> ssl.SSLError | None:
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
