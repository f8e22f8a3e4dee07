"""One call to a registry: asked with a login, led by redirects, answered.

A call costs at most two requests to the registry and two to its token service (and one ping, when a registry hides
its challenge). Redirects are followed by hand: `Authorization` goes to the registry's own origin and nowhere else, and
each place is checked before it is connected to.
"""

from typing import Literal

import attrs

from dockyard.config.settings import Upstream
from dockyard.oci.origin import Origin
from dockyard.oci.reference import Digest, Reference
from dockyard.upstream import errors
from dockyard.upstream.auth import Authenticator, Authorization
from dockyard.upstream.errors import UpstreamError
from dockyard.upstream.network_zones import NetworkZone
from dockyard.upstream.tokens import CallLimits, RequestSender
from dockyard.upstream.transport import UpstreamRequest, UpstreamResponse
from dockyard.upstream.urls import REDIRECTS, InvalidUrl, Url, resolve_redirect

MAX_REDIRECTS = 10


@attrs.frozen
class RegistryRequest:
    """What is asked: a manifest or a blob of a repository, or one of its lists (`listing`: path and query).

    `place` is asked instead of where that would be: the next page of a list.
    """

    method: Literal["GET", "HEAD"]
    repository: str
    reference: Reference | None = None
    is_blob: bool = False
    accept: str = ""
    byte_range: str = ""
    listing: str = ""
    place: Url | None = None

    @property
    def path(self) -> str:
        """Where it is, below `/v2/`."""
        kind = "blobs" if self.is_blob else "manifests"
        return f"{self.repository}/{self.listing or f'{kind}/{self.reference}'}"

    @property
    def what(self) -> str:
        """The words for a message."""
        if self.listing:
            return self.repository
        separator = "@" if isinstance(self.reference, Digest) else ":"
        return f"{self.repository}{separator}{self.reference}"


@attrs.frozen
class RegistryResponse:
    """An answer, and how it was come by.

    `is_redirected`: not from where we asked first; `is_from_other_origin`: not even from the registry's origin.
    """

    answer: UpstreamResponse
    grant: Authorization
    is_redirected: bool
    is_from_other_origin: bool


class RegistrySession:
    """Asks one registry."""

    def __init__(self, upstream: Upstream, sender: RequestSender, login: Authenticator) -> None:
        self._who = upstream.prefix
        self._origin = upstream.origin
        self._base = "/v2/"
        self._sender = sender
        self._login = login

    def ask(self, question: RegistryRequest, budget: CallLimits) -> RegistryResponse:
        """Ask once, and once more with a better login if the registry wants one. Raises Fault, LoginRefused.

        Whoever has the reply ends its answer.
        """
        grant = self._login.grant(question.repository, budget)
        reply = self._follow(question, grant, budget)
        if reply.answer.status in (401, 403) and not reply.is_from_other_origin:
            answer = reply.answer
            try:
                better = self._login.better(grant, answer, question.repository, budget)
            except BaseException:
                answer.close()
                raise
            if better is not None:
                answer.finish()
                reply = self._follow(question, better, budget)
        if not reply.is_from_other_origin or reply.answer.status < 400:
            self._login.note(reply.grant, reply.answer.status, question.repository)
        return reply

    def _follow(self, question: RegistryRequest, grant: Authorization, budget: CallLimits) -> RegistryResponse:
        place = question.place or Url(self._origin, f"/v2/{question.path}")
        registry_zone: NetworkZone | None = None
        strangers: dict[Origin, str] = {}
        is_redirected = False
        for _ in range(MAX_REDIRECTS + 1):
            is_from_other_origin = place.origin != self._origin
            authorization = strangers.get(place.origin) if is_from_other_origin else grant.header
            answer = self._send(question, place, authorization, registry_zone, budget)
            registry_zone = registry_zone or answer.zone
            if answer.status in REDIRECTS:
                place = self._next(place, answer)
                is_redirected = True
            elif answer.status == 401 and is_from_other_origin and place.origin not in strangers:
                header = self._for_stranger(answer, budget)
                if header is None:
                    return RegistryResponse(answer, grant, is_redirected, is_from_other_origin)
                answer.finish()
                strangers[place.origin] = header
            else:
                return RegistryResponse(answer, grant, is_redirected, is_from_other_origin)
        raise errors.bad_response(self._who, f"redirects more than {MAX_REDIRECTS} times")

    def _send(
        self,
        question: RegistryRequest,
        place: Url,
        authorization: str | None,
        registry_zone: NetworkZone | None,
        budget: CallLimits,
    ) -> UpstreamResponse:
        headers = {}
        if question.accept:
            headers["Accept"] = question.accept
        if question.byte_range:
            headers["Range"] = question.byte_range
        if authorization:
            headers["Authorization"] = authorization
        if place.origin == self._origin:
            return self._sender.send(
                UpstreamRequest(self._who, question.method, place, headers, budget.deadline, registry_zone)
            )
        who = f"the server that {self._who} redirects to"
        try:
            return self._sender.send(
                UpstreamRequest(who, question.method, place, headers, budget.deadline, registry_zone)
            )
        except UpstreamError as fault:
            raise fault.as_not_counted(is_from_other_origin=True) from fault

    def _for_stranger(self, answer: UpstreamResponse, budget: CallLimits) -> str | None:
        try:
            return self._login.for_stranger(answer, budget)
        except UpstreamError as fault:
            answer.close()
            raise fault.as_not_counted(is_from_other_origin=True) from fault

    def _next(self, place: Url, answer: UpstreamResponse) -> Url:
        answer.finish()
        try:
            return resolve_redirect(place, answer.header("Location"))
        except InvalidUrl as exc:
            raise errors.destination_not_allowed(self._who, f"redirects to {exc}") from exc
