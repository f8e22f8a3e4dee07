"""Requests for the bytes of the blobs of one registry: all of a blob from a byte on, or a range of it.

A range ends in exactly the requested bytes, in an error that a later request may not have, or in `RangesUnsupported`:
the blob is then to be requested as a whole. What servers do with a range:

| response | result |
|---|---|
| 206 with the requested range, or the first part of it | its bytes; at the end of a part, an Outage |
| 206 with any other Content-Range, none, or multipart/byteranges | RangesUnsupported |
| 206 with another size, ETag or Last-Modified than before | RangesUnsupported for this blob |
| 206 that is labelled as a web page: it may be a login form | RangesUnsupported for this blob |
| 200, or a status of RANGE_REFUSALS | RangesUnsupported; nothing of the body is read |
| from a URL that the registry redirected to before: any of these, another 4xx than 429, no response | the registry is \
asked anew |
| from a server that has sent ranges of this blob before: any RangesUnsupported | the request is sent once more |
| any other status | its error |
"""

import time
from collections.abc import Callable

import attrs
import structlog

from dockyard.config.settings import UpstreamLimits
from dockyard.errors import RegistryError, UpstreamTimeout
from dockyard.log import is_debug
from dockyard.oci.reference import Digest
from dockyard.upstream import errors
from dockyard.upstream.blob_location import BlobLocation, BlobRedirect
from dockyard.upstream.errors import RangesUnsupported, UpstreamError
from dockyard.upstream.headers import find_unsatisfied_size
from dockyard.upstream.responses import UpstreamBlob, open_blob_body, open_range_body
from dockyard.upstream.session import RegistryRequest, RegistryResponse, RegistrySession, needs_login
from dockyard.upstream.tokens import CallLimits

MAX_REDIRECT_ATTEMPTS = 2
# What servers without ranges, or proxies in front of them, respond to a request with one.
RANGE_REFUSALS = frozenset({400, 405, 412, 416, 417, 501})

log = structlog.get_logger()


