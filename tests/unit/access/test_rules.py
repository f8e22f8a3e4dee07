"""The rules of access: which one decides, and what a client could pull."""

from collections.abc import Sequence
from itertools import product

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dockyard.access.principals import Principal
from dockyard.access.rules import MAX_CACHED_DECISIONS, Action, Decision, Rules, find_groups
from dockyard.config.settings import DEFAULT_UPSTREAMS, AccessRule, AccessSettings, Group, Upstream
from dockyard.oci.reference import Name
from tests.unit.oci.test_patterns import matches_naively

ALPINE = "docker.io/library/alpine"

NOBODY = Principal()
ALICE = Principal("alice", source="htpasswd")
BOB = Principal("bob", groups=frozenset({"developers"}), source="htpasswd")
JOB = Principal("gitlab:project:7", frozenset({"gitlab:team/a", "gitlab:team/b"}), frozenset({"runners"}), "jwt")
NODE = Principal(networks=frozenset({"office", "runners"}))
PRINCIPALS = {"nobody": NOBODY, "alice": ALICE, "bob": BOB, "job": JOB, "node": NODE}


def allow(*repositories: str, who: Sequence[str] = (), actions: Sequence[str] = ()) -> AccessRule:
    """A rule that allows."""
    return AccessRule(True, repositories, tuple(who), tuple(actions))


def deny(
    *repositories: str, who: Sequence[str] = (), actions: Sequence[str] = (), reason: str = "", hide: bool = False
) -> AccessRule:
    """A rule that denies."""
    return AccessRule(False, repositories, tuple(who), tuple(actions), reason, hide)


def rules(*given: AccessRule, upstreams: Sequence[Upstream] = ()) -> Rules:
    """The rules of settings that contain only these."""
    return Rules(AccessSettings(rules=given), upstreams)


def decide(principal: Principal, name: str, *given: AccessRule, action: Action = Action.PULL) -> Decision:
    """Decide about one request."""
    return rules(*given).decide(principal, action, None if action == Action.STATUS else Name.parse(name))


# Which rule decides


@pytest.mark.parametrize("action", Action)
@pytest.mark.parametrize("principal", PRINCIPALS.values(), ids=PRINCIPALS)
def test_without_rules_everything_is_allowed(principal: Principal, action: Action) -> None:
    """And no rule is named."""
    assert decide(principal, ALPINE, action=action) == Decision(is_allowed=True, rule="none")
    assert not rules().restricts
    assert rules(allow()).restricts


@pytest.mark.parametrize("action", [Action.PULL, Action.LIST])
@pytest.mark.parametrize("principal", PRINCIPALS.values(), ids=PRINCIPALS)
def test_what_no_rule_matches_is_denied(principal: Principal, action: Action) -> None:
    """As soon as there is a rule, also one that denies."""
    for rule in (allow("ghcr.io/**"), deny("ghcr.io/**")):
        assert decide(principal, ALPINE, rule, action=action) == Decision(is_allowed=False, rule="default")


def test_the_first_rule_that_matches_decides() -> None:
    """Later ones do not count, whether they allow or deny."""
    given = [
        deny("docker.io/library/nginx", reason="use ours"),
        allow("docker.io/library/*"),
        deny("docker.io/**", reason="only library"),
        allow("**", who=["alice"]),
    ]

    assert decide(ALICE, "docker.io/library/nginx", *given) == Decision(False, "rules[0]", "use ours")
    assert decide(NOBODY, "docker.io/library/alpine", *given) == Decision(True, "rules[1]")
    assert decide(ALICE, "docker.io/grafana/grafana", *given) == Decision(False, "rules[2]", "only library")
    assert decide(ALICE, "ghcr.io/a/b", *given) == Decision(True, "rules[3]")
    assert decide(BOB, "ghcr.io/a/b", *given) == Decision(False, "default")


