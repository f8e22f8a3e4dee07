"""Authentication at a registry: one class per `auth.type`, and the parts that they share.

The registry describes in its first 401 response what it requires (a challenge). The challenge is remembered: later
requests carry the right header from the start, and checking a tag costs one request. `RegistrySession.send` in
`session.py` runs the handshake:

    first()          the header for the request, from what is known
    after_refusal()  another header after a 401 or 403: it learns the challenge, fetches a token or newer credentials
    record_result()  remembers what was accepted or rejected

| `auth.type` | class | credentials |
|---|---|---|
| anonymous | `FixedCredentialAuth` | none; a token if the registry requires one |
| basic | `FixedCredentialAuth` | Basic, or a token that is requested with user and password |
| bearer | `BearerAuth` | the secret as it is; if rejected, as the password for a token (GitHub needs that) |
| keychain | `KeychainAuth` | what Docker's keychain holds for the registry |
"""

import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import attrs
from cachetools import TTLCache

from dockyard.config.hosts import is_loopback
from dockyard.config.settings import Upstream
from dockyard.oci.challenge import Challenge, is_realm_trusted, parse_challenges, pick_challenge
from dockyard.upstream import errors
from dockyard.upstream.errors import AuthenticationFailed, UpstreamError
from dockyard.upstream.keychain import ANONYMOUS, Credential, Keychain
from dockyard.upstream.network_zones import NetworkZone
from dockyard.upstream.tokens import CallLimits, RejectedCredentials, RequestSender, TokenEndpoint, TokenProvider
from dockyard.upstream.transport import UpstreamRequest, UpstreamResponse
from dockyard.upstream.urls import InvalidUrl, Url, parse_http_url

ACCEPTED_FOR_S = 300.0
TOKEN_USER = "token"  # noqa: S105  a user name for services that ignore it


@attrs.frozen
class Authorization:
    """The Authorization header of one request (None: no header), and the credential and token that it was made from.

    `is_verbatim`: the credential's registry token is sent as it is.
    """

    credential: Credential
    header: str | None = attrs.field(default=None, repr=False)
    token: str | None = attrs.field(default=None, repr=False)
    is_verbatim: bool = False


@attrs.frozen
class KnownChallenge:
    """What the registry requires, and the network zone of the registry."""

    challenge: Challenge
    registry_zone: NetworkZone

    @property
    def scheme(self) -> str:
        return self.challenge.scheme


