"""The login of a client at registries of all kinds: what it gets, where it is sent, and what others notice of it."""

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest

from dockyard.config.settings import Auth
from dockyard.config.types import Secret
from dockyard.errors import (
    AccessDenied,
    BadUpstream,
    BlobUnknown,
    LoginRequired,
    ManifestUnknown,
    RegistryError,
    TooManyRequests,
    Unavailable,
)
from dockyard.oci.login import Login
from dockyard.oci.reference import Digest, Tag
from dockyard.upstream.client import RegistryClient
from dockyard.upstream.errors import UpstreamError
from tests.support import faults
from tests.support.bodies import digest_of
from tests.support.deployment import eventually
from tests.support.fake_accounts import IDENTITY_USER, STYLES, Account, FakeAccounts, Style
from tests.support.fake_lists import offer_tags
from tests.support.raw_http import Request
from tests.support.upstreams import LATEST, LIMITS, Ward

PRIVATE, OTHER, PUBLIC = "team/app", "other/app", "public/app"
BLOB = b"a layer of the team"
DEADLINE = None


@pytest.fixture
def ward(tmp_path: Path) -> Iterator[Ward]:
    """A fake registry with an image in each of three repositories."""
    with Ward(tmp_path) as ward:
        for repository in (PRIVATE, OTHER, PUBLIC):
            ward.fake_registry.add_image(repository, "latest", [BLOB])
            offer_tags(ward.fake_registry, repository, ["latest"])
        yield ward


def account(style: Style, *repositories: str) -> Account:
    """An account, whose password is an identity token if the registry wants one."""
    return Account(IDENTITY_USER if style == "identity" else "ann", "canary-of-ann", frozenset(repositories))


def login(of: Account, password: str | None = None) -> Login:
    """What a client with this account sends."""
    return Login(of.username, of.password if password is None else password)


def refusal(client: RegistryClient, of: Login | None, repository: str, **what: Any) -> type[RegistryError] | None:
    """The class of the error when access is checked; None if the client is admitted."""
    reference = what.get("reference", LATEST)
    error: RegistryError | None = None
    try:
        client.check_access(of, repository, reference, is_blob=what.get("is_blob", False), deadline=DEADLINE)
    except RegistryError as exc:
        error = exc
    assert error is None or "auth" not in error.message
    return error and type(error)


@pytest.mark.parametrize("style", STYLES)
def test_every_kind_of_registry_decides(ward: Ward, style: Style) -> None:
    """By repository."""
    ann = account(style, PRIVATE)
    FakeAccounts(ward.fake_registry, style, [ann], [PUBLIC])
    client = ward.registry()
    assert refusal(client, None, PUBLIC) is None
    assert refusal(client, None, PRIVATE) is LoginRequired
    assert refusal(client, login(ann), PRIVATE) is None
    assert refusal(client, login(ann), PRIVATE, reference=Digest.parse(digest_of(BLOB)), is_blob=True) is None
    assert refusal(client, login(ann), PRIVATE, reference=None) is None
    assert refusal(client, login(ann), PRIVATE, reference=Tag("unknown")) is ManifestUnknown
    unknown = Digest.of(b"unknown")
    assert refusal(client, login(ann), PRIVATE, reference=unknown, is_blob=True) is BlobUnknown
    assert refusal(client, login(ann, "wrong"), PRIVATE) is AccessDenied


@pytest.mark.parametrize("style", STYLES)
def test_a_refusal_of_one_repository_says_nothing_about_another(ward: Ward, style: Style) -> None:
    """Whatever status the registry uses for it: the login is right."""
    ann = account(style, PRIVATE)
    FakeAccounts(ward.fake_registry, style, [ann])
    client = ward.registry()
    for _ in range(2):
        assert refusal(client, login(ann), OTHER) is AccessDenied
        assert refusal(client, login(ann), PRIVATE) is None
    client.check_login(login(ann), DEADLINE)


