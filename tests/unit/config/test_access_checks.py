"""The settings of access: each mistake has an error with its key, its line and its cure."""

import json
from collections.abc import Callable
from pathlib import Path
from textwrap import dedent

import pytest
import trustme

from dockyard.config.loader import SettingsError, load
from dockyard.config.settings import Settings

CANARY = "canary-7f3a"
HASH = "$2y$04$" + "a" * 53

Load = Callable[..., Settings]
Errors = Callable[..., list[str]]

UPSTREAMS = """
upstreams:
  - {prefix: docker.io, registry: docker.io}
  - {prefix: ghcr.io/my-org, registry: ghcr.io}
  - {prefix: internal, registry: harbor.example/project}
"""
NAMES = """
access:
  jwt:
    - {name: gitlab, issuer: i, audience: a, jwks: https://a.example/keys, groups_claim: groups}
    - {name: plain, issuer: j, audience: a, jwks: https://b.example/keys}
  networks: [{name: office, addresses: [10.0.0.0/8]}]
  groups: [{name: developers, members: [alice, "gitlab:*"]}]
"""


@pytest.fixture
def load_text(tmp_path: Path) -> Load:
    """Load settings from the text of a file and an environment."""

    def load_text(text: str, **environ: str) -> Settings:
        path = tmp_path / "config.yaml"
        path.write_text(dedent(text), encoding="utf-8")
        return load(path, {"HOME": "/home/someone"} | environ)

    return load_text


@pytest.fixture
def errors_in(load_text: Load, tmp_path: Path) -> Errors:
    """Load an invalid file; return its errors, with the path of the file reduced to its name."""

    def errors_in(text: str, **environ: str) -> list[str]:
        with pytest.raises(SettingsError) as caught:
            load_text(text, **environ)
        return [error.replace(f"{tmp_path}/", "") for error in caught.value.errors]

    return errors_in


def rule_with(key: str, value: str) -> str:
    """A file with one rule, upstreams and names."""
    return f'{UPSTREAMS}{NAMES}  rules: [{{allow: true, {key}: ["{value}"]}}]\n'


# Patterns


@pytest.mark.parametrize(
    ("pattern", "cure"),
    [
        ("https://ghcr.io/my-org/app", "it begins with a scheme: write ghcr.io/my-org/app"),
        ("/ghcr.io/my-org/app", "it begins with /: write ghcr.io/my-org/app"),
        ("ghcr.io/my-org/", "it ends with /: write ghcr.io/my-org, or ghcr.io/my-org/** for all"),
        ("ghcr.io/my-org/app:v1", "with all its tags and digests: write ghcr.io/my-org/app"),
        ("ghcr.io/my-org/app@sha256:01", "with all its tags and digests: write ghcr.io/my-org/app"),
        ("ghcr.io/My-Org/app", "names have no capital letters: write ghcr.io/my-org/app"),
        ("ghcr.io/my-org/a**", "within a part, write *"),
        ("ghcr.io/my-org/[ab]", "the only wildcards are * and **"),
        (
            "docker.io/alpine",
            "images of Docker Hub without an organization are in library: write docker.io/library/alpine",
        ),
        ("docker.io/grafana", "or docker.io/grafana/** for the images of the organization grafana"),
        ("docker.io/*", "write docker.io/library/*"),
        ("index.docker.io/grafana/*", "names begin with the prefix of an upstream: write docker.io/grafana/*"),
        ("registry-1.docker.io/alpine", "write docker.io/library/alpine"),
        ("alpine", "write docker.io/library/alpine"),
        ("grafana/grafana", "write docker.io/grafana/grafana"),
        ("library/*", "write docker.io/library/*"),
        ("docker.io", "it is only the prefix of an upstream: write docker.io/**"),
        ("internal", "it is only the prefix of an upstream: write internal/**"),
        ("harbor.example/team/app", "names begin with the prefix of an upstream: write internal/team/app"),
        ("internl/team/app", "write internal/team/app"),
        ("quay.io/a/b", "the prefixes are docker.io, ghcr.io/my-org, internal"),
        ("ghcr.io/other/app", "the prefixes are docker.io, ghcr.io/my-org, internal"),
        ("ghcr.io/o*", "the prefixes are docker.io, ghcr.io/my-org, internal"),
        ("harbor.example/project/app", "write internal/app"),
        ("*.example/**", "the prefixes are docker.io"),
    ],
)
def test_a_pattern_that_no_image_matches_is_an_error(errors_in: Errors, pattern: str, cure: str) -> None:
    """It would be a rule without effect."""
    (error,) = errors_in(rule_with("repositories", pattern))

    assert error.startswith("access.rules[0].repositories[0]")
    assert "matches no repository name: " in error
    assert cure in error
    assert error.endswith("(config.yaml:13)")