class ChallengeResponder:
    """Remembers the challenge of one registry and makes the headers that satisfy it."""

    def __init__(self, upstream: Upstream, sender: RequestSender, clock: Callable[[], float] = time.monotonic) -> None:
        self._prefix = upstream.prefix
        self._origin = upstream.origin
        self._trusted_hosts = upstream.trusted_hosts
        self._sender = sender
        self._tokens = TokenProvider(upstream.prefix, sender, clock)
        self._rejected = RejectedCredentials(clock)
        self._accepted: TTLCache[Credential, bool] = TTLCache(1, ACCEPTED_FOR_S, clock)
        self._lock = threading.Lock()
        self._known: KnownChallenge | None = None

    @contextmanager
    def known_challenge(self) -> Iterator[KnownChallenge | None]:
        """The remembered challenge. It is forgotten if the block fails: token services move."""
        try:
            yield self._known
        except (UpstreamError, AuthenticationFailed) as exc:
            if not is_remembered(exc):
                self._known = None
            raise

    def learn(self, response: UpstreamResponse, limits: CallLimits, *, may_ping: bool) -> KnownChallenge | None:
        """The challenge of a response, else the remembered one, else that of `/v2/`, for registries that send it there.

        Raises UpstreamError.
        """
        challenge = pick_challenge(parse_challenges(response.header_values("WWW-Authenticate")))
        if challenge is not None:
            self._known = KnownChallenge(challenge, response.zone)
        elif self._known is None and may_ping and limits.pings:
            limits.pings -= 1
            url = Url(self._origin, "/v2/")
            ping = self._sender.send(UpstreamRequest(self._prefix, "GET", url, {}, limits.deadline))
            challenge = pick_challenge(parse_challenges(ping.header_values("WWW-Authenticate")))
            ping.finish()
            if ping.status == 401 and challenge is not None:
                self._known = KnownChallenge(challenge, ping.zone)
        return self._known

    def respond(
        self,
        known: KnownChallenge,
        credential: Credential,
        repository: str,
        limits: CallLimits,
        refused: Authorization | None = None,
    ) -> Authorization | None:
        """The header that satisfies a challenge, if there is one. Raises UpstreamError, AuthenticationFailed."""
        match known.scheme:
            case "basic":
                return self._basic(credential, repository)
            case "bearer":
                return self.token(known, credential, repository, limits, refused)
        return None

    def verbatim(self, credential: Credential) -> Authorization:
        """The registry token of a credential as it is. Raises UpstreamError."""
        self._check_encrypted(self._origin.scheme, self._origin.host)
        return Authorization(credential, f"Bearer {credential.registry_token}", is_verbatim=True)

    def token(
        self,
        known: KnownChallenge,
        credential: Credential,
        repository: str,
        limits: CallLimits,
        refused: Authorization | None = None,
    ) -> Authorization:
        """A token for pulling from a repository, not the refused one. Raises UpstreamError, AuthenticationFailed."""
        user = attrs.evolve(credential, registry_token="")
        scopes = _pull_scopes(repository, known.challenge)
        endpoint = self._token_endpoint(known, scopes, Url(self._origin, "/"), user)
        token = self._tokens.get(endpoint, user, limits, refused.token if refused else None)
        return Authorization(credential, f"Bearer {token}", token)

    def other_host_header(self, response: UpstreamResponse, limits: CallLimits) -> str | None:
        """The header for a host that the registry redirects to and that requires a token: an anonymous one.

        Raises UpstreamError.
        """
        challenge = pick_challenge(parse_challenges(response.header_values("WWW-Authenticate")))
        if challenge is None or challenge.scheme != "bearer":
            return None
        scope = challenge.parameters.get("scope", "")
        scopes = (scope,) if _is_pull_only(scope) else ()
        try:
            endpoint = self._token_endpoint(KnownChallenge(challenge, response.zone), scopes, response.url, ANONYMOUS)
            return f"Bearer {self._tokens.get(endpoint, ANONYMOUS, limits)}"
        except AuthenticationFailed:
            return None

    def record_result(self, authorization: Authorization, status: int, repository: str) -> None:
        """Remember whether the credential was accepted, so that a wrong password is not sent again and again."""
        credential = authorization.credential
        if authorization.header is None or credential.is_anonymous:
            return
        if status not in (401, 403):
            with self._lock:
                self._accepted[credential] = True
        elif status == 401 and not authorization.token and not authorization.is_verbatim:
            # Credentials that were accepted elsewhere a short time ago are rejected for this repository only.
            with self._lock:
                is_right = credential in self._accepted
            self._rejected.add((credential, repository) if is_right else credential)

    def _basic(self, credential: Credential, repository: str) -> Authorization | None:
        if credential.is_anonymous or credential.registry_token:
            return None
        self._check_encrypted(self._origin.scheme, self._origin.host)
        self._rejected.check(credential, (credential, repository))
        return Authorization(credential, credential.basic())

    def _token_endpoint(
        self, known: KnownChallenge, scopes: tuple[str, ...], sent_by: Url, credential: Credential
    ) -> TokenEndpoint:
        """The token service of a challenge, if these credentials may be sent there. Raises UpstreamError."""
        text = known.challenge.parameters.get("realm", "")
        try:
            realm = parse_http_url(text)
        except InvalidUrl as exc:
            raise self._not_allowed(f"sent an invalid URL of its token service: {exc}") from exc
        if sent_by.origin.scheme == "https" and realm.origin.scheme != "https":
            raise self._not_allowed("uses TLS, but its token service does not")
        if not credential.is_anonymous:
            if not is_realm_trusted(text, sent_by.origin, self._trusted_hosts):
                raise self._not_allowed(
                    "has a token service on another site: credentials are not sent there unless trusted_hosts lists it"
                )
            self._check_encrypted(realm.origin.scheme, realm.origin.host)
        return TokenEndpoint(realm, known.challenge.parameters.get("service", ""), scopes, known.registry_zone)

    def _check_encrypted(self, scheme: str, host: str) -> None:
        """Credentials are sent by TLS, or to this machine. Raises UpstreamError."""
        if scheme != "https" and not is_loopback(host):
            raise errors.plain_http_credentials(self._prefix)

    def _not_allowed(self, problem: str) -> UpstreamError:
        return errors.destination_not_allowed(self._prefix, problem)