@pytest.mark.parametrize("style", STYLES)
def test_a_login_is_checked_without_a_repository(ward: Ward, style: Style) -> None:
    """As `docker login` does; a registry that gives tokens to everybody does not tell."""
    ann = account(style, PRIVATE)
    FakeAccounts(ward.fake_registry, style, [ann])
    client = ward.registry()
    client.check_login(login(ann), DEADLINE)
    if style != "open tokens":
        with pytest.raises(LoginRequired):
            client.check_login(login(ann, "wrong"), DEADLINE)


@pytest.mark.parametrize("username", ["oauth2accesstoken", "AWS", "x-access-token", ""])
def test_user_names_with_a_meaning_are_sent_as_they_are(ward: Ward, username: str) -> None:
    """The registry knows what they mean."""
    ann = Account(username, "canary-of-ann", frozenset({PRIVATE}))
    FakeAccounts(ward.fake_registry, "scoped", [ann])
    assert refusal(ward.registry(), login(ann), PRIVATE) is None
    assert ann.header in ward.authorizations("token")


def test_a_bearer_token_goes_to_the_registry_only(ward: Ward) -> None:
    """As it is, and never to the token service."""
    FakeAccounts(ward.fake_registry, "scoped", [])
    assert refusal(ward.registry(), Login("", "canary-bearer", is_bearer=True), PRIVATE) is AccessDenied
    assert set(ward.authorizations()) == {"Bearer canary-bearer"}
    assert ward.authorizations("token") == []


@pytest.mark.parametrize("empty", [Login("", ""), Login(IDENTITY_USER, "")])
def test_an_empty_login_is_wrong(ward: Ward, empty: Login) -> None:
    """It is not the same as no login."""
    FakeAccounts(ward.fake_registry, "scoped", [], [PUBLIC])
    client = ward.registry()
    assert refusal(client, empty, PUBLIC) is LoginRequired
    with pytest.raises(LoginRequired):
        client.check_login(empty, DEADLINE)
    assert ward.fake_registry.count() == 0


@pytest.mark.parametrize("style", ["scoped", "refused 401", "identity"])
def test_a_wrong_password_reaches_the_token_service_once(ward: Ward, style: Style) -> None:
    """However often it is sent, for whatever repository."""
    ann = account(style, PRIVATE)
    FakeAccounts(ward.fake_registry, style, [ann])
    client = ward.registry()
    for _ in range(3):
        with pytest.raises(LoginRequired):
            client.check_login(login(ann, "wrong"), DEADLINE)
    assert refusal(client, login(ann, "wrong"), PRIVATE) is LoginRequired
    assert ward.fake_registry.count("token") == 1


@pytest.mark.parametrize("style", ["scoped", "open tokens", "refused 401", "refused 403"])
def test_a_right_that_was_taken_away_ends_with_the_next_check(ward: Ward, style: Style) -> None:
    """Not only with the token that was made before, which the registry still accepts."""
    ann = account(style, PRIVATE)
    accounts = FakeAccounts(ward.fake_registry, style, [ann], public := {PUBLIC})
    client = ward.registry()
    assert refusal(client, login(ann), PRIVATE) is None
    assert refusal(client, None, PUBLIC) is None
    client.with_login(login(ann)).get_manifest(PRIVATE, LATEST)
    accounts.set(account(style))
    accounts.public -= public
    assert refusal(client, login(ann), PRIVATE) is AccessDenied
    if style != "open tokens":
        assert refusal(client, None, PUBLIC) is LoginRequired


def test_content_is_fetched_with_the_token_of_the_check(ward: Ward) -> None:
    """One token, for whatever is requested of the repository."""
    ann = account("scoped", PRIVATE)
    FakeAccounts(ward.fake_registry, "scoped", [ann])
    client = ward.registry()
    assert refusal(client, login(ann), PRIVATE) is None
    client.with_login(login(ann)).get_manifest(PRIVATE, LATEST)
    client.with_login(login(ann)).head_blob(PRIVATE, Digest.parse(digest_of(BLOB)))
    assert ward.fake_registry.count("token") == 1


