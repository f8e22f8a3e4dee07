"""What a registry requires (its challenge), remembered for each repository, and the headers that satisfy it.

A registry may have a token service for each of its repositories, so a challenge holds for the repository that it was
given for, and is remembered as soon as a token could be made for it. The next requests for this repository carry the
right header from the start. What is remembered may be wrong by now; before a client hears "no", the registry is asked
anew:

| the request had | and was refused with | next request |
|---|---|---|
| a token that could not be made, by what is remembered | (not sent) | without Authorization |
| no Authorization | 401 and a challenge | with what the challenge requires |
| a token, made earlier | 401, the same token service | with a new token |
| a token, made earlier | 401 and another service; 400; 403 | without Authorization |
| none, after such a token | 401 | with a new token |
| none, after such a token | 400, 403 | none: the token was not the cause |
| a token, made for this operation | 401, the same token service | with a token for the next set of scopes, if any |
| a token, made for this operation | otherwise | without Authorization, once |
| the same, without Authorization was tried | 401 and another service | with what that challenge requires |

A refused token is dropped, whatever it was requested for, unless it was not the cause, or was made for this operation:
then the refusal is believed, and remembered for a short time. No header is sent twice for one request.
"""

import threading
import time
from collections.abc import Callable, Hashable
from urllib.parse import urlsplit

import attrs
import structlog
from cachetools import LRUCache, TTLCache

from dockyard.config.hosts import is_loopback
from dockyard.config.settings import Upstream
from dockyard.errors import FailureDetails, TooManyRequests
from dockyard.log import is_debug
from dockyard.oci.challenge import Challenge, is_realm_trusted, parse_challenges, usable_challenges
from dockyard.oci.origin import DEFAULT_PORTS, Origin
from dockyard.oci.scopes import Scopes, scope_sets
from dockyard.upstream import errors
from dockyard.upstream.errors import AuthenticationFailed, UpstreamError
from dockyard.upstream.keychain import Credential
from dockyard.upstream.network_zones import NetworkZone
from dockyard.upstream.rejected_credentials import RejectedCredentials
from dockyard.upstream.tokens import STAGE, CallLimits, RequestSender, TokenEndpoint, TokenProvider, TokenRefused
from dockyard.upstream.transport import UpstreamRequest, UpstreamResponse
from dockyard.upstream.urls import InvalidUrl, Url, parse_http_url

MAX_KNOWN_CHALLENGES = 1024
MAX_BELIEVED_REFUSALS = 1024
BELIEVED_FOR_S = 30.0
log = structlog.get_logger()

REFUSALS = frozenset({400, 401, 403})  # some registries respond to a token that is not valid any more with 400 or 403


@attrs.frozen
class Resource:
    """What a challenge is given for: a repository of a registry. `repository` is empty when a URL names none."""

    origin: Origin
    repository: str


@attrs.frozen
class KnownChallenge:
    """A challenge, the network zone of the registry that sent it, and the scopes of the token that was made for it."""

    challenge: Challenge
    registry_zone: NetworkZone
    scopes: Scopes | None = None

    @property
    def scheme(self) -> str:
        return self.challenge.scheme

    @property
    def service(self) -> Hashable:
        """Identifies the token service."""
        parameters = self.challenge.parameters
        return self.scheme, parameters.get("realm"), parameters.get("service")


@attrs.frozen
class Authorization:
    """The Authorization header of one request (None: no header), and the credential and token that it was made from.

    `known`: the challenge that a token satisfies. `is_verbatim`: the credential's registry token is sent as it is.
    """

    credential: Credential
    header: str | None = attrs.field(default=None, repr=False)
    token: str | None = attrs.field(default=None, repr=False)
    known: KnownChallenge | None = None
    is_verbatim: bool = False


@attrs.define(eq=False)
class Handshake:
    """One request to a registry, with the headers that were refused, and the tokens that could not be made.

    `suspect`: a token that was refused with 400 or 403, until it is clear whether it was the cause. `is_challenged`:
    without Authorization the response was 401. `failures` is by token service, user and scopes. The scopes are None
    when the service itself failed; the failure is None when the registry refused the token.
    """

    resource: Resource
    method: str
    limits: CallLimits
    refused_headers: set[str] = attrs.field(factory=set, init=False, repr=False)
    suspect: str | None = attrs.field(default=None, init=False, repr=False)
    is_challenged: bool = attrs.field(default=False, init=False)
    failures: dict[Hashable, UpstreamError | AuthenticationFailed | None] = attrs.field(factory=dict, init=False)