WHO = [
    ((), "nobody alice bob job node"),
    (("anonymous",), "nobody alice bob job node"),
    (("authenticated",), "alice bob job"),
    (("alice",), "alice"),
    (("Alice",), ""),
    (("alic",), ""),
    (("alice", "bob"), "alice bob"),
    (("gitlab:project:7",), "job"),
    (("gitlab:project:*",), "job"),
    (("gitlab:*",), "job"),
    (("gitlab:*7",), "job"),
    (("gitlab:project",), ""),
    (("gitlab:Project:*",), ""),
    (("git:*",), ""),
    (("github:project:7",), ""),
    (("group:developers",), "bob"),
    (("group:team/a",), ""),
    (("group:gitlab:team/a",), "job"),
    (("group:gitlab:team/*",), "job"),
    (("group:gitlab:a",), ""),
    (("group:github:team/a",), ""),
    (("network:office",), "node"),
    (("network:runners",), "job node"),
    (("network:offices",), ""),
    (("network:office", "alice"), "alice node"),
]


@pytest.mark.parametrize(("who", "expected"), WHO)
def test_a_rule_that_allows_is_for_the_clients_in_who(who: tuple[str, ...], expected: str) -> None:
    """What is allowed to `anonymous` is allowed to all."""
    allowed = [name for name, who_asks in PRINCIPALS.items() if decide(who_asks, ALPINE, allow(who=who)).is_allowed]

    assert allowed == expected.split()


@pytest.mark.parametrize(("who", "expected"), [(("anonymous",), "nobody node"), WHO[0], *WHO[2:]])
def test_a_rule_that_denies_is_for_the_clients_in_who(who: tuple[str, ...], expected: str) -> None:
    """`anonymous` are only clients without a login then."""
    given = [deny(who=who), allow()]
    denied = [name for name, who_asks in PRINCIPALS.items() if not decide(who_asks, ALPINE, *given).is_allowed]

    assert denied == expected.split()


@pytest.mark.parametrize(
    ("principal", "who"),
    [
        (Principal("gitlab:x", source="htpasswd"), "gitlab:x"),
        (Principal("alice", source="jwt"), "alice"),
        (Principal("x:alice", source="jwt"), "alice"),
        (Principal("alice", source="none"), "authenticated"),
        (Principal("", source="jwt"), "gitlab:*"),
        (Principal("gitlab", source="jwt"), "gitlab:*"),
        (Principal("alice", groups=frozenset({"gitlab:x"}), source="htpasswd"), "gitlab:x"),
        (Principal("gitlab:group:developers", source="jwt"), "group:developers"),
        (Principal("network:office", source="htpasswd"), "network:office"),
        (Principal("group:developers", source="htpasswd"), "group:developers"),
        (Principal("gitlab:a", groups=frozenset({"office"}), source="jwt"), "network:office"),
        (Principal(networks=frozenset({"developers"})), "group:developers"),
    ],
)
def test_a_name_of_one_source_is_none_of_another(principal: Principal, who: str) -> None:
    """A user of the file cannot take the name of a token, a group or a network, or the other way round."""
    assert not decide(principal, ALPINE, allow(who=[who])).is_allowed


def test_any_text_in_the_name_of_a_token_may_be_anything() -> None:
    """Also a line break, a slash and a colon; and it is matched in little time."""
    for claim in ("", "a", "a\nb", "a/b:c", "\u00e9", "*"):
        assert decide(Principal(f"ci:{claim}", source="jwt"), ALPINE, allow(who=["ci:*"])).is_allowed
    assert not decide(
        Principal(f"ci:{'a' * 20000}", source="jwt"), ALPINE, allow(who=["ci:" + "a*" * 30 + "b"])
    ).is_allowed


@pytest.mark.parametrize(
    ("actions", "expected"),
    [
        ((), ["pull", "list"]),
        (("pull",), ["pull"]),
        (("list",), ["list"]),
        (("status",), ["status"]),
        (("pull", "list", "status"), ["pull", "list", "status"]),
    ],
)
def test_a_rule_is_for_its_actions(actions: tuple[str, ...], expected: list[str]) -> None:
    """Without actions, it is for `pull` and `list`."""
    decided = {action.value: decide(NOBODY, ALPINE, deny(actions=actions), allow(), action=action) for action in Action}

    assert [action for action, decision in decided.items() if decision.rule == "rules[0]"] == expected


def test_the_status_is_allowed_unless_a_rule_denies_it() -> None:
    """The label is that of the rule, or `default`."""
    assert decide(NOBODY, "", allow(ALPINE), action=Action.STATUS) == Decision(True, "default")
    given = [
        allow(who=["network:office"], actions=["status"]),
        deny(actions=["status"], reason="office only", hide=True),
    ]
    assert decide(NODE, "", *given, action=Action.STATUS) == Decision(True, "rules[0]")
    assert decide(NOBODY, "", *given, action=Action.STATUS) == Decision(False, "rules[1]", "office only")
    assert decide(ALICE, "", *given, action=Action.STATUS) == Decision(False, "rules[1]", "office only")


