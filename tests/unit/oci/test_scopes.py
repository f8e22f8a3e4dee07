"""Scopes that are requested, given what a challenge names."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dockyard.oci.scopes import MAX_SCOPES, scope_sets

OWN = "repository:org/app:pull"


def others(named: str, *, is_anonymous: bool = True) -> tuple[str, ...]:
    """What is requested beside the own scope."""
    sets = scope_sets("org/app", named, is_anonymous=is_anonymous)
    if len(sets) == 1:
        assert sets == ((OWN,),)
        return ()
    (both, own, rest) = sets
    assert (own, both) == ((OWN,), (OWN, *rest))
    return rest


@pytest.mark.parametrize(
    ("named", "anonymous", "login"),
    [
        ("", (), ()),
        (OWN, (), ()),
        ("repository:org/app:pull,push", (), ()),
        ("repository:org/app:*", (), ()),
        ("repository:org/app:push", (), ()),
        ("repository:org/app:delete", (), ()),
        ("repository:org/app:", (), ()),
        ("repository::pull", (), ()),
        ("repository:app:pull", ("repository:app:pull",), ("repository:app:pull",)),
        ("repository:app:push,pull,delete", ("repository:app:pull",), ("repository:app:pull",)),
        ("repository:app:*", ("repository:app:pull",), ("repository:app:pull",)),
        ("repository:eu/org/app:pull", ("repository:eu/org/app:pull",), ("repository:eu/org/app:pull",)),
        ("repository:host.test:5000/org/app:pull", *[("repository:host.test:5000/org/app:pull",)] * 2),
        ("repository(plugin):org/app:pull", *[("repository(plugin):org/app:pull",)] * 2),
        ("repository:other:pull", ("repository:other:pull",), ()),
        ("repository:my-app:pull", ("repository:my-app:pull",), ()),
        ("repository:pp:pull", ("repository:pp:pull",), ()),
        ("repository:org:pull", ("repository:org:pull",), ()),
        ("registry:catalog:*", (), ()),
        ("aws", ("aws",), ()),
        (f"{OWN} aws repository:app:pull", ("aws", "repository:app:pull"), ("repository:app:pull",)),
        ("repository:app:pull repository:app:pull,push", ("repository:app:pull",), ("repository:app:pull",)),
        ("a" * 65, (), ()),
        ("a\nb", (), ()),
        ("a&scope=repository:other:push", (), ()),
        ("repository:a b:pull", (), ()),
        (" ".join(f"repository:r{number}:pull" for number in range(99)), *[None] * 2),
    ],
)
def test_only_pulling_is_requested(
    named: str, anonymous: tuple[str, ...] | None, login: tuple[str, ...] | None
) -> None:
    """With a login only from the same repository under another name."""
    if anonymous is None:
        assert len(others(named)) == MAX_SCOPES
        return
    assert others(named) == anonymous
    assert others(named, is_anonymous=False) == login


@pytest.mark.parametrize(
    ("named", "expected"),
    [
        ("repository:x/y:pull", (("repository:x/y:pull",),)),
        ("repository:x/y:push", ((),)),
        ("", ((),)),
    ],
)
def test_without_a_repository_the_challenge_decides(named: str, expected: tuple[tuple[str, ...], ...]) -> None:
    """A redirect may lead to a URL that names no repository."""
    assert scope_sets("", named, is_anonymous=True) == expected


@given(st.text(max_size=300), st.booleans())
def test_any_text_is_allowed(named: str, is_anonymous: bool) -> None:  # noqa: FBT001  hypothesis passes it
    """Nothing that grants more than pulling is ever requested."""
    for scopes in scope_sets("org/app", named, is_anonymous=is_anonymous):
        assert 1 <= len(scopes) <= MAX_SCOPES + 1
        assert all(scope.endswith(":pull") or ":" not in scope for scope in scopes)