class UpstreamBlobs:
    """Opens the blobs of one registry. `status_error` makes the error of a response that is not a success."""

    def __init__(
        self,
        session: RegistrySession,
        limits: UpstreamLimits,
        status_error: Callable[[RegistryResponse, RegistryRequest], UpstreamError | RegistryError],
    ) -> None:
        self._session = session
        self._limits = limits
        self._status_error = status_error

    def open(self, repository: str, digest: Digest, start: int, location: BlobLocation) -> UpstreamBlob:
        """Open a blob from a byte on.

        When the range is rejected, there are no more bytes if the blob ends where it begins; else the whole blob is
        requested. Raises UpstreamError, RegistryError.
        """
        byte_range = f"bytes={start}-" if start else ""
        request = RegistryRequest("GET", repository, digest, is_blob=True, byte_range=byte_range)
        limits = self._call_limits()
        while True:
            response = self._send(request, limits, frozenset({416}))
            http = response.http
            if http.status != 416:
                try:
                    body = open_blob_body(http, start)
                except UpstreamError as error:
                    http.close()
                    raise response.attribute(error) from error
                location.record_whole(response, body.size)
                return body
            if not request.byte_range:
                raise self._status_error(response, request)
            if find_unsatisfied_size(http.header("Content-Range")) == start:
                return UpstreamBlob(http, start, start)  # the last byte is here already
            request = attrs.evolve(request, byte_range="")  # without ranges, from the first byte

    def open_range(
        self, repository: str, digest: Digest, start: int, stop: int, location: BlobLocation
    ) -> UpstreamBlob:
        """Open the bytes from `start` to before `stop`; if the blob is shorter, to its end.

        Raises RangesUnsupported, UpstreamError, RegistryError.
        """
        if not 0 <= start < stop:
            raise ValueError(f"no range: {start} to {stop}")
        byte_range = f"bytes={start}-{stop - 1}"
        request = RegistryRequest("GET", repository, digest, is_blob=True, byte_range=byte_range)
        redirect = location.redirect
        if redirect and (body := self._open_at(redirect, request, start, stop, location)):
            return body
        with location.lookup():
            redirect = location.redirect
            if redirect is None:
                return self._open_at_registry(request, start, stop, location)
        body = self._open_at(redirect, request, start, stop, location)
        return body or self._open_at_registry(request, start, stop, location)

    def _open_at(
        self, redirect: BlobRedirect, request: RegistryRequest, start: int, stop: int, location: BlobLocation
    ) -> UpstreamBlob | None:
        """Open a range at a URL that is known; None when the registry is to be asked for another one."""
        request = attrs.evolve(request, url=redirect.url, registry_zone=redirect.registry_zone)
        try:
            response = self._session.send(request, self._call_limits())
            if response.http.status in (200, 206):
                return _accept(response, start, stop, location)
        except (UpstreamError, RegistryError, RangesUnsupported) as exc:
            self._give_up(redirect, location, str(exc))
            return None
        http = response.http
        http.finish()
        is_refusal = http.status < 500 or http.status in RANGE_REFUSALS
        if http.status != 429:
            self._give_up(redirect, location, f"status {http.status}")
        if http.status == 429 or not is_refusal:
            raise self._status_error(response, request)
        return None

    def _give_up(self, redirect: BlobRedirect, location: BlobLocation, reason: str) -> None:
        location.forget(redirect)
        if is_debug():
            host = redirect.url.origin.host_and_port
            log.debug("redirect is not used any more: the registry is asked anew", host=host, reason=reason)

    def _open_at_registry(
        self, request: RegistryRequest, start: int, stop: int, location: BlobLocation
    ) -> UpstreamBlob:
        """Open a range through the registry; once more if it was not sent, but ranges of this blob were before."""
        may_repeat = location.has_ranges
        while True:
            response = self._send(request, self._call_limits(), RANGE_REFUSALS)
            try:
                return _accept(response, start, stop, location)
            except RangesUnsupported:
                if not may_repeat:
                    raise
            may_repeat = False

    def _send(self, request: RegistryRequest, limits: CallLimits, accepted: frozenset[int]) -> RegistryResponse:
        """A response with the status 200 or 206, or, finished, with one of `accepted`.

        The registry is asked at most twice for a redirect: a signed URL may have expired, or its host may hang. A host
        that refuses connections is not tried again here: the download retries after a pause.
        """
        attempts_left = MAX_REDIRECT_ATTEMPTS
        while True:
            attempts_left -= 1
            try:
                response = self._session.send(request, limits)
            except UpstreamError as error:
                has_time = limits.remaining_s is None or limits.remaining_s > 0
                is_hanging = error.is_from_other_origin and isinstance(error.error, UpstreamTimeout)
                if is_hanging and has_time and attempts_left:
                    continue
                raise
            http = response.http
            if http.status in (200, 206):
                return response
            http.finish()
            if http.status in accepted:
                return response
            is_login_missing = response.is_from_other_origin and needs_login(http)
            if not response.is_redirected or http.status not in (401, 403) or is_login_missing:
                raise self._status_error(response, request)
            if not attempts_left:
                rejected = errors.server_error(http.server, http.status, http.details)
                raise rejected.as_not_counted(is_from_other_origin=True)

    def _call_limits(self) -> CallLimits:
        timeout_s = self._limits.stall_timeout
        return CallLimits(time.monotonic() + timeout_s if timeout_s else None)


def _accept(response: RegistryResponse, start: int, stop: int, location: BlobLocation) -> UpstreamBlob:
    """The body of a response to a range. Raises RangesUnsupported, with the response closed."""
    try:
        body = open_range_body(response.http, start, stop)
        body.size = location.record_range(response, body.size)
    except RangesUnsupported:
        response.http.close()
        raise
    response.http.lift_deadline()
    return body