@pytest.mark.parametrize(
    "pattern",
    [
        "docker.io/library/alpine",
        "docker.io/*/*",
        "docker.io/**",
        "**",
        "*/**",
        "**/secret",
        "ghcr.io/my-org",
        "ghcr.io/*/app",
        "ghcr.io/*",  # ghcr.io/my-org is an image there
        "internal/team/*",
        "in*/x",
    ],
)
def test_a_pattern_that_an_image_matches_is_accepted(load_text: Load, pattern: str) -> None:
    """Also with a wildcard in the place of the prefix."""
    assert load_text(rule_with("repositories", pattern)).access.rules[0].repositories == (pattern,)


def test_patterns_are_not_compared_with_upstreams_that_have_errors(errors_in: Errors) -> None:
    """One mistake, one error; and the form of patterns is checked in any case."""
    text = (
        "upstreams: [{prefix: x.example, registry: 'y z'}]\naccess: {rules: [{allow: true, repositories: [a/b, A/b]}]}"
    )

    assert [error.partition(" ")[0] for error in errors_in(text)] == [
        "upstreams[0].registry",
        "access.rules[0].repositories[1]",
    ]


# Clients, actions


@pytest.mark.parametrize(
    ("entry", "cure"),
    [
        ("alice bob", "has a space in it: write one name in each element of the list"),
        ("group:", "has no name after the colon: write group:NAME"),
        (":alice", "has no issuer before the colon"),
        ("group::x", "must be group:NAME, or group:ISSUER:NAME"),
        ("group:gitlab:", "must be group:NAME, or group:ISSUER:NAME"),
        ("group:developer", "there is no such name in access.groups: write group:developers"),
        ("group:xyz", "there is no such name in access.groups: the names in access.groups are developers"),
        ("group:gitlab", "gitlab is an issuer of tokens: for a group in them write group:gitlab:NAME"),
        ("group:github:x", "there is no such name in access.jwt: write group:gitlab"),
        ("group:plain:x", "tokens of plain have no groups: set groups_claim of this issuer"),
        ("network:home", "there is no such name in access.networks: the names in access.networks are office"),
        ("gitlb:x", "there is no such name in access.jwt: write gitlab"),
        ("user:alice", "write alice"),
        ("groups:developers", "write group:developers"),
        ("netwrok:office", "write network:office"),
        ("Anonymous", "write anonymous"),
        ("AUTHENTICATED", "write authenticated"),
        ("group", "write group:NAME"),
        ("*", "for all clients leave `who` empty"),
        ("ali*", "stands for any text in names of tokens (ISSUER:NAME) only"),
    ],
)
def test_who_is_nobody_is_an_error(errors_in: Errors, entry: str, cure: str) -> None:
    """A rule that is for nobody by mistake would let others in, or nobody."""
    (error,) = errors_in(rule_with("who", entry))

    assert error.startswith(f'access.rules[0].who[0] = "{entry}": ')
    assert cure in error


