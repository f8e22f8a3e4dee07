"""A fake registry with accounts that have different rights, in the ways in which real registries decide about them."""

import base64
import json
from collections.abc import Iterable, Mapping
from typing import Any, Literal
from urllib.parse import parse_qs, urlsplit

import attrs

from tests.support.fake_auth import bearer_challenge
from tests.support.fake_registry import Change, FakeRegistry
from tests.support.faults import challenged, error_response
from tests.support.raw_http import Request, ScriptedResponse

Style = Literal["scoped", "open tokens", "refused 401", "refused 403", "basic", "identity"]
STYLES: tuple[Style, ...] = ("scoped", "open tokens", "refused 401", "refused 403", "basic", "identity")
IDENTITY_USER = "<token>"


@attrs.frozen
class Account:
    """A user name and password, and the repositories that it may pull from."""

    username: str
    password: str
    repositories: frozenset[str]

    @property
    def header(self) -> str:
        """The Authorization header of a client with this login."""
        return "Basic " + base64.b64encode(f"{self.username}:{self.password}".encode()).decode()


class FakeAccounts:
    """Make a fake registry decide by account.

    | style | token service | registry |
    |---|---|---|
    | scoped | 401 for a wrong password; a token for the scopes that are granted | 401 for a token without the scope |
    | open tokens | a token for everybody | 403 if the account of the token may not pull |
    | refused 401 | 401 for a wrong password, and for a scope that is not granted | 401 without a token |
    | refused 403 | 401 for a wrong password, 403 for a scope that is not granted | 401 without a token |
    | basic | none | 401 without a login and for a wrong one, 403 if it may not pull |
    | identity | POST with an identity token, which is the password; otherwise as scoped | as scoped |

    `public` repositories need no login. What a token says is as it was when it was made. Rules that make responses are
    added to the fake registry before.
    """

    def __init__(
        self,
        fake_registry: FakeRegistry,
        style: Style,
        accounts: Iterable[Account],
        public: Iterable[str] = (),
        *,
        listener: str | None = None,
    ) -> None:
        self.style = style
        self._accounts: dict[tuple[str, str], Account] = {}
        for account in accounts:
            self.set(account)
        self.public = set(public)
        self._revoked = 0
        self._url = fake_registry.url if listener is None else fake_registry.listeners[listener].url
        for kind in ("manifest", "blob", "ping", "other"):
            fake_registry.on(kind, self._guard, listener=listener)
        fake_registry.on("token", self._issue, listener=listener)

    def set(self, account: Account) -> None:
        """Add an account, or change its rights."""
        self._accounts[account.username, account.password] = account

    def revoke_tokens(self) -> None:
        """Accept no token that was made before."""
        self._revoked += 1

    def find(self, username: str, password: str) -> Account | None:
        """The account with this login."""
        return self._accounts.get((username, password))

    def _guard(self, request: Request, response: ScriptedResponse) -> ScriptedResponse:
        repo = request.repo or _repo_of(request.path)
        scheme, _, value = (request.header("Authorization") or "").partition(" ")
        if self.style == "basic":
            return self._guard_basic(repo, scheme, value)(request, response)
        challenge = challenged(bearer_challenge(f"{self._url}/token", repo) if repo else self._base_challenge())
        if scheme != "Bearer":
            return challenge(request, response)
        granted = _decode(value)
        if (
            not granted
            or granted.get("revoked", 0) != self._revoked
            or (repo and repo not in granted["repos"] and self.style != "open tokens")
        ):
            return challenge(request, response)
        if self.style == "open tokens" and repo not in {*self.public, *granted["repos"], ""}:
            return error_response(403, "DENIED")(request, response)
        return response

    def _base_challenge(self) -> str:
        return f'Bearer realm="{self._url}/token",service="origin.test"'

    def _guard_basic(self, repo: str, scheme: str, value: str) -> Change:
        challenge = challenged('Basic realm="origin"')
        if scheme != "Basic":
            return (lambda _, response: response) if repo in self.public else challenge
        account = self.find(*_split(value))
        if account is None:
            return challenge
        if not repo or repo in account.repositories | self.public:
            return lambda _, response: response
        return error_response(403, "DENIED")

    def _issue(self, request: Request, response: ScriptedResponse) -> ScriptedResponse:
        form = parse_qs(urlsplit(request.target).query + "&" + request.body.decode())
        login = self._login_of(request, form)
        account = self.find(*login) if login else None
        asked = [scope.split(":")[1] for text in form.get("scope", []) for scope in text.split()]
        if self.style == "open tokens":
            return self._token(sorted(account.repositories) if account else [])
        if login and account is None:
            return error_response(401, "UNAUTHORIZED")(request, response)
        allowed = self.public | (account.repositories if account else frozenset())
        granted = [repo for repo in asked if repo in allowed]
        if self.style in ("refused 401", "refused 403") and granted != asked:
            return error_response(int(self.style[-3:]), "DENIED")(request, response)
        return self._token(granted)

    def _token(self, repositories: list[str]) -> ScriptedResponse:
        content: dict[str, object] = {"repos": repositories} | ({"revoked": self._revoked} if self._revoked else {})
        token = base64.urlsafe_b64encode(json.dumps(content).encode()).decode()
        body = json.dumps({"token": token, "expires_in": 300}).encode()
        return ScriptedResponse.of(200, body, ("Content-Type", "application/json"))

    def _login_of(self, request: Request, form: Mapping[str, list[str]]) -> tuple[str, str] | None:
        if request.method == "POST":
            return IDENTITY_USER, form.get("refresh_token", [""])[0]
        _, _, value = (request.header("Authorization") or "").partition(" ")
        return _split(value) if value else None


def _repo_of(path: str) -> str:
    for end in ("/tags/list", "/referrers/"):
        if path.startswith("/v2/") and end in path:
            return path[len("/v2/") : path.rindex(end)]
    return ""


def _split(value: str) -> tuple[str, str]:
    username, _, password = base64.b64decode(value).decode().partition(":")
    return username, password


def _decode(token: str) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(base64.urlsafe_b64decode(token))
    except ValueError:
        return {}
    return found
