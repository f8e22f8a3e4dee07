"""The gate where access is restricted: who gets which response, in which order, and what is logged about it."""

import asyncio
import base64
import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import falcon.asgi
import pytest

from dockyard.access.access_tokens import AccessTokens
from dockyard.access.attempts import MAX_DELAY_S, MAX_FREE_FAILURES
from dockyard.access.audit import AuditEntry
from dockyard.access.authenticator import Authenticator
from dockyard.access.rules import Rules
from dockyard.cache.threads import Threads
from dockyard.config.settings import AccessRule, AccessSettings, Auth, Network, Settings, Upstream
from dockyard.errors import (
    AccessDenied,
    BlobUnknown,
    DigestInvalid,
    LoginRequired,
    ManifestUnknown,
    NameUnknown,
    RegistryError,
    RequestInvalid,
    Unavailable,
)
from dockyard.oci.login import Login, parse_authorization
from dockyard.oci.reference import Digest, Reference, Tag, parse_reference
from dockyard.routing import Target
from dockyard.web.access_gate import AccessControl, AccessGate, RequestKind
from dockyard.web.challenges import make_find_token_url
from dockyard.web.clients import make_find_address
from dockyard.web.concealment import Concealment
from dockyard.web.gate import Gate
from dockyard.web.queries import ReferrersQuery, parse_referrers_query, parse_tags_query
from dockyard.web.request_record import RequestRecord
from tests.support.htpasswd import write_htpasswd

HUB = Upstream("docker.io", "registry-1.docker.io", Auth("anonymous"), default=True)
GHCR = Upstream("ghcr.io", "ghcr.io", Auth("anonymous"))
PRIVATE = Upstream("private.test", "private.test", Auth("anonymous"), access="upstream")
OTHER = Upstream("other.test", "other.test", Auth("anonymous"), access="upstream")
DIGEST = f"sha256:{'a' * 64}"

RULES = (
    AccessRule(allow=True, repositories=("docker.io/library/*",)),
    AccessRule(allow=False, repositories=("ghcr.io/secret/app",), who=("bob",), reason="not for Bob", hide=True),
    AccessRule(allow=False, repositories=("ghcr.io/team/closed",), reason="ask the team"),
    AccessRule(allow=True, repositories=("ghcr.io/**",), who=("authenticated",)),
    AccessRule(allow=True, repositories=("ghcr.io/net/**",), who=("network:ci",)),
    AccessRule(allow=False, who=("anonymous",), actions=("status",)),
)


def basic(username: str, password: str) -> str:
    """The header of a login."""
    return f"Basic {base64.b64encode(f'{username}:{password}'.encode()).decode()}"


ANN, BOB, WRONG, STRANGER = basic("ann", "right"), basic("bob", "right"), basic("ann", "wrong"), basic("eve", "right")


async def receive_nothing() -> dict[str, Any]:
    """What a request without a body receives."""
    return {"type": "http.request", "body": b"", "more_body": False}


class FakeLinks:
    """Links of repositories to blobs: all, or those of one digest."""

    def __init__(self, digest: str | None = None) -> None:
        self._digest = digest
        self.required: list[tuple[str, str]] = []

    async def require(self, target: Target, digest: Digest) -> None:
        """Raises BlobUnknown."""
        self.required.append((target.name.value, str(digest)))
        if self._digest not in (None, str(digest)):
            raise BlobUnknown("no link")


class FakeAdmissions:
    """An upstream that admits logins with the password `right`, and everybody to the repository `public`."""

    def __init__(self) -> None:
        self.required: list[tuple[str, Login | None, str, Reference | None]] = []
        self.is_down = False
        self.known: set[Login] = set()

    def is_known(self, upstream: Upstream, login: Login) -> bool:
        """Whether it is one of `known`."""
        return login in self.known

    async def require(
        self, target: Target, login: Login | None, kind: RequestKind, reference: Reference | None
    ) -> None:
        """Raises RegistryError."""
        self.required.append((target.name.value, login, kind, reference))
        if self.is_down:
            raise Unavailable("down")
        if target.repository == "public" or (login and login.password == "right"):
            return
        if login is None or login.password == "wrong":
            raise LoginRequired("no")
        raise AccessDenied("no")

    async def check_login(self, upstream: Upstream, login: Login, passed: tuple[str, ...] = ()) -> bool:
        """Whether the password is `right`."""
        self.required.append((upstream.prefix, login, "login", None))
        if self.is_down:
            raise Unavailable("down")
        return login.password == "right"


