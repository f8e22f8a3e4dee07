"""Which Authorization header goes with a request, and what to do when it is refused.

The registry says what it wants in its first 401; from then on the header is ready before the request is sent, so that
a tag check is one request. A refusal is answered once per call, by a new token, a renewed keychain entry, or the
challenge that was learned from it. The modes:

    anonymous   a token if the registry wants one
    basic       Basic, or a token that is made with it
    bearer      sent as it is; when that is refused, as the password for a token (a GitHub PAT needs that)
    keychain    whatever Docker's keychain holds for the registry
"""

import time
from collections.abc import Callable

import attrs

from dockyard.config.hosts import is_loopback
from dockyard.config.settings import Upstream
from dockyard.oci.challenge import Challenge, is_realm_trusted, parse_challenges, pick_challenge
from dockyard.upstream import errors
from dockyard.upstream.errors import AuthenticationFailed, UpstreamError
from dockyard.upstream.keychain import ANONYMOUS, Credential, Keychain
from dockyard.upstream.network_zones import NetworkZone
from dockyard.upstream.tokens import CallLimits, Refusals, RequestSender, TokenEndpoint, TokenProvider
from dockyard.upstream.transport import UpstreamRequest, UpstreamResponse
from dockyard.upstream.urls import InvalidUrl, Url, parse_http_url

ACCEPTED_FOR_S = 300.0
TOKEN_USER = "token"  # noqa: S105  a user name for services that do not look at it


@attrs.frozen
class Authorization:
    """The header for one request, and how it came about."""

    credential: Credential
    header: str | None = attrs.field(default=None, repr=False)
    token: str | None = attrs.field(default=None, repr=False)
    is_verbatim: bool = False
    is_exchanged: bool = False


@attrs.frozen
class _Known:
    """What the registry wants, and where it lies."""

    challenge: Challenge
    registry_zone: NetworkZone


