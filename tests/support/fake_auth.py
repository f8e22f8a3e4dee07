"""A fake registry that requires authentication: tokens from its own token service, or Basic credentials."""

import base64
import json
import secrets
from collections.abc import Callable, Mapping, Sequence
from urllib.parse import parse_qs, urlsplit

from tests.support.fake_registry import FakeRegistry, Rule
from tests.support.faults import challenged, error_response
from tests.support.raw_http import Exchange, Request, ScriptedResponse

GUARDED = ("manifest", "blob", "ping")


def bearer_challenge(realm: str, repo: str) -> str:
    """The challenge that most registries send."""
    return f'Bearer realm="{realm}",service="origin.test",scope="repository:{repo}:pull"'


class FakeTokenService:
    """Make a fake registry require a token that this service issued and that has not been revoked.

    `challenges` makes the WWW-Authenticate headers from realm and repository; `spell` makes the token response; `login`
    is the Authorization header that the token service requires (None: anonymous tokens).
    """

    def __init__(
        self,
        fake_registry: FakeRegistry,
        *,
        realm: str | None = None,
        challenges: Callable[[str, str], list[str]] = lambda realm, repo: [bearer_challenge(realm, repo)],
        spell: Callable[[str], Mapping[str, object]] = lambda token: {"token": token, "expires_in": 300},
        login: str | None = None,
    ) -> None:
        self.valid: set[str] = set()
        self._fake_registry = fake_registry
        self._realm = f"{fake_registry.url}/token" if realm is None else realm
        self._challenges = challenges
        self._spell = spell
        self._login = login
        for kind in GUARDED:
            fake_registry.on(kind, self._guard)
        fake_registry.on("token", self._issue)

    def issue(self) -> str:
        """Issue a token for the test itself."""
        token = secrets.token_urlsafe(16)
        self.valid.add(token)
        return token

    def revoke_all(self) -> None:
        """Revoke all tokens issued so far."""
        self.valid.clear()

    def requests(self) -> list[Exchange]:
        """The requests that reached the token service."""
        return self._fake_registry.received("token")

    def scopes(self) -> list[list[str]]:
        """The scopes of each token request, by GET or POST."""
        return [
            parse_qs(urlsplit(each.request.target).query + "&" + each.request.body.decode()).get("scope", [])
            for each in self.requests()
        ]

    def _guard(self, request: Request, response: ScriptedResponse) -> ScriptedResponse:
        scheme, _, token = (request.header("Authorization") or "").partition(" ")
        if scheme.lower() == "bearer" and token in self.valid:
            return response
        return challenged(*self._challenges(self._realm, request.repo))(request, response)

    def _issue(self, request: Request, response: ScriptedResponse) -> ScriptedResponse:
        if self._login is not None and request.header("Authorization") != self._login:
            return challenged('Basic realm="token service"')(request, response)
        token = self.issue()
        body = json.dumps(self._spell(token)).encode()
        return ScriptedResponse.of(200, body, ("Content-Type", "application/json"))


class FakeScopedTokens:
    """Make a fake registry require tokens for a scope, from one of several token services (`/token/<name>`).

    `challenge` is the WWW-Authenticate header for a repository and the token that was sent (None: no Authorization).
    `grant` returns what a token service grants for the requested scopes: scopes, or a status. `needed` is the scope
    that a token must have for a repository ("": none is needed). `refusal` is the status for a token that is not valid;
    only 401 has a challenge. Tokens are valid until `expire`.
    """

    def __init__(
        self,
        fake_registry: FakeRegistry,
        *,
        challenge: Callable[[str, str | None], str] | None = None,
        grant: Callable[[str, list[str]], Sequence[str] | int] = lambda name, scopes: scopes,
        needed: Callable[[str], str] = lambda repo: f"repository:{repo}:pull",
        refusal: int = 401,
        listener: str | None = None,
    ) -> None:
        self.refusal = refusal
        self.grant = grant
        self.needed = needed
        self.url = fake_registry.url if listener is None else fake_registry.listeners[listener].url
        self.challenge = challenge or (lambda repo, token: bearer_challenge(self.realm("main"), repo))
        self._fake_registry = fake_registry
        self._generation = 0
        for kind in GUARDED:
            fake_registry.on(kind, self._guard, listener=listener)
        fake_registry.on("token", self._issue, when=lambda request: request.path.startswith("/token/"))

    def realm(self, name: str) -> str:
        """The URL of a token service."""
        return f"{self.url}/token/{name}"

    def expire(self) -> None:
        """Let the registry refuse all tokens issued so far."""
        self._generation += 1

    def asked(self) -> list[tuple[str, list[str]]]:
        """The name of the token service and the scopes of each token request."""
        return [_asked(exchange.request) for exchange in self._fake_registry.received("token")]

    def _guard(self, request: Request, response: ScriptedResponse) -> ScriptedResponse:
        scheme, _, token = (request.header("Authorization") or "").partition(" ")
        if not self.needed(request.repo) and not token:
            return response
        if not token:
            return challenged(self.challenge(request.repo, None))(request, response)
        generation, *granted = json.loads(base64.urlsafe_b64decode(token)) if scheme == "Bearer" else [-1]
        if generation == self._generation and self.needed(request.repo) in granted:
            return response
        if self.refusal == 401:
            return challenged(self.challenge(request.repo, token))(request, response)
        return error_response(self.refusal, "DENIED")(request, response)

    def _issue(self, request: Request, response: ScriptedResponse) -> ScriptedResponse:
        granted = self.grant(*_asked(request))
        if isinstance(granted, int):
            return error_response(granted, "DENIED")(request, response)
        token = base64.urlsafe_b64encode(json.dumps([self._generation, *granted]).encode()).decode()
        return ScriptedResponse.of(200, json.dumps({"token": token}).encode(), ("Content-Type", "application/json"))


def _asked(request: Request) -> tuple[str, list[str]]:
    query = parse_qs(urlsplit(request.target).query)
    return request.path.removeprefix("/token").strip("/"), query.get("scope", [])


def require_authorization(
    fake_registry: FakeRegistry, value: str, challenge: str = 'Basic realm="origin"'
) -> list[Rule]:
    """Make a fake registry require exactly this Authorization header."""

    def guard(request: Request, response: ScriptedResponse) -> ScriptedResponse:
        return response if request.header("Authorization") == value else challenged(challenge)(request, response)

    return [fake_registry.on(kind, guard) for kind in GUARDED]
