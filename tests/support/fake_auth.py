"""A fake registry that requires authentication: tokens from its own token service, or Basic credentials."""

import json
import secrets
from collections.abc import Callable, Mapping
from urllib.parse import parse_qs, urlsplit

from tests.support.fake_registry import FakeRegistry, Rule
from tests.support.faults import challenged
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


def require_authorization(
    fake_registry: FakeRegistry, value: str, challenge: str = 'Basic realm="origin"'
) -> list[Rule]:
    """Make a fake registry require exactly this Authorization header."""

    def guard(request: Request, response: ScriptedResponse) -> ScriptedResponse:
        return response if request.header("Authorization") == value else challenged(challenge)(request, response)

    return [fake_registry.on(kind, guard) for kind in GUARDED]