class AuthenticationMode(ABC):
    """How requests to one registry are authenticated."""

    def __init__(self, responder: ChallengeResponder) -> None:
        self._responder = responder

    @abstractmethod
    def first(self, repository: str, limits: CallLimits) -> Authorization:
        """The header for a request. Raises UpstreamError, AuthenticationFailed."""

    @abstractmethod
    def after_refusal(
        self, refused: Authorization, response: UpstreamResponse, repository: str, limits: CallLimits
    ) -> Authorization | None:
        """Another header after a 401 or 403 of the registry; None when there is none.

        Raises UpstreamError, AuthenticationFailed.
        """

    def record_result(self, authorization: Authorization, status: int, repository: str) -> None:
        """Remember what the registry made of a header."""
        self._responder.record_result(authorization, status, repository)


class FixedCredentialAuth(AuthenticationMode):
    """`anonymous` and `basic`: the same credential for every repository."""

    def __init__(self, responder: ChallengeResponder, credential: Credential) -> None:
        super().__init__(responder)
        self._credential = credential

    def first(self, repository: str, limits: CallLimits) -> Authorization:
        with self._responder.known_challenge() as known:
            authorization = known and self._responder.respond(known, self._credential, repository, limits)
        return authorization or Authorization(self._credential)

    def after_refusal(
        self, refused: Authorization, response: UpstreamResponse, repository: str, limits: CallLimits
    ) -> Authorization | None:
        known = self._responder.learn(response, limits, may_ping=response.status == 401)
        if response.status == 403 or known is None:
            return None
        return _if_other(refused, self._responder.respond(known, self._credential, repository, limits, refused))


class BearerAuth(AuthenticationMode):
    """`bearer`: a secret that is either sent as it is or is the password for a token; the first refusal decides."""

    def __init__(self, responder: ChallengeResponder, username: str, secret: str) -> None:
        super().__init__(responder)
        self._credential = Credential(username or TOKEN_USER, secret, registry_token=secret)
        self._needs_token: bool | None = None  # None: not known yet

    def first(self, repository: str, limits: CallLimits) -> Authorization:
        if not self._needs_token:
            return self._responder.verbatim(self._credential)
        try:
            with self._responder.known_challenge() as known:
                if known is None or known.scheme != "bearer":
                    return Authorization(self._credential)
                return self._responder.token(known, self._credential, repository, limits)
        except (UpstreamError, AuthenticationFailed) as exc:
            if not is_remembered(exc):
                self._needs_token = None
            raise

    def after_refusal(
        self, refused: Authorization, response: UpstreamResponse, repository: str, limits: CallLimits
    ) -> Authorization | None:
        is_undecided = refused.is_verbatim and self._needs_token is None
        known = self._responder.learn(response, limits, may_ping=response.status == 401 or is_undecided)
        if known is None or (response.status == 403 and not is_undecided):
            return None
        if not refused.is_verbatim and not self._needs_token:
            return self._responder.verbatim(self._credential)  # another thread found that it is accepted
        if known.scheme != "bearer":
            return None
        return _if_other(refused, self._responder.token(known, self._credential, repository, limits, refused))

    def record_result(self, authorization: Authorization, status: int, repository: str) -> None:
        super().record_result(authorization, status, repository)
        if authorization.header is not None and status not in (401, 403):
            self._needs_token = not authorization.is_verbatim


