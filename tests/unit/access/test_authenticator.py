"""Who sends a request: users of the htpasswd file, and logins that are not ours."""

import base64
import os
import time
from collections.abc import Callable
from ipaddress import ip_address
from pathlib import Path

import attrs
import pytest

from dockyard.access import authenticator as module
from dockyard.access import passwords
from dockyard.access.attempts import MAX_FREE_FAILURES
from dockyard.access.authenticator import NOT_SLOWED_S, Authenticated, Authenticator
from dockyard.access.identities import MAX_REMEMBERED_S
from dockyard.access.principals import Principal
from dockyard.config.settings import AccessSettings, Group, JwtIssuer, Network
from dockyard.errors import LoginRequired, Unavailable
from dockyard.oci.login import Login
from tests.support.htpasswd import htpasswd_line, write_htpasswd
from tests.support.token_issuer import TokenIssuer, key_set

HERE = ip_address("192.0.2.1")
OFFICE = ip_address("198.51.100.1")
CANARY = "canary-2b9e"


def basic(username: str, password: str) -> str:
    """The value of an Authorization header."""
    return "Basic " + base64.b64encode(f"{username}:{password}".encode()).decode()


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    """The monotonic clock of the authenticator."""
    return Clock()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """The file with one user, which has not changed for some time."""
    file = tmp_path / "htpasswd"
    write_htpasswd(file, {"alice": CANARY})
    return file


