"""What a response with status 401 asks for (RFC 9110 section 11.6.1): a login, or an access token.

A challenge for access tokens has the URL of `/token` as the client reaches it: its scheme and host are those of the
request, or those that trusted proxies report. Nothing goes into a header that is not a host.
"""

import re
from collections.abc import Callable
from typing import Final

from dockyard.access.networks import forwarded_for_client, parse_networks
from dockyard.config.settings import TOKEN_PATH, AccessSettings, ServerSettings
from dockyard.errors import NameInvalid
from dockyard.oci.reference import Name
from dockyard.web.asgi import Scope

LOGIN_CHALLENGE: Final = 'Basic realm="dockyard"'
"""Asks for a user name and a password (RFC 7617)."""
SERVICE: Final = "dockyard"
MAX_HOST_CHARS: Final = 255
_HOST: Final = re.compile(r"(?:[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?", re.ASCII)

FindTokenUrl = Callable[[Scope], str | None]


def make_find_token_url(server: ServerSettings, access: AccessSettings) -> FindTokenUrl:
    """Return what finds the URL of `/token` as the client of a request reaches it; None if its host is not one."""
    if access.token_url:
        return lambda _: access.token_url
    trusted = parse_networks(server.trusted_proxies)
    own_scheme = "https" if server.tls else "http"

    def find_token_url(scope: Scope) -> str | None:
        headers = scope["headers"]
        scheme, host = forwarded_for_client(scope["client"][0], headers, trusted, server.proxy_header)
        if not _is_host(host):
            host = next((value.decode("latin-1") for name, value in headers if name == b"host"), "")
        if not _is_host(host):
            return None
        scheme = scheme.lower() if scheme.lower() in {"http", "https"} else own_scheme
        return f"{scheme}://{host}{TOKEN_PATH}"

    return find_token_url


def make_token_challenge(url: str, repository: str, error: str) -> str:
    """Return a challenge for access tokens (RFC 6750 section 3), for a repository or, if it is empty, for none.

    `error` says what is wrong with the token in the request, which has none if this is empty.
    """
    parameters = {"realm": url, "service": SERVICE}
    if _is_name(repository):
        parameters["scope"] = f"repository:{repository}:pull"
    if error:
        parameters["error"] = error
    return "Bearer " + ",".join(f'{name}="{value}"' for name, value in parameters.items())


def _is_host(text: str) -> bool:
    return len(text) <= MAX_HOST_CHARS and _HOST.fullmatch(text) is not None


def _is_name(text: str) -> bool:
    try:
        Name.parse(text)
    except NameInvalid:
        return False
    return True