class KeychainAuth(AuthenticationMode):
    """`keychain`: the login of Docker's keychain, which may be renewed when it is rejected."""

    def __init__(self, responder: ChallengeResponder, keychain: Keychain, host: str) -> None:
        super().__init__(responder)
        self._keychain = keychain
        self._host = host

    def first(self, repository: str, limits: CallLimits) -> Authorization:
        credential = self._keychain.credential_for(self._host, repository, limits.remaining_s)
        if credential.registry_token:
            return self._responder.verbatim(credential)
        with self._responder.known_challenge() as known:
            authorization = known and self._respond(known, credential, repository, limits)
        return authorization or Authorization(credential)

    def after_refusal(
        self, refused: Authorization, response: UpstreamResponse, repository: str, limits: CallLimits
    ) -> Authorization | None:
        known = self._responder.learn(response, limits, may_ping=response.status == 401)
        if response.status == 401 and known is None:
            return None
        if response.status == 401 and known is not None and not refused.is_verbatim:
            authorization = self._respond(known, refused.credential, repository, limits, refused)
            if authorization is not None and authorization.header != refused.header:
                return authorization
        if refused.header is None or refused.token:
            return None
        # ECR responds with 403 to a password that has expired.
        renewed = self._renew(refused.credential, repository, limits)
        if known is None or renewed == refused.credential:
            return None
        if renewed.registry_token:
            return self._responder.verbatim(renewed)
        return self._respond(known, renewed, repository, limits)

    def _respond(
        self,
        known: KnownChallenge,
        credential: Credential,
        repository: str,
        limits: CallLimits,
        refused: Authorization | None = None,
    ) -> Authorization | None:
        """As ChallengeResponder.respond; once more with a renewed login when the token service rejects this one."""
        try:
            return self._responder.respond(known, credential, repository, limits, refused)
        except AuthenticationFailed as exc:
            if exc.remembered or credential.is_anonymous:
                raise
            renewed = self._renew(credential, repository, limits)
            if renewed == credential or limits.token_requests <= 0:
                raise
        return self._responder.token(known, renewed, repository, limits, refused)

    def _renew(self, credential: Credential, repository: str, limits: CallLimits) -> Credential:
        return self._keychain.renew(self._host, repository, credential, limits.remaining_s)


def make_mode(upstream: Upstream, keychain: Keychain, responder: ChallengeResponder) -> AuthenticationMode:
    """The mode that `auth` of an upstream selects."""
    auth = upstream.auth
    match auth.type:
        case "anonymous":
            return FixedCredentialAuth(responder, ANONYMOUS)
        case "basic":
            return FixedCredentialAuth(responder, Credential(auth.username, auth.password.reveal()))
        case "bearer":
            return BearerAuth(responder, auth.username, auth.password.reveal())
        case "keychain":
            return KeychainAuth(responder, keychain, upstream.origin.authority)


def is_remembered(exc: UpstreamError | AuthenticationFailed) -> bool:
    """Whether the error comes from memory: the credentials were rejected before and not sent."""
    return isinstance(exc, AuthenticationFailed) and exc.remembered


def _if_other(refused: Authorization, authorization: Authorization | None) -> Authorization | None:
    """The header, unless it is the one that was refused."""
    return authorization if authorization is not None and authorization.header != refused.header else None


def _pull_scopes(repository: str, challenge: Challenge) -> tuple[str, ...]:
    """Pulling from this repository, and the scope of the challenge if it is about the same and requests no more."""
    own = f"repository:{repository}:pull"
    requested = challenge.parameters.get("scope", "")
    _, _, name = requested.partition(":")
    is_same = requested.startswith("repository") and name.rpartition(":")[0] == repository
    return (own, requested) if requested != own and is_same and _is_pull_only(requested) else (own,)


def _is_pull_only(scope: str) -> bool:
    return scope.startswith("repository") and " " not in scope and scope.rpartition(":")[2] == "pull"
