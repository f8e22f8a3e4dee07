"""One operation on a registry: authenticated, redirects followed.

It costs at most two requests to the registry and two to its token service, and one ping when a registry sends its
challenge only at `/v2/`. Redirects are followed here, not by the transport: `Authorization` is sent to the origin of
the registry and nowhere else, and each target is checked before it is connected to.
"""

from typing import Literal

import attrs

from dockyard.config.settings import Upstream
from dockyard.errors import BlobUnknown, Denied, ManifestUnknown, NameUnknown, RegistryError
from dockyard.oci.origin import Origin
from dockyard.oci.reference import Digest, Reference
from dockyard.upstream import errors
from dockyard.upstream.auth import AuthenticationMode, Authorization, ChallengeResponder
from dockyard.upstream.errors import AuthenticationFailed, UpstreamError
from dockyard.upstream.network_zones import NetworkZone
from dockyard.upstream.tokens import CallLimits, RequestSender
from dockyard.upstream.transport import UpstreamRequest, UpstreamResponse
from dockyard.upstream.urls import REDIRECTS, InvalidUrl, Url, resolve_redirect

MAX_REDIRECTS = 10


@attrs.frozen
class RegistryRequest:
    """A manifest or a blob of a repository, or one of its lists (`list_path`: path and query).

    `url` replaces the URL that follows from these: the next page of a list.
    """

    method: Literal["GET", "HEAD"]
    repository: str
    reference: Reference | None = None
    is_blob: bool = False
    accept: str = ""
    byte_range: str = ""
    list_path: str = ""
    url: Url | None = None

    @property
    def path(self) -> str:
        """The path below `/v2/`."""
        kind = "blobs" if self.is_blob else "manifests"
        return f"{self.repository}/{self.list_path or f'{kind}/{self.reference}'}"

    @property
    def subject(self) -> str:
        """The requested object in a message: `repository:tag`, `repository@digest`, or the repository of a list."""
        if self.list_path:
            return self.repository
        separator = "@" if isinstance(self.reference, Digest) else ":"
        return f"{self.repository}{separator}{self.reference}"


@attrs.frozen
class RegistryResponse:
    """The final response to a RegistryRequest, and the credentials that it was requested with.

    `is_redirected`: after at least one redirect. `is_from_other_origin`: from another origin than the registry's.
    """

    http: UpstreamResponse
    authorization: Authorization
    is_redirected: bool
    is_from_other_origin: bool


def not_found(prefix: str, request: RegistryRequest) -> RegistryError:
    """The error when the registry does not have what was requested, or does not show it to anonymous clients."""
    message = f"{prefix} has no {request.subject}"
    if request.list_path:
        return NameUnknown(message)
    return BlobUnknown(message) if request.is_blob else ManifestUnknown(message)


def denied(prefix: str, request: RegistryRequest, *, remembered: bool = False) -> Denied:
    """The error when the registry rejects the credentials."""
    return Denied(f"{prefix} rejects the credentials for {request.repository}", remembered=remembered)


class RegistrySession:
    """Sends requests to one registry."""

    def __init__(
        self, upstream: Upstream, sender: RequestSender, mode: AuthenticationMode, responder: ChallengeResponder
    ) -> None:
        self._prefix = upstream.prefix
        self._origin = upstream.origin
        self._sender = sender
        self._mode = mode
        self._responder = responder

    def send(self, request: RegistryRequest, limits: CallLimits) -> RegistryResponse:
        """Send a request, and once more with other credentials if the registry responds with 401 or 403.

        The caller ends the response. Raises UpstreamError, RegistryError.
        """
        try:
            authorization = self._mode.first(request.repository, limits)
            response = self._follow_redirects(request, authorization, limits)
            if response.http.status in (401, 403) and not response.is_from_other_origin:
                other = self._after_refusal(response, request, limits)
                if other is not None:
                    response.http.finish()
                    response = self._follow_redirects(request, other, limits)
        except AuthenticationFailed as exc:
            if exc.is_anonymous:
                raise not_found(self._prefix, request) from exc
            raise denied(self._prefix, request, remembered=exc.remembered) from exc
        if not response.is_from_other_origin or response.http.status < 400:
            self._mode.record_result(response.authorization, response.http.status, request.repository)
        return response

    def _after_refusal(
        self, response: RegistryResponse, request: RegistryRequest, limits: CallLimits
    ) -> Authorization | None:
        try:
            return self._mode.after_refusal(response.authorization, response.http, request.repository, limits)
        except BaseException:
            response.http.close()
            raise

    def _follow_redirects(
        self, request: RegistryRequest, authorization: Authorization, limits: CallLimits
    ) -> RegistryResponse:
        url = request.url or Url(self._origin, f"/v2/{request.path}")
        registry_zone: NetworkZone | None = None
        other_headers: dict[Origin, str] = {}  # Authorization headers for other origins
        is_redirected = False
        for _ in range(MAX_REDIRECTS + 1):
            is_other = url.origin != self._origin
            server = f"a host that {self._prefix} redirects to" if is_other else self._prefix
            fields = {
                "Accept": request.accept,
                "Range": request.byte_range,
                "Authorization": other_headers.get(url.origin) if is_other else authorization.header,
            }
            headers = {name: value for name, value in fields.items() if value}
            try:
                http = self._sender.send(
                    UpstreamRequest(server, request.method, url, headers, limits.deadline, registry_zone)
                )
            except UpstreamError as error:
                if not is_other:
                    raise
                raise error.as_not_counted(is_from_other_origin=True) from error
            registry_zone = registry_zone or http.zone
            if http.status in REDIRECTS:
                url = self._redirect_target(url, http)
                is_redirected = True
                continue
            # Some registries redirect manifests to a registry that requires a token of its own.
            needs_token = http.status == 401 and is_other and url.origin not in other_headers
            if needs_token and (other_header := self._other_host_header(http, limits)) is not None:
                http.finish()
                other_headers[url.origin] = other_header
                continue
            return RegistryResponse(http, authorization, is_redirected, is_other)
        raise errors.bad_response(self._prefix, f"redirects more than {MAX_REDIRECTS} times")

    def _other_host_header(self, http: UpstreamResponse, limits: CallLimits) -> str | None:
        try:
            return self._responder.other_host_header(http, limits)
        except UpstreamError as error:
            http.close()
            raise error.as_not_counted(is_from_other_origin=True) from error

    def _redirect_target(self, url: Url, http: UpstreamResponse) -> Url:
        http.finish()
        try:
            return resolve_redirect(url, http.header("Location"))
        except InvalidUrl as exc:
            raise errors.destination_not_allowed(self._prefix, f"sent an invalid redirect: {exc}") from exc
