"""One operation on a registry: authenticated, redirects followed.

It costs one request to the registry in general. With a new token there are two, and one to the token service. When
what is remembered about the registry has changed, there are up to four, and three to token services; and one ping when
a registry sends its challenge only at `/v2/`.

Redirects are followed here, not by the transport, and each target is checked before it is connected to.
`Authorization` is sent to the origin of the registry. Another host that requires a login gets an anonymous token, or
what the registry gets if it is listed in `trusted_hosts`. CDN-Loop is sent to the registry, to its token service, and
to other hosts if the URL is that of a registry: a redirect may lead back to this server.
"""

import copy
import re
from typing import Literal, Self

import attrs
import structlog
from cachetools import TTLCache

from dockyard.config.settings import Upstream
from dockyard.errors import (
    AccessDenied,
    BlobUnknown,
    Denied,
    FailureDetails,
    LoginRequired,
    ManifestUnknown,
    NameUnknown,
    RegistryError,
)
from dockyard.log import is_debug
from dockyard.oci.origin import Origin
from dockyard.oci.reference import Digest, Reference
from dockyard.upstream import errors
from dockyard.upstream.auth import AuthenticationMode, FixedCredentialAuth
from dockyard.upstream.challenges import REFUSALS, Authorization, ChallengeResponder, Handshake, Resource
from dockyard.upstream.errors import AuthenticationFailed, UpstreamError
from dockyard.upstream.keychain import ANONYMOUS
from dockyard.upstream.network_zones import NetworkZone
from dockyard.upstream.tokens import CallLimits, RequestSender
from dockyard.upstream.transport import UpstreamRequest, UpstreamResponse
from dockyard.upstream.urls import REDIRECTS, InvalidUrl, Url, is_in_host_list, resolve_redirect

MAX_REDIRECTS = 10
MAX_ATTEMPTS = 4  # of one request at one URL, each with another header
MAX_WARNED_HOSTS = 64
WARN_EVERY_S = 3600.0

_REGISTRY_PATH = re.compile(r"/v2/([a-z0-9][a-z0-9._/-]{0,254})/(?:manifests|blobs|tags|referrers)/")

log = structlog.get_logger()