@attrs.define
class Entrance:
    """A gate with what it asks, and the decisions that it has logged."""

    gate: AccessGate
    links: FakeLinks
    admissions: FakeAdmissions
    entries: list[AuditEntry] = attrs.field(factory=list)
    records: list[RequestRecord] = attrs.field(factory=list)
    headers: dict[str, str] = attrs.field(factory=dict)

    def write(self, entry: AuditEntry) -> None:
        """Keep a decision."""
        self.entries.append(entry)

    def ask(
        self, kind: str, name: str = "", reference: str = "latest", login: str | None = None, **more: Any
    ) -> tuple[Target, Any]:
        """Ask for something. `more`: `path_prefix`, `query`, `address`, `headers`."""
        parse: Mapping[str, Callable[[str], object]] = {
            "manifest": parse_reference,
            "blob": Digest.parse,
            "tags": lambda text: parse_tags_query("", text),
            "referrers": lambda text: parse_referrers_query("", text),
        }
        return self.call(
            lambda req, resp, record: self.gate.admit(
                req, resp, record, more.get("path_prefix", ""), reference, parse[kind]
            ),
            kind,
            name,
            login,
            **more,
        )

    def call(self, ask: Callable[..., Any], kind: str, name: str, login: str | None, **more: Any) -> Any:
        """Call the gate with a request."""
        headers = [*more.get("headers", ()), *([("Authorization", login)] if login is not None else [])]
        scope = {
            "type": "http",
            "http_version": "1.1",
            "method": "GET",
            "path": more.get("path", "/"),
            "query_string": more.get("query", "").encode(),
            "headers": [(key.lower().encode(), value.encode()) for key, value in headers],
            "client": (more.get("address", "192.0.2.1"), 1),
        }
        req = falcon.asgi.Request(scope, receive_nothing)
        resp = falcon.asgi.Response()
        record = RequestRecord(req.scope)
        record.kind, record.name = kind, name
        self.records.append(record)
        try:
            return asyncio.run(ask(req, resp, record))
        finally:
            self.headers = dict(resp.headers)

    def check_api(self, login: str | None = None, path_prefix: str = "") -> None:
        """Ask for `/v2/`."""
        self.call(lambda *args: self.gate.check_api(*args, path_prefix), "other", "", login)

    def check_status(self, login: str | None = None) -> None:
        """Ask for the state of the server."""
        self.call(self.gate.check_status, "other", "", login)

    def check_page(self, login: str | None = None, **more: Any) -> list[str]:
        """Ask for the page; return the prefixes."""
        return [upstream.prefix for upstream in self.call(self.gate.check_page, "other", "", login, **more)]

    def verdict(self) -> tuple[str, str]:
        """The verdict and the rule of the only decision since the last call."""
        (entry,) = self.entries
        self.entries.clear()
        return entry.verdict, entry.rule


Enter = Callable[..., Entrance]


@pytest.fixture
def enter(tmp_path: Path) -> Enter:
    """Make a gate."""

    def make(
        upstreams: Sequence[Upstream] = (HUB, GHCR),
        rules: Sequence[AccessRule] = RULES,
        links: FakeLinks | None = None,
        clock: Callable[[], float] = time.monotonic,
        tokens: AccessTokens | None = None,
        **more: Any,
    ) -> Entrance:
        htpasswd = write_htpasswd(tmp_path / "htpasswd", dict.fromkeys(("ann", "bob"), "right"))
        access = AccessSettings(htpasswd=str(htpasswd), rules=tuple(rules), networks=(Network("ci", ("10.0.0.0/8",)),))
        access = attrs.evolve(access, **more)
        settings = Settings(upstreams=tuple(upstreams), access=access)
        entrance = Entrance(None, links or FakeLinks(), FakeAdmissions())  # type: ignore[arg-type]
        control = AccessControl(
            Authenticator(access, clock),
            Rules(access, upstreams),
            entrance.links,
            entrance.admissions,
            Threads(),
            Concealment(b"key"),
            entrance,
            tokens,
        )
        entrance.gate = AccessGate(
            settings,
            control,
            make_find_address(settings.server),
            make_find_token_url(settings.server, settings.access),
        )
        return entrance

    return make


ALLOWED = None