@pytest.mark.parametrize(
    ("action", "name"), [(Action.PULL, None), (Action.LIST, None), (Action.STATUS, Name.parse(ALPINE))]
)
def test_a_request_without_its_repository_is_not_decided(action: Action, name: Name | None) -> None:
    """Nothing is allowed by mistake."""
    with pytest.raises(ValueError, match=f"an action {action} with"):
        rules(allow()).decide(NOBODY, action, name)


def test_a_repository_is_hidden_from_clients_with_a_login() -> None:
    """Clients without one are asked for a login."""
    hiding = {name: decide(who, ALPINE, deny(hide=True, reason="no")) for name, who in PRINCIPALS.items()}

    assert {decision.reason for decision in hiding.values()} == {"no"}
    assert [name for name, decision in hiding.items() if decision.is_hidden] == ["alice", "bob", "job"]
    assert not decide(ALICE, ALPINE, deny(reason="no")).is_hidden
    assert not decide(ALICE, ALPINE, allow("ghcr.io/**")).is_hidden
    assert not decide(ALICE, ALPINE, AccessRule(True, hide=True)).is_hidden


def test_an_allowed_request_has_no_reason() -> None:
    """The text of a rule is for clients that it denies."""
    assert decide(ALICE, ALPINE, AccessRule(True, reason="for all")).reason == ""


def test_repositories_at_the_prefix_of_an_upstream() -> None:
    """`ghcr.io/my-org` as a prefix is in the full name; a prefix of it is another name."""
    given = [allow("ghcr.io/my-org/**")]

    assert decide(NOBODY, "ghcr.io/my-org/app", *given).is_allowed
    assert not decide(NOBODY, "ghcr.io/my-org2/app", *given).is_allowed
    assert not decide(NOBODY, "docker.io/ghcr.io/my-org/app", *given).is_allowed


def test_invalid_rules_are_refused() -> None:
    """Settings have none; nothing is allowed by one."""
    for rule in (allow("GHCR.io/**"), allow(who=["a b"]), allow(actions=["push"])):
        with pytest.raises(ValueError):  # noqa: PT011  the messages are tested with their parsers
            rules(rule)


# The cache


def test_decisions_are_kept_for_a_limited_number_of_short_names() -> None:
    """A client with long names, or many groups, takes no memory."""
    known = rules(allow("docker.io/**"))
    long_names = [Principal(f"ci:{'x' * 600}", source="jwt"), attrs.evolve(JOB, groups=frozenset({"ci:" + "g" * 600}))]
    for principal in long_names:
        assert known.decide(principal, Action.PULL, Name.parse(ALPINE)).is_allowed
    assert known._decide_cached.cache_info().currsize == 0
    for number in range(MAX_CACHED_DECISIONS + 10):
        assert known.decide(NOBODY, Action.PULL, Name.parse(f"docker.io/a/{number}")).is_allowed
    assert known._decide_cached.cache_info().currsize == MAX_CACHED_DECISIONS


def test_a_decision_is_made_once() -> None:
    """The second time it is the same object."""
    known = rules(deny(reason="no"))
    first = known.decide(Principal("a", source="htpasswd"), Action.PULL, Name.parse(ALPINE))

    assert known.decide(Principal("a", source="htpasswd"), Action.PULL, Name.parse(ALPINE)) is first
    assert known.decide(Principal("a", source="jwt"), Action.PULL, Name.parse(ALPINE)) is not first


# What a client could pull