@attrs.frozen
class RegistryRequest:
    """A manifest or a blob of a repository, or one of its lists (`list_path`: path and query).

    `url` replaces the URL that follows from these: the next page of a list; or, with the `registry_zone` of the
    registry, a URL that it redirected to before.
    """

    method: Literal["GET", "HEAD"]
    repository: str
    reference: Reference | None = None
    is_blob: bool = False
    accept: str = ""
    byte_range: str = ""
    list_path: str = ""
    url: Url | None = None
    registry_zone: NetworkZone | None = None

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

    `is_redirected`: after at least one redirect, which came from a registry in `registry_zone`. `is_from_other_origin`:
    from another origin than the registry's.
    """

    http: UpstreamResponse
    authorization: Authorization
    is_redirected: bool
    is_from_other_origin: bool
    registry_zone: NetworkZone | None

    def attribute(self, error: UpstreamError) -> UpstreamError:
        """The error with this response; the failure of a redirect target is no failure of the registry."""
        return error.as_not_counted(is_from_other_origin=True) if self.is_from_other_origin else error


def not_found(
    prefix: str, request: RegistryRequest, details: FailureDetails | None, *, may_need_login: bool = False
) -> RegistryError:
    """The error when the registry does not have what was requested, or does not show it to anonymous clients.

    `may_need_login`: it responded with 401 or 403, which some registries do for everything that does not exist.
    """
    message = f"{prefix} has no {request.subject}"
    if may_need_login:
        message += ", or it needs a login: set `auth` for this prefix"
        details = details and details.with_cure("")
    kind = NameUnknown if request.list_path else BlobUnknown if request.is_blob else ManifestUnknown
    return kind(message, details=details)


def refused(prefix: str, failed: AuthenticationFailed) -> LoginRequired | AccessDenied:
    """The error when the registry does not admit the client, by its own login or without one, to the repository."""
    details = failed.details and failed.details.with_cure("")
    if failed.is_anonymous:
        return LoginRequired(f"{prefix} requires a login", remembered=failed.remembered, details=details)
    if failed.is_login_wrong:
        return LoginRequired(f"{prefix} rejects this login", remembered=failed.remembered, details=details)
    message = f"{prefix} does not admit this login to the repository"
    return AccessDenied(message, remembered=failed.remembered, details=details)


def denied(
    prefix: str, request: RegistryRequest, details: FailureDetails | None, *, remembered: bool = False
) -> Denied:
    """The error when the registry rejects the credentials."""
    message = f"{prefix} rejects the credentials for {request.repository}: check `auth` of this prefix"
    details = details and details.with_cure("")  # the message says it
    return Denied(message, remembered=remembered, details=details)


class RegistrySession:
    """Sends requests to one registry. `is_for_client`: with the login of a client of Dockyard, or without one."""

    def __init__(
        self, upstream: Upstream, sender: RequestSender, mode: AuthenticationMode, responder: ChallengeResponder
    ) -> None:
        self._prefix = upstream.prefix
        self._origin = upstream.origin
        self._sender = sender
        self._mode = mode
        self._responder = responder
        self._trusted_hosts = upstream.trusted_hosts
        self.is_for_client = False
        self._passed: tuple[str, ...] = ()
        self._warned_about: TTLCache[Origin, bool] = TTLCache(MAX_WARNED_HOSTS, WARN_EVERY_S)

    def send(self, request: RegistryRequest, limits: CallLimits) -> RegistryResponse:
        """Send a request, follow redirects, and authenticate where that is required.

        The caller ends the response. Raises UpstreamError, RegistryError.
        """
        try:
            return self._follow_redirects(request, limits)
        except AuthenticationFailed as exc:
            if self.is_for_client:
                raise refused(self._prefix, exc) from exc
            if exc.is_anonymous:
                raise not_found(self._prefix, request, exc.details, may_need_login=True) from exc
            raise denied(self._prefix, request, exc.details, remembered=exc.remembered) from exc

    def for_client(self, mode: AuthenticationMode) -> Self:
        """A session that shares everything with this one but the login, which is that of a client of Dockyard."""
        session = copy.copy(self)
        session._mode = mode
        session.is_for_client = True
        return session

    def with_passed(self, passed: tuple[str, ...]) -> Self:
        """A session that shares everything with this one, for a request that has passed these servers."""
        session = copy.copy(self)
        session._passed = passed
        return session

    def ping(self, limits: CallLimits) -> RegistryResponse:
        """Send a request for `/v2/`, with the login where it is required.

        The caller ends the response. Raises UpstreamError, AuthenticationFailed.
        """
        return self._follow_redirects(RegistryRequest("GET", "", url=Url(self._origin, "/v2/")), limits)

    def _follow_redirects(self, request: RegistryRequest, limits: CallLimits) -> RegistryResponse:
        url = request.url or Url(self._origin, f"/v2/{request.path}")
        registry_zone = request.registry_zone
        limits.passed = self._passed
        for hops in range(MAX_REDIRECTS + 1):
            is_other = url.origin != self._origin
            if is_other:
                http, authorization = self._exchange_elsewhere(url, request, limits, registry_zone)
            else:
                resource = Resource(url.origin, request.repository)
                http, authorization = self._exchange(self._mode, url, resource, request, limits, registry_zone)
            if http.status not in REDIRECTS:
                is_redirected = hops > 0 or request.registry_zone is not None
                return RegistryResponse(http, authorization, is_redirected, is_other, registry_zone)
            registry_zone = registry_zone or http.zone
            url = self._redirect_target(url, http)
        raise errors.bad_response(self._prefix, f"redirects more than {MAX_REDIRECTS} times", http.details)

    def _exchange(
        self,
        mode: AuthenticationMode,
        url: Url,
        resource: Resource,
        request: RegistryRequest,
        limits: CallLimits,
        registry_zone: NetworkZone | None,
    ) -> tuple[UpstreamResponse, Authorization]:
        """Send the request to one URL, and again with other credentials while the server refuses it.

        Return the last response, and what it was requested with.
        """
        is_other = url.origin != self._origin
        server = f"a host that {self._prefix} redirects to" if is_other else self._prefix
        handshake = Handshake(resource, request.method, limits)
        authorization = mode.first(handshake)
        for attempts_left in reversed(range(MAX_ATTEMPTS)):
            fields = {"Accept": request.accept, "Range": request.byte_range, "Authorization": authorization.header}
            headers = {name: value for name, value in fields.items() if value}
            if authorization.header is None:
                limits.asked_without_token.add(resource)
            http = self._sender.send(
                UpstreamRequest(
                    server,
                    request.method,
                    url,
                    headers,
                    limits.deadline,
                    registry_zone,
                    passed=None if is_other and not _match_registry_path(url) else self._passed,
                )
            )
            if http.status not in REFUSALS or not attempts_left:
                break
            try:
                other = mode.after_refusal(handshake, authorization, http)
            except AuthenticationFailed:
                if not is_other:
                    http.close()
                    raise
                other = None
            except BaseException:
                http.close()
                raise
            if other is None:
                break
            http.finish()
            if is_debug():
                log.debug(
                    "request refused: sent again with another login",
                    upstream=self._prefix,
                    host=url.origin.host_and_port,
                    status=http.status,
                    credentials=other.credential.source if other.header else "none",
                )
            authorization = other
        mode.record_result(handshake, authorization, http)
        return http, authorization

    def _exchange_elsewhere(
        self, url: Url, request: RegistryRequest, limits: CallLimits, registry_zone: NetworkZone | None
    ) -> tuple[UpstreamResponse, Authorization]:
        """As `_exchange`, for another host: registries redirect blobs to storage, and manifests to other registries."""
        credential = ANONYMOUS
        if is_in_host_list(url.origin, self._trusted_hosts):
            credential = self._mode.credential(request.repository, limits)
        mode = FixedCredentialAuth(self._responder, credential)
        match = _match_registry_path(url)
        resource = Resource(url.origin, match[1] if match else "")
        try:
            http, authorization = self._exchange(mode, url, resource, request, limits, registry_zone)
        except UpstreamError as error:
            raise error.as_not_counted(is_from_other_origin=True) from error
        if needs_login(http):
            self._warn_about_login(url.origin)
        return http, authorization

    def _warn_about_login(self, origin: Origin) -> None:
        """Clients do not see which host it is."""
        if origin not in self._warned_about:
            self._warned_about[origin] = True
            log.warning(
                "an upstream redirects to a host that requires a login, which is not in trusted_hosts or rejects it",
                upstream=self._prefix,
                host=origin.authority,
            )

    def _redirect_target(self, url: Url, http: UpstreamResponse) -> Url:
        http.finish()
        try:
            target = resolve_redirect(url, http.header("Location"))
            if is_debug():
                to = target.origin.host_and_port
                log.debug("redirected", upstream=self._prefix, host=url.origin.host_and_port, to=to)
            return target
        except InvalidUrl as exc:
            problem = f"sent an invalid redirect: {exc}"
            raise errors.destination_not_allowed(self._prefix, problem, http.details) from exc


def _match_registry_path(url: Url) -> re.Match[str] | None:
    """The path of a manifest, a blob or a list of a registry in a URL, with its repository as the first group."""
    return _REGISTRY_PATH.search(url.target.partition("?")[0])


def needs_login(http: UpstreamResponse) -> bool:
    """Whether a host that the registry redirected to requires a login: 401 with a challenge, or of another registry.

    Otherwise a 401 or 403 may be the response to a signed URL that has expired.
    """
    is_challenge = http.status == 401 and http.header("WWW-Authenticate") is not None
    return is_challenge or (http.status in (401, 403) and _REGISTRY_PATH.search(http.url.target) is not None)