@pytest.mark.parametrize(
    ("kind", "name", "login", "error", "verdict", "rule"),
    [
        ("manifest", "library/alpine", None, ALLOWED, "allowed", "rules[0]"),
        ("manifest", "docker.io/alpine", ANN, ALLOWED, "allowed", "rules[0]"),
        ("blob", "alpine", None, ALLOWED, "allowed", "rules[0]"),
        ("tags", "library/alpine", None, ALLOWED, "allowed", "rules[0]"),
        ("referrers", "library/alpine", None, ALLOWED, "allowed", "rules[0]"),
        ("manifest", "library/alpine", WRONG, LoginRequired, "wrong login", "login"),
        ("manifest", "library/alpine", STRANGER, LoginRequired, "wrong login", "login"),
        ("manifest", "library/alpine", "Bearer abc", LoginRequired, "wrong login", "login"),
        ("manifest", "library/alpine", "Basic !!!", LoginRequired, "wrong login", "login"),
        ("manifest", "library/alpine", "", LoginRequired, "wrong login", "login"),
        ("manifest", "library/alpine", basic("", "x"), LoginRequired, "wrong login", "login"),
        ("manifest", "library/alpine", basic("", ""), ALLOWED, "allowed", "rules[0]"),
        ("manifest", "ghcr.io/team/app", basic("", ""), LoginRequired, "login required", "default"),
        ("manifest", "ghcr.io/team/app", None, LoginRequired, "login required", "default"),
        ("blob", "ghcr.io/team/app", None, LoginRequired, "login required", "default"),
        ("tags", "ghcr.io/team/app", None, LoginRequired, "login required", "default"),
        ("referrers", "ghcr.io/team/app", None, LoginRequired, "login required", "default"),
        ("manifest", "ghcr.io/team/app", ANN, ALLOWED, "allowed", "rules[3]"),
        ("manifest", "ghcr.io/team/closed", None, LoginRequired, "login required", "rules[2]"),
        ("manifest", "ghcr.io/team/closed", ANN, AccessDenied, "denied", "rules[2]"),
        ("blob", "ghcr.io/team/closed", ANN, AccessDenied, "denied", "rules[2]"),
        ("tags", "ghcr.io/team/closed", ANN, AccessDenied, "denied", "rules[2]"),
        ("referrers", "ghcr.io/team/closed", ANN, AccessDenied, "denied", "rules[2]"),
        ("manifest", "ghcr.io/secret/app", None, LoginRequired, "login required", "default"),
        ("manifest", "ghcr.io/secret/app", ANN, ALLOWED, "allowed", "rules[3]"),
        # A prefix without an upstream is as one that is denied.
        ("manifest", "nosuch.test/app", None, LoginRequired, "login required", "default"),
        ("manifest", "nosuch.test/app", ANN, AccessDenied, "denied", "default"),
        ("manifest", "nosuch.test/app", STRANGER, LoginRequired, "wrong login", "login"),
    ],
)
def test_the_verdict_on_a_request(
    enter: Enter, kind: str, name: str, login: str | None, error: type[RegistryError] | None, verdict: str, rule: str
) -> None:
    """By the rules, with and without a login, of every kind. It is logged."""
    entrance = enter()
    reference = DIGEST if kind in {"blob", "referrers"} else "latest"

    if error is None:
        target, parsed = entrance.ask(kind, name, reference, login)
        assert target.name.value.startswith(("docker.io/library/", "ghcr.io/"))
        assert parsed is not None
    else:
        with pytest.raises(error):
            entrance.ask(kind, name, reference, login)

    assert entrance.verdict() == (verdict, rule)
    assert entrance.headers == {"vary": "Authorization"}
    assert entrance.links.required == ([(target.name.value, DIGEST)] if kind == "blob" and error is None else [])


def test_the_reason_of_a_rule_is_for_clients_with_a_login(enter: Enter) -> None:
    """Others are only asked to log in."""
    entrance = enter()
    with pytest.raises(AccessDenied, match="ask the team"):
        entrance.ask("manifest", "ghcr.io/team/closed", login=ANN)
    with pytest.raises(LoginRequired) as caught:
        entrance.ask("manifest", "ghcr.io/team/closed")
    assert "ask the team" not in caught.value.message


def test_a_network_is_admitted_without_a_login(enter: Enter) -> None:
    """By its rule; a wrong login is wrong there too."""
    entrance = enter()
    assert entrance.ask("manifest", "ghcr.io/net/app", address="10.1.2.3")
    assert entrance.verdict() == ("allowed", "rules[4]")
    with pytest.raises(LoginRequired):
        entrance.ask("manifest", "ghcr.io/net/app", login=WRONG, address="10.1.2.3")


def test_without_sources_of_logins_a_denial_is_403(enter: Enter) -> None:
    """There is nothing that a client could log in with, so a login is wrong, whatever it is."""
    entrance = enter(htpasswd="")
    with pytest.raises(AccessDenied):
        entrance.ask("manifest", "ghcr.io/team/app")
    with pytest.raises(LoginRequired):
        entrance.ask("manifest", "library/alpine", login=ANN)


