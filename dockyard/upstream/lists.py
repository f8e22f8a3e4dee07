"""Lists from a registry: the tags of a repository, the referrers of a manifest, from all pages.

The next page is the URL in the Link header, on the same host; its `last` may have any value. The number of pages, bytes
and entries is limited; a longer list is BadUpstream, and so is a Link to an earlier page: no partial list is returned.
A list that takes longer than the time limit is UpstreamTimeout.

In a registry without the referrers API, clients push referrers under a tag ("Referrers Tag Schema" of the OCI
distribution specification). If that tag is not found, there are no referrers. If access is denied or a request fails,
the result is an error.
"""

import time
from collections.abc import Callable, Iterator
from urllib.parse import urljoin

import attrs

from dockyard.errors import Denied, ManifestUnknown, NameUnknown, RegistryError
from dockyard.oci.links import find_next
from dockyard.oci.lists import (
    Referrer,
    find_referrers,
    merge_referrers,
    parse_referrers,
    parse_tags,
    referrers_tag,
)
from dockyard.oci.manifest import ACCEPT, MAX_MANIFEST_BYTES, OCI_INDEX, Manifest
from dockyard.oci.origin import DEFAULT_PORTS, Origin
from dockyard.oci.reference import Digest
from dockyard.upstream import errors
from dockyard.upstream.errors import UpstreamError
from dockyard.upstream.headers import find_digest
from dockyard.upstream.responses import check_encoding
from dockyard.upstream.session import RegistryRequest, RegistryResponse, RegistrySession
from dockyard.upstream.tokens import CallLimits
from dockyard.upstream.urls import InvalidUrl, Url, parse_http_url

WALK_TIMEOUT_S = 30.0
MAX_PAGES = 1000
MAX_BYTES = 32 * 1024 * 1024
MAX_ENTRIES = 200_000
PAGE_ENTRIES = 1000  # requested per page; the same as crane

# The statuses with which registries without the referrers API respond.
_NO_SUCH_API = frozenset({400, 404, 405, 406, 410})


class ListReader:
    """The lists of one registry. `status_error` is that of its client."""

    def __init__(
        self,
        prefix: str,
        session: RegistrySession,
        status_error: Callable[[RegistryResponse, RegistryRequest], UpstreamError | RegistryError],
    ) -> None:
        self._prefix = prefix
        self._session = session
        self._status_error = status_error

    def tags(self, repository: str) -> list[str]:
        """All tags of a repository, sorted, each once. Raises UpstreamError, RegistryError."""
        request = RegistryRequest("GET", repository, list_path=f"tags/list?n={PAGE_ENTRIES}")
        found: set[str] = set()
        for response, body in self._walk(request, self._deadline()):
            if body is None:
                raise self._status_error(response, request)
            found.update(parse_tags(body))
            self._check_count(len(found))
        return sorted(found)

    def referrers(self, repository: str, digest: Digest) -> list[Referrer]:
        """All manifests that have this one as their subject. Raises UpstreamError, RegistryError."""
        deadline = self._deadline()
        request = RegistryRequest("GET", repository, list_path=f"referrers/{digest}", accept=OCI_INDEX)
        pages: list[list[Referrer]] = []
        try:
            for response, body in self._walk(request, deadline):
                if body is None and response.http.status in _NO_SUCH_API:
                    return self._by_tag(repository, digest, deadline)
                if body is None:
                    raise self._status_error(response, request)
                pages.append(parse_referrers(body, response.http.header("Content-Type")))
                self._check_count(sum(map(len, pages)))
        except NameUnknown as exc:  # the error for 401 and 403 without credentials
            raise self._denied(repository) from exc
        return merge_referrers(pages)

    def _by_tag(self, repository: str, digest: Digest, deadline: float) -> list[Referrer]:
        request = RegistryRequest("GET", repository, referrers_tag(digest), accept=", ".join(ACCEPT))
        try:
            response = self._session.send(request, CallLimits(deadline))
        except ManifestUnknown as exc:  # as above
            raise self._denied(repository) from exc
        if response.http.status in (404, 410):
            response.http.finish()
            return []
        if response.http.status != 200:
            response.http.finish()
            error = self._status_error(response, request)
            raise self._denied(repository) if isinstance(error, ManifestUnknown) else error
        body = self._read(response, MAX_MANIFEST_BYTES)
        announced = find_digest(response.http.header("Docker-Content-Digest"))
        manifest = Manifest.parse(body, response.http.header("Content-Type"), announced)
        return merge_referrers([find_referrers(manifest) or []])

    def _walk(self, request: RegistryRequest, deadline: float) -> Iterator[tuple[RegistryResponse, bytes | None]]:
        """Yield the pages and their bodies; None if the status of the first page is not 200. Raises UpstreamError."""
        remaining_bytes = MAX_BYTES
        seen: set[str] = set()
        for number in range(MAX_PAGES):
            response = self._send_page(request, deadline)
            if response.http.status != 200:
                response.http.finish()
                if number and isinstance(self._status_error(response, request), NameUnknown):
                    raise errors.bad_response(self._prefix, "does not have all pages of a list")
                if number:
                    raise self._status_error(response, request)
                yield response, None
                return
            body = self._read(response, remaining_bytes)
            yield response, body
            url = self._next(response)
            if url is None:
                return
            if url.target in seen:
                raise errors.bad_response(self._prefix, "has a list whose pages lead back to each other")
            seen.add(url.target)
            remaining_bytes -= len(body)
            request = attrs.evolve(request, url=url)
        raise errors.bad_response(self._prefix, f"has a list of more than {MAX_PAGES} pages")

    def _send_page(self, request: RegistryRequest, deadline: float) -> RegistryResponse:
        try:
            return self._session.send(request, CallLimits(deadline))
        except UpstreamError as error:
            if time.monotonic() < deadline:
                raise
            raise error.as_not_counted() from error  # a list that is slow is no outage

    def _read(self, response: RegistryResponse, remaining_bytes: int) -> bytes:
        try:
            check_encoding(response.http)
        except UpstreamError:
            response.http.close()
            raise
        return response.http.read(remaining_bytes)

    def _next(self, response: RegistryResponse) -> Url | None:
        """The URL of the next page, on the host that sent this one; None after the last. Raises UpstreamError."""
        here = response.http.url
        try:
            link = find_next(response.http.header_values("Link"))
            url = parse_http_url(urljoin(here.text, link)) if link is not None else None
        except (InvalidUrl, ValueError) as exc:
            raise errors.bad_response(self._prefix, "has a list whose next page is nowhere") from exc
        if url and not _is_same_host(url.origin, here.origin):
            raise errors.destination_not_allowed(self._prefix, "has a list whose next page is on another host")
        return Url(here.origin, url.target) if url else None

    def _check_count(self, count: int) -> None:
        if count > MAX_ENTRIES:
            raise errors.bad_response(self._prefix, f"has a list of more than {MAX_ENTRIES} entries")

    def _denied(self, repository: str) -> Denied:
        return Denied(f"{self._prefix} does not show us the referrers in {repository}")

    def _deadline(self) -> float:
        return time.monotonic() + WALK_TIMEOUT_S


def _is_same_host(one: Origin, other: Origin) -> bool:
    """Also if one is http and the other https, each on its default port: behind a proxy, registries confuse them."""
    is_default = all(origin.port == DEFAULT_PORTS[origin.scheme] for origin in (one, other))
    return one.host == other.host and (one.port == other.port or is_default)