@pytest.mark.parametrize(
    "entry",
    [
        "alice",
        "anonymous",
        "authenticated",
        "gitlab:*",
        "plain:a:b/*",
        "group:developers",
        "group:gitlab:a/b",
        "network:office",
    ],
)
def test_clients_that_there_can_be_are_accepted(load_text: Load, entry: str) -> None:
    """Users are in a file that changes, and are not compared here."""
    assert load_text(rule_with("who", entry)).access.rules[0].who == (entry,)


@pytest.mark.parametrize(
    ("action", "cure"),
    [
        ("admin", "there is no admin API in this version, so remove it"),
        ("push", "Dockyard is read-only, so remove it"),
        ("delete", "Dockyard is read-only, so remove it"),
        ("Pull", "must be one of pull, list, status: write pull"),
        ("lst", "write list"),
        ("*", "none means pull and list"),
        ("xyz", "must be one of pull, list, status"),
    ],
)
def test_an_unknown_action_is_an_error(errors_in: Errors, action: str, cure: str) -> None:
    """With what to write instead."""
    (error,) = errors_in(rule_with("actions", action))

    assert error.startswith(f'access.rules[0].actions[0] = "{action}": ')
    assert cure in error


def test_the_status_is_of_no_repository(errors_in: Errors, load_text: Load) -> None:
    """Also together with another action."""
    text = "access: {rules: [{allow: false, actions: [pull, status]%s}]}"

    assert load_text(text % "").access.rules[0].actions == ("pull", "status")
    (error,) = errors_in(text % ", repositories: ['**']")
    assert 'access.rules[0].actions = "pull, status": must not have status together with repositories' in error
    assert "write a rule of its own" in error


def test_a_rule_says_whether_it_allows(errors_in: Errors) -> None:
    """There is no default."""
    assert errors_in("access:\n  rules:\n  - who: [alice]") == ["access.rules[0].allow: is required (config.yaml:3)"]


def test_each_wrong_element_of_a_list_has_its_error(errors_in: Errors) -> None:
    """With its own line."""
    text = """\
        access:
          rules:
            - allow: true
              who:
                - a b
                - group:x
              repositories: [docker.io/library/a, quay.io/b, C/d]
    """
    assert [(error.partition(":")[0], error[-15:]) for error in errors_in(text)] == [
        ('access.rules[0].repositories[1] = "quay.io/b"', "(config.yaml:7)"),
        ('access.rules[0].repositories[2] = "C/d"', "(config.yaml:7)"),
        ('access.rules[0].who[0] = "a b"', "(config.yaml:5)"),
        ('access.rules[0].who[1] = "group', "(config.yaml:6)"),
    ]


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("access:\n  rules:\n", "access.rules"),
        ("access:\n  rules: ''\n", "access.rules"),
        ("upstreams: [{prefix: up.test, registry: up.test, access: }]", "upstreams[0].access"),
        ("upstreams: [{prefix: up.test, registry: up.test, access: ''}]", "upstreams[0].access"),
        ("upstreams: [{prefix: up.test, registry: up.test, access: '${EMPTY}'}]", "upstreams[0].access"),
    ],
)
def test_who_may_pull_is_not_left_empty(errors_in: Errors, text: str, key: str) -> None:
    """The default permits more than what was probably meant."""
    [error] = errors_in(text, EMPTY="")
    assert error.startswith(f"{key}")


def test_an_empty_list_of_rules_is_written_as_one(errors_in: Errors) -> None:
    """As in config.yaml."""
    with pytest.raises(pytest.fail.Exception):
        errors_in("access: {rules: []}")


@pytest.mark.parametrize("key", ["repositories", "who", "actions"])
@pytest.mark.parametrize(
    "value", ['["${EMPTY}"]', '"${EMPTY}"', '[""]', '" "', '["${EMPTY}", pull]', '"pull,"', '"pull,,list"']
)
def test_a_variable_that_is_empty_does_not_make_a_rule_for_all(errors_in: Errors, key: str, value: str) -> None:
    """A list without elements is for everything and everybody, which nobody can have meant by that."""
    (error,) = errors_in(f"access: {{rules: [{{allow: true, {key}: {value}}}]}}", EMPTY="")

    assert error.startswith(f"access.rules[0].{key}")
    assert "has an empty element: remove it, or set the variable" in error


