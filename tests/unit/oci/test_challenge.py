"""WWW-Authenticate headers of registries and of attackers, and which realms are trusted."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dockyard.oci.challenge import (
    MAX_CHALLENGES,
    MAX_PARAMETERS,
    Challenge,
    is_realm_trusted,
    parse_challenges,
    registrable_domain,
    usable_challenges,
)
from dockyard.oci.origin import Origin
from tests.support.busy_machine import SLACK_S

HUB = 'Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:a/b:pull,push"'
HUB_CHALLENGE = Challenge(
    "bearer",
    {"realm": "https://auth.docker.io/token", "service": "registry.docker.io", "scope": "repository:a/b:pull,push"},
)
BASIC = Challenge("basic", {"realm": "x"})


def origin(host: str, scheme: str = "https", port: int = 443) -> Origin:
    """The origin of a registry, by default with HTTPS on its usual port."""
    return Origin(scheme, host, port)


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (HUB, [HUB_CHALLENGE]),
        (HUB.replace("Bearer", "BEARER").replace("realm", "Realm"), [HUB_CHALLENGE]),
        (f'{HUB}, Basic realm="x"', [HUB_CHALLENGE, BASIC]),
        (f'Basic realm="x", {HUB}', [BASIC, HUB_CHALLENGE]),
        ('Basic realm="x" , ,Basic realm="x"', [BASIC, BASIC]),
        ("Basic realm=x", [BASIC]),
        ('basic realm = "x"', [BASIC]),
        ('Basic realm="x" service="y"', [Challenge("basic", {"realm": "x", "service": "y"})]),
        ('Basic realm="a \\"b\\" \\\\ c, d=e"', [Challenge("basic", {"realm": 'a "b" \\ c, d=e'})]),
        ('Basic realm=""', [Challenge("basic", {"realm": ""})]),
        ('Basic realm="x", realm="y"', [BASIC]),
        ("Negotiate", [Challenge("negotiate", {})]),
        ("Negotiate YII=", [Challenge("negotiate", {})]),
        ('Negotiate YII==, Basic realm="x"', [Challenge("negotiate", {}), BASIC]),
        ('Negotiate, Basic realm="x"', [Challenge("negotiate", {}), BASIC]),
        ("", []),
        (" , ,, ", []),
        # challenges before a malformed part are kept
        ('Basic realm="x", service="y', [BASIC]),
        ('Basic realm="x"; service=y', [BASIC]),
        ('="x"', []),
        ("\u00e9", []),
    ],
)
def test_challenges_are_parsed(header: str, expected: list[Challenge]) -> None:
    """Schemes and names are converted to lower case, values are not; quoted text may contain commas."""
    assert list(parse_challenges([header])) == expected


def test_challenges_of_several_headers_are_parsed_in_order() -> None:
    """A registry may send a header for each challenge."""
    assert parse_challenges(['Basic realm="x"', "", HUB]) == (BASIC, HUB_CHALLENGE)


def test_fifty_challenges_are_parsed() -> None:
    """The supported one may be the last."""
    headers = [", ".join(["Digest realm=x"] * 50), HUB]
    assert usable_challenges(parse_challenges(headers)) == [HUB_CHALLENGE]


def test_the_number_of_challenges_and_parameters_is_limited() -> None:
    """Those beyond the limits are ignored."""
    many = ", ".join(f"p{i}=v" for i in range(10 * MAX_PARAMETERS))
    (challenge,) = parse_challenges([f"Bearer {many}"])
    assert len(challenge.parameters) == MAX_PARAMETERS
    assert len(parse_challenges(["Basic realm=x," * 10 * MAX_CHALLENGES])) == MAX_CHALLENGES


def test_a_header_that_is_too_long_is_not_parsed_in_part() -> None:
    """A truncated realm is a different realm."""
    assert parse_challenges(['Bearer realm="https://a.example/' + "x" * 70_000]) == ()
    assert parse_challenges([HUB, "x" * 70_000, HUB]) == (HUB_CHALLENGE,)


@pytest.mark.parametrize(
    "header",
    [
        "a" * 65536,
        "a " * 32768,
        "a=" * 32768,
        "a" + " " * 65535,
        "," * 65536,
        "a " + "b" * 32000 + " " * 32000 + "c",
        'a b="' * 13107,
        'a b="' + "\\" * 65000,
        'a b="' + "\\a" * 32000,
        'Bearer realm="' + "x" * 65000 + '"',
    ],
)
def test_a_hostile_header_costs_little_time(header: str) -> None:
    """Parsing 64 KiB takes a few milliseconds; the limit is for slow machines."""
    start = time.thread_time()
    parse_challenges([header])
    assert time.thread_time() - start < SLACK_S


@given(st.lists(st.text() | st.text(alphabet='Basic realm="x\\", =\t'), max_size=4))
def test_any_header_is_parsed_without_an_error(headers: list[str]) -> None:
    """And schemes and names are in lower case."""
    for challenge in parse_challenges(headers):
        assert challenge.scheme
        assert challenge.scheme == challenge.scheme.lower()
        assert all(name == name.lower() for name in challenge.parameters)


@given(st.dictionaries(st.text("abc", min_size=1, max_size=3), st.text('ab"\\,= \t;', max_size=9), max_size=5))
def test_quoted_values_are_unquoted(parameters: dict[str, str]) -> None:
    """For any text that can be quoted."""
    quoted = {name: value.replace("\\", "\\\\").replace('"', '\\"') for name, value in parameters.items()}
    header = "Bearer " + ", ".join(f'{name}="{value}"' for name, value in quoted.items())
    assert parse_challenges([header]) == (Challenge("bearer", parameters),)


@pytest.mark.parametrize(
    ("challenges", "expected"),
    [
        ([BASIC, HUB_CHALLENGE], [HUB_CHALLENGE, BASIC]),
        ([HUB_CHALLENGE, BASIC], [HUB_CHALLENGE, BASIC]),
        ([BASIC], [BASIC]),
        ([Challenge("basic", {})], [Challenge("basic", {})]),
        ([Challenge("bearer", {}), BASIC], [BASIC]),
        ([Challenge("bearer", {"realm": ""})], []),
        ([Challenge("digest", {"realm": "x"})], []),
        ([], []),
    ],
)
def test_bearer_is_preferred_to_basic(challenges: list[Challenge], expected: list[Challenge]) -> None:
    """Unless it has no realm."""
    assert usable_challenges(challenges) == expected


@pytest.mark.parametrize(
    ("realm", "registry"),
    [
        ("https://auth.docker.io/token", "registry-1.docker.io"),
        ("https://ghcr.io/token", "ghcr.io"),
        ("https://quay.io/v2/auth", "quay.io"),
        ("https://public.ecr.aws/token/", "public.ecr.aws"),
        ("https://gitlab.com/jwt/auth", "registry.gitlab.com"),
        ("https://x.azurecr.io/oauth2/token", "x.azurecr.io"),
        ("https://us-docker.pkg.dev/v2/token", "us-docker.pkg.dev"),
        ("https://gitlab.corp.example.co.uk:8443/jwt/auth", "registry.example.co.uk"),
        ("HTTPS://GHCR.IO/token?x=y", "ghcr.io"),
        ("https://registry:5001/token", "registry"),
        ("https://127.0.0.1:5001/token", "127.0.0.1"),
        ("https://[::1]:5001/token", "::1"),
        ("https://localhost/token", "localhost"),
    ],
)
def test_a_realm_on_the_site_of_the_registry_is_trusted(realm: str, registry: str) -> None:
    """As those of real registries."""
    assert is_realm_trusted(realm, origin(registry))


@pytest.mark.parametrize(
    ("realm", "registry"),
    [
        ("https://evil.example/token", "ghcr.io"),
        ("https://ghcr.io.evil.example/token", "ghcr.io"),
        ("https://notghcr.io/token", "ghcr.io"),
        ("https://io/token", "ghcr.io"),
        ("https://evil.co.uk/token", "registry.good.co.uk"),
        ("https://evil.com.au/token", "registry.good.com.au"),
        ("https://evil.azurecr.io/token", "good.azurecr.io"),
        ("https://evil.s3.amazonaws.com/token", "1.dkr.ecr.us-east-1.amazonaws.com"),
        ("https://evil.amazonaws.com.cn/token", "1.dkr.ecr.cn-north-1.amazonaws.com.cn"),
        ("https://evil.github.io/token", "good.github.io"),
        ("https://auth/token", "registry"),
        ("https://ghcr.io./token", "ghcr.io"),
        ("https://127.0.0.1/token", "10.0.0.1"),
        ("https://1.0.0.1/token", "127.0.0.1"),
        ("https://127.0.0.1/token", "ghcr.io"),
        ("https://127.1/token", "ghcr.io"),
        ("https://0x7f.1/token", "x.0x7f.1"),
        ("https://2130706433/token", "ghcr.io"),
        ("https://0x7f000001/token", "ghcr.io"),
        ("https://169.254.169.254/token", "ghcr.io"),
        ("https://[::1]/token", "ghcr.io"),
        ("https://[::ffff:127.0.0.1]/token", "ghcr.io"),
        ("https://[fe80::1%25eth0]/token", "fe80::1%25eth0"),
        ("https://localhost/token", "ghcr.io"),
        ("https://a.localhost/token", "b.localhost"),
        # not an https URL that all parsers read alike
        ("http://ghcr.io/token", "ghcr.io"),
        ("ftp://ghcr.io/token", "ghcr.io"),
        ("file:///etc/passwd", "ghcr.io"),
        ("gopher://ghcr.io/", "ghcr.io"),
        ("//ghcr.io/token", "ghcr.io"),
        ("/token", "ghcr.io"),
        ("", "ghcr.io"),
        ("https://", "ghcr.io"),
        ("https:///token", "ghcr.io"),
        ("https://user:password@ghcr.io/token", "ghcr.io"),
        ("https://ghcr.io@evil.example/token", "ghcr.io"),
        ("https://evil.example\\@ghcr.io/token", "ghcr.io"),
        ("https://evil.example\\.ghcr.io/token", "ghcr.io"),
        ("https://gh\tcr.io/token", "ghcr.io"),
        ("https://ghcr.io/to ken", "ghcr.io"),
        ("https://ghcr.io/\r\nHost: evil.example", "ghcr.io"),
        ("https://ghcr.io:0/token", "ghcr.io"),
        ("https://ghcr.io:99999/token", "ghcr.io"),
        ("https://ghcr.io:x/token", "ghcr.io"),
        ("https://[::1]ghcr.io/token", "::1"),
        ("https://[ghcr.io]/token", "ghcr.io"),
        ("https://[::1/token", "::1"),
        ("https://%67hcr.io/token", "ghcr.io"),
        ("https://\u0261hcr.io/token", "ghcr.io"),
        ("https://ghcr.io/" + "x" * 3000, "ghcr.io"),
    ],
)
def test_any_other_realm_gets_no_credentials(realm: str, registry: str) -> None:
    """Other sites, addresses, plain HTTP and malformed URLs are rejected."""
    assert not is_realm_trusted(realm, origin(registry))


@pytest.mark.parametrize(
    ("realm", "registry", "expected"),
    [
        ("http://registry:5001/token", "registry", True),
        ("http://127.0.0.1:5001/token", "127.0.0.1", True),
        ("https://auth.corp.example/token", "registry.corp.example", True),
        ("http://auth.corp.example/token", "registry.corp.example", True),
        ("http://evil.example/token", "registry.corp.example", False),
    ],
)
def test_a_registry_reached_by_http_may_have_an_http_realm(realm: str, registry: str, *, expected: bool) -> None:
    """On the same site."""
    assert is_realm_trusted(realm, origin(registry, "http", 5000)) is expected


@pytest.mark.parametrize(
    ("realm", "trusted", "expected"),
    [
        ("https://sso.other.example/token", "sso.other.example", True),
        ("https://sso.other.example:8443/token", "sso.other.example", True),
        ("https://sso.other.example/token", "sso.other.example:443", True),
        ("https://sso.other.example:8443/token", "sso.other.example:443", False),
        ("https://sso.other.example/token", "SSO.Other.Example", True),
        ("https://x.sso.other.example/token", "sso.other.example", False),
        ("https://10.0.0.7/token", "10.0.0.7", True),
        ("https://[fd00::7]/token", "fd00::7", True),
        ("https://[fd00::7]:8443/token", "[fd00::7]:8443", True),
        ("https://auth/token", "auth", True),
        ("http://sso.other.example/token", "sso.other.example", False),
        ("https://user@sso.other.example/token", "sso.other.example", False),
    ],
)
def test_trusted_hosts_do_not_allow_http(realm: str, trusted: str, *, expected: bool) -> None:
    """A listed host may be private or on another site, but must be reached by HTTPS."""
    assert is_realm_trusted(realm, origin("registry.corp.example"), ("unrelated.example", trusted)) is expected


@pytest.mark.parametrize(
    ("host", "domain"),
    [
        ("auth.docker.io", "docker.io"),
        ("docker.io", "docker.io"),
        ("a.b.c.example.com", "example.com"),
        ("a.b.example.co.uk", "example.co.uk"),
        ("example.co.uk", "example.co.uk"),
        ("co.uk", "co.uk"),
        ("a.example.gob.mx", "example.gob.mx"),
        ("a.com.example", "com.example"),
        ("x.azurecr.io", "x.azurecr.io"),
        ("azurecr.io", "azurecr.io"),
        ("a.notazurecr.io", "notazurecr.io"),
        ("registry", "registry"),
        ("a.localhost", "a.localhost"),
        ("127.0.0.1", "127.0.0.1"),
        ("::1", "::1"),
        ("a..b", "a..b"),
        ("", ""),
    ],
)
def test_registrable_domains(host: str, domain: str) -> None:
    """Two labels, three below a country suffix, and the whole host name below the domain of a hosting service."""
    assert registrable_domain(host) == domain


@given(st.text(), st.sampled_from(["ghcr.io", "127.0.0.1", "::1", ""]))
def test_any_realm_is_checked_without_an_error(realm: str, registry: str) -> None:
    """The check never raises."""
    is_realm_trusted(realm, origin(registry))
    is_realm_trusted(f"https://{realm}", origin(registry))