def test_a_request_has_one_login_at_most(enter: Enter) -> None:
    """Two could be read differently by a proxy."""
    entrance = enter()
    with pytest.raises(RequestInvalid):
        entrance.ask("manifest", "library/alpine", login=ANN, headers=[("Authorization", BOB)])


def test_nothing_is_parsed_before_the_decision(enter: Enter) -> None:
    """A client that is denied does not learn whether its request is valid."""
    entrance = enter()
    with pytest.raises(LoginRequired):
        entrance.ask("blob", "ghcr.io/team/app", "sha256:short")
    with pytest.raises(DigestInvalid):
        entrance.ask("blob", "library/alpine", "sha256:short")


# Hidden repositories


@pytest.mark.parametrize(
    ("kind", "reference"), [("manifest", "latest"), ("manifest", DIGEST), ("blob", DIGEST), ("tags", "list")]
)
def test_a_hidden_repository_is_replaced_by_one_that_does_not_exist(enter: Enter, kind: str, reference: str) -> None:
    """In the same namespace. The reference is replaced too, so that nothing can be found."""
    entrance = enter()

    target, parsed = entrance.ask(kind, "ghcr.io/secret/app", reference, BOB)

    assert entrance.verdict() == ("hidden", "rules[1]")
    assert entrance.records[-1].is_hidden
    assert target.name.value.startswith("ghcr.io/secret/")
    assert target.repository == target.name.value.removeprefix("ghcr.io/")
    assert "app" not in target.name.value
    assert str(parsed) != reference
    assert (target, parsed) == entrance.ask(kind, "ghcr.io/secret/app", reference, BOB)
    assert [name for name, _ in entrance.links.required] == [target.name.value] * (2 if kind == "blob" else 0)


def test_the_referrers_of_a_hidden_manifest_are_those_of_another_digest(enter: Enter) -> None:
    """Their list is empty, as that of a repository that does not exist."""
    _, query = enter().ask("referrers", "ghcr.io/secret/app", DIGEST, BOB)
    assert isinstance(query, ReferrersQuery)
    assert str(query.subject) != DIGEST


def test_replacements_are_valid_and_depend_on_the_key() -> None:
    """All references of one kind stay of that kind; nobody without the key knows them."""
    target = Gate(Settings(upstreams=(HUB,)))._router.route("alpine")
    first, second = Concealment(b"1"), Concealment(b"2")
    for reference in (Tag("latest"), Digest.parse(DIGEST), Digest.of(b"", "sha512")):
        replaced = first.replace_reference(reference)
        assert parse_reference(str(replaced)) == replaced
        assert replaced not in (reference, second.replace_reference(reference))
        assert replaced == first.replace_reference(reference)
    assert first.replace_target(target).name != second.replace_target(target).name
    assert first.replace_target(target).repository.startswith("library/")


# Upstreams that decide themselves


def test_an_upstream_gets_a_login_that_is_not_ours(enter: Enter) -> None:
    """And the target has it, for what must be fetched."""
    entrance = enter((HUB, PRIVATE), ())
    target, parsed = entrance.ask("manifest", "private.test/app", login=STRANGER)
    assert target.login == Login("eve", "right")
    assert entrance.admissions.required == [("private.test/app", target.login, "manifest", parsed)]
    assert entrance.verdict() == ("allowed", "none")
    assert entrance.records[-1].user == ""


@pytest.mark.parametrize(
    ("name", "login", "error", "verdict", "sent"),
    [
        ("private.test/public", None, ALLOWED, ("allowed", "none"), [None]),
        ("private.test/app", None, LoginRequired, ("login required", "upstream"), [None]),
        ("private.test/app", basic("eve", "no"), AccessDenied, ("denied", "upstream"), [Login("eve", "no")]),
        (
            "private.test/app",
            basic("eve", "wrong"),
            LoginRequired,
            ("wrong login", "upstream"),
            [Login("eve", "wrong")],
        ),
        ("private.test/app", ANN, AccessDenied, ("denied", "upstream"), [None]),
        ("private.test/public", ANN, ALLOWED, ("allowed", "none"), [None]),
        ("private.test/app", WRONG, LoginRequired, ("wrong login", "login"), []),
        ("docker.io/library/alpine", STRANGER, LoginRequired, ("wrong login", "login"), []),
        ("docker.io/library/alpine", None, ALLOWED, ("allowed", "none"), []),
    ],
)
def test_the_verdict_of_an_upstream(
    enter: Enter,
    name: str,
    login: str | None,
    error: type[RegistryError] | None,
    verdict: tuple[str, str],
    sent: list[Login | None],
) -> None:
    """A login of ours is never sent there, right or wrong."""
    entrance = enter((HUB, PRIVATE), ())
    if error is None:
        entrance.ask("manifest", name, login=login)
    else:
        with pytest.raises(error):
            entrance.ask("manifest", name, login=login)
    assert entrance.verdict() == verdict
    assert [login for _, login, _, _ in entrance.admissions.required] == sent