@pytest.mark.parametrize("key", ["repositories", "who", "actions"])
def test_a_list_without_elements_is_for_all(load_text: Load, key: str) -> None:
    """As `dockyard config` prints it."""
    (rule,) = load_text(f"access: {{rules: [{{allow: true, {key}: []}}]}}").access.rules

    assert getattr(rule, key) == ()


@pytest.mark.parametrize("key", ["repositories", "who", "actions"])
def test_no_error_repeats_the_value_of_a_variable(errors_in: Errors, key: str) -> None:
    """It may be a secret that was given to the wrong key."""
    values = [f"https://{CANARY}/x y", f"x:{CANARY} y", f"{CANARY}/y:z y", f"group:{CANARY} y", f"{CANARY.upper()} y"]
    for value in values:
        (error,) = errors_in(rule_with(key, "${TOKEN}"), TOKEN=value)
        assert CANARY not in error.lower()
        assert f'access.rules[0].{key}[0] = "${{TOKEN}}": ' in error


@pytest.mark.parametrize(
    "value", [CANARY.upper(), f"https://{CANARY}/x", f"/{CANARY}", f"{CANARY}/", f"{CANARY}/a:b", f"{CANARY}/a"]
)
def test_no_remedy_repeats_the_value_of_a_variable(errors_in: Errors, value: str) -> None:
    """The message ends before what to write instead."""
    (error,) = errors_in(rule_with("repositories", "${TOKEN}"), TOKEN=value)

    assert "matches no repository name: " in error
    assert CANARY not in error.lower()


def test_no_error_repeats_a_password_in_an_address(errors_in: Errors) -> None:
    """Of a registry."""
    (error,) = errors_in(rule_with("repositories", f"https://user:{CANARY}@ghcr.io/my-org/x"))

    assert CANARY not in error
    assert error.partition("(")[0].endswith("write ghcr.io/my-org/x ")


# Networks and addresses


@pytest.mark.parametrize(
    ("address", "cure"),
    [
        ("10.0.0.1/8", "write 10.0.0.0/8"),
        ("fd00::1/64", "write fd00::/64"),
        ("10.0.0", "must be an address or a network, such as 10.0.0.0/8"),
        ("10.0.0.0/33", "must be an address or a network"),
        ("proxy.example", "must be an address or a network"),
        ("10.0.0.0-10.0.0.9", "must be an address or a network"),
    ],
)
@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("server: {trusted_proxies: [127.0.0.1, '%s']}", "server.trusted_proxies[1]"),
        ("access: {networks: [{name: x, addresses: ['::1', '%s']}]}", "access.networks[0].addresses[1]"),
    ],
)
def test_an_invalid_network_is_an_error(errors_in: Errors, text: str, key: str, address: str, cure: str) -> None:
    """With bits of a host in it, the network is named."""
    (error,) = errors_in(text % address)

    assert error.startswith(f'{key} = "{address}": ')
    assert cure in error


@pytest.mark.parametrize(
    ("networks", "is_found"),
    [
        (["0.0.0.0/0"], True),
        (["10.0.0.0/8", "::/0"], True),
        (["0.0.0.0/1", "128.0.0.0/1"], True),
        (["::ffff:0:0/96"], True),
        (["10.0.0.0/8", "fd00::/8", "0.0.0.0/1"], False),
    ],
)
def test_trusting_every_address_causes_a_warning(load_text: Load, networks: list[str], *, is_found: bool) -> None:
    """Every client can then claim to have any address."""
    warnings = load_text(f"server: {{trusted_proxies: {json.dumps(networks)}}}").warnings

    assert [warning.partition(",")[0] for warning in warnings] == (
        ["server.trusted_proxies: contains every address"] if is_found else []
    )


# Names