PORTAL = faults.html_page()
NOT_ITS_OWN = (
    PORTAL,
    faults.replaced(200, b'{"error":"sign in"}', ("Content-Type", "application/json")),
    faults.replaced(200, b"<html>Sign in</html>"),
    faults.replaced(200, b"OK", ("Content-Type", "text/plain")),
    faults.replaced(200),
)


@pytest.mark.parametrize("answer", NOT_ITS_OWN)
@pytest.mark.parametrize("of", [None, Login("ann", "x")])
def test_a_page_with_status_200_admits_nobody(ward: Ward, answer: faults.Change, of: Login | None) -> None:
    """A single sign-on in front of a registry sends its login form with 200, also after a redirect to another host."""
    digest = Digest.parse(digest_of(BLOB))
    ward.fake_registry.on("manifest", answer)
    ward.fake_registry.on("blob", PORTAL)
    ward.fake_registry.on("other", answer)
    client = ward.registry()
    for reference, is_blob in ((LATEST, False), (digest, False), (None, False), (digest, True)):
        error = refusal(client, of, PRIVATE, reference=reference, is_blob=is_blob)
        assert error is not None, (reference, is_blob)
        assert not issubclass(error, LoginRequired | AccessDenied | ManifestUnknown)


@pytest.mark.parametrize("answer", [PORTAL, faults.replaced(200, b"<html>Sign in</html>")])
def test_a_page_with_status_200_confirms_no_login(ward: Ward, answer: faults.Change) -> None:
    """It does not say either that the login is wrong."""
    ward.fake_registry.on("ping", answer)
    with pytest.raises(BadUpstream):
        ward.registry().check_login(Login("ann", "x"), DEADLINE)


# The content


@pytest.mark.parametrize("style", STYLES)
def test_content_is_fetched_with_the_login_of_the_client(ward: Ward, style: Style) -> None:
    """Everything that a pull needs, if the operator has no login."""
    ann = account(style, PRIVATE)
    FakeAccounts(ward.fake_registry, style, [ann])
    client = ward.registry().with_login(login(ann))
    manifest = client.get_manifest(PRIVATE, LATEST)
    assert client.head_manifest(PRIVATE, LATEST).digest == manifest.digest
    assert client.head_blob(PRIVATE, Digest.parse(digest_of(BLOB))) == len(BLOB)
    assert client.open_blob(PRIVATE, Digest.parse(digest_of(BLOB))).read(1000) == BLOB
    assert client.list_tags(PRIVATE) == ["latest"]
    assert client.list_referrers(PRIVATE, manifest.digest) == []


@pytest.mark.parametrize("style", STYLES)
def test_refusals_are_about_the_client(ward: Ward, style: Style) -> None:
    """Not about `auth` of the operator, who has nothing to do with them."""
    ann = account(style, PRIVATE)
    FakeAccounts(ward.fake_registry, style, [ann])
    registry = ward.registry()
    digest = Digest.parse(digest_of(BLOB))
    for of, error in ((None, LoginRequired), (login(ann), AccessDenied)):
        client = registry.with_login(of)
        for operation in (
            lambda client=client: client.head_manifest(OTHER, LATEST),
            lambda client=client: client.get_manifest(OTHER, LATEST),
            lambda client=client: client.head_blob(OTHER, digest),
            lambda client=client: client.open_blob(OTHER, digest),
            lambda client=client: client.list_tags(OTHER),
            lambda client=client: client.list_referrers(OTHER, digest),
        ):
            with pytest.raises(error) as raised:
                operation()
            assert "auth" not in raised.value.message
            details = raised.value.details
            assert details is not None
            assert "auth" not in details.cure


OPERATOR = Account("operator", "canary-of-operator", frozenset({PRIVATE}))