@pytest.mark.parametrize("htpasswd", ["", None])
@pytest.mark.parametrize("kind", ["manifest", "api"])
def test_guesses_of_logins_at_an_upstream_are_slowed(
    enter: Enter, monkeypatch: pytest.MonkeyPatch, kind: str, htpasswd: str | None
) -> None:
    """By address, also without users of our own. A login that was right is not slowed; nor is one elsewhere."""
    waits: list[float] = []
    now = 1000.0

    async def sleep(wait_s: float) -> None:
        nonlocal now
        waits.append(wait_s)
        now += wait_s

    monkeypatch.setattr("dockyard.web.access_gate.asyncio.sleep", sleep)
    monkeypatch.setattr("dockyard.access.files.UNSETTLED_S", -1e9)
    more: dict[str, Any] = {} if htpasswd is None else {"htpasswd": htpasswd}
    entrance = enter((HUB, PRIVATE), (), clock=lambda: now, **more)
    entrance.admissions.known = {Login("ann2", "right")}

    def guess(username: str, address: str = "192.0.2.1", *, is_right: bool = False) -> float:
        """The time that it waits."""
        waits.clear()
        more = {"login": basic(username, "right" if is_right else "wrong"), "address": address}
        try:
            if kind == "api":
                entrance.call(lambda *args: entrance.gate.check_api(*args, ""), "other", "", **more)
            else:
                entrance.ask("manifest", "private.test/app", **more)
        except LoginRequired:
            assert not is_right
        return sum(waits)

    assert guess("ann2", is_right=True) == 0
    assert [guess("eve") for _ in range(20)] == [0.0] * 20  # one guess, however often
    slowed = [guess(f"user{number}") for number in range(20)]
    assert slowed[:MAX_FREE_FAILURES] == [0.0] * MAX_FREE_FAILURES
    assert slowed[-1] == MAX_DELAY_S
    assert sum(slowed) >= (20 - MAX_FREE_FAILURES - 6) * MAX_DELAY_S
    assert guess("ann2", is_right=True) == 0
    assert guess("new", "198.51.100.1", is_right=True) == 0
    assert guess("new", is_right=True) > 0


def test_an_upstream_that_cannot_be_asked(enter: Enter) -> None:
    """Is logged as unavailable."""
    entrance = enter((HUB, PRIVATE), ())
    entrance.admissions.is_down = True
    with pytest.raises(Unavailable):
        entrance.ask("tags", "private.test/app", login=STRANGER)
    assert entrance.verdict() == ("unavailable", "upstream")


def test_rules_are_before_the_upstream(enter: Enter) -> None:
    """What they deny is never asked."""
    entrance = enter((HUB, PRIVATE), RULES)
    with pytest.raises(LoginRequired):
        entrance.ask("manifest", "private.test/app", login=STRANGER)
    assert entrance.admissions.required == []
    assert entrance.verdict() == ("login required", "default")


@pytest.mark.parametrize("upstreams", [(HUB, GHCR), (HUB, GHCR, PRIVATE)])
def test_a_blob_without_a_link_is_unknown(enter: Enter, upstreams: Sequence[Upstream]) -> None:
    """Whoever asks."""
    entrance = enter(upstreams, links=FakeLinks(f"sha256:{'b' * 64}"))
    with pytest.raises(BlobUnknown):
        entrance.ask("blob", "ghcr.io/team/app", DIGEST, ANN)
    assert entrance.verdict() == ("unknown", "links")


# Dry run


@pytest.mark.parametrize(
    ("kind", "name", "login", "verdict"),
    [
        ("manifest", "library/alpine", None, ("allowed", "rules[0]")),
        ("manifest", "ghcr.io/team/app", None, ("would deny", "default")),
        ("manifest", "ghcr.io/team/closed", ANN, ("would deny", "rules[2]")),
        ("manifest", "ghcr.io/secret/app", BOB, ("would deny", "rules[1]")),
        ("manifest", "library/alpine", WRONG, ("would deny", "login")),
        ("manifest", "library/alpine", STRANGER, ("would deny", "login")),
        ("manifest", "library/alpine", "Basic", ("would deny", "login")),
        ("manifest", "ghcr.io/team/app", WRONG, ("would deny", "default")),
        ("blob", "ghcr.io/team/app", None, ("would deny", "default")),
    ],
)
def test_a_dry_run_denies_nothing(
    enter: Enter, kind: str, name: str, login: str | None, verdict: tuple[str, str]
) -> None:
    """It only logs. Links are not required."""
    entrance = enter(dry_run=True, links=FakeLinks("none"))
    target, _ = entrance.ask(kind, name, DIGEST if kind == "blob" else "latest", login)
    assert target.name.value.endswith(name.rpartition("/")[2])
    assert entrance.verdict() == verdict
    assert entrance.links.required == []


