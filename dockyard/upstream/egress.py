"""How requests leave for an upstream: whose certificates are believed, and through which proxy."""

import ssl
from urllib.parse import unquote, urlsplit

from dockyard.config.settings import Upstream
from dockyard.upstream.dialer import DialError


def make_tls_context(upstream: Upstream) -> ssl.SSLContext:
    """The system's roots, and those of `ca_file` beside them: a private registry may send us to a public host.

    `insecure_skip_verify` is for all hosts of the upstream. Raises DialFailed.
    """
    context = ssl.create_default_context()
    if upstream.ca_file:
        try:
            context.load_verify_locations(cafile=upstream.ca_file)
        except OSError as exc:
            raise DialError("its ca_file cannot be used") from exc
    if upstream.insecure_skip_verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def split_proxy(url: str) -> tuple[str, str | None]:
    """A proxy's address without userinfo, and its `user:password` if it has one."""
    parts = urlsplit(url)
    address = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
    if parts.username is None:
        return address, None
    return address, f"{unquote(parts.username)}:{unquote(parts.password or '')}"