@pytest.fixture(autouse=True)
def _settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take each file for one that has not changed lately."""
    monkeypatch.setattr("dockyard.access.files.UNSETTLED_S", -1e9)


@pytest.fixture
def checks(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """The passwords that bcrypt has computed hashes of."""
    found: list[bytes] = []
    check: Callable[[bytes, bytes], bool] = passwords.bcrypt.checkpw

    def record(password: bytes, hashed: bytes) -> bool:
        found.append(password)
        return check(password, hashed)

    monkeypatch.setattr(passwords.bcrypt, "checkpw", record)
    return found


@pytest.fixture
def authenticator(path: Path, clock: Clock) -> Authenticator:
    """An authenticator with this file and a network."""
    return Authenticator(AccessSettings(htpasswd=str(path), networks=(Network("office", (f"{OFFICE}/32",)),)), clock)


def test_no_login(authenticator: Authenticator) -> None:
    """A principal without a name, with the networks of the address; nothing blocks for it."""
    for call in (authenticator.find_remembered, authenticator.authenticate):
        assert call(None, HERE) == Authenticated(Principal())
        assert call(None, OFFICE) == Authenticated(Principal(networks=frozenset({"office"})))


def test_a_right_password(authenticator: Authenticator) -> None:
    """A principal with the name of the user."""
    assert authenticator.has_sources
    principal = authenticator.authenticate(basic("alice", CANARY), OFFICE).principal
    assert principal == Principal("alice", networks=frozenset({"office"}), source="htpasswd")
    assert principal.is_authenticated


@pytest.mark.parametrize("password", ["", "x", CANARY.upper(), CANARY + "x", CANARY[:-1]])
def test_a_wrong_password(authenticator: Authenticator, password: str) -> None:
    """It is an error, and so is its repetition."""
    for _ in range(2):
        with pytest.raises(LoginRequired):
            authenticator.authenticate(basic("alice", password), HERE)
    with pytest.raises(LoginRequired):
        authenticator.find_remembered(basic("alice", password), HERE)


@pytest.mark.parametrize(
    "header",
    [
        "",
        "Basic",
        "Basic ",
        "Basic x",
        "Basic !!!!",
        "Basic " + base64.b64encode(b"alice").decode(),
        "Digest username=alice",
        "alice:canary",
        "Bearer",
        "Bearer a b",
        basic("alice", CANARY) + ", Basic x",
        basic("alice", "x" * 20_000),
    ],
)
def test_a_malformed_header(authenticator: Authenticator, header: str) -> None:
    """It is an error whose message quotes nothing, and never a client without a login."""
    with pytest.raises(LoginRequired) as caught:
        authenticator.authenticate(header, HERE)
    assert "alice" not in str(caught.value)
    with pytest.raises(LoginRequired):
        Authenticator(AccessSettings()).find_remembered(header, HERE)


def test_a_login_that_is_not_ours(authenticator: Authenticator) -> None:
    """An unknown user or a bearer token: the caller decides what it is for. It is remembered."""
    for header, login in (
        (basic("bob", "x"), Login("bob", "x")),
        (basic("", ""), Login("", "")),
        ("Bearer xyz", Login("", "xyz", is_bearer=True)),
    ):
        assert login.is_bearer or authenticator.find_remembered(header, OFFICE) is None
        for call in (authenticator.authenticate, authenticator.find_remembered):
            found = call(header, OFFICE)
            assert found == Authenticated(Principal(networks=frozenset({"office"})), login)


def test_without_sources_every_login_is_foreign() -> None:
    """It needs no verification."""
    authenticator = Authenticator(AccessSettings())
    assert not authenticator.has_sources
    found = authenticator.find_remembered(basic("alice", "x"), HERE)
    assert found == Authenticated(Principal(), Login("alice", "x"))


def test_a_verified_password_is_remembered_for_a_minute(
    authenticator: Authenticator, checks: list[bytes], clock: Clock
) -> None:
    """No hash is computed for it again, from any address; then one is."""
    header = basic("alice", CANARY)
    assert authenticator.find_remembered(header, HERE) is None
    first = authenticator.authenticate(header, HERE)
    clock.now += MAX_REMEMBERED_S - 0.1
    for _ in range(10):
        assert authenticator.find_remembered(header, HERE) == first
        assert authenticator.authenticate(header, HERE) == first
    assert authenticator.find_remembered(header, OFFICE) != first
    assert len(checks) == 1
    clock.now += 0.2
    assert authenticator.find_remembered(header, HERE) is None
    assert authenticator.authenticate(header, HERE) == first
    assert len(checks) == 2


def test_wrong_and_unknown_logins_are_remembered_too(
    authenticator: Authenticator, checks: list[bytes], clock: Clock
) -> None:
    """A fleet with an old password costs one hash an hour; both cost the same, so that none is told from the other."""
    wrong, unknown = basic("alice", "x"), basic("bob", "x")
    for _ in range(5):
        with pytest.raises(LoginRequired):
            authenticator.authenticate(wrong, HERE)
        assert authenticator.authenticate(unknown, HERE).foreign
    assert len(checks) == 2
    clock.now += module.MAX_WRONG_S - 1.0
    with pytest.raises(LoginRequired):
        authenticator.find_remembered(wrong, HERE)
    assert authenticator.find_remembered(unknown, HERE)
    clock.now += 1.0
    assert authenticator.find_remembered(wrong, HERE) is None
    assert authenticator.find_remembered(unknown, HERE) is None


def test_a_changed_file_holds_at_once(authenticator: Authenticator, path: Path) -> None:
    """A new password, a user who is gone, and one who is new."""
    old, new, bob = basic("alice", CANARY), basic("alice", "new"), basic("bob", "x")
    assert authenticator.authenticate(old, HERE).principal.name == "alice"
    assert authenticator.authenticate(bob, HERE).foreign
    with pytest.raises(LoginRequired):
        authenticator.authenticate(new, HERE)
    write_htpasswd(path, {"alice": "new", "bob": "x"})
    assert authenticator.find_remembered(old, HERE) is None
    assert authenticator.find_remembered(bob, HERE) is None
    for call in (authenticator.authenticate, authenticator.find_remembered):  # it is remembered as wrong
        with pytest.raises(LoginRequired):
            call(old, HERE)
    assert authenticator.authenticate(new, HERE).principal.name == "alice"
    assert authenticator.find_remembered(new, HERE)
    assert authenticator.authenticate(bob, HERE).principal.name == "bob"
    write_htpasswd(path, {"bob": "x"})
    assert authenticator.find_remembered(new, HERE) is None
    assert authenticator.authenticate(new, HERE).foreign == Login("alice", "new")
    path.unlink()
    for header in (old, new, bob):
        assert authenticator.find_remembered(header, HERE) is None
        with pytest.raises(LoginRequired):
            authenticator.authenticate(header, HERE)


def test_a_change_of_another_user_keeps_what_is_remembered(
    authenticator: Authenticator, path: Path, checks: list[bytes]
) -> None:
    """Only the hash of the user counts."""
    header = basic("alice", CANARY)
    authenticator.authenticate(header, HERE)
    path.write_text(path.read_text() + htpasswd_line("bob", "x"))
    assert authenticator.find_remembered(header, HERE) is None  # it must be read first
    assert authenticator.authenticate(header, HERE).principal.name == "alice"
    assert authenticator.find_remembered(header, HERE)
    assert len(checks) == 1


def test_wrong_passwords_are_slowed_and_repeated_ones_not(authenticator: Authenticator) -> None:
    """A new wrong password counts; the same one again is no guess. Unknown users count when they are refused."""
    for number in range(MAX_FREE_FAILURES + 2):
        header = basic("alice" if number % 2 else "bob", f"x{number}")
        for _ in range(3):
            try:
                authenticator.authenticate(header, HERE)
            except LoginRequired:
                continue
            assert isinstance(authenticator.refuse(header, HERE), LoginRequired)
        with authenticator.attempt(basic("alice", "y"), HERE) as wait_s:
            assert (wait_s > 0) == (number >= MAX_FREE_FAILURES)
    with authenticator.attempt(basic("alice", "y"), OFFICE) as wait_s:
        assert wait_s == 0


def test_a_login_that_was_right_is_not_slowed(authenticator: Authenticator, clock: Clock, path: Path) -> None:
    """Others behind the same address may guess as they like; a changed password ends this."""
    header = basic("alice", CANARY)
    authenticator.authenticate(header, HERE)
    clock.now += MAX_REMEMBERED_S + 1.0
    for number in range(50):
        with pytest.raises(LoginRequired):
            authenticator.authenticate(basic("alice", f"x{number}"), HERE)
    assert authenticator.find_remembered(header, HERE) is None
    assert authenticator.was_right(header)
    assert not authenticator.was_right(basic("alice", "x1"))
    with authenticator.attempt(header, HERE) as wait_s:
        assert wait_s == 0
        assert authenticator.authenticate(header, HERE).principal.name == "alice"
    with authenticator.attempt(basic("alice", "other"), HERE) as wait_s:
        assert wait_s > 0
    write_htpasswd(path, {"alice": "new"})
    assert not authenticator.was_right(header)
    with authenticator.attempt(header, HERE) as wait_s:
        assert wait_s > 0


def test_what_was_right_is_forgotten_in_the_end(authenticator: Authenticator, clock: Clock) -> None:
    """After an hour it waits as every login."""
    header = basic("alice", CANARY)
    authenticator.authenticate(header, HERE)
    clock.now += NOT_SLOWED_S
    for number in range(50):
        with pytest.raises(LoginRequired):
            authenticator.authenticate(basic("alice", f"x{number}"), HERE)
    with authenticator.attempt(header, HERE) as wait_s:
        assert wait_s > 0


def test_what_is_remembered_has_a_limit(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wrong logins do not displace right ones."""
    monkeypatch.setattr(module, "MAX_OTHERS", 100)
    authenticator = Authenticator(AccessSettings(htpasswd=str(path)))
    right = basic("alice", CANARY)
    authenticator.authenticate(right, HERE)
    monkeypatch.setattr(passwords.bcrypt, "checkpw", lambda *_: False)
    for number in range(110):
        authenticator.authenticate(basic("bob", f"x{number}"), HERE)
    assert len(authenticator._others) == 100
    assert authenticator.find_remembered(right, HERE)


