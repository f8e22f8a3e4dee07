"""What is probably not intended in the settings of access: rules that no request reaches, logins that do nothing."""

from collections.abc import Sequence
from itertools import product

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dockyard.access.principals import Principal
from dockyard.access.review import find_access_mistakes, find_rules_for_other_logins, find_unreachable
from dockyard.access.rules import Action, Rules, find_groups
from dockyard.config.settings import (
    DEFAULT_UPSTREAMS,
    AccessRule,
    AccessSettings,
    Group,
    JwtIssuer,
    Network,
    ServerSettings,
    Settings,
    Upstream,
)
from dockyard.oci.reference import Name
from tests.unit.access.test_rules import allow, deny

GROUPS = (Group("developers", ("alice", "bob", "gitlab:team/*")), Group("admins", ("alice",)))
NETWORKS = (
    Network("office", ("10.1.0.0/16",)),
    Network("floor", ("10.1.4.0/24", "10.1.5.7")),
    Network("both", ("10.1.0.0/17", "10.1.128.0/17", "fd00::/8")),
    Network("v6", ("fd00:1::/64",)),
    Network("empty", ()),
)


def unreachable(*rules: AccessRule) -> dict[int, list[int]]:
    """The rules that no request reaches, each with those that decide."""
    access = AccessSettings(rules=rules, groups=GROUPS, networks=NETWORKS)
    numbers = {f"rules[{index}]": index for index in range(len(rules))}
    return {
        numbers[found.label]: [numbers[label] for label in found.decided_by]
        for found in find_unreachable(access, DEFAULT_UPSTREAMS)
    }


@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        ([allow(), deny("ghcr.io/a/**")], {1: [0]}),
        ([allow("docker.io/**"), deny("docker.io/library/node")], {1: [0]}),
        ([deny("ghcr.io/**"), allow("ghcr.io/a/*", "ghcr.io/b")], {1: [0]}),
        ([allow("docker.io/library/*"), allow("docker.io/library/alpine")], {1: [0]}),
        ([allow("docker.io/**"), allow("ghcr.io/**"), deny("**")], {2: [0, 1]}),
        ([allow("docker.io/**"), allow("ghcr.io/**"), deny()], {2: [0, 1]}),
        ([allow("docker.io/*/*"), allow("docker.io/*/*/*/**"), deny("docker.io/**")], {2: [0, 1]}),
        ([deny("docker.io/library/*", "ghcr.io/**"), allow("docker.io/library/a", "ghcr.io/b")], {1: [0]}),
        # clients
        ([allow(who=["anonymous"]), deny(who=["alice"])], {1: [0]}),
        ([allow(who=["authenticated"]), deny(who=["alice"])], {1: [0]}),
        ([allow(who=["authenticated"]), deny(who=["gitlab:x"])], {1: [0]}),
        ([allow(who=["authenticated"]), deny(who=["group:developers"])], {1: [0]}),
        ([allow(who=["authenticated"]), deny(who=["group:gitlab:x"])], {1: [0]}),
        ([deny(who=["anonymous", "authenticated"]), allow()], {1: [0]}),
        ([deny(who=["anonymous"]), allow(who=["authenticated"]), allow()], {2: [0, 1]}),
        ([deny(who=["anonymous"]), deny(who=["authenticated"]), allow(who=["anonymous"])], {2: [0, 1]}),
        ([allow(who=["alice", "bob"]), deny(who=["alice"])], {1: [0]}),
        ([allow(who=["gitlab:*"]), deny(who=["gitlab:team/*"])], {1: [0]}),
        ([allow(who=["gitlab:a*"]), deny(who=["gitlab:a*b"])], {1: [0]}),
        ([allow(who=["group:developers"]), deny(who=["alice", "gitlab:team/x"])], {1: [0]}),
        ([allow(who=["group:developers"]), deny(who=["group:admins"])], {1: [0]}),
        ([allow(who=["alice"]), allow(who=["bob", "gitlab:*"]), deny(who=["group:developers"])], {2: [0, 1]}),
        ([allow(who=["group:gitlab:*"]), deny(who=["group:gitlab:x"])], {1: [0]}),
        ([allow(who=["network:office"]), deny(who=["network:office"])], {1: [0]}),
        ([allow(who=["network:office"]), deny(who=["network:floor"])], {1: [0]}),
        ([allow(who=["network:both"]), deny(who=["network:office", "network:v6"])], {1: [0]}),
        # actions
        ([allow(), deny(actions=["pull"])], {1: [0]}),
        ([allow(actions=["pull"]), allow(actions=["list"]), deny()], {2: [0, 1]}),
        ([allow(actions=["status"]), deny(actions=["status"])], {1: [0]}),
        # several
        ([allow(), deny(), allow()], {1: [0], 2: [0]}),
    ],
)
def test_a_rule_that_no_request_reaches_is_found(rules: list[AccessRule], expected: dict[int, list[int]]) -> None:
    """With the rules that decide, one or several together."""
    assert unreachable(*rules) == expected


