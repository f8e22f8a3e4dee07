"""Lists from a registry: the tags of a repository, the referrers of a manifest, from all pages.

The next page has the URL of the first one, and the query of the Link header: a Link never leads to another list. The
number of pages, bytes and entries is limited; a longer list is BadUpstream, and so is a Link to an earlier page: no
partial list is returned. A list that takes longer than the time limit is UpstreamTimeout.

In a registry without the referrers API, clients push referrers under a tag ("Referrers Tag Schema" of the OCI
distribution specification). Such a registry responds to the API with an error or with something that is not an index,
for example a web page. If the tag is not found either, there are no referrers. If access is denied or a request fails,
the result is an error.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import attrs
import structlog

from dockyard.errors import BadUpstream, Denied, FailureDetails, ManifestUnknown, NameUnknown, RegistryError
from dockyard.oci.links import find_next, next_query
from dockyard.oci.lists import Referrer, find_referrers, is_referrer, merge_referrers, parse_tags, referrers_tag
from dockyard.oci.manifest import ACCEPT, MAX_MANIFEST_BYTES, OCI_INDEX, Manifest
from dockyard.oci.reference import Digest
from dockyard.upstream import errors
from dockyard.upstream.errors import UpstreamError
from dockyard.upstream.headers import find_digest, find_media_type
from dockyard.upstream.responses import check_transfer_encoding, is_error_page, is_web_page
from dockyard.upstream.session import RegistryRequest, RegistryResponse, RegistrySession
from dockyard.upstream.tokens import CallLimits
from dockyard.upstream.transport import UpstreamResponse
from dockyard.upstream.urls import InvalidUrl, Url, parse_http_url

WALK_TIMEOUT_S = 30.0
MAX_PAGES = 1000
MAX_BYTES = 32 * 1024 * 1024
MAX_ENTRIES = 200_000
PAGE_ENTRIES = 1000  # requested per page; the same as crane

# Statuses of a request that failed or was denied. With others, registries say that they have no referrers API.
_FAILURES = frozenset({401, 403, 407, 408, 425, 429, 451, *range(500, 600)}) - {501, 505}

log = structlog.get_logger()


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
        deadline = self._deadline()
        request = RegistryRequest("GET", repository, list_path=f"tags/list?n={PAGE_ENTRIES}")
        response = self._send(request, deadline)
        if response.http.status != 200:
            response.http.finish()
            raise self._status_error(response, request)
        found: set[str] = set()
        for page, body in self._read_pages(request, response, deadline):
            with _attribute_to(page.http):
                found.update(parse_tags(body))
            self._check_count(len(found), page.http)
        return sorted(found)

    def check(self, repository: str, limits: CallLimits) -> None:
        """Whether the registry shows the tags of a repository. Raises UpstreamError, RegistryError."""
        request = RegistryRequest("GET", repository, list_path="tags/list?n=1")
        response = self._session.send(request, limits)
        if response.http.status != 200:
            response.http.finish()
            raise self._status_error(response, request)
        body = self._read(response, MAX_BYTES)  # some registries ignore `n`
        with _attribute_to(response.http):
            parse_tags(body)  # a login form is no list

    def referrers(self, repository: str, digest: Digest) -> list[Referrer]:
        """All manifests that have this one as their subject. Raises UpstreamError, RegistryError."""
        deadline = self._deadline()
        request = RegistryRequest("GET", repository, list_path=f"referrers/{digest}", accept=OCI_INDEX)
        try:
            found = self._by_api(request, deadline)
        except NameUnknown as exc:  # the error for 401 and 403 without credentials
            raise self._denied(repository, exc.details) from exc
        if found is None:
            found = self._by_tag(repository, digest, deadline)
        usable = [entry for entry in found if is_referrer(entry)]
        if len(usable) < len(found):
            log.info(
                "malformed referrers left out",
                upstream=self._prefix,
                repository=repository,
                digest=str(digest),
                count=len(found) - len(usable),
            )
        return merge_referrers(usable)

    def _by_api(self, request: RegistryRequest, deadline: float) -> list[Any] | None:
        """The entries of all pages; None if the registry has no referrers API."""
        response = self._send(request, deadline)
        http = response.http
        if http.status != 200:
            http.finish()
            is_blocked = http.status in (401, 403, 451) and is_error_page(http)  # perhaps this path only: see the tag
            if http.status in _FAILURES and not is_blocked:
                raise self._status_error(response, request)
            return None
        if is_web_page(http):
            http.close()
            return None
        found: list[Any] = []
        for number, (page, body) in enumerate(self._read_pages(request, response, deadline)):
            content_type = page.http.header("Content-Type")
            try:
                with _attribute_to(page.http):
                    entries = find_referrers(body, content_type)
            except BadUpstream:
                if number or find_media_type(content_type) == OCI_INDEX:
                    raise
                return None
            if entries is None and (number or find_media_type(content_type) == OCI_INDEX):
                problem = "has a list of referrers that is not an index"
                raise errors.bad_response(self._prefix, problem, page.http.details)
            if entries is None:
                return None
            found += entries
            self._check_count(len(found), page.http)
        return found

    def _by_tag(self, repository: str, digest: Digest, deadline: float) -> list[Any]:
        """The entries of the index under the referrers tag."""
        request = RegistryRequest("GET", repository, referrers_tag(digest), accept=", ".join(ACCEPT))
        try:
            response = self._session.send(request, CallLimits(deadline))
        except ManifestUnknown as exc:  # as above
            raise self._denied(repository, exc.details) from exc
        if response.http.status != 200:
            response.http.finish()
            if response.http.status not in _FAILURES and not is_error_page(response.http):
                return []
            error = self._status_error(response, request)
            raise self._denied(repository, error.details) if isinstance(error, ManifestUnknown) else error
        body = self._read(response, MAX_MANIFEST_BYTES)
        content_type = response.http.header("Content-Type")
        expected = find_digest(response.http.header("Docker-Content-Digest")) or Digest.of(body)
        with _attribute_to(response.http):
            found = find_referrers(body, content_type)
            if found is None or Digest.of(body, expected.algorithm) != expected:
                Manifest.parse(body, content_type, expected)  # raises BadUpstream unless it is another manifest
                return []
        # Some registries take the tag `sha256-<hex>` for the digest: the manifests in the subject do not refer to it.
        return [] if Digest.of(body, digest.algorithm) == digest else found

    def _read_pages(
        self, request: RegistryRequest, first: RegistryResponse, deadline: float
    ) -> Iterator[tuple[RegistryResponse, bytes]]:
        """Yield the pages and their bodies, from the response with the first one on. Raises UpstreamError."""
        remaining_bytes = MAX_BYTES
        response = first
        seen = {first.http.url.target}
        while True:
            body = self._read(response, remaining_bytes)
            yield response, body
            url = self._next(response, body)
            if url is None:
                return
            details = response.http.details
            if url.target in seen:
                raise errors.bad_response(self._prefix, "has a list whose pages lead back to each other", details)
            if len(seen) == MAX_PAGES:
                raise errors.bad_response(self._prefix, f"has a list of more than {MAX_PAGES} pages", details)
            seen.add(url.target)
            remaining_bytes -= len(body)
            response = self._send(attrs.evolve(request, url=url), deadline)
            if response.http.status != 200:
                response.http.finish()
                error = self._status_error(response, request)
                if isinstance(error, NameUnknown):
                    details = response.http.details
                    raise errors.bad_response(self._prefix, "does not have all pages of a list", details)
                raise error

    def _send(self, request: RegistryRequest, deadline: float) -> RegistryResponse:
        try:
            return self._session.send(request, CallLimits(deadline))
        except UpstreamError as error:
            if time.monotonic() < deadline:
                raise
            raise error.as_not_counted() from error  # a list that is slow is no outage

    def _read(self, response: RegistryResponse, remaining_bytes: int) -> bytes:
        try:
            check_transfer_encoding(response.http)
        except UpstreamError:
            response.http.close()
            raise
        return response.http.read(remaining_bytes)

    def _next(self, response: RegistryResponse, body: bytes) -> Url | None:
        """The URL of the next page: that of this one with another query; None after the last. Raises UpstreamError."""
        here = response.http.url
        path = here.target.partition("?")[0]
        try:
            link = find_next(response.http.header_values("Link"))
            return parse_http_url(f"{here.origin}{path}?{next_query(path, link, body)}") if link is not None else None
        except (InvalidUrl, ValueError) as exc:
            problem = "has a list whose next page is not a page of this list"
            raise errors.bad_response(self._prefix, problem, response.http.details) from exc

    def _check_count(self, count: int, http: UpstreamResponse) -> None:
        if count > MAX_ENTRIES:
            raise errors.bad_response(self._prefix, f"has a list of more than {MAX_ENTRIES} entries", http.details)

    def _denied(self, repository: str, details: FailureDetails | None) -> Denied:
        return Denied(f"{self._prefix} does not show us the referrers in {repository}", details=details)

    def _deadline(self) -> float:
        return time.monotonic() + WALK_TIMEOUT_S


@contextmanager
def _attribute_to(http: UpstreamResponse) -> Iterator[None]:
    """Add the details of the response to the error of a body that cannot be parsed."""
    try:
        yield
    except BadUpstream as exc:
        exc.details = http.details
        raise
