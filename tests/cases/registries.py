"""Parts of registries that more than one test of this package needs."""

import json
from collections.abc import Callable
from urllib.parse import parse_qs, urlsplit

from tests.support.fake_registry import FakeRegistry
from tests.support.faults import challenged, error_response
from tests.support.raw_http import Exchange, Request, ScriptedResponse

GUARDED = ("manifest", "blob", "ping")


class ScopedTokens:
    """Token services of a fake registry whose tokens say what they were issued for.

    `grant` returns the token for a token request, or the status with which it is refused. `accepts` says whether the
    registry accepts an Authorization header (empty: none) for a request; if not, `challenge` makes its challenge.
    """

    def __init__(
        self,
        fake_registry: FakeRegistry,
        *,
        grant: Callable[[Request], str | int],
        accepts: Callable[[Request, str], bool],
        challenge: Callable[[Request], str],
        refusal: int = 401,
    ) -> None:
        self._fake_registry = fake_registry
        self._grant = grant
        self._accepts = accepts
        self._challenge = challenge
        self._refusal = refusal
        for kind in GUARDED:
            fake_registry.on(kind, self._guard)
        fake_registry.on("token", self._issue)

    def requests(self) -> list[Exchange]:
        """The requests that reached the token services."""
        return self._fake_registry.received("token")

    def _guard(self, request: Request, response: ScriptedResponse) -> ScriptedResponse:
        authorization = request.header("Authorization") or ""
        if self._accepts(request, authorization):
            return response
        if authorization and self._refusal != 401:
            return error_response(self._refusal, "DENIED")(request, response)
        return challenged(self._challenge(request))(request, response)

    def _issue(self, request: Request, response: ScriptedResponse) -> ScriptedResponse:
        granted = self._grant(request)
        if isinstance(granted, int):
            return error_response(granted, "DENIED")(request, response)
        body = json.dumps({"token": granted, "expires_in": 3600}).encode()
        return ScriptedResponse.of(200, body, ("Content-Type", "application/json"))


def scopes(request: Request) -> list[str]:
    """The scopes of a token request, each once."""
    values = parse_qs(urlsplit(request.target).query + "&" + request.body.decode()).get("scope", [])
    return " ".join(values).split()


def token_for(request: Request) -> str:
    """A token that contains the scopes that were asked for."""
    return "T." + " ".join(scopes(request)).encode().hex()


def has_scope(authorization: str, scope: str) -> bool:
    """Whether a token of `token_for` was issued for a scope."""
    return scope.encode().hex() in authorization


def bearer(realm: str, scope: str) -> str:
    """A challenge of the Bearer scheme."""
    return f'Bearer realm="{realm}",service="s",scope="{scope}"'


def pull_scope(repo: str) -> str:
    """The scope that a pull of a repository needs."""
    return f"repository:{repo}:pull"