class ChallengeResponder:
    """Remembers the challenges that one upstream sent and makes the headers that satisfy them."""

    def __init__(self, upstream: Upstream, sender: RequestSender, clock: Callable[[], float] = time.monotonic) -> None:
        self.origin = upstream.origin
        self._prefix = upstream.prefix
        self._trusted_hosts = upstream.trusted_hosts
        self._has_proxy = bool(upstream.proxy) and not is_loopback(urlsplit(upstream.proxy).hostname or "")
        self._sender = sender
        self._tokens = TokenProvider(upstream.prefix, sender, clock)
        self._rejected = RejectedCredentials(clock)
        self._lock = threading.Lock()
        self._known: LRUCache[Resource, KnownChallenge] = LRUCache(MAX_KNOWN_CHALLENGES)
        self._of_base_path: KnownChallenge | None = None
        self._believed: TTLCache[Hashable, bool] = TTLCache(MAX_BELIEVED_REFUSALS, BELIEVED_FOR_S, clock)

    def remembered(self, handshake: Handshake, credential: Credential) -> Authorization | None:
        """The header that satisfies the remembered challenge; None when there is none, or it does not work any more.

        Raises UpstreamError, AuthenticationFailed if asking the registry anew would not help.
        """
        with self._lock:
            known = self._known.get(handshake.resource)
        if known is None:
            return None
        try:
            return self.respond(handshake, known, credential)
        except (UpstreamError, AuthenticationFailed) as exc:
            if not self._may_be_outdated(exc, handshake.limits):
                raise
            self._forget(handshake.resource)
            return None

    def answer(
        self, handshake: Handshake, refused: Authorization, response: UpstreamResponse, credential: Credential
    ) -> Authorization | None:
        """The next header after a refusal, by the table above; None when the refusal is final.

        Raises UpstreamError, AuthenticationFailed.
        """
        if refused.header is not None:
            handshake.refused_headers.add(refused.header)
        if refused.known is not None:
            return self._after_refused_token(handshake, refused, refused.known, response)
        if refused.header is None:
            handshake.is_challenged = response.status == 401
            if handshake.suspect is not None and not handshake.is_challenged and self._of_base_path is None:
                with self._lock:
                    self._believed[handshake.resource, handshake.method, handshake.suspect] = True
                return None
            self._drop_suspect(handshake)
        # Some registries respond with 403 to a request without a login.
        is_login_missing = response.status == 403 and refused.header is None and not credential.is_anonymous
        may_ping = response.status == 401 or is_login_missing
        if not may_ping and not response.header("WWW-Authenticate"):
            return None
        known = self.find_challenge(handshake, response, credential, may_ping=may_ping)
        return self.respond(handshake, known, credential) if known is not None else None

    def find_challenge(
        self, handshake: Handshake, response: UpstreamResponse, credential: Credential, *, may_ping: bool
    ) -> KnownChallenge | None:
        """The challenge of a response, else the remembered one, else that of `/v2/`, for registries that send it there.

        Raises UpstreamError.
        """
        known = self._pick(response, credential) or self._find_elsewhere(handshake, credential, may_ping=may_ping)
        if known is not None and is_debug():
            log.debug(
                "the registry requires a login",
                upstream=self._prefix,
                host=handshake.resource.origin.host_and_port,
                repository=handshake.resource.repository,
                scheme=known.scheme,
                credentials=credential.source,
            )
        return known

    def _find_elsewhere(self, handshake: Handshake, credential: Credential, *, may_ping: bool) -> KnownChallenge | None:
        """The challenge that is remembered, else that of `/v2/`. Raises UpstreamError."""
        with self._lock:
            known = self._known.get(handshake.resource) or self._of_base_path
        if known is None and may_ping and handshake.limits.pings and handshake.resource.origin == self.origin:
            handshake.limits.pings -= 1
            url = Url(self.origin, "/v2/")
            limits = handshake.limits
            ping = self._sender.send(
                UpstreamRequest(self._prefix, "GET", url, {}, limits.deadline, passed=limits.passed)
            )
            ping.finish()
            if ping.status == 401:
                known = self._of_base_path = self._pick(ping, credential)
        return known if handshake.resource.origin == self.origin else None

    def respond(self, handshake: Handshake, known: KnownChallenge, credential: Credential) -> Authorization | None:
        """The header that satisfies a challenge, if there is one that was not refused yet for this request.

        Raises UpstreamError, AuthenticationFailed.
        """
        authorization = None
        match known.scheme:
            case "basic":
                authorization = self._basic(handshake, credential)
            case "bearer":
                authorization = self._token(handshake, known, credential)
        if authorization is not None and handshake.resource.repository:
            with self._lock:
                self._known[handshake.resource] = authorization.known or known
        return authorization

    def verbatim(self, credential: Credential) -> Authorization:
        """The registry token of a credential as it is. Raises UpstreamError."""
        self._check_encrypted(self.origin, credential)
        return Authorization(credential, f"Bearer {credential.registry_token}", is_verbatim=True)

    def record_result(self, handshake: Handshake, authorization: Authorization, response: UpstreamResponse) -> None:
        """Remember whether the credential was accepted, so that a wrong password is not sent again and again."""
        credential, resource, status = authorization.credential, handshake.resource, response.status
        if authorization.header is None:
            if status < 400:
                self._forget(resource)
                self._drop_suspect(handshake)
        elif not credential.is_anonymous and status not in REFUSALS:
            self._rejected.accept((resource.origin, credential))
        elif status == 401 and not authorization.token and not authorization.is_verbatim:
            details = attrs.evolve(response.details, credentials=credential.source)
            is_part = credential.is_of_client and bool(resource.repository)
            reject = self._rejected.reject_part if is_part else self._rejected.reject
            reject((resource.origin, credential), resource.repository, details)

    # Tokens

    def _token(self, handshake: Handshake, known: KnownChallenge, credential: Credential) -> Authorization | None:
        """A token for the first set of scopes that did not fail yet."""
        user = attrs.evolve(credential, registry_token="")
        service = (known.service, user)
        outage = handshake.failures.get((service, None))
        if outage is not None:
            raise outage
        failures = []
        for scopes in _scope_sets(known, handshake.resource.repository, user):
            key = (service, scopes)
            if key not in handshake.failures:
                try:
                    endpoint = self._token_endpoint(known, scopes, handshake.resource.origin, user)
                    token = self._tokens.get(endpoint, user, handshake.limits)
                    if f"Bearer {token}" not in handshake.refused_headers:
                        made_for = known if scopes == known.scopes else attrs.evolve(known, scopes=scopes)
                        return Authorization(credential, f"Bearer {token}", token, made_for)
                    handshake.failures[key] = None
                except (TokenRefused, AuthenticationFailed) as exc:
                    handshake.failures[key] = exc
                except UpstreamError as exc:
                    handshake.failures[service, None] = exc
                    raise
            failures.append(handshake.failures[key])
        # The failure of the own scope alone says most about this repository.
        failure = failures[min(1, len(failures) - 1)] or failures[0]
        if failure is not None:
            raise failure
        return None

    def _after_refused_token(
        self, handshake: Handshake, refused: Authorization, known: KnownChallenge, response: UpstreamResponse
    ) -> Authorization | None:
        is_new = refused.token in handshake.limits.new_tokens
        if self._is_believed(handshake, refused, known, is_new=is_new):
            return None
        named = self._pick(response, refused.credential)
        is_same_service = response.status == 401 and (named is None or named.service == known.service)
        is_other_service = response.status == 401 and not is_same_service
        may_ask_anew = handshake.resource not in handshake.limits.asked_without_token
        if not is_new:
            handshake.suspect = refused.token
            if response.status == 401 or handshake.is_challenged:
                self._drop_suspect(handshake)
        failure = None
        if is_same_service or (not may_ask_anew and (is_other_service or (handshake.is_challenged and not is_new))):
            try:
                again = attrs.evolve(named or known, scopes=known.scopes)
                authorization = self.respond(handshake, again, refused.credential)
            except (TokenRefused, AuthenticationFailed) as exc:
                failure = exc
            else:
                if authorization is not None:
                    return authorization
        if may_ask_anew:
            return Authorization(refused.credential)
        if failure is not None:
            raise failure
        return None

    def _is_believed(
        self, handshake: Handshake, refused: Authorization, known: KnownChallenge, *, is_new: bool
    ) -> bool:
        """Whether a new token was refused for the same a short time ago. Else take note of the refused token."""
        refusal = (handshake.resource, handshake.method, refused.token)
        with self._lock:
            if not is_new and refusal in self._believed:
                return True
            if is_new:
                self._believed[refusal] = True
        if is_new and known.scopes is not None:
            service = (known.service, attrs.evolve(refused.credential, registry_token=""))
            for scopes in (known.scopes, known.scopes[:1]):
                handshake.failures.setdefault((service, scopes), None)
        return False

    def _drop_suspect(self, handshake: Handshake) -> None:
        if handshake.suspect is not None:
            self._tokens.drop(handshake.suspect)
            handshake.suspect = None

    def _token_endpoint(
        self, known: KnownChallenge, scopes: Scopes, sent_by: Origin, credential: Credential
    ) -> TokenEndpoint:
        """The token service of a challenge, if these credentials may be sent there. Raises UpstreamError."""
        try:
            realm = self._find_realm(known.challenge, sent_by, credential)
        except RealmNotAllowed as exc:
            details = FailureDetails(sent_by.host_and_port, f"in its challenge: {exc}", STAGE, credential.source)
            raise errors.destination_not_allowed(self._prefix, str(exc), details) from exc
        if not credential.is_anonymous:
            self._check_encrypted(realm.origin, credential)
        return TokenEndpoint(realm, known.challenge.parameters.get("service", ""), scopes, known.registry_zone)

    def _find_realm(self, challenge: Challenge, sent_by: Origin, credential: Credential) -> Url:
        """The URL of a token service. Raises RealmNotAllowed.

        A registry behind a proxy that terminates TLS may name itself with http: then its https address is used.
        """
        text = challenge.parameters.get("realm", "")
        try:
            realm = parse_http_url(text)
        except InvalidUrl as exc:
            raise RealmNotAllowed(f"sent an invalid URL of its token service: {exc}") from exc
        if sent_by.scheme == "https" and realm.origin.scheme != "https":
            if not _is_same_server(realm.origin, sent_by):
                raise RealmNotAllowed("uses TLS, but its token service does not")
            realm = Url(sent_by, realm.target)
            text = realm.text
        # A trusted host that the registry redirects to may have the token service of the registry.
        is_trusted = any(is_realm_trusted(text, origin, self._trusted_hosts) for origin in (sent_by, self.origin))
        if not credential.is_anonymous and not is_trusted:
            raise RealmNotAllowed(
                "has a token service on another site: credentials are not sent there unless trusted_hosts lists it"
            )
        return realm

    # Challenges

    def _pick(self, response: UpstreamResponse, credential: Credential) -> KnownChallenge | None:
        """The first challenge of a response whose token service may be used, else the first one."""
        challenges = usable_challenges(parse_challenges(response.header_values("WWW-Authenticate")))
        for challenge in challenges:
            if challenge.scheme == "basic" and credential.is_anonymous:
                continue
            if challenge.scheme == "bearer":
                try:
                    self._find_realm(challenge, response.url.origin, attrs.evolve(credential, registry_token=""))
                except RealmNotAllowed:
                    continue
            return KnownChallenge(challenge, response.zone)
        return KnownChallenge(challenges[0], response.zone) if challenges else None

    def _may_be_outdated(self, exc: UpstreamError | AuthenticationFailed, limits: CallLimits) -> bool:
        """Whether a failure of a remembered token service may be due to what is remembered."""
        if is_remembered(exc) or limits.remaining_s == 0:
            return False
        return not (isinstance(exc, UpstreamError) and isinstance(exc.error, TooManyRequests))

    def _forget(self, resource: Resource) -> None:
        with self._lock:
            known = self._known.pop(resource, None)
            if known is not None and self._of_base_path is not None and known.service == self._of_base_path.service:
                self._of_base_path = None

    # Credentials

    def _basic(self, handshake: Handshake, credential: Credential) -> Authorization | None:
        if credential.is_anonymous or credential.registry_token:
            return None
        self._check_encrypted(handshake.resource.origin, credential)
        self._rejected.check((handshake.resource.origin, credential), handshake.resource.repository)
        header = credential.basic()
        return Authorization(credential, header) if header not in handshake.refused_headers else None

    def _check_encrypted(self, origin: Origin, credential: Credential) -> None:
        """Credentials are sent by TLS, or to this machine without a proxy in between. Raises UpstreamError."""
        if origin.scheme != "https" and (self._has_proxy or not is_loopback(origin.host)):
            details = FailureDetails(origin.host_and_port, "no request was sent", credentials=credential.source)
            raise errors.plain_http_credentials(self._prefix, details)


class RealmNotAllowed(ValueError):
    """The token service of a challenge may not be used. The message does not quote it."""


def is_remembered(exc: UpstreamError | AuthenticationFailed) -> bool:
    """Whether the error comes from memory: the credentials were rejected before and not sent."""
    return isinstance(exc, AuthenticationFailed) and exc.remembered


def _scope_sets(known: KnownChallenge, repository: str, credential: Credential) -> list[Scopes]:
    """The sets of scopes for a challenge; the one that a token was made for earlier comes first."""
    named = known.challenge.parameters.get("scope", "")
    sets = scope_sets(repository, named, is_anonymous=credential.is_anonymous)
    return sorted(sets, key=lambda scopes: scopes != known.scopes)


def _is_same_server(one: Origin, other: Origin) -> bool:
    """Whether two origins have the same host, and the same port or each the default port of its scheme."""
    is_default = all(origin.port == DEFAULT_PORTS[origin.scheme] for origin in (one, other))
    return one.host == other.host and (one.port == other.port or is_default)