def test_the_login_of_the_operator_comes_first(ward: Ward) -> None:
    """The client's login is used only where that of the operator does not help, and then at once."""
    ann = account("scoped", OTHER)
    FakeAccounts(ward.fake_registry, "scoped", [OPERATOR, ann], [PUBLIC])
    registry = ward.registry(auth=Auth("basic", OPERATOR.username, Secret(OPERATOR.password)))
    client = registry.with_login(login(ann))
    client.get_manifest(PRIVATE, LATEST)
    client.get_manifest(PUBLIC, LATEST)
    assert set(ward.authorizations("token")) == {OPERATOR.header}
    client.get_manifest(OTHER, LATEST)
    assert ward.authorizations("token")[-1] == ann.header
    ward.fake_registry.clear_exchanges()
    client.get_manifest(OTHER, LATEST)
    assert [each.status for each in ward.fake_registry.received()] == [200]
    ward.fake_registry.clear_exchanges()
    with pytest.raises(ManifestUnknown, match=r"has no team/app:unknown$"):
        client.get_manifest(PRIVATE, Tag("unknown"))
    assert ward.fake_registry.count("manifest") == 1  # the operator's login sees the repository: 404 is final


def test_access_is_never_checked_with_the_login_of_the_operator(ward: Ward) -> None:
    """Otherwise everybody would be admitted to what the operator may have."""
    FakeAccounts(ward.fake_registry, "scoped", [OPERATOR], [PUBLIC])
    registry = ward.registry(auth=Auth("basic", OPERATOR.username, Secret(OPERATOR.password)))
    registry.get_manifest(PRIVATE, LATEST)
    ward.fake_registry.clear_exchanges()
    assert refusal(registry, None, PRIVATE) is LoginRequired
    assert refusal(registry, Login("ann", "x"), PRIVATE) is AccessDenied
    assert OPERATOR.header not in ward.authorizations()
    tokens = {each.request.header("Authorization") for each in ward.fake_registry.received("manifest")}
    assert all(token is None or token.startswith("Bearer eyJyZXBvcyI6IFtdfQ") for token in tokens)  # {"repos": []}


def test_a_blob_is_confirmed_with_the_login_of_the_client(ward: Ward) -> None:
    """A registry may show a blob in each repository to whoever may have it in one of them."""
    ann = account("basic", OTHER)
    operator = attrs.evolve(OPERATOR, repositories=frozenset({PRIVATE, OTHER}))
    FakeAccounts(ward.fake_registry, "basic", [operator, ann])
    unknown = faults.error_response(404, "BLOB_UNKNOWN")
    is_ann = lambda request: request.header("Authorization") == ann.header  # noqa: E731
    ward.fake_registry.on("blob", unknown, repo=OTHER, when=is_ann)
    client = ward.registry(auth=Auth("basic", OPERATOR.username, Secret(OPERATOR.password))).with_login(login(ann))
    with pytest.raises(BlobUnknown):
        client.head_blob(OTHER, Digest.parse(digest_of(BLOB)))


# Where the login is sent


@pytest.mark.parametrize("is_trusted", [True, False])
def test_no_login_is_sent_to_the_host_of_a_redirect(ward: Ward, *, is_trusted: bool) -> None:
    """Not even to one of `trusted_hosts`, which would get the operator's."""
    ann = account("basic", PRIVATE)
    FakeAccounts(ward.fake_registry, "basic", [ann], listener="registry")
    other = ward.fake_registry.listen("other")
    trusted = (other.authority,) if is_trusted else ()
    ward.fake_registry.on(
        "blob",
        lambda request, response: (
            faults.redirected(f"{other.url}{request.target}")(request, response) if response.status == 200 else response
        ),
        listener="registry",
    )
    ward.fake_registry.on("blob", faults.challenged('Basic realm="x"'), listener="other")
    client = ward.registry(trusted_hosts=trusted).with_login(login(ann))
    with pytest.raises(RegistryError) as raised:
        client.open_blob(PRIVATE, Digest.parse(digest_of(BLOB)))
    assert not isinstance(raised.value, LoginRequired | AccessDenied)
    at_other = ward.fake_registry.received(listener="other")
    assert at_other
    assert {each.request.header("Authorization") for each in at_other} == {None}


