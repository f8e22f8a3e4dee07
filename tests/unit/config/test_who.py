"""The entries of `who`: what each means, and which are refused."""

import pytest

from dockyard.config.who import ClientKind, Clients


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ("anonymous", Clients(ClientKind.ANONYMOUS)),
        ("authenticated", Clients(ClientKind.AUTHENTICATED)),
        ("alice", Clients(ClientKind.USER, "alice")),
        ("Alice@example.org", Clients(ClientKind.USER, "Alice@example.org")),
        ("everyone", Clients(ClientKind.USER, "everyone")),
        ("group:a", Clients(ClientKind.GROUP, "a")),
        ("group:ci:a/b:*", Clients(ClientKind.TOKEN_GROUP, "ci", "a/b:*")),
        ("network:a", Clients(ClientKind.NETWORK, "a")),
        ("ci:a:b", Clients(ClientKind.TOKEN, "ci", "a:b")),
        ("ci:*", Clients(ClientKind.TOKEN, "ci", "*")),
    ],
)
def test_an_entry_names_clients(entry: str, expected: Clients) -> None:
    """The part before the first colon says which."""
    assert Clients.parse(entry) == expected


@pytest.mark.parametrize(
    "entry",
    [
        "",
        " ",
        "a b",
        "a\tb",
        "a\u00a0b",
        "group:",
        "network:",
        "ci:",
        ":a",
        "group::a",
        "group:a:",
        "*",
        "**",
        "a*",
        "Group",
    ],
)
def test_an_entry_that_names_nobody_is_refused(entry: str) -> None:
    """The messages are tested with the settings."""
    with pytest.raises(ValueError, match=r"is|has|must"):
        Clients.parse(entry)


@pytest.mark.parametrize(
    ("entry", "other", "is_included"),
    [
        ("alice", "alice", True),
        ("alice", "bob", False),
        ("alice", "group:alice", False),
        ("ci:*", "ci:a", True),
        ("ci:a*", "ci:a*b", True),
        ("ci:a*b", "ci:a*", False),
        ("ci:*", "gitlab:*", False),
        ("group:ci:*", "group:ci:a", True),
        ("group:ci:*", "ci:a", False),
        ("anonymous", "anonymous", True),
        ("anonymous", "authenticated", False),
    ],
)
def test_an_entry_includes_others_of_its_kind(entry: str, other: str, *, is_included: bool) -> None:
    """By name and pattern."""
    assert Clients.parse(entry).includes(Clients.parse(other)) == is_included