def test_a_dry_run_does_not_change_what_an_upstream_decides(enter: Enter) -> None:
    """Neither for manifests nor for blobs."""
    entrance = enter((HUB, PRIVATE), dry_run=True, links=FakeLinks("none"))
    with pytest.raises(LoginRequired):
        entrance.ask("manifest", "private.test/app")
    with pytest.raises(BlobUnknown):
        entrance.ask("blob", "library/alpine", DIGEST)


# `/v2/`, the page, and the state of the server


@pytest.mark.parametrize(
    ("upstreams", "rules", "path_prefix", "login", "error"),
    [
        ((HUB, GHCR), RULES, "", None, ALLOWED),
        ((HUB, GHCR), RULES, "docker.io", None, ALLOWED),
        ((HUB, GHCR), RULES, "index.docker.io", None, ALLOWED),
        ((HUB, GHCR), RULES, "ghcr.io", None, LoginRequired),
        ((HUB, GHCR), RULES, "nosuch.test", None, LoginRequired),
        ((HUB, GHCR), RULES, "", ANN, ALLOWED),
        ((HUB, GHCR), RULES, "ghcr.io", ANN, ALLOWED),
        ((HUB, GHCR), RULES, "", WRONG, LoginRequired),
        ((HUB, GHCR), RULES, "", STRANGER, LoginRequired),
        ((HUB, GHCR), RULES, "", basic("", ""), ALLOWED),
        ((HUB, GHCR), RULES[3:], "", None, LoginRequired),
        ((HUB, GHCR), RULES[3:], "", basic("", ""), LoginRequired),
        ((HUB, GHCR), (), "", None, ALLOWED),
        ((HUB, GHCR), (), "", WRONG, LoginRequired),
        ((HUB, PRIVATE), (), "", None, ALLOWED),
        ((HUB, PRIVATE), (), "private.test", None, LoginRequired),
        ((PRIVATE,), (), "", None, LoginRequired),
        ((PRIVATE,), (), "", STRANGER, ALLOWED),
        ((PRIVATE,), (), "", basic("eve", "no"), LoginRequired),
        ((HUB, PRIVATE), (), "", STRANGER, ALLOWED),
        ((HUB, PRIVATE), (), "", basic("eve", "no"), LoginRequired),
        ((HUB, PRIVATE), (), "docker.io", STRANGER, LoginRequired),
        ((PRIVATE, OTHER), (), "", basic("eve", "no"), ALLOWED),
        ((PRIVATE, OTHER), (), "other.test", basic("eve", "no"), LoginRequired),
    ],
)
def test_the_api_version(
    enter: Enter,
    upstreams: Sequence[Upstream],
    rules: Sequence[AccessRule],
    path_prefix: str,
    login: str | None,
    error: type[RegistryError] | None,
) -> None:
    """200 if something can be pulled without a login, or if the login is right. 200 asks for a login too."""
    entrance = enter(upstreams, rules)
    if error is not None:
        with pytest.raises(error):
            entrance.check_api(login, path_prefix)
        return
    entrance.check_api(login, path_prefix)
    assert entrance.headers["www-authenticate"] == 'Basic realm="dockyard"'


def test_the_page_has_the_prefixes_of_what_a_client_may_pull(enter: Enter) -> None:
    """And needs what `/v2/` needs."""
    entrance = enter()
    assert entrance.check_page() == ["docker.io"]
    assert entrance.check_page(address="10.0.0.1") == ["docker.io", "ghcr.io"]
    assert entrance.check_page(ANN) == ["docker.io", "ghcr.io"]
    with pytest.raises(LoginRequired):
        entrance.check_page(WRONG)
    with pytest.raises(LoginRequired):
        enter(rules=RULES[3:]).check_page()
    assert enter(dry_run=True).check_page() == ["docker.io", "ghcr.io"]