def test_no_login_is_sent_on_after_a_redirect_of_the_token_service(ward: Ward) -> None:
    """To another origin."""
    ann = account("scoped", PRIVATE)
    FakeAccounts(ward.fake_registry, "scoped", [ann], listener="registry")
    other = ward.fake_registry.listen("other")
    ward.fake_registry.on("token", faults.redirected(f"{other.url}/token"), listener="registry")
    assert refusal(ward.registry(), login(ann), PRIVATE) is not None
    at_other = ward.fake_registry.received(listener="other")
    assert at_other
    assert {each.request.header("Authorization") for each in at_other} == {None}


def test_no_login_is_sent_to_a_token_service_elsewhere(ward: Ward) -> None:
    """That the registry names, but that does not belong to it."""
    ward.fake_registry.on("manifest", faults.challenged('Bearer realm="http://127.0.0.2:1/token"'))
    assert refusal(ward.registry(), Login("ann", "canary-of-ann"), PRIVATE) is not None
    assert set(ward.authorizations()) == {None}


@pytest.mark.parametrize("style", ["scoped", "basic"])
def test_no_login_is_sent_in_clear(ward: Ward, style: Style) -> None:
    """To a proxy that is not on this machine, which would be asked for a registry without TLS."""
    ann = account(style, PRIVATE)
    client = ward.registry(at="http://127.0.0.1:1", proxy="http://192.0.2.1:3128", limits=LIMITS)
    bearer = Login("", "canary", is_bearer=True)
    assert refusal(client, bearer, PRIVATE) is not None
    with pytest.raises(RegistryError, match="plain HTTP"):
        client.check_access(bearer, PRIVATE, LATEST, is_blob=False, deadline=DEADLINE)
    assert ann


# What others notice


def test_a_rate_limit_of_a_client_holds_for_its_login_only(ward: Ward) -> None:
    """Neither the circuit breaker opens, nor does anybody else wait."""
    ann, bob = account("scoped", PRIVATE), Account("bob", "canary-of-bob", frozenset({PRIVATE}))
    FakeAccounts(ward.fake_registry, "scoped", [ann, bob], [PUBLIC])
    client = ward.registry()
    rule = ward.fake_registry.on("manifest", faults.error_response(429, retry_after="30"), when=has_token)
    for _ in range(2):
        with pytest.raises(TooManyRequests):
            client.with_login(login(ann)).head_manifest(PRIVATE, LATEST)
    assert rule.applied == 1
    ward.fake_registry.remove_rules(rule)
    assert not client.is_breaker_open
    assert client.with_login(login(bob)).head_manifest(PRIVATE, LATEST)
    assert client.with_login(None).head_manifest(PUBLIC, LATEST)
    assert refusal(client, login(ann), PRIVATE) is TooManyRequests


def has_token(request: Request) -> bool:
    """Whether a request has a token."""
    return (request.header("Authorization") or "").startswith("Bearer")


def test_a_login_that_makes_the_registry_fail_does_not_stop_others(ward: Ward) -> None:
    """Somebody who is not admitted cannot make a repository unavailable."""
    ann = account("basic", PRIVATE)
    FakeAccounts(ward.fake_registry, "basic", [ann])
    bad = Login("eve", "x")
    header = Account("eve", "x", frozenset()).header
    ward.fake_registry.on(
        "manifest", faults.error_response(500), when=lambda request: request.header("Authorization") == header
    )
    client = ward.registry()
    for _ in range(10):
        assert refusal(client, bad, PRIVATE) is Unavailable
    assert not client.is_breaker_open
    assert client.with_login(login(ann)).head_manifest(PRIVATE, LATEST)


