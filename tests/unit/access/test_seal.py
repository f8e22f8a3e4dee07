"""Sealed logins: readable for the workers of one server only."""

import pytest

from dockyard.access.authenticator import MAX_AUTHORIZATION_CHARS
from dockyard.access.seal import LoginSeal
from dockyard.oci.login import Login
from dockyard.oci.reference import Digest, Name
from dockyard.workers.messages import MAX_LINE_BYTES, BlobRequest, Repository, encode

DIGEST = Digest.of(b"x")
MAX_DECODED_CHARS = MAX_AUTHORIZATION_CHARS * 3 // 4  # of Base64; each byte may be a character of Latin-1

LOGINS = [
    Login("ann", "canary-password"),
    Login("", "canary-token", is_bearer=True),
    Login('a"\\:\n\0é', "p\u20ac" * 5000),
]


@pytest.mark.parametrize("login", LOGINS)
def test_a_login_is_the_same_after_unsealing(login: Login) -> None:
    """With all that it may contain."""
    seal = LoginSeal()
    assert seal.unseal(seal.seal(login)) == login


def test_a_sealed_login_shows_nothing() -> None:
    """Neither the login, nor that it is the same as another one."""
    seal, login = LoginSeal(), Login("ann", "canary-password")
    sealed = seal.seal(login)
    assert "ann" not in sealed
    assert "canary" not in sealed
    assert sealed != seal.seal(login)


@pytest.mark.parametrize("sealed", ["", "x", "gAAAAAB", "\u20ac", LoginSeal().seal(LOGINS[0])])
def test_what_another_key_has_sealed_is_no_login(sealed: str) -> None:
    """Nor is anything else."""
    with pytest.raises(ValueError, match="not sealed by this server"):
        LoginSeal().unseal(sealed)


@pytest.mark.parametrize("char", ["\0", "é", "\\", "\x7f"])
def test_the_longest_login_fits_into_a_message(char: str) -> None:
    """Whatever it consists of: a worker that cannot read a message would count as one that is not available."""
    login = Login("", char * MAX_DECODED_CHARS)
    request = BlobRequest(Repository("up.test", "app", Name.parse("up.test/app"), LoginSeal().seal(login)), DIGEST)
    assert len(encode(request)) < MAX_LINE_BYTES
