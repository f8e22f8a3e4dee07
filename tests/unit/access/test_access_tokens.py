"""Access tokens: what is in them comes out again, for a while, and nothing else does."""

import base64

import pytest

from dockyard.access.access_tokens import MARK, MAX_SKEW_S, MAX_TOKEN_CHARS, AccessTokens
from dockyard.errors import LoginRequired, RequestInvalid
from dockyard.oci.login import Login, parse_authorization

SECRET = b"s" * 32
ANN = Login("ann", "right")


class Clock:
    """A clock that is set."""

    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    """A clock."""
    return Clock()


@pytest.mark.parametrize(
    "login",
    [
        ANN,
        Login("", "x"),
        Login("ann", ""),
        Login("ann", "a:b:c"),
        Login("änn", "pässwörd \N{SNOWMAN}"),
        Login("", "abc.def.ghi", is_bearer=True),
        Login("ann", "x" * 4096),
    ],
)
def test_a_login_comes_out_as_it_went_in(login: Login) -> None:
    """It becomes the header that the client would have sent. It is not in the token in clear."""
    tokens = AccessTokens()
    token = tokens.issue(login)
    for _ in range(2):
        assert parse_authorization(tokens.open(token) or "") == login
    assert tokens.is_ours(token)


def test_nobody_can_read_a_token() -> None:
    """Nothing of the login is in it in clear."""
    token = AccessTokens().issue(Login("canary-user", "canary-password"))
    assert b"canary" not in base64.urlsafe_b64decode(token.removeprefix(MARK))


def test_no_login_comes_out_as_none() -> None:
    """A token for clients without a login."""
    tokens = AccessTokens()
    assert tokens.open(tokens.issue(None)) is None


def test_tokens_of_one_login_differ() -> None:
    """Nobody can tell that they have the same content."""
    tokens = AccessTokens()
    assert len({tokens.issue(ANN) for _ in range(10)}) == 10


def test_a_token_is_one_that_a_header_can_have() -> None:
    """RFC 6750 section 2.1."""
    token = AccessTokens().issue(ANN)
    assert parse_authorization(f"Bearer {token}") == Login("", token, is_bearer=True)


@pytest.mark.parametrize(
    ("age_s", "is_valid"),
    [
        (0, True),
        (AccessTokens.lifetime_s, True),
        (AccessTokens.lifetime_s + MAX_SKEW_S, True),
        (AccessTokens.lifetime_s + MAX_SKEW_S + 1, False),
        (1e9, False),
        (-MAX_SKEW_S, True),
        (-MAX_SKEW_S - 1, False),
    ],
)
@pytest.mark.parametrize("is_known", [False, True])
def test_a_token_expires(clock: Clock, age_s: float, is_valid: bool, is_known: bool) -> None:  # noqa: FBT001
    """Also one that was opened before; and one of the future is of a clock that is wrong."""
    tokens = AccessTokens(clock=clock)
    token, anonymous = tokens.issue(ANN), tokens.issue(None)
    if is_known:
        tokens.open(token), tokens.open(anonymous)
    clock.now += age_s
    if is_valid:
        assert tokens.open(token)
        assert tokens.open(anonymous) is None
        return
    for each in (token, anonymous):
        with pytest.raises(LoginRequired, match="expired"):
            tokens.open(each)


def test_a_secret_makes_servers_share_their_tokens() -> None:
    """Without it, or with another one, they do not."""
    token = AccessTokens(SECRET).issue(ANN)
    assert AccessTokens(SECRET).open(token)
    for others in (AccessTokens(), AccessTokens(b"t" * 32), AccessTokens(SECRET + b"s")):
        with pytest.raises(LoginRequired):
            others.open(token)
    with pytest.raises(LoginRequired):
        AccessTokens().open(AccessTokens().issue(ANN))


def test_a_token_that_was_changed_is_not_valid() -> None:
    """In any of its characters, or in its length; and what never was a token."""
    tokens = AccessTokens()
    token = tokens.issue(ANN)
    sealed = token.removeprefix(MARK)
    forged = [
        MARK + sealed[:place] + ("A" if sealed[place] != "A" else "B") + sealed[place + 1 :]
        for place in range(len(sealed.rstrip("=")) - 1)
    ]
    forged += [f"{token}x", f"{token}=", f"{token[:20]}!{token[20:]}", f" {token}", f"{token}\n"]
    forged += [
        MARK,
        token[:-4],
        token + "AAAA",
        f"{MARK}{token}",
        MARK + "!" * 50,
        f"{MARK}\N{SNOWMAN}",
        f"{MARK}\udcff",
    ]
    for each in forged:
        with pytest.raises(LoginRequired) as caught:
            tokens.open(each)
        assert sealed[:20] not in caught.value.message


def test_the_size_of_a_token_is_limited() -> None:
    """It must fit into a header."""
    tokens = AccessTokens()
    assert len(tokens.issue(Login("ann", "x" * 8192))) <= MAX_TOKEN_CHARS
    with pytest.raises(RequestInvalid):
        tokens.issue(Login("ann", "x" * 10_000))
    with pytest.raises(LoginRequired):
        tokens.open(MARK + "x" * 2**20)


def test_memory_for_opened_tokens_is_limited() -> None:
    """However many there are."""
    tokens = AccessTokens()
    for number in range(2_000):
        tokens.open(tokens.issue(Login(str(number), "x" * 2_000)))
    assert tokens._opened.currsize <= tokens._opened.maxsize


@pytest.mark.parametrize("text", ["", "abc", "a.b.c", "Dockyard.x", "gAAAAABx"])
def test_other_tokens_are_not_ours(text: str) -> None:
    """They may be for an upstream, or tokens of issuers."""
    assert not AccessTokens().is_ours(text)