@pytest.mark.parametrize(
    "rules",
    [
        [],
        [allow()],
        [deny("docker.io/library/node"), allow("docker.io/library/*"), deny("docker.io/**"), allow()],
        [allow("docker.io/library/*"), deny("docker.io/**")],
        [allow("ghcr.io/a/*"), deny("ghcr.io/a/**")],
        [allow("docker.io/**"), deny("**")],
        [allow(who=["alice"]), deny()],
        [allow(who=["alice"]), deny(who=["bob"])],
        [allow(who=["authenticated"]), deny()],
        [allow(who=["authenticated"]), deny(who=["network:office"])],
        [deny(who=["anonymous"]), allow()],
        [deny(who=["anonymous"]), allow(who=["network:office"])],
        [deny(who=["anonymous"]), allow(who=["alice"])],
        [allow(who=["gitlab:team/*"]), deny(who=["gitlab:*"])],
        [allow(who=["gitlab:*"]), deny(who=["github:x"])],
        [allow(who=["gitlab:*"]), deny(who=["group:gitlab:x"])],
        [allow(who=["group:admins"]), deny(who=["group:developers"])],
        [allow(who=["alice"]), deny(who=["group:developers"])],
        [allow(who=["network:floor"]), deny(who=["network:office"])],
        [allow(who=["network:office"]), deny(who=["network:both"])],
        [allow(who=["network:office"]), deny(who=["network:empty"])],
        [allow(actions=["pull"]), deny()],
        [allow(), deny(actions=["status"])],
        [allow(actions=["status"], who=["alice"]), deny(actions=["status"])],
        [allow("docker.io/**", who=["alice"]), allow("docker.io/**", actions=["list"]), deny("docker.io/library/a")],
        [allow("docker.io/library/*", who=["alice"]), allow("ghcr.io/**"), deny("**", who=["alice"])],
    ],
)
def test_a_rule_that_a_request_reaches_is_not_among_them(rules: list[AccessRule]) -> None:
    """There are no false alarms."""
    assert unreachable(*rules) == {}


# Against all requests of a small world

PREFIXES = [Upstream("a", "a.example"), Upstream("b", "b.example")]
COMPONENTS = ["**", "*", "a", "b", "a*"]
PATTERNS = st.builds(
    lambda first, rest: "/".join([first, *rest]),
    st.sampled_from(["a", "b", "*", "**"]),
    st.lists(st.sampled_from(COMPONENTS), min_size=1, max_size=2),
)
ENTRIES = [
    "anonymous",
    "authenticated",
    "alice",
    "bob",
    "gitlab:team/*",
    "group:developers",
    "group:admins",
    "network:office",
]
RULES = st.builds(
    AccessRule,
    allow=st.booleans(),
    repositories=st.lists(PATTERNS, max_size=2).map(tuple),
    who=st.lists(st.sampled_from(ENTRIES), max_size=2).map(tuple),
    actions=st.lists(st.sampled_from(["pull", "list"]), max_size=1).map(tuple),
)
LOGINS = [
    ("alice", "htpasswd"),
    ("bob", "htpasswd"),
    ("carol", "htpasswd"),
    ("gitlab:team/x", "jwt"),
    ("gitlab:y", "jwt"),
]
PRINCIPALS = [
    principal
    for networks in (frozenset[str](), frozenset({"office"}))
    for principal in [
        Principal(networks=networks),
        *(Principal(name, find_groups(GROUPS, name, source), networks, source) for name, source in LOGINS),  # type: ignore[arg-type]
    ]
]
NAMES = [
    Name("/".join(components))
    for size in (2, 3, 4)
    for components in product("ab", *[["a", "b", "az", "z"]] * (size - 1))
]


@given(st.lists(RULES, min_size=2, max_size=4))
def test_no_request_is_decided_by_a_rule_that_is_found(rules: Sequence[AccessRule]) -> None:
    """All clients and many names are tried."""
    access = AccessSettings(rules=tuple(rules), groups=GROUPS, networks=NETWORKS)
    found = {rule.label for rule in find_unreachable(access, PREFIXES)}
    if not found:
        return
    decide = Rules(access, PREFIXES).decide
    decided = {
        decide(principal, action, name).rule
        for principal in PRINCIPALS
        for action in (Action.PULL, Action.LIST)
        for name in NAMES
    }
    assert not found & decided


# Other mistakes

LOOPBACK = ServerSettings(host="127.0.0.1")
ISSUER = JwtIssuer("ci", "i", "a", "https://a.example/keys")
ASKING = attrs.evolve(DEFAULT_UPSTREAMS[0], access="upstream")
CLOSED = AccessSettings(closed_nodes=True)


def mistakes(access: AccessSettings, server: ServerSettings = LOOPBACK, *upstreams: Upstream) -> list[str]:
    """The beginnings of all events."""
    settings = Settings(access=access, server=server, upstreams=upstreams or DEFAULT_UPSTREAMS)
    return [found.event.partition(":")[0] for found in find_access_mistakes(settings)]