@pytest.mark.parametrize(
    ("name", "cure"),
    [
        ("Office", "must consist of lower-case letters, digits, dots and hyphens: write office"),
        ("my_net", "write my-net"),
        ("my net", "write my-net"),
        ("a:b", "write a-b"),
        ("-", "must consist of lower-case letters, digits, dots and hyphens"),
        ("\u00e9", "must consist of lower-case letters"),
        ("anonymous", "has a meaning of its own in `who`: choose another name"),
        ("authenticated", "has a meaning of its own"),
        ("group", "has a meaning of its own"),
        ("network", "has a meaning of its own"),
    ],
)
@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("access.networks[0]", "access: {networks: [{name: '%s', addresses: ['::1']}]}"),
        ("access.groups[0]", "access: {groups: [{name: '%s', members: [alice]}]}"),
        ("access.jwt[0]", "access: {jwt: [{name: '%s', issuer: a, audience: b, jwks: https://c/d}]}"),
    ],
)
def test_an_invalid_name_is_an_error(errors_in: Errors, key: str, text: str, name: str, cure: str) -> None:
    """Of a network, a group and an issuer."""
    (error,) = errors_in(text % name)

    assert error.startswith(f"{key}.name = ")
    assert cure in error


@pytest.mark.parametrize(
    ("key", "entries"),
    [
        ("networks", ["{name: x, addresses: ['::1']}", "{name: x, addresses: ['::2']}"]),
        ("groups", ["{name: x, members: [a]}", "{name: x, members: [b]}"]),
        ("jwt", [f"{{name: x, issuer: '{each}', audience: a, jwks: https://a/b}}" for each in "ab"]),
    ],
)
def test_a_name_is_used_once(errors_in: Errors, key: str, entries: list[str]) -> None:
    """A group and a network may have the same."""
    (error,) = errors_in(f"access: {{{key}: [{', '.join(entries)}]}}")

    assert error.startswith(f'access.{key}[1].name = "x": is the name of access.{key}[0] too')


@pytest.mark.parametrize(
    ("member", "cure"),
    [
        ("group:x", "is not a member: groups consist of users (NAME) and tokens (ISSUER:NAME)"),
        ("network:x", "is not a member"),
        ("anonymous", "is not a member"),
        ("authenticated", "is not a member"),
        ("github:x", "there is no such name in access.jwt"),
        ("a b", "has a space in it"),
        ("a*", "in names of tokens"),
    ],
)
def test_a_group_has_users_and_tokens(errors_in: Errors, member: str, cure: str) -> None:
    """Nothing else, and only of issuers that there are."""
    (error,) = errors_in(f"access: {{groups: [{{name: g, members: ['{member}']}}]}}")

    assert error.startswith(f'access.groups[0].members[0] = "{member}": ')
    assert cure in error


# Tokens


def jwt(**changed: str) -> str:
    """A file with an issuer, with these values."""
    values = {"name": "ci", "issuer": "https://ci.example", "audience": "dockyard", "jwks": "https://ci.example/jwks"}
    return f"access: {{jwt: [{{{', '.join(f'{key}: {value}' for key, value in (values | changed).items())}}}]}}"


@pytest.mark.parametrize(
    ("key", "value", "cure"),
    [
        ("jwks", "http://ci.example/jwks", "must be an https URL: over plain HTTP, the keys of everybody else"),
        ("jwks", "ftp://ci.example/jwks", "must be an https URL, or the path of a file"),
        ("jwks", f"https://user:{CANARY}@ci.example/jwks", "must not contain a user or a password"),
        ("jwks", "https://ci.example/jwks#x", "must not have a fragment"),
        ("jwks", "https://ci.example:99999/jwks", "must have a port from 1 to 65535"),
        ("jwks", "'https://[::1/jwks'", "must be"),
        ("jwks", "https://ci.example/.well-known/openid-configuration", "it is the value of jwks_uri in that document"),
        ("jwks", "/no/such/file", "cannot be read: No such file"),
        ("jwks", "''", "must be the URL of the keys"),
        ("ca_file", "/no/such/file", "cannot be read: No such file"),
        ("token_file", "/no/such/file", "cannot be read: No such file"),
        ("issuer", "''", "must not be empty"),
        ("audience", "''", "must not be empty"),
        ("name_claim", "''", "must not be empty"),
        ("name_claim", "/a~b", "must have ~0 instead of ~ in a JSON Pointer"),
        ("groups_claim", "/a~2b", "must have ~0 instead of ~ in a JSON Pointer"),
        ("algorithms", "[]", "must have at least one, such as RS256"),
    ],
)
def test_an_invalid_issuer_is_an_error(errors_in: Errors, key: str, value: str, cure: str) -> None:
    """No part of it is optional that makes tokens safe."""
    (error,) = errors_in(jwt(**{key: value}))

    assert error.startswith(f"access.jwt[0].{key}")
    assert cure in error
    assert CANARY not in error


