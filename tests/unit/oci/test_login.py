"""The login in an Authorization header."""

import base64

import pytest

from dockyard.oci.login import Login, parse_authorization

CANARY = "canary-2b9e"


def basic(text: bytes) -> str:
    """The value of a header with these bytes."""
    return "Basic " + base64.b64encode(text).decode("ascii")


@pytest.mark.parametrize(
    ("header", "login"),
    [
        (basic(b"alice:secret"), Login("alice", "secret")),
        (basic(b"alice:se:cr:et"), Login("alice", "se:cr:et")),
        (basic(b"alice:"), Login("alice", "")),
        (basic(b":secret"), Login("", "secret")),
        (basic(b":"), Login("", "")),
        (basic(b" alice : secret "), Login(" alice ", " secret ")),
        (basic("j\u00fcrgen:p\u00e4ss\U0001f511".encode()), Login("j\u00fcrgen", "p\u00e4ss\U0001f511")),
        (basic("j\u00fcrgen:p\u00e4ss".encode("latin-1")), Login("j\u00fcrgen", "p\u00e4ss")),
        (basic(b"alice:secret").replace("Basic", "BASIC"), Login("alice", "secret")),
        (basic(b"alice:secret").replace("Basic", "basic"), Login("alice", "secret")),
        (basic(b"alice:secret").replace(" ", "   "), Login("alice", "secret")),
        (f"  {basic(b'alice:secret')}  ", Login("alice", "secret")),
        ("Bearer a.b-c_d~e+f/g==", Login("", "a.b-c_d~e+f/g==", is_bearer=True)),
        ("bearer   abc", Login("", "abc", is_bearer=True)),
    ],
)
def test_logins(header: str, login: Login) -> None:
    """Basic with UTF-8, else Latin-1, and Bearer; the scheme in each case (RFC 9110 section 11.1)."""
    assert parse_authorization(header) == login


@pytest.mark.parametrize(
    "header",
    [
        "",
        " ",
        "Basic",
        "Basic ",
        "Bearer",
        "Bearer  ",
        "Basic\t" + basic(b"a:b")[6:],
        "Basic=" + basic(b"a:b")[6:],
        basic(b"alice"),
        basic(b""),
        basic(b"alice:canary")[:-1],
        basic(b"alice:canary") + "!",
        basic(b"alice:canary")[:-4] + " " + basic(b"alice:canary")[-4:],
        basic(b"alice:canary") + ", " + basic(b"bob:x"),
        basic(b"alice:\xff\xfe\xfd")[:6] + "_-__",
        "Basic \u00e9\u00e9\u00e9\u00e9",
        "Bearer a b",
        "Bearer a\tb",
        "Bearer a\x00b",
        "Bearer caf\u00e9",
        "Digest username=canary",
        "Negotiate YII=",
        "canary",
        "alice:canary",
        "BasicYWxpY2U6Y2FuYXJ5",
        "Bearer" + "x" * 20,
    ],
)
def test_what_is_no_login(header: str) -> None:
    """ValueError, whose message says what is wrong and quotes nothing."""
    with pytest.raises(ValueError, match=r"^the Authorization header ") as caught:
        parse_authorization(header)
    assert "canary" not in str(caught.value)
    assert len(str(caught.value)) < 100


def test_a_representation_has_neither_name_nor_password() -> None:
    """It may be in a log."""
    for login in (Login(CANARY, CANARY), Login("", CANARY, is_bearer=True)):
        assert CANARY not in repr(login)
        assert CANARY not in str(login)