def test_nothing_secret_is_in_a_representation_or_in_memory_of_results(authenticator: Authenticator) -> None:
    """Neither a password nor a header; the memory has keyed hashes of headers."""
    header = basic("alice", CANARY)
    found = authenticator.authenticate(header, HERE)
    foreign = authenticator.authenticate(basic("bob", CANARY), HERE)
    with pytest.raises(LoginRequired) as caught:
        authenticator.authenticate(basic("alice", f"{CANARY}x"), HERE)
    for value in (found, foreign, authenticator, caught.value, caught.value.log_fields(), authenticator._right):
        assert CANARY not in repr(value)
    assert header.encode() not in [*authenticator._right]


def test_each_process_has_its_own_key(path: Path) -> None:
    """The keyed hash of a login is worth nothing elsewhere."""
    settings = AccessSettings(htpasswd=str(path))
    assert Authenticator(settings)._digest("x") != Authenticator(settings)._digest("x")


def test_an_unreadable_file_is_not_the_end_of_other_things(path: Path, clock: Clock) -> None:
    """Clients without a login stay what they are."""
    os.unlink(path)
    authenticator = Authenticator(AccessSettings(htpasswd=str(path)), clock)
    assert authenticator.has_sources
    assert authenticator.find_remembered(None, HERE) == Authenticated(Principal())


# Tokens

ISSUER = TokenIssuer()
JWT = JwtIssuer("ci", ISSUER.url, ISSUER.audience, "keys.json", groups_claim="groups")
GROUPS = (Group("builders", ("ci:robot*", "alice")), Group("others", ("ci:x",)), Group("users", ("alice", "bob")))


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    """The key file of the issuer."""
    file = tmp_path / "keys.json"
    file.write_bytes(key_set(ISSUER.jwk()))
    return file


@pytest.fixture
def both(path: Path, keys: Path, clock: Clock) -> Authenticator:
    """An authenticator with users and tokens."""
    issuer = attrs.evolve(JWT, jwks=str(keys))
    return Authenticator(AccessSettings(htpasswd=str(path), jwt=(issuer,), groups=GROUPS), clock)


def forms(token: str) -> list[str]:
    """The headers in which a client may send a token."""
    return [f"Bearer {token}", f"bearer  {token}", basic("any", token), basic("", token), basic("alice", f"{token}\n")]