@pytest.mark.parametrize(
    ("algorithm", "cure"),
    [
        ("none", "must not be none: everybody can make a token without a signature"),
        ("None", "must not be none"),
        ("HS256", "HS algorithms verify with the secret that signs"),
        ("hs512", "HS algorithms verify with the secret that signs"),
        ("rs256", "write RS256"),
        ("eddsa", "write EdDSA"),
        ("RSA", "must be one of RS256, RS384"),
    ],
)
def test_an_unsafe_or_unknown_algorithm_is_an_error(errors_in: Errors, algorithm: str, cure: str) -> None:
    """It says why."""
    (error,) = errors_in(jwt(algorithms=f"[RS256, {algorithm}]"))

    assert error.startswith(f'access.jwt[0].algorithms[1] = "{algorithm}": ')
    assert cure in error


@pytest.mark.parametrize(
    ("content", "cure"), [("", "it is not JSON"), ("[]", 'with a list "keys"'), ('{"keys": 1}', "a list")]
)
def test_a_file_without_keys_is_an_error(errors_in: Errors, tmp_path: Path, content: str, cure: str) -> None:
    """The error says what is expected."""
    (tmp_path / "jwks.json").write_text(content)
    (error,) = errors_in(jwt(jwks=str(tmp_path / "jwks.json")))

    assert error.startswith("access.jwt[0].jwks")
    assert cure in error


def test_keys_of_a_file_and_of_loopback_are_accepted(load_text: Load, tmp_path: Path) -> None:
    """HTTP is for tests and sidecars."""
    (tmp_path / "jwks.json").write_text(json.dumps({"keys": []}))
    for jwks in (str(tmp_path / "jwks.json"), "http://127.0.0.1:8000/jwks", "http://localhost/jwks", "https://x/y"):
        assert load_text(jwt(jwks=jwks)).access.jwt[0].jwks == jwks


def test_two_issuers_of_the_same_tokens_are_an_error(errors_in: Errors) -> None:
    """A token would have two names."""
    entry = "{name: %s, issuer: i, audience: %s, jwks: https://a/b}"
    (error,) = errors_in(f"access: {{jwt: [{entry % ('a', 'x')}, {entry % ('b', 'y')}, {entry % ('c', 'x')}]}}")

    assert error.startswith('access.jwt[2].issuer = "i": is that of access.jwt[0] too, with the same audience')


# Files


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read: No such file"),
        (b"", "must have at least 32 random characters, and has 0"),
        (b" " * 40, "must have at least 32 random characters, and has 0"),
        (b"x" * 31 + b"\n", "must have at least 32 random characters, and has 31"),
        (b"x" * 4097, "is larger than 4096 bytes"),
    ],
)
def test_a_key_for_access_tokens_that_cannot_be_used(
    errors_in: Errors, tmp_path: Path, content: bytes | None, message: str
) -> None:
    """It must be there, and long enough. Nothing of it is quoted."""
    path = tmp_path / "key"
    if content is not None:
        path.write_bytes(content)
    (error,) = errors_in(f"access: {{challenge: bearer, token_key_file: {path}}}")
    assert message in error
    assert "xxx" not in error


