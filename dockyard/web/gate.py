"""The gate: every request passes it before anything else is looked at, and only the gate can route.

It holds the only `Router`, so a handler has no `Target`, and with it no content, unless the gate has admitted the
request. This is true for hits and misses alike, for GET, HEAD, ranges and conditions, and for every endpoint.
"""

import re
from collections.abc import Callable, Sequence
from typing import TypeVar
from urllib.parse import parse_qs

import attrs
import falcon.asgi
import structlog

from dockyard.config.settings import Settings, Upstream
from dockyard.errors import RequestInvalid
from dockyard.log import is_debug
from dockyard.routing import Router, Target
from dockyard.web.challenges import LOGIN_CHALLENGE
from dockyard.web.request_record import RequestRecord

_HOST = re.compile(r"[A-Za-z0-9.:_\[\]-]{1,255}", re.ASCII)
_Parsed = TypeVar("_Parsed")

log = structlog.get_logger()


class Gate:
    """Admits every request. Where access is restricted, there is an AccessGate instead.

    `restricts`: whether something is not for everybody.
    """

    restricts = False

    def __init__(self, settings: Settings) -> None:
        self._router = Router(settings.upstreams)
        self._upstreams = settings.upstreams

    async def admit(
        self,
        req: falcon.asgi.Request,
        resp: falcon.asgi.Response,
        record: RequestRecord,
        path_prefix: str,
        reference: str,
        parse: Callable[[str], _Parsed],
    ) -> tuple[Target, _Parsed]:
        """Return the target of an admitted request, and what `parse` makes of its reference. Raises RegistryError.

        `record` has the kind and the name of what is requested. `parse` looks at the rest of the request.
        """
        parsed = parse(reference)
        target = self._route(req, record, path_prefix)
        echo_namespace(req, resp)
        return target, parsed

    def is_public(self, target: Target) -> bool:
        """Whether every client may get the content of a target, so that shared caches may keep it."""
        return target.upstream.is_anonymous and not self.restricts

    def find_challenge(self, req: falcon.asgi.Request, record: RequestRecord) -> str:
        """Return what a client that needs a login is asked for."""
        return LOGIN_CHALLENGE

    async def check_api(
        self, req: falcon.asgi.Request, resp: falcon.asgi.Response, record: RequestRecord, path_prefix: str
    ) -> None:
        """Admit a request for `/v2/`, below the path of a mirror if there is one. Raises RegistryError."""

    async def check_status(self, req: falcon.asgi.Request, resp: falcon.asgi.Response, record: RequestRecord) -> None:
        """Admit a request for the state or the version of the server. Raises RegistryError."""

    async def check_page(
        self, req: falcon.asgi.Request, resp: falcon.asgi.Response, record: RequestRecord
    ) -> Sequence[Upstream]:
        """Admit a request for `/`, and return the upstreams that its client may know. Raises RegistryError."""
        return self._upstreams

    def _route(self, req: falcon.asgi.Request, record: RequestRecord, path_prefix: str) -> Target:
        """Return the target of the name in a record. Raises RegistryError."""
        name = record.name
        target = self._router.route(name, ns=find_namespace(req), path_prefix=path_prefix or None)
        if record.passed:
            target = attrs.evolve(target, passed=record.passed)
        if is_debug():
            log.debug(
                "routed",
                name=name,
                upstream=target.upstream.prefix,
                host=target.upstream.origin.host_and_port,
                repository=target.repository,
            )
        return target


def echo_namespace(req: falcon.asgi.Request, resp: falcon.asgi.Response) -> None:
    """Send `ns` in `OCI-Namespace`. For clients that may know that there is an upstream for it."""
    namespace = find_namespace(req)
    if namespace and _HOST.fullmatch(namespace):
        resp.set_header("oci-namespace", namespace)


def find_namespace(req: falcon.asgi.Request) -> str | None:
    """Return the `ns` in the query of a request; None without one. Raises RequestInvalid for several."""
    namespaces = set(parse_qs(req.query_string).get("ns", ())) if req.query_string else set()
    if len(namespaces) > 1:
        raise RequestInvalid("the query has several values of ns")
    return namespaces.pop() if namespaces else None
