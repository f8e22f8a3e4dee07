"""Which certificates are trusted.

The rules are those of curl and of Go, on every version of Python. Python 3.13 by default also rejects certificates that
break RFC 5280 in form only (VERIFY_X509_STRICT): private certificate authorities without a keyUsage, certificates
without an authorityKeyIdentifier. Signature, dates, host name and chain are verified without it all the same.
"""

import ssl


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