@pytest.mark.parametrize("content", [b"x" * 32, b"  " + b"x" * 64 + b"\r\n", bytes(range(100, 200))])
def test_a_key_for_access_tokens(load_text: Load, tmp_path: Path, content: bytes) -> None:
    """Any bytes, without white space around them."""
    path = tmp_path / "key"
    path.write_bytes(content)
    assert load_text(f"access: {{challenge: bearer, token_key_file: {path}}}").access.token_key_file == str(path)


@pytest.mark.parametrize(
    "url",
    ["https://dockyard.example/token", "http://[::1]:5000/token", "https://d.example:8443/dockyard/token"],
)
def test_a_token_url(load_text: Load, url: str) -> None:
    """An absolute URL with a path."""
    assert load_text(f'access: {{challenge: bearer, token_url: "{url}"}}').access.token_url == url


@pytest.mark.parametrize(
    "url",
    [
        "dockyard.example/token",
        "/token",
        "ftp://dockyard.example/token",
        "https://dockyard.example",
        "https://dockyard.example/",
        "https://ann:x@dockyard.example/token",
        "https://dockyard.example/token?a=b",
        "https://dockyard.example/token#a",
        "https://dockyard.example:0/token",
        "https://dockyard.example:99999/token",
        "https://dockyard example/token",
        'https://dockyard.example/to\\"ken',
        "https:///token",
    ],
)
def test_a_token_url_that_clients_could_not_use(errors_in: Errors, url: str) -> None:
    """It goes into a header as it is."""
    (error,) = errors_in(f'access: {{challenge: bearer, token_url: "{url}"}}')
    assert error.startswith("access.token_url")


@pytest.mark.parametrize(
    ("text", "warnings"),
    [
        ("{challenge: bearer}", ["access.challenge: bearer has no effect"]),
        ("{token_url: 'https://d.example/token'}", ["access.token_url: has no effect"]),
        ("{token_key_file: KEY}", ["access.token_key_file: has no effect"]),
        ("{challenge: basic, htpasswd: USERS}", []),
        ("{challenge: bearer, htpasswd: USERS, token_key_file: KEY, token_url: 'https://d.example/token'}", []),
    ],
)
def test_what_has_no_effect_on_challenges(load_text: Load, tmp_path: Path, text: str, warnings: list[str]) -> None:
    """Without a way to log in, nobody is asked for a login."""
    (tmp_path / "key").write_text("x" * 32)
    (tmp_path / "users").write_text(f"ann:{HASH}\n")
    text = text.replace("KEY", str(tmp_path / "key")).replace("USERS", str(tmp_path / "users"))
    found = [line for line in load_text(f"access: {text}").warnings if line.startswith("access")]
    assert [line.startswith(warning) for line, warning in zip(found, warnings, strict=True)] == [True] * len(warnings)


def test_an_htpasswd_file_that_cannot_be_read_is_an_error(errors_in: Errors, tmp_path: Path) -> None:
    """So is one with a line that admits nobody; nothing of it is quoted."""
    assert errors_in("access: {htpasswd: /no/such/file}")[0].startswith(
        'access.htpasswd = "/no/such/file": cannot be read: No such file'
    )
    path = tmp_path / "users"
    path.write_text(f"alice:{HASH}\nbob:$apr1${CANARY}\n")
    (error,) = errors_in(f"access: {{htpasswd: {path}}}")
    assert "line 2" in error
    assert CANARY not in error


@pytest.mark.parametrize(
    ("output", "cure"),
    [
        ("/no/such/audit.log", "there is no directory /no/such"),
        ("/", "must be stderr, stdout, or a file in an existing directory"),
    ],
)
def test_the_output_of_the_audit_log_is_checked_as_that_of_the_log(errors_in: Errors, output: str, cure: str) -> None:
    """Streams, and files that can be written."""
    (error,) = errors_in(f"access: {{audit: {output}}}")

    assert error.startswith(f'access.audit = "{output}": ')
    assert cure in error


