"""Finds out which server responds at the URL: a Dockyard and its prefixes; or else what is wrong, and what to do."""

import json
import socket
from collections.abc import Mapping
from typing import Any, Final, Protocol

import attrs

from dockyard.http1.tls import TLSProblem, explain_failure, make_unverified_context
from dockyard.oci.origin import Origin
from dockyard.oci.reference import replace_unprintable
from dockyard.pull.retries import PullError
from dockyard.upstream.urls import parse_http_url

PROBE_TIMEOUT_S: Final = 5.0
MAX_SERVER_CHARS: Final = 60
_NAME_AUTHORITY: Final = "name a file with the certificate of its authority with --ca-file"
_RENEW: Final = "renew the certificate of the server, or set the clock of this machine"
_TLS_CURES: Final = {
    TLSProblem.NO_TLS: "use {http_url}",
    TLSProblem.OTHER_NAME: "set a host in --server that is in the certificate",
    TLSProblem.SELF_SIGNED: _NAME_AUTHORITY,
    TLSProblem.UNKNOWN_CA: _NAME_AUTHORITY,
    TLSProblem.EXPIRED: _RENEW,
    TLSProblem.NOT_YET_VALID: _RENEW,
}


@attrs.frozen
class Probe:
    """The response of a server, whatever it is; of the body only the beginning."""

    status: int
    headers: Mapping[str, str]
    body: bytes = attrs.field(repr=False)

    def find_json(self) -> dict[str, Any]:
        """Return the object in the body; an empty one if there is none."""
        try:
            document = json.loads(self.body)
        except (ValueError, RecursionError):
            return {}
        return document if isinstance(document, dict) else {}


class SendProbe(Protocol):
    """Sends a GET for a path below the URL. Raises PullError if there is no response."""

    def __call__(self, path: str, accept: str = "*/*", /) -> Probe: ...


def find_prefixes(url: str, send_probe: SendProbe, login_cure: str = "") -> frozenset[str] | None:
    """Return the prefixes of the Dockyard; None if its version is too old to tell them. Raises PullError.

    `login_cure`: what to do if a login is required.
    """
    origin = parse_http_url(url).origin
    page: Probe | None = None
    try:
        page = send_probe("/", "application/json")
        document = page.find_json()
        if page.status == 200 and isinstance(document.get("version"), str):
            prefixes = document.get("prefixes")
            if isinstance(prefixes, list):
                return frozenset(prefix for prefix in prefixes if isinstance(prefix, str))
        if _is_refusal(page):
            raise PullError.final(_describe_refusal(page, url, login_cure))
        version = send_probe("/version")
        if version.status == 200 and isinstance(version.find_json().get("version"), str):
            return None
        cause = _describe_other_server(send_probe("/v2/"), origin)
    except PullError as exc:
        if page is not None and _is_refusal(page):
            raise
        cause = _explain(exc, origin)
    raise PullError.final(f"no Dockyard at {url}: {cause}")


def _is_refusal(page: Probe) -> bool:
    """Whether a Dockyard refuses the client: by an error of a registry, at a path where other registries have none."""
    errors = page.find_json().get("errors")
    return page.status in {401, 403} and isinstance(errors, list)


def _describe_refusal(page: Probe, url: str, login_cure: str) -> str:
    if page.status == 401:
        return f"{url} requires a login{f' ({login_cure})' if login_cure else ''}"
    return f"{url} admits no client from here (ask the operator of that server: its rules do not allow it)"


def _describe_other_server(response: Probe, origin: Origin) -> str:
    """What responds instead of a Dockyard, by its response to `/v2/`."""
    if origin.scheme == "http" and response.status in {400, 426} and _speaks_tls(origin):
        return _use_https(origin)
    name = replace_unprintable(_find_header(response, "server"))[:MAX_SERVER_CHARS]
    software = f" ({name})" if name else ""
    if _find_header(response, "docker-distribution-api-version") or response.body.strip() == b"{}":
        return (
            f"the server{software} is a registry, but not a Dockyard (set the URL of Dockyard with --server; a proxy "
            "before it must forward / and /version too)"
        )
    return (
        f"the server{software} responds with status {response.status} to /v2/ (it is another program: check host and "
        "port in --server)"
    )


def _explain(exc: PullError, origin: Origin) -> str:
    """The reason of a failed request, with what to do."""
    if exc.has_response:
        return exc.message
    message = exc.message
    if "cannot resolve" in message:
        return f"{message} (check the host name in --server)"
    if "Connection refused" in message:
        return f"{message} (is it running? set its URL with --server)"
    if "no connection within" in message or "unreachable" in message or "No route" in message:
        return f"{message} (check host and port in --server, and firewalls on the way)"
    if origin.scheme == "http":
        return _use_https(origin) if _speaks_tls(origin) else f"{message} (check host and port in --server)"
    cure = _TLS_CURES.get(explain_failure(exc).problem, "check host and port in --server")
    return f"{message} ({cure.format(http_url=Origin('http', origin.host, origin.port))})"


def _use_https(origin: Origin) -> str:
    return f"the server speaks HTTPS (use {Origin('https', origin.host, origin.port)})"


def _speaks_tls(origin: Origin) -> bool:
    """Whether the server accepts a TLS handshake. Nothing is sent in it, so its certificate is not verified."""
    try:
        with (
            socket.create_connection((origin.host, origin.port), PROBE_TIMEOUT_S) as connection,
            make_unverified_context().wrap_socket(connection, server_hostname=origin.host),
        ):
            return True
    except OSError:  # includes SSLError
        return False


def _find_header(response: Probe, name: str) -> str:
    return next((value for key, value in response.headers.items() if key.lower() == name), "")