@pytest.mark.parametrize(
    ("given", "principal", "below"),
    [
        ([], NOBODY, "docker.io ghcr.io"),
        ([allow()], NOBODY, "docker.io ghcr.io"),
        ([allow("**")], NOBODY, "docker.io ghcr.io"),
        ([deny()], NOBODY, ""),
        ([deny("docker.io/library/alpine")], NOBODY, ""),
        ([allow("docker.io/library/*")], NOBODY, "docker.io"),
        ([allow("ghcr.io/a/b")], NOBODY, "ghcr.io"),
        ([allow("*/a/b")], NOBODY, "docker.io ghcr.io"),
        ([allow("quay.io/**")], NOBODY, ""),
        ([allow(who=["authenticated"])], NOBODY, ""),
        ([allow(who=["authenticated"])], ALICE, "docker.io ghcr.io"),
        ([allow(who=["anonymous"])], ALICE, "docker.io ghcr.io"),
        ([allow(actions=["list"])], NOBODY, ""),
        ([allow(actions=["status"])], NOBODY, ""),
        ([allow("docker.io/**", actions=["pull"])], NOBODY, "docker.io"),
        # A rule before it that denies
        ([deny("docker.io/library/*"), allow("docker.io/library/*")], NOBODY, ""),
        ([deny("docker.io/**"), allow("docker.io/library/*")], NOBODY, ""),
        ([deny("docker.io/library/alpine"), allow("docker.io/library/*")], NOBODY, "docker.io"),
        ([deny("docker.io/library/alpine"), allow("docker.io/library/alpine")], NOBODY, ""),
        ([allow("docker.io/library/alpine"), deny("docker.io/**")], NOBODY, "docker.io"),
        ([deny("docker.io/**"), deny("ghcr.io/**"), allow()], NOBODY, ""),
        ([deny("docker.io/**"), allow()], NOBODY, "ghcr.io"),
        ([deny("*/**"), allow()], NOBODY, ""),
        ([deny("docker.io/*/*"), allow("docker.io/**")], NOBODY, "docker.io"),
        ([deny("docker.io/*/*"), deny("docker.io/*/*/*/**"), allow("docker.io/**")], NOBODY, ""),
        ([deny("ghcr.io/*"), allow("ghcr.io/*/**")], NOBODY, "ghcr.io"),
        ([deny("ghcr.io/*"), allow("ghcr.io/*")], NOBODY, ""),
        ([deny(who=["alice"]), allow()], NOBODY, "docker.io ghcr.io"),
        ([deny(who=["alice"]), allow()], ALICE, ""),
        ([deny(who=["anonymous"]), allow()], NOBODY, ""),
        ([deny(who=["anonymous"]), allow()], ALICE, "docker.io ghcr.io"),
        ([deny("docker.io/**", actions=["list"]), allow()], NOBODY, "docker.io ghcr.io"),
        ([deny("docker.io/**", who=["network:office"]), allow()], NODE, "ghcr.io"),
    ],
)
def test_what_a_client_could_pull_below_the_prefix_of_an_upstream(
    given: list[AccessRule], principal: Principal, below: str
) -> None:
    """Some name, not covered by rules before it that deny."""
    known = rules(*given, upstreams=DEFAULT_UPSTREAMS)

    assert [prefix for prefix in ("docker.io", "ghcr.io") if known.may_pull_below(principal, prefix)] == below.split()
    assert known.may_pull_something(principal) == bool(below)


def test_without_upstreams_any_name_counts() -> None:
    """Rules that deny each upstream leave names of others."""
    assert rules(deny("docker.io/**"), deny("ghcr.io/**"), allow()).may_pull_something(NOBODY)
    assert rules(allow("quay.io/**")).may_pull_something(NOBODY)
    assert rules(allow("quay.io/a/b")).may_pull_below(NOBODY, "quay.io/a")
    assert not rules(allow("quay.io/a/b")).may_pull_below(NOBODY, "quay.io/b")
    assert not rules(allow("quay.io/ab/c")).may_pull_below(NOBODY, "quay.io/a")


def test_a_name_of_docker_hub_has_an_organization() -> None:
    """`docker.io/x` is `docker.io/library/x`, so a rule for names of one component allows nothing."""
    hub = Upstream("hub", "registry-1.docker.io")
    organization = Upstream("docker.io/grafana", "docker.io")
    private = Upstream("ghcr.io/my-org", "ghcr.io")
    known = [DEFAULT_UPSTREAMS[0], hub, organization, private]

    assert [str(upstream.names) for upstream in known] == [
        "docker.io/*/*/**",
        "hub/*/*/**",
        "docker.io/grafana/*/**",
        "ghcr.io/my-org/**",
    ]
    assert not rules(allow("docker.io/*"), upstreams=known).may_pull_something(NOBODY)