# Server and upstreams


def test_the_ca_of_clients_needs_tls(errors_in: Errors, tmp_path: Path) -> None:
    """And must be a file with certificates."""
    ca_file, wrong = tmp_path / "ca.pem", tmp_path / "wrong.pem"
    trustme.CA().cert_pem.write_to_path(str(ca_file))
    wrong.write_text("no certificate")

    [error] = errors_in(f"server: {{client_ca: {ca_file}}}")
    assert error.startswith("server.client_ca = ")
    assert '": needs server.tls: ' in error
    with_tls = "server: {tls: true, certfile: /no/cert, keyfile: /no/key, client_ca: %s}"
    assert [error for error in errors_in(with_tls % ca_file) if "client_ca" in error] == []
    (error,) = (error for error in errors_in(with_tls % wrong) if "client_ca" in error)
    assert "must be a PEM file with CA certificates" in error
    (error,) = (error for error in errors_in(with_tls % "/no/ca.pem") if "client_ca" in error)
    assert "cannot be read: No such file" in error


@pytest.mark.parametrize(
    ("text", "key", "cure"),
    [
        ("access_ttl: 0", "access_ttl", "must be more than 0, and 24h or less"),
        ("access_ttl: 25h", "access_ttl", "must be more than 0, and 24h or less"),
        ("access_grace: 721h", "access_grace", "must be 720h (30 days) or less"),
        ("access: open", "access", "must be one of rules, upstream"),
    ],
)
def test_limits_of_access_as_the_upstream_decides(errors_in: Errors, text: str, key: str, cure: str) -> None:
    """In any case, also if it is not in use."""
    (error,) = errors_in(f"upstreams: [{{prefix: a.example, registry: b.example, {text}}}]")

    assert error.startswith(f"upstreams[0].{key} = ")
    assert cure in error


def test_logins_of_clients_are_not_sent_in_clear_text(errors_in: Errors, load_text: Load) -> None:
    """To a registry without HTTPS, unless it is on loopback."""
    text = "upstreams: [{prefix: a.example, registry: 'http://%s', access: %s}]"
    (error,) = errors_in(text % ("b.example", "upstream"))

    assert error.startswith('upstreams[0].access = "upstream": must not be upstream for a registry without HTTPS')
    assert "write https:// in registry, or access: rules" in error
    load_text(text % ("b.example", "rules"))
    load_text(text % ("127.0.0.1:5000", "upstream"))


# Warnings


@pytest.mark.parametrize(
    ("text", "warning"),
    [
        ("access: {rules: [{allow: true, hide: true}]}", "access.rules[0].hide: has no effect in a rule that allows"),
        ("access: {networks: [{name: x}]}", "access.networks[0]: has no addresses, so that no client is in network:x"),
        ("access: {groups: [{name: x}]}", "access.groups[0]: has no members, so that no client is in group:x"),
        (
            "upstreams: [{prefix: a.example, registry: b.example, insecure_skip_verify: true, access: upstream}]",
            "upstreams[0]: logins of clients are sent to this registry, whose certificate is not verified",
        ),
    ],
)
def test_what_is_probably_not_intended_causes_a_warning(load_text: Load, text: str, warning: str) -> None:
    """It is allowed."""
    (found,) = load_text(text).warnings

    assert found.startswith(warning)


def test_files_for_a_url_have_no_effect_with_a_file_of_keys(load_text: Load, tmp_path: Path) -> None:
    """Each has its warning."""
    keys, ca_file, token = tmp_path / "jwks.json", tmp_path / "ca.pem", tmp_path / "token"
    keys.write_text('{"keys": []}')
    trustme.CA().cert_pem.write_to_path(str(ca_file))
    token.write_text("x")
    warnings = load_text(jwt(jwks=str(keys), ca_file=str(ca_file), token_file=str(token))).warnings

    assert [warning.partition(":")[0] for warning in warnings] == ["access.jwt[0].ca_file", "access.jwt[0].token_file"]