def access(*rules: AccessRule, **values: object) -> AccessSettings:
    """Settings of access on closed nodes."""
    return attrs.evolve(CLOSED, rules=rules, **values)


CLEAR_TEXT = "passwords and tokens of clients are sent in clear text"
AROUND = "clients that use this server as a mirror pull what it denies from the registry itself"
USELESS_LOGINS = "clients can log in, and everybody may pull everything"
NO_LOGINS = "rules name clients with a login, and no client has one"


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (AccessSettings(), []),
        (AccessSettings(networks=NETWORKS, groups=GROUPS, audit="stdout"), []),
        (AccessSettings(htpasswd="f"), [USELESS_LOGINS]),
        (AccessSettings(jwt=(ISSUER,)), [USELESS_LOGINS]),
        (AccessSettings(rules=(allow(),)), [AROUND]),
        (access(allow()), []),
        (AccessSettings(dry_run=True, rules=(allow(),)), ["access.dry_run is true"]),
        (access(deny("docker.io/**")), ["no rule allows anything, so that everything is denied"]),
        (access(deny("docker.io/**"), allow()), []),
        (access(allow(who=["alice"])), [NO_LOGINS]),
        (access(allow(who=["authenticated"])), [NO_LOGINS]),
        (access(allow(who=["group:developers"])), [NO_LOGINS]),
        (access(allow(who=["network:office"]), deny(who=["anonymous"])), []),
        (access(allow(who=["alice"]), htpasswd="f"), []),
        (access(allow(who=["ci:x"]), jwt=(ISSUER,)), []),
        (access(allow(), deny()), ["a rule has no effect"]),
    ],
)
def test_what_is_probably_not_intended_is_found(given: AccessSettings, expected: list[str]) -> None:
    """And nothing without settings of access."""
    assert mistakes(given) == expected


@pytest.mark.parametrize(
    ("server", "is_found"),
    [
        (ServerSettings(), True),
        (ServerSettings(host="0.0.0.0"), True),  # noqa: S104  an address in a setting
        (ServerSettings(host="::"), True),
        (ServerSettings(host="dockyard.example"), True),
        (ServerSettings(host="127.0.0.1"), False),
        (ServerSettings(host="::1"), False),
        (ServerSettings(host="localhost"), False),
        (ServerSettings(tls=True), False),
        (ServerSettings(trusted_proxies=("10.0.0.0/8",)), False),
    ],
)
def test_passwords_in_clear_text_are_found(server: ServerSettings, *, is_found: bool) -> None:
    """Of users, tokens, and logins at an upstream; without logins there are none."""
    expected = [CLEAR_TEXT] if is_found else []

    assert mistakes(access(allow(), htpasswd="f"), server) == expected
    assert mistakes(access(allow(), jwt=(ISSUER,)), server) == expected
    assert mistakes(access(), server, ASKING) == expected
    assert mistakes(access(allow()), server) == []


def test_an_upstream_that_decides_needs_closed_nodes_also_in_a_dry_run() -> None:
    """It denies in any case."""
    assert mistakes(AccessSettings(), LOOPBACK, ASKING) == [AROUND]
    assert mistakes(AccessSettings(dry_run=True), LOOPBACK, ASKING) == ["access.dry_run is true", AROUND]


@pytest.mark.parametrize(
    ("rules", "is_found"),
    [
        ([allow("ghcr.io/**")], True),
        ([allow(who=["alice"])], True),
        ([allow(who=["authenticated"])], True),
        ([allow("docker.io/**", who=["anonymous"])], False),
        ([allow("docker.io/library/*")], False),
        ([allow(who=["network:office"])], False),
        ([], False),
    ],
)
def test_rules_that_deny_all_logins_at_an_upstream_are_found(rules: list[AccessRule], *, is_found: bool) -> None:
    """Rules see such a client without a login."""
    given = access(*rules, htpasswd="f", networks=NETWORKS)
    expected = ["no client with a login at an upstream may pull from it"] if is_found else []

    assert mistakes(given, LOOPBACK, ASKING, DEFAULT_UPSTREAMS[1]) == expected


def test_rules_for_logins_of_ours_at_an_upstream_that_decides() -> None:
    """Each with the upstream; those for others, and those without repositories, are left out."""
    given = access(
        allow("docker.io/library/*", who=["alice"]),
        allow("**", who=["authenticated", "group:developers"]),
        allow("ghcr.io/**", who=["alice"]),
        allow("docker.io/**", who=["alice", "anonymous"]),
        allow("docker.io/**"),
        allow(who=["alice"]),
    )
    found = list(find_rules_for_other_logins(given, [ASKING, DEFAULT_UPSTREAMS[1]]))

    assert found == [("rules[0]", "docker.io"), ("rules[1]", "docker.io")]


def test_many_rules_are_compared_in_little_time() -> None:
    """A start does not wait for it."""
    many = [
        allow(f"docker.io/team{number}/**", f"ghcr.io/team{number}/*", who=[f"user{number}"]) for number in range(300)
    ]

    assert unreachable(*many, deny()) == {}