def test_the_state_of_the_server_is_open_unless_a_rule_denies_it(enter: Enter) -> None:
    """Allowed probes are not logged: they would be most of the lines."""
    entrance = enter(rules=RULES[:5])
    entrance.check_status()
    assert entrance.entries == []
    with pytest.raises(LoginRequired):
        entrance.check_status(WRONG)

    entrance = enter()
    with pytest.raises(LoginRequired):
        entrance.check_status()
    assert entrance.verdict() == ("login required", "rules[5]")
    entrance.check_status(ANN)


def test_the_log_has_the_user_and_the_address(enter: Enter) -> None:
    """Only of a login that is right."""
    entrance = enter()
    entrance.ask("manifest", "ghcr.io/team/app", login=ANN, address="::ffff:192.0.2.7")
    assert entrance.records[-1].user == "ann"
    (entry,) = entrance.entries
    assert (entry.principal.name, entry.address, entry.repository) == ("ann", "192.0.2.7", "ghcr.io/team/app")
    with pytest.raises(LoginRequired):
        entrance.ask("manifest", "ghcr.io/team/app", login=WRONG)
    assert entrance.records[-1].user == ""
    assert "ann" not in str(entrance.entries[-1])


def test_an_unknown_name_that_the_rules_allow(enter: Enter) -> None:
    """Is unknown, as everywhere."""
    entrance = enter(rules=(AccessRule(allow=True),))
    with pytest.raises(NameUnknown):
        entrance.ask("manifest", "nosuch.test/app")
    assert entrance.verdict() == ("unknown", "rules[0]")
    with pytest.raises(NameUnknown):
        entrance.ask("manifest", "app", query="ns=nosuch.test:5000")
    assert issubclass(ManifestUnknown, RegistryError)


# Access tokens


BEARER = {"challenge": "bearer"}
EVE = basic("eve", "no")


def bearer(tokens: AccessTokens, login: str | None) -> str:
    """The header with a token for a login."""
    return f"Bearer {tokens.issue(parse_authorization(login) if login else None)}"


@pytest.mark.parametrize("name", ["library/alpine", "ghcr.io/team/app", "ghcr.io/team/closed", "ghcr.io/secret/app"])
@pytest.mark.parametrize("login", [None, ANN, BOB, WRONG, STRANGER])
@pytest.mark.parametrize("kind", ["manifest", "blob"])
def test_a_token_is_its_login(enter: Enter, kind: str, name: str, login: str | None) -> None:
    """The same outcome and the same decision in the log, but for the name of the error in the challenge."""
    outcomes = []
    reference = DIGEST if kind in {"blob", "referrers"} else "latest"
    tokens = AccessTokens()
    for sent in (login, bearer(tokens, login)):
        entrance = enter(tokens=tokens, **BEARER)
        try:
            outcome: object = entrance.ask(kind, name, reference, sent)
        except RegistryError as exc:
            outcome = type(exc), exc.message
        (entry,) = entrance.entries
        outcomes.append((outcome, entry, entrance.records[0].user, entrance.records[0].is_hidden, entrance.headers))
    assert outcomes[0] == outcomes[1]


@pytest.mark.parametrize(
    ("upstreams", "rules", "login", "error"),
    [
        ((HUB, GHCR), RULES, None, ALLOWED),
        ((HUB, GHCR), RULES, ANN, ALLOWED),
        ((HUB, GHCR), RULES, WRONG, LoginRequired),
        ((HUB, GHCR), RULES[3:], None, LoginRequired),
        ((HUB, GHCR), RULES[3:], ANN, ALLOWED),
        ((PRIVATE,), (), None, ALLOWED),
        ((PRIVATE,), (), STRANGER, ALLOWED),
        ((PRIVATE,), (), EVE, LoginRequired),
        ((PRIVATE, OTHER), (), EVE, ALLOWED),
    ],
)
def test_the_api_with_a_token(
    enter: Enter,
    upstreams: Sequence[Upstream],
    rules: Sequence[AccessRule],
    login: str | None,
    error: type[RegistryError] | None,
) -> None:
    """By whether the login in it is right; without one, by whether such a client may pull something."""
    tokens = AccessTokens()
    entrance = enter(upstreams, rules, tokens=tokens, **BEARER)
    if error is None:
        entrance.check_api(bearer(tokens, login))
        assert "www-authenticate" not in entrance.headers
    else:
        with pytest.raises(error):
            entrance.check_api(bearer(tokens, login))
    entrance.entries.clear()
    for none in (None, basic("", "")):
        with pytest.raises(LoginRequired):
            entrance.check_api(none)
    assert entrance.entries == []  # nothing was decided