def test_a_probe_has_no_login_of_a_client(ward: Ward, monkeypatch: pytest.MonkeyPatch) -> None:
    """The circuit breaker and the checks of repositories repeat operations later, in the background."""
    ann = account("basic", PRIVATE)
    FakeAccounts(ward.fake_registry, "basic", [ann])
    client = ward.registry()
    kept: list[Any] = []
    monkeypatch.setattr(client._breaker, "record_failure", lambda _error, probe: kept.append(probe))
    monkeypatch.setattr(client._breaker, "suspect", lambda _error, probe, check: kept.extend((probe, check)))
    monkeypatch.setattr(client._failures, "record_success", lambda _name, check=None: kept.append(check))
    of_ann, digest = client.with_login(login(ann)), Digest.parse(digest_of(BLOB))
    operations = [
        lambda: of_ann.head_manifest(PRIVATE, LATEST),
        lambda: of_ann.get_manifest(PRIVATE, LATEST),
        lambda: of_ann.head_blob(PRIVATE, digest),
        lambda: of_ann.open_blob(PRIVATE, digest).close(),
        lambda: of_ann.list_tags(PRIVATE),
        lambda: of_ann.list_referrers(PRIVATE, digest),
        lambda: client.check_access(login(ann), PRIVATE, LATEST, is_blob=False, deadline=DEADLINE),
    ]
    for operation in operations:
        operation()
    rules = [ward.fake_registry.on(kind, faults.error_response(503)) for kind in ("manifest", "blob", "other")]
    for _ in range(5):
        for operation in operations:
            with pytest.raises(RegistryError):
                operation()
            client._failures.forget()
    ward.fake_registry.remove_rules(*rules)
    ward.fake_registry.clear_exchanges()
    assert len(kept) > 2 * len(operations)
    for probe in filter(None, kept):
        with contextlib.suppress(RegistryError, UpstreamError, TypeError):
            probe()
        with contextlib.suppress(RegistryError, UpstreamError, TypeError):
            probe(time.monotonic() + 3.0)
    assert len(ward.authorizations()) >= len(operations)
    assert set(ward.authorizations()) == {None}


def test_a_tag_that_is_hidden_from_one_login_is_confirmed_for_another(ward: Ward) -> None:
    """A 404 to HEAD is confirmed by GET for each login: what one does not see is not known of the other."""
    ann, bob = account("basic", PRIVATE), Account("bob", "b", frozenset({PRIVATE}))
    FakeAccounts(ward.fake_registry, "basic", [ann, bob])
    ward.fake_registry.on("manifest", faults.error_response(404), method="HEAD")
    ward.fake_registry.on(
        "manifest", faults.error_response(404), when=lambda request: request.header("Authorization") == ann.header
    )
    client = ward.registry()
    for _ in range(2):
        assert refusal(client, login(ann), PRIVATE) is ManifestUnknown
    assert refusal(client, Login("bob", "b"), PRIVATE) is None


@pytest.mark.parametrize("what", ["access", "login"])
def test_the_probe_of_a_check_has_no_deadline(ward: Ward, what: str) -> None:
    """That of the check has passed when the registry is up again; nobody else asks for anything meanwhile."""
    ann = account("scoped", PRIVATE)
    FakeAccounts(ward.fake_registry, "scoped", [ann])
    client = ward.registry()
    client._breaker._interval_s = 0.05
    deadline = time.monotonic() + 0.2
    ward.fake_registry.listener.close()
    checks: dict[str, Callable[[], None]] = {
        "access": lambda: client.check_access(login(ann), PRIVATE, LATEST, is_blob=False, deadline=deadline),
        "login": lambda: client.check_login(login(ann), deadline),
    }
    with pytest.raises(Unavailable):
        checks[what]()
    assert client.is_breaker_open
    eventually(lambda: time.monotonic() > deadline, "the deadline of the check")
    ward.fake_registry.listener.open()
    eventually(lambda: not client.is_breaker_open, "a probe gets a response", 10.0)
