"""TLS contexts of test servers."""

import ssl

import trustme


def server_context(authority: trustme.CA, *names: str) -> ssl.SSLContext:
    """A server's TLS context with a certificate of this authority for these names."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(*names).configure_cert(context)
    return context