def test_a_name_belongs_to_the_upstream_with_the_longest_prefix() -> None:
    """What a client may pull of that one is nothing that it may pull of another."""
    known = [Upstream("ghcr.io", "ghcr.io"), Upstream("ghcr.io/my-org", "ghcr.io"), Upstream("ghcr.io/my", "ghcr.io")]
    given = rules(deny("ghcr.io/my/x"), allow("ghcr.io/my-org/**"), allow("ghcr.io/my/x"), upstreams=known)

    assert [given.may_pull_below(NOBODY, upstream.prefix) for upstream in known] == [False, True, False]
    assert given.may_pull_something(NOBODY)
    everything = rules(allow(), upstreams=known)
    assert [everything.may_pull_below(NOBODY, upstream.prefix) for upstream in known] == [True, True, True]


# Against an obvious model

COMPONENTS = st.sampled_from(["**", "*", "a", "b", "a*", "*b"])
TEXTS = st.lists(COMPONENTS, min_size=1, max_size=3).map("/".join)
WHOS = st.lists(
    st.sampled_from(["anonymous", "authenticated", "alice", "group:developers", "network:office"]), max_size=2
)
ACTIONS = st.lists(st.sampled_from(list(map(str, Action))), max_size=2)
GIVEN = st.builds(
    AccessRule,
    allow=st.booleans(),
    repositories=st.lists(TEXTS, max_size=2).map(tuple),
    who=WHOS.map(tuple),
    actions=ACTIONS.map(tuple),
)


def is_for(rule: AccessRule, principal: Principal, action: Action, components: Sequence[str]) -> bool:
    """Whether a rule matches a request, in the words of the settings."""
    in_who = {
        "anonymous": rule.allow or not principal.is_authenticated,
        "authenticated": principal.is_authenticated,
        "alice": principal == ALICE,
        "group:developers": principal == BOB,
        "network:office": principal == NODE,
    }
    patterns = [pattern.split("/") for pattern in rule.repositories]
    return (
        action in (rule.actions or ("pull", "list"))
        and (not rule.who or any(in_who[entry] for entry in rule.who))
        and (not patterns or action == Action.STATUS or any(matches_naively(each, components) for each in patterns))
    )


@given(
    st.lists(GIVEN, min_size=1, max_size=5),
    st.sampled_from(list(PRINCIPALS.values())),
    st.sampled_from([Action.PULL, Action.LIST]),
    st.lists(st.sampled_from(["a", "b", "ab", "c"]), min_size=1, max_size=4),
)
def test_rules_decide_as_an_obvious_model_does(
    given: list[AccessRule], principal: Principal, action: Action, components: list[str]
) -> None:
    """The first that matches, else denied."""
    matching = [index for index, rule in enumerate(given) if is_for(rule, principal, action, components)]
    decision = rules(*given).decide(principal, action, Name("/".join(components)))

    assert decision.rule == (f"rules[{matching[0]}]" if matching else "default")
    assert decision.is_allowed == (bool(matching) and given[matching[0]].allow)


NAMES = [components for size in (1, 2, 3, 4, 5) for components in product(["a", "b", "zaz", "zb", "az"], repeat=size)]


@given(st.lists(GIVEN, min_size=1, max_size=4), st.sampled_from(list(PRINCIPALS.values())))
def test_a_client_could_pull_something_if_there_is_a_name_that_it_may_pull(
    given: list[AccessRule], principal: Principal
) -> None:
    """All kinds of names of up to five components are tried. With one more than patterns have, that is enough."""
    known = rules(*given)
    allowed = any(
        next((rule.allow for rule in given if is_for(rule, principal, Action.PULL, components)), False)
        for components in NAMES
    )

    assert known.may_pull_something(principal) == allowed


# Groups


def test_the_groups_of_a_login() -> None:
    """By its name and source; `*` is for names of tokens only."""
    groups = [
        Group("developers", ("alice", "gitlab:team/*")),
        Group("all-of-gitlab", ("gitlab:*",)),
        Group("nobody", ()),
        Group("upper", ("ALICE",)),
    ]

    assert find_groups(groups, "alice", "htpasswd") == {"developers"}
    assert find_groups(groups, "gitlab:team/a", "jwt") == {"developers", "all-of-gitlab"}
    assert find_groups(groups, "gitlab:b", "jwt") == {"all-of-gitlab"}
    assert find_groups(groups, "alice", "jwt") == frozenset()
    assert find_groups(groups, "gitlab:b", "htpasswd") == frozenset()
    assert find_groups(groups, "", "none") == frozenset()
