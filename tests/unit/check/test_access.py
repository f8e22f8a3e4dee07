"""What `dockyard check` finds in the settings of access, compared with the file of users."""

from pathlib import Path
from typing import Any

import pytest

from tests.unit.check.test_start import check, lines, settings

__all__ = ["settings"]  # a fixture

CANARY = "canaryhash"
HASH = "$2y$04$" + CANARY + "a" * (53 - len(CANARY))


@pytest.fixture
def users(tmp_path: Path) -> Path:
    """A file with three users."""
    path = tmp_path / "users"
    path.write_text(f"alice:{HASH}\nBob:{HASH}\ncarol:{HASH}\n")
    return path


def with_access(settings: dict[str, Any], users: Path, **access: Any) -> dict[str, Any]:
    """Settings with these users, on closed nodes."""
    return settings | {"access": {"htpasswd": str(users), "closed_nodes": True, **access}}


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("alic", "did you mean alice?"),
        ("bob", "did you mean Bob?"),
        ("staff", "for the group write group:staff"),
        ("office", "for the network write network:office"),
        ("ci", "for tokens of this issuer write ci:*"),
        ("everyone", "for all clients leave `who` empty"),
        ("xyzzy", "add it with `dockyard passwd xyzzy --file {users}`"),
    ],
)
def test_a_user_that_is_not_in_the_file_causes_a_warning(
    tmp_path: Path, settings: dict[str, Any], users: Path, name: str, hint: str
) -> None:
    """In a rule and in a group, with what is likely meant."""
    given = with_access(
        settings,
        users,
        rules=[{"allow": True, "who": ["alice", name, "group:staff", "network:office", "ci:*"]}],
        groups=[{"name": "staff", "members": ["carol", name]}],
        networks=[{"name": "office", "addresses": ["10.0.0.0/8"]}],
        jwt=[{"name": "ci", "issuer": "i", "audience": "a", "jwks": "https://a.example/keys"}],
    )
    result = check(tmp_path, given)
    hint = hint.format(users=users)

    assert result.exit_code == 0
    assert lines(result, "warning") == [
        f"access.rules[0].who[1]: {users} has no user {name}: {hint}",
        f"access.groups[0].members[1]: {users} has no user {name}: {hint}",
    ]
    assert CANARY not in result.output


def test_names_that_no_rule_uses_are_noted(tmp_path: Path, settings: dict[str, Any], users: Path) -> None:
    """Users, groups and networks."""
    given = with_access(
        settings,
        users,
        rules=[{"allow": True, "who": ["alice", "group:a"]}],
        groups=[{"name": "a", "members": ["carol"]}, {"name": "b", "members": ["carol"]}],
        networks=[{"name": "office", "addresses": ["10.0.0.0/8"]}],
    )
    result = check(tmp_path, given)

    assert lines(result, "warning") == []
    notes = lines(result, "note")
    assert [text for text in notes if text.startswith("access.")] == [
        f"access.htpasswd: no rule names Bob: they have what clients with any login have (3 users in {users})",
        "access.groups: no rule names b",
        "access.networks: no rule names office",
    ]


def test_a_rule_for_logins_that_it_does_not_know_is_noted(
    tmp_path: Path, settings: dict[str, Any], users: Path
) -> None:
    """Clients log in with an account of the upstream."""
    settings["upstreams"][0]["access"] = "upstream"
    rules = [{"allow": True, "repositories": ["up.test/**"], "who": ["alice"]}, {"allow": True}]
    result = check(tmp_path, with_access(settings, users, rules=rules))

    assert lines(result, "warning") == []
    (found,) = (text for text in lines(result, "note") if text.startswith("access.rules[0].who: "))
    assert "clients that log in with an account of up.test are none of these" in found


def test_an_unreachable_rule_causes_a_warning(tmp_path: Path, settings: dict[str, Any], users: Path) -> None:
    """With the rule that decides."""
    rules = [{"allow": True}, {"allow": False, "repositories": ["up.test/secret/**"]}]
    result = check(tmp_path, with_access(settings, users, rules=rules))

    (found,) = lines(result, "warning")
    assert found.startswith("a rule has no effect: rules before it decide")
    assert found.endswith("(rule=access.rules[1] decided_by=access.rules[0])")


def test_errors_in_access_are_found_and_nothing_else_of_it(
    tmp_path: Path, settings: dict[str, Any], users: Path
) -> None:
    """With the exit status of an error in the settings."""
    rules = [{"allow": True, "repositories": ["UP.test/x"]}, {"allow": True, "who": ["a b"], "actions": ["push"]}]
    result = check(tmp_path, with_access(settings, users, rules=rules))

    assert result.exit_code == 2
    assert [text.partition(" = ")[0] for text in lines(result, "error")] == [
        "access.rules[0].repositories[0]",
        "access.rules[1].who[0]",
        "access.rules[1].actions[0]",
    ]
    assert lines(result, "warning") == []


def test_a_damaged_file_is_an_error_that_quotes_nothing(tmp_path: Path, settings: dict[str, Any], users: Path) -> None:
    """With the number of its line."""
    users.write_text(f"alice:{HASH}\nbob:{CANARY}\n")
    result = check(tmp_path, with_access(settings, users, rules=[{"allow": True, "who": ["alice"]}]))

    (found,) = lines(result, "error")
    assert found.startswith("access.htpasswd = ")
    assert "line 2" in found
    assert CANARY not in result.output


@pytest.mark.parametrize(
    ("challenge", "bucket", "key", "is_noted"),
    [
        ("bearer", "images", "", True),
        ("bearer", "images", "KEY", False),
        ("bearer", "", "", False),
        ("basic", "images", "", False),
    ],
)
def test_several_servers_need_one_key_for_access_tokens(
    tmp_path: Path,
    settings: dict[str, Any],
    users: Path,
    challenge: str,
    bucket: str,
    key: str,
    is_noted: bool,  # noqa: FBT001
) -> None:
    """A bucket is probably shared by several."""
    (tmp_path / "KEY").write_text("k" * 32)
    path = str(tmp_path / key) if key else ""
    given = with_access(settings, users, challenge=challenge, token_key_file=path)
    given["storage"] = {**given.get("storage", {}), "bucket": bucket}
    noted = [line for line in lines(check(tmp_path, given), "note") if line.startswith("access.token_key_file")]
    assert len(noted) == is_noted