@pytest.mark.parametrize(
    ("upstreams", "login", "error", "verdict"),
    [
        ((HUB, GHCR), None, ALLOWED, "allowed"),
        ((HUB, GHCR), ANN, ALLOWED, "allowed"),
        ((HUB, GHCR), WRONG, LoginRequired, "wrong login"),
        ((HUB, GHCR), STRANGER, LoginRequired, "wrong login"),
        ((HUB, GHCR), "Bearer abc", LoginRequired, "wrong login"),
        ((HUB, PRIVATE), ANN, ALLOWED, "allowed"),
        ((HUB, PRIVATE), STRANGER, ALLOWED, "allowed"),
        ((HUB, PRIVATE), EVE, LoginRequired, "wrong login"),
        ((PRIVATE, OTHER), EVE, ALLOWED, "allowed"),
    ],
)
def test_a_login_is_verified_before_it_becomes_a_token(
    enter: Enter, upstreams: Sequence[Upstream], login: str | None, error: type[RegistryError] | None, verdict: str
) -> None:
    """As far as it is known for whom it is; the same in a header and in a form."""
    entrance = enter(upstreams, tokens=AccessTokens(), **BEARER)
    given = parse_authorization(login) if login else None
    for header, form in ((login, None), (None, given)):
        if error is None:
            found = entrance.call(lambda *args, form=form: entrance.gate.check_login(*args, form), "other", "", header)
            assert found == given
        else:
            with pytest.raises(error):
                entrance.call(lambda *args, form=form: entrance.gate.check_login(*args, form), "other", "", header)
        assert entrance.verdict()[0] == verdict


def test_a_login_that_cannot_be_verified_becomes_a_token(enter: Enter) -> None:
    """Its use decides: what the upstream gives to everybody may be cached."""
    entrance = enter((PRIVATE,), tokens=AccessTokens(), **BEARER)
    entrance.admissions.is_down = True
    login = parse_authorization(EVE)
    assert entrance.call(lambda *args: entrance.gate.check_login(*args, None), "other", "", EVE) == login
    assert entrance.verdict() == ("allowed", "none")


@pytest.mark.parametrize("upstreams", [(HUB, GHCR), (PRIVATE,), (PRIVATE, OTHER)])
@pytest.mark.parametrize("is_password", [False, True])
def test_a_token_is_no_login_for_an_upstream(
    enter: Enter,
    upstreams: Sequence[Upstream],
    is_password: bool,  # noqa: FBT001
) -> None:
    """Nor does it become another token: it would be valid for ever, and an upstream could use it here."""
    tokens = AccessTokens()
    entrance = enter(upstreams, tokens=tokens, **BEARER)
    token = bearer(tokens, ANN)
    login = basic("any", token.split()[1]) if is_password else token
    with pytest.raises(LoginRequired):
        entrance.call(lambda *args: entrance.gate.check_login(*args, None), "other", "", login)
    for other in (basic("any", token.split()[1]), f"{token}x"):
        with pytest.raises(LoginRequired):
            entrance.ask("manifest", f"{upstreams[0].prefix}/public", login=other)
    assert entrance.admissions.required == []


@pytest.mark.parametrize(
    ("path", "login", "expected"),
    [
        ("/v2/", None, 'Bearer realm="http://d.test/token",service="dockyard"'),
        ("/v2/", "token", 'Bearer realm="http://d.test/token",service="dockyard",error="insufficient_scope"'),
        ("/v2/", "forged", 'Bearer realm="http://d.test/token",service="dockyard",error="invalid_token"'),
        ("/v2/", WRONG, 'Bearer realm="http://d.test/token",service="dockyard"'),
        ("/x/v2/", None, 'Bearer realm="http://d.test/token",service="dockyard"'),
        ("/", None, 'Basic realm="dockyard"'),
        ("/metrics", None, 'Basic realm="dockyard"'),
        ("/token", None, 'Basic realm="dockyard"'),
    ],
)
def test_what_clients_are_asked_for(enter: Enter, path: str, login: str | None, expected: str) -> None:
    """Clients of registries for a token, and others for a login."""
    tokens = AccessTokens()
    entrance = enter(rules=RULES[3:], tokens=tokens, **BEARER)
    sent = {"token": bearer(tokens, None), "forged": "Bearer dockyard.x"}.get(login or "", login)

    async def ask(req: falcon.asgi.Request, resp: falcon.asgi.Response, record: RequestRecord) -> str:
        with contextlib.suppress(LoginRequired):
            await entrance.gate.check_api(req, resp, record, "")
        return entrance.gate.find_challenge(req, record)

    assert entrance.call(ask, "other", "", sent, path=path, headers=[("Host", "d.test")]) == expected
