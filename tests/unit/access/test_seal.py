"""Sealed logins: readable for the workers of one server only."""

import pytest

from dockyard.access.seal import LoginSeal
from dockyard.oci.login import Login

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