class Authenticator:
    """The logins to one upstream."""

    def __init__(
        self,
        upstream: Upstream,
        sender: RequestSender,
        keychain: Keychain,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._upstream = upstream
        self._who = upstream.prefix
        self._sender = sender
        self._keychain = keychain
        self._clock = clock
        self._tokens = TokenProvider(upstream.prefix, sender, clock)
        self._known: _Known | None = None
        self._is_exchanging: bool | None = None  # bearer mode: does the secret have to be exchanged?
        self._refusals = Refusals(clock)
        self._accepted: dict[Credential, float] = {}

    def grant(self, repository: str, budget: CallLimits) -> Authorization:
        """The header to begin with. Raises Fault, LoginRefused."""
        credential = self._credential(repository, budget)
        if credential.registry_token and not self._is_exchanging:
            return self._verbatim(credential)
        known = self._known
        if known is None:
            return Authorization(credential)
        try:
            return self._answer(known, credential, repository, budget) or Authorization(credential)
        except (UpstreamError, AuthenticationFailed) as exc:
            if not (isinstance(exc, AuthenticationFailed) and exc.remembered):
                # What was learned may be out of date: token services move. The next call asks the registry anew.
                self._known = self._is_exchanging = None
            raise

    def better(
        self, grant: Authorization, answer: UpstreamResponse, repository: str, budget: CallLimits
    ) -> Authorization | None:
        """Another header after the registry's 401 or 403; None when there is nothing else to show."""
        known = self._learn(answer, budget, needs_one=answer.status == 401 or self._is_untried(grant))
        if answer.status == 403 and not self._is_untried(grant):
            return self._renewed(grant, known, repository, budget)
        if known is None:
            return None
        better = self._answer(known, grant.credential, repository, budget, grant)
        if better is not None and better.header != grant.header:
            return better
        return self._renewed(grant, known, repository, budget)

    def note(self, grant: Authorization, status: int, repository: str) -> None:
        """What came of a header in the end."""
        if grant.header is None or grant.credential.is_anonymous:
            return
        if status not in (401, 403):
            if grant.is_verbatim or grant.is_exchanged:
                self._is_exchanging = grant.is_exchanged
            self._accepted = {grant.credential: self._clock()}
        elif status == 401 and not grant.token and not grant.is_verbatim:
            # A login that worked a moment ago is right; it was refused for this repository.
            is_right = self._accepted.get(grant.credential, float("-inf")) + ACCEPTED_FOR_S > self._clock()
            self._refusals.note((grant.credential, repository) if is_right else grant.credential)

    def for_stranger(self, answer: UpstreamResponse, budget: CallLimits) -> str | None:
        """The header for a host that the registry sent us to and that wants a login itself: an anonymous token."""
        challenge = pick_challenge(parse_challenges(answer.header_values("WWW-Authenticate")))
        if challenge is None or challenge.scheme != "bearer":
            return None
        scope = challenge.parameters.get("scope", "")
        scopes = (scope,) if _pulls_only(scope) else ()
        try:
            service = self._service(_Known(challenge, answer.zone), scopes, answer.place, ANONYMOUS)
            return f"Bearer {self._tokens.get(service, ANONYMOUS, budget)}"
        except AuthenticationFailed:
            return None

    # What there is to show

    def _credential(self, repository: str, budget: CallLimits) -> Credential:
        auth = self._upstream.auth
        match auth.type:
            case "anonymous":
                return ANONYMOUS
            case "basic":
                return Credential(auth.username, auth.password.reveal())
            case "bearer":
                return Credential(auth.username or TOKEN_USER, auth.password.reveal(), "", auth.password.reveal())
        left_s = None if budget.deadline is None else budget.left(float("inf"))
        return self._keychain.credential_for(self._host, repository, left_s)

    @property
    def _host(self) -> str:
        return self._upstream.origin.authority

    def _answer(
        self,
        known: _Known,
        credential: Credential,
        repository: str,
        budget: CallLimits,
        refused: Authorization | None = None,
    ) -> Authorization | None:
        """What answers a challenge."""
        if credential.registry_token and not (refused and refused.is_verbatim) and not self._is_exchanging:
            return self._verbatim(credential)
        if known.challenge.scheme == "basic":
            return self._basic(credential, repository)
        if known.challenge.scheme != "bearer":
            return None
        if credential.registry_token and self._upstream.auth.type != "bearer":
            return None  # the keychain's registrytoken is a token already
        is_exchanged = bool(credential.registry_token)
        scopes = _scopes(repository, known.challenge)
        try:
            token = self._token(known, scopes, credential, budget, refused)
        except AuthenticationFailed as exc:
            if exc.remembered or self._upstream.auth.type != "keychain" or credential.is_anonymous:
                raise
            renewed = self._renew(credential, repository, budget)
            if renewed == credential or budget.token_requests <= 0:
                raise
            credential = renewed
            token = self._token(known, scopes, credential, budget, refused)
        return Authorization(credential, f"Bearer {token}", token, is_exchanged=is_exchanged)

    def _verbatim(self, credential: Credential) -> Authorization:
        self._check_secrecy(self._upstream.origin.scheme, self._upstream.origin.host)
        return Authorization(credential, f"Bearer {credential.registry_token}", is_verbatim=True)

    def _basic(self, credential: Credential, repository: str) -> Authorization | None:
        if credential.is_anonymous or credential.registry_token:
            return None
        self._check_secrecy(self._upstream.origin.scheme, self._upstream.origin.host)
        self._refusals.check(credential, (credential, repository))
        return Authorization(credential, credential.basic())

    def _token(
        self,
        known: _Known,
        scopes: tuple[str, ...],
        credential: Credential,
        budget: CallLimits,
        refused: Authorization | None,
    ) -> str:
        credential = attrs.evolve(credential, registry_token="")
        here = Url(self._upstream.origin, "/")
        service = self._service(known, scopes, here, credential)
        return self._tokens.get(service, credential, budget, refused.token if refused else None)

    def _service(self, known: _Known, scopes: tuple[str, ...], here: Url, credential: Credential) -> TokenEndpoint:
        """The token service of a challenge, if it may be asked at all, and with these credentials."""
        text = known.challenge.parameters.get("realm", "")
        try:
            realm = parse_http_url(text)
        except InvalidUrl as exc:
            raise errors.destination_not_allowed(self._who, f"names {exc} as its token service") from exc
        if here.origin.scheme == "https" and realm.origin.scheme != "https":
            raise errors.destination_not_allowed(self._who, "names a token service without TLS")
        if not credential.is_anonymous:
            if not is_realm_trusted(text, here.origin, self._upstream.trusted_hosts):
                what = "wants its login sent to a token service that does not belong to it (see trusted_hosts)"
                raise errors.destination_not_allowed(self._who, what)
            self._check_secrecy(realm.origin.scheme, realm.origin.host)
        return TokenEndpoint(realm, known.challenge.parameters.get("service", ""), scopes, known.registry_zone)

    def _check_secrecy(self, scheme: str, host: str) -> None:
        if scheme != "https" and not is_loopback(host):
            raise errors.plain_http_credentials(self._who)

    # What was refused

    def _learn(self, answer: UpstreamResponse, budget: CallLimits, *, needs_one: bool) -> _Known | None:
        """The challenge of an answer, or the known one, or that of `/v2/`, where some registries hide it."""
        challenge = pick_challenge(parse_challenges(answer.header_values("WWW-Authenticate")))
        if challenge is not None:
            self._known = _Known(challenge, answer.zone)
        elif self._known is None and needs_one and budget.pings:
            budget.pings -= 1
            place = Url(self._upstream.origin, "/v2/")
            ping = self._sender.send(UpstreamRequest(self._who, "GET", place, {}, budget.deadline))
            challenge = pick_challenge(parse_challenges(ping.header_values("WWW-Authenticate")))
            ping.finish()
            if ping.status == 401 and challenge is not None:
                self._known = _Known(challenge, ping.zone)
        return self._known

    def _is_untried(self, grant: Authorization) -> bool:
        """Bearer mode, and nobody knows yet how this registry wants the secret."""
        return grant.is_verbatim and self._upstream.auth.type == "bearer" and self._is_exchanging is None

    def _renewed(
        self, grant: Authorization, known: _Known | None, repository: str, budget: CallLimits
    ) -> Authorization | None:
        """The same with a newer keychain entry, if there is one. ECR says 403 when its password is too old."""
        if grant.header is None or grant.token or self._upstream.auth.type != "keychain":
            return None
        renewed = self._renew(grant.credential, repository, budget)
        if renewed == grant.credential or known is None:
            return None
        return self._answer(known, renewed, repository, budget)

    def _renew(self, credential: Credential, repository: str, budget: CallLimits) -> Credential:
        left_s = None if budget.deadline is None else budget.left(float("inf"))
        return self._keychain.renew(self._host, repository, credential, left_s)


def _scopes(repository: str, challenge: Challenge) -> tuple[str, ...]:
    """Pulling from this repository, and what the challenge asks if it is about the same and no more (no push)."""
    own = f"repository:{repository}:pull"
    asked = challenge.parameters.get("scope", "")
    _, _, name = asked.partition(":")
    is_ours = asked.startswith("repository") and name.rpartition(":")[0] == repository
    return (own, asked) if asked != own and is_ours and _pulls_only(asked) else (own,)


def _pulls_only(scope: str) -> bool:
    return scope.startswith("repository") and " " not in scope and scope.rpartition(":")[2] == "pull"
