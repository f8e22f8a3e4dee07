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
from dockyard.upstream import errors as faults
from dockyard.upstream.auth import Grant, Login
from dockyard.upstream.errors import Fault
from dockyard.upstream.network_zones import Zone
from dockyard.upstream.tokens import Budget, Sender
from dockyard.upstream.transport import Answer, Request
from dockyard.upstream.urls import REDIRECTS, NotAPlace, Place, next_place

HOPS_AT_MOST = 10


@attrs.frozen
class Question:
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
    place: Place | None = None

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
class Reply:
    """An answer, and how it was come by.

    `is_redirected`: not from where we asked first; `is_elsewhere`: not even from the registry's origin.
    """

    answer: Answer
    grant: Grant
    is_redirected: bool
    is_elsewhere: bool


class Caller:
    """Asks one registry."""

    def __init__(self, upstream: Upstream, sender: Sender, login: Login) -> None:
        self._who = upstream.prefix
        self._origin = upstream.origin
        self._base = "/v2/"
        self._sender = sender
        self._login = login

    def ask(self, question: Question, budget: Budget) -> Reply:
        """Ask once, and once more with a better login if the registry wants one. Raises Fault, LoginRefused.

        Whoever has the reply ends its answer.
        """
        grant = self._login.grant(question.repository, budget)
        reply = self._follow(question, grant, budget)
        if reply.answer.status in (401, 403) and not reply.is_elsewhere:
            answer = reply.answer
            try:
                better = self._login.better(grant, answer, question.repository, budget)
            except BaseException:
                answer.close()
                raise
            if better is not None:
                answer.finish()
                reply = self._follow(question, better, budget)
        if not reply.is_elsewhere or reply.answer.status < 400:
            self._login.note(reply.grant, reply.answer.status, question.repository)
        return reply

    def _follow(self, question: Question, grant: Grant, budget: Budget) -> Reply:
        place = question.place or Place(self._origin, f"/v2/{question.path}")
        home: Zone | None = None
        strangers: dict[Origin, str] = {}
        is_redirected = False
        for _ in range(HOPS_AT_MOST + 1):
            is_elsewhere = place.origin != self._origin
            authorization = strangers.get(place.origin) if is_elsewhere else grant.header
            answer = self._send(question, place, authorization, home, budget)
            home = home or answer.zone
            if answer.status in REDIRECTS:
                place = self._next(place, answer)
                is_redirected = True
            elif answer.status == 401 and is_elsewhere and place.origin not in strangers:
                header = self._for_stranger(answer, budget)
                if header is None:
                    return Reply(answer, grant, is_redirected, is_elsewhere)
                answer.finish()
                strangers[place.origin] = header
            else:
                return Reply(answer, grant, is_redirected, is_elsewhere)
        raise faults.garbage(self._who, f"redirects more than {HOPS_AT_MOST} times")

    def _send(
        self, question: Question, place: Place, authorization: str | None, home: Zone | None, budget: Budget
    ) -> Answer:
        headers = {}
        if question.accept:
            headers["Accept"] = question.accept
        if question.byte_range:
            headers["Range"] = question.byte_range
        if authorization:
            headers["Authorization"] = authorization
        if place.origin == self._origin:
            return self._sender.send(Request(self._who, question.method, place, headers, budget.deadline, home))
        who = f"the server that {self._who} redirects to"
        try:
            return self._sender.send(Request(who, question.method, place, headers, budget.deadline, home))
        except Fault as fault:
            raise fault.blameless(is_elsewhere=True) from fault

    def _for_stranger(self, answer: Answer, budget: Budget) -> str | None:
        try:
            return self._login.for_stranger(answer, budget)
        except Fault as fault:
            answer.close()
            raise fault.blameless(is_elsewhere=True) from fault

    def _next(self, place: Place, answer: Answer) -> Place:
        answer.finish()
        try:
            return next_place(place, answer.header("Location"))
        except NotAPlace as exc:
            raise faults.forbidden(self._who, f"redirects to {exc}") from exc