def test_a_token_in_each_form(both: Authenticator) -> None:
    """As a bearer token, or as the password of any user."""
    for header in forms(ISSUER.sign(ISSUER.claims(groups=["dev"]))):
        principal = both.authenticate(header, HERE).principal
        assert principal == Principal("ci:robot", frozenset({"ci:dev", "builders"}), frozenset(), "jwt")
        assert both.find_remembered(header, HERE) == Authenticated(principal)


def test_a_wrong_token_is_an_error_in_each_form(both: Authenticator, checks: list[bytes]) -> None:
    """It is not taken for a password, or for a login of an upstream; no hash is computed, and nobody is slowed."""
    forged = (ISSUER.sign(ISSUER.claims(exp=1)), ISSUER.sign(ISSUER.claims(aud="x")), TokenIssuer(number=1).sign())
    for header in [form for token in forged for form in forms(token)]:
        for call in (both.authenticate, both.find_remembered):
            with pytest.raises(LoginRequired):
                call(header, HERE)
        with both.attempt(header, HERE) as wait_s:
            assert wait_s == 0
    assert checks == []
    assert len(both._attempts._failures) == 0


def test_a_token_of_others_is_foreign(both: Authenticator) -> None:
    """As a bearer token at once; as a password after it was compared with that of the user."""
    token = TokenIssuer("https://other.test").sign()
    assert both.find_remembered(f"Bearer {token}", HERE) == Authenticated(Principal(), Login("", token, is_bearer=True))
    assert both.authenticate(basic("bob", token), HERE).foreign == Login("bob", token)
    with pytest.raises(LoginRequired):
        both.authenticate(basic("alice", token), HERE)


def test_passwords_beside_tokens(both: Authenticator) -> None:
    """Users stay what they are, and are in the groups of the settings."""
    principal = both.authenticate(basic("alice", CANARY), HERE).principal
    assert principal == Principal("alice", frozenset({"builders", "users"}), frozenset(), "htpasswd")


def test_tokens_alone(keys: Path, clock: Clock) -> None:
    """Without users, a login that is no token of ours is foreign at once."""
    authenticator = Authenticator(AccessSettings(jwt=(attrs.evolve(JWT, jwks=str(keys)),)), clock)
    assert authenticator.has_sources
    assert authenticator.authenticate(f"Bearer {ISSUER.sign()}", HERE).principal.name == "ci:robot"
    login = basic("alice", "x")
    assert authenticator.find_remembered(login, HERE) == Authenticated(Principal(), Login("alice", "x"))
    with authenticator.attempt(login, HERE) as wait_s:
        assert wait_s == 0


def test_a_token_is_remembered_while_it_and_its_keys_are_valid(both: Authenticator, keys: Path, clock: Clock) -> None:
    """The signature is not verified again; after a change of the keys it is."""
    header = f"Bearer {ISSUER.sign()}"
    both.authenticate(header, HERE)
    verified: list[str] = []
    tokens = both._tokens
    find = tokens.find
    tokens.find = lambda text: verified.append(text) or find(text)  # type: ignore[func-returns-value,method-assign]
    assert both.find_remembered(header, HERE)
    assert verified == []
    clock.now += MAX_REMEMBERED_S
    assert both.find_remembered(header, HERE)
    assert len(verified) == 1
    keys.write_bytes(key_set(TokenIssuer(number=1).jwk()))
    assert both.find_remembered(header, HERE) is None
    with pytest.raises(LoginRequired):
        both.authenticate(header, HERE)
    keys.unlink()
    with pytest.raises(Unavailable) as caught:
        both.authenticate(header, HERE)
    assert caught.value.retry_after_s


def test_a_token_that_expires_soon_is_verified_each_time(both: Authenticator, clock: Clock) -> None:
    """It is remembered no longer than it is valid."""
    now = int(time.time())
    header = f"Bearer {ISSUER.sign(ISSUER.claims(exp=now + 20))}"
    assert both.authenticate(header, HERE).principal.name == "ci:robot"
    clock.now += 21.0
    result = both._find(both._digest(header))
    assert result is not None
    assert not both._is_fresh(result)


def test_no_token_is_in_a_representation(both: Authenticator) -> None:
    """Nor in an error."""
    token = ISSUER.sign(ISSUER.claims(exp=1))
    with pytest.raises(LoginRequired) as caught:
        both.authenticate(f"Bearer {token}", HERE)
    for value in (both, caught.value, caught.value.log_fields(), both._tokens):
        for part in token.split("."):
            assert part not in repr(value)


def test_memory_holds_no_login_in_clear(both: Authenticator) -> None:
    """What is remembered are keyed hashes and names."""
    both.authenticate(basic("bob", CANARY), HERE)
    for kept in (both._right, both._others):
        for result in kept.values():
            assert not any(CANARY in repr(getattr(result, field.name)) for field in attrs.fields(type(result)))
            assert not any(isinstance(getattr(result, field.name), Login) for field in attrs.fields(type(result)))
