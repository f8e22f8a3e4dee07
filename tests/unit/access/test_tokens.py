"""Tokens of the issuers in the settings: right ones, as issuers make them, and forged ones."""

import base64
import json
import time
from collections.abc import Callable
from itertools import count
from typing import Any

import attrs
import pytest

from dockyard.access import tokens as module
from dockyard.access.identities import MAX_REMEMBERED_S, Identity
from dockyard.access.jwks import KeysUnavailable
from dockyard.access.keys import KeySet, parse_key_set
from dockyard.access.tokens import MAX_GROUPS, MAX_NAME_CHARS, MAX_SKEW_S, Tokens
from dockyard.config.settings import JwtIssuer
from dockyard.errors import LoginRequired, Unavailable
from tests.support.token_issuer import DAY_S, TokenIssuer, encode, encode_json, key_set, sign_with_public_key

ISSUER = TokenIssuer()
SETTINGS = JwtIssuer("ci", ISSUER.url, ISSUER.audience, "keys.json")
CANARY = "canary-2b9e"


class FakeSource:
    """The keys of an issuer, and those that the next refresh finds."""

    def __init__(self, *issuers: TokenIssuer) -> None:
        self.keys: KeySet | None = _parse(*issuers) if issuers else None
        self.next: KeySet | None = None
        self.is_due = False
        self.may_refresh = False
        self.calls: list[str] = []

    def read(self) -> KeySet:
        """The keys."""
        self.calls.append("read")
        return self._get()

    def refresh(self) -> KeySet:
        """The next keys."""
        self.calls.append("refresh")
        self.keys = self.next or self.keys
        return self._get()

    def find(self) -> KeySet | None:
        """The keys in memory."""
        return None if self.is_due else self.keys

    def _get(self) -> KeySet:
        if self.keys is None:
            raise KeysUnavailable(7.0)
        return self.keys


def _parse(*issuers: TokenIssuer) -> KeySet:
    return parse_key_set(key_set(*(issuer.jwk() for issuer in issuers)))


def make(source: FakeSource | None = None, settings: JwtIssuer = SETTINGS) -> Tokens:
    """The tokens of one issuer."""
    keys = source or FakeSource(ISSUER)
    return Tokens([settings], lambda _: keys)


def is_refused(token: str, tokens: Tokens | None = None) -> str:
    """Check that a token is ours and refused, whether keys must be read or not; return the reason for the log."""
    tokens = tokens or make()
    assert tokens.is_ours(token)
    with pytest.raises(LoginRequired) as caught:
        tokens.verify(token)
    with pytest.raises(LoginRequired):
        tokens.find(token)
    details = caught.value.details
    assert details is not None
    assert details.error
    for text in (str(caught.value), repr(caught.value.log_fields())):
        assert CANARY not in text
        assert token[:30] not in text
    return details.error


@pytest.mark.parametrize(
    "algorithm",
    ["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA", "Ed448"],
)
def test_each_algorithm(algorithm: str) -> None:
    """The token of each algorithm that the settings allow is right; with another allow-list it is not."""
    issuer = TokenIssuer(algorithm=algorithm)
    name = issuer.header()["alg"]
    allowed, other = attrs.evolve(SETTINGS, algorithms=(name,)), ("RS256" if name != "RS256" else "ES256",)
    tokens = make(FakeSource(issuer), allowed)
    assert tokens.verify(issuer.sign()).name == "ci:robot"
    assert tokens.find(issuer.sign()) == Identity("ci:robot", frozenset(), "jwt", lambda: True)
    assert "algorithm" in is_refused(issuer.sign(), make(FakeSource(issuer), attrs.evolve(SETTINGS, algorithms=other)))


# Tokens as issuers make them


def test_a_service_account_token_of_kubernetes() -> None:
    """A projected token: no `typ`, several audiences, claims below a key with a dot."""
    cluster = TokenIssuer("https://kubernetes.default.svc.cluster.local", "https://dockyard.test", kid="kXq3")
    claims = cluster.claims(
        aud=["https://dockyard.test", "https://kubernetes.default.svc.cluster.local"],
        sub="system:serviceaccount:prod:puller",
        jti="9b4b5d9e-4f3c-4b87-8f4a-3b0f0d3c7a6e",
        **{
            "kubernetes.io": {
                "namespace": "prod",
                "node": {"name": "node-1", "uid": "5a1f"},
                "pod": {"name": "app-0", "uid": "77e1"},
                "serviceaccount": {"name": "puller", "uid": "0c2d"},
                "warnafter": int(time.time()) + 300,
            }
        },
    )
    token = cluster.sign(claims, cluster.header(typ=None))
    settings = JwtIssuer("cluster", cluster.url, "https://dockyard.test", "keys.json")
    assert make(FakeSource(cluster), settings).verify(token).name == "cluster:system:serviceaccount:prod:puller"
    by_namespace = attrs.evolve(
        settings, name_claim="/kubernetes.io/serviceaccount/name", groups_claim="/kubernetes.io/namespace"
    )
    identity = make(FakeSource(cluster), by_namespace).verify(token)
    assert (identity.name, identity.groups) == ("cluster:puller", {"cluster:prod"})


def test_a_token_of_github_actions() -> None:
    """With `x5t` in its header, which is ignored, and an audience that the workflow has chosen."""
    github = TokenIssuer("https://token.actions.githubusercontent.com", "dockyard.example.com", kid="38826b17")
    claims = github.claims(
        sub="repo:acme/app:ref:refs/heads/main",
        jti="6f8a", actor="octocat", actor_id="583231", ref="refs/heads/main", ref_type="branch", run_id="1",
        repository="acme/app", repository_owner="acme", repository_id="42", repository_visibility="private",
        job_workflow_ref="acme/app/.github/workflows/build.yml@refs/heads/main", environment="prod",
        enterprise=None, runner_environment="github-hosted", workflow="build", event_name="push",
    )  # fmt: skip
    token = github.sign(claims, github.header(x5t="ykNaY4qM_ta4k2TgZOCEYLkcYlA"))
    settings = JwtIssuer("github", github.url, github.audience, "keys.json", groups_claim="repository_owner")
    identity = make(FakeSource(github), settings).verify(token)
    assert identity.name == "github:repo:acme/app:ref:refs/heads/main"
    assert identity.groups == {"github:acme"}


def test_a_token_of_gitlab() -> None:
    """An ID token of a job, with groups as a list."""
    gitlab = TokenIssuer(
        "https://gitlab.example.com", "https://dockyard.test", kid="4i3sFE7sxqNPOT7FdvcGA1ZVGGI_r-tsDXnEuYT4ZqE"
    )
    claims = gitlab.claims(
        sub="project_path:group/app:ref_type:branch:ref:main",
        project_id="22", project_path="group/app", namespace_id="72", namespace_path="group", user_id="1",
        user_login="jane", user_email="jane@example.com", user_access_level="owner", pipeline_id="574",
        pipeline_source="push", job_id="302", ref="main", ref_type="branch", ref_protected="true",
        groups_direct=["group", "group/team"], ci_config_ref_uri="gitlab.example.com/group/app//.gitlab-ci.yml@main",
    )  # fmt: skip
    settings = JwtIssuer(
        "gitlab", gitlab.url, gitlab.audience, "keys.json", name_claim="project_path", groups_claim="groups_direct"
    )
    identity = make(FakeSource(gitlab), settings).verify(gitlab.sign(claims))
    assert (identity.name, identity.groups) == ("gitlab:group/app", {"gitlab:group", "gitlab:group/team"})


# Which tokens are ours


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x",
        "...",
        "a.b.c",
        "ghp_" + "x" * 36,
        "dckr_pat_" + "x" * 27,
        TokenIssuer("https://auth.docker.io").sign(),
        ISSUER.sign(ISSUER.claims(iss=None)),
        ISSUER.sign(ISSUER.claims(iss=["https://issuer.test"])),
        ISSUER.sign(ISSUER.claims(iss=None, act={"iss": ISSUER.url})),
        ISSUER.sign(json.dumps([["iss", ISSUER.url]])),
        ISSUER.sign("5"),
        ISSUER.sign('"iss"'),
        ISSUER.sign("[" * 5000),
        f"{encode(b'{}')}.{encode(b'{')}.x",
    ],
    ids=count(),
)
def test_tokens_of_others_are_not_ours(text: str) -> None:
    """They may be logins for an upstream."""
    assert not make().is_ours(text)
    assert not Tokens([]).is_ours(text)


@pytest.mark.parametrize(
    "token",
    [
        ISSUER.sign(),
        ISSUER.sign(ISSUER.claims(exp=1)),
        ISSUER.sign(ISSUER.claims(aud="other")),
        f" {ISSUER.sign()}\n",
        f"Bearer {ISSUER.sign()}",
        f"{ISSUER.sign()} x",
        TokenIssuer("https://issuer.test/").sign(),
        TokenIssuer("HTTPS://ISSUER.TEST").sign(),
        ISSUER.sign('\ufeff{"iss": "https://issuer.test"}'),
        ISSUER.sign() + "x",
        ISSUER.sign() + ".x.y",
        ISSUER.sign().rpartition(".")[0],
        ISSUER.sign().rpartition(".")[0] + ".",
        "!." + ISSUER.sign().partition(".")[2],
        "." + ISSUER.sign().partition(".")[2],
        ISSUER.sign('{"iss": "https://issuer.test", "iss": "other"}'),
        ISSUER.sign('{"iss": "other", "iss": "https://issuer.test"}'),
        ISSUER.sign('{"iss": "https://issuer.test", "x": NaN}'),
        ISSUER.sign('{"\\u0069ss": "https:\\/\\/issuer.test"}'),
        "e30." + base64.b64encode(b'{"iss": "https://issuer.test", "?": "\xc3\xbf\xc3\xbf\xc3\xbf"}').decode() + ".x",
    ],
    ids=count(),
)
def test_tokens_that_name_us_are_ours(token: str) -> None:
    """However wrong they are: no upstream may get them."""
    assert make().is_ours(token)


def test_an_issuer_that_is_written_in_another_way_is_another() -> None:
    """Its tokens are wrong, and the log says why."""
    with pytest.raises(LoginRequired) as caught:
        make().verify(TokenIssuer("https://issuer.test/").sign())
    assert caught.value.details is not None
    assert caught.value.details.error == "its iss is not exactly `issuer` in access.jwt"


# Forged tokens


def forge(**claims: object) -> str:
    """A token of the issuer with other claims."""
    return ISSUER.sign(ISSUER.claims(**claims))


def forge_header(**members: object) -> str:
    """A token of the issuer, signed, with another header."""
    return ISSUER.sign(None, ISSUER.header(**members))


NOW = int(time.time())
OTHER = TokenIssuer(number=1)
SIGNED = ISSUER.sign().split(".")


@pytest.mark.parametrize(
    ("token", "reason"),
    [
        # Not signed by the issuer
        (OTHER.sign(), "no key"),
        (OTHER.sign(None, OTHER.header(kid=None)), "no key"),
        (TokenIssuer(algorithm="RS512").sign(None, ISSUER.header()), "no key"),
        (TokenIssuer(algorithm="PS256").sign(None, ISSUER.header()), "no key"),
        (TokenIssuer(algorithm="ES256").sign(), "no key"),
        (ISSUER.sign()[:-4] + "AAAA", "no key"),
        (ISSUER.sign().rpartition(".")[0] + ".AAAA", "no key"),
        (".".join([SIGNED[0], encode_json(ISSUER.claims(sub="admin")), SIGNED[2]]), "no key"),
        # No signature
        (f"{encode_json({'alg': 'none'})}.{encode_json(ISSUER.claims())}.", "not a signed token"),
        (f"{encode_json({'alg': 'none'})}.{encode_json(ISSUER.claims())}.AAAA", "none or symmetric"),
        (f"{encode_json({'alg': 'None', 'kid': 'key-1'})}.{encode_json(ISSUER.claims())}.AAAA", "none or symmetric"),
        (forge_header(alg="nOnE"), "none or symmetric"),
        (forge_header(alg=None), "none or symmetric"),
        (forge_header(alg=""), "not in access.jwt.algorithms"),
        (forge_header(alg=["RS256"]), "none or symmetric"),
        (ISSUER.sign().rpartition(".")[0], "not a signed token"),
        # A public key as the secret of an HMAC
        *((sign_with_public_key(ISSUER, form), "none or symmetric") for form in ("pem", "der", "jwk", "empty")),
        (forge_header(alg="HS512"), "none or symmetric"),
        # Algorithms that are not allowed
        (forge_header(alg="RS384"), "not in access.jwt.algorithms"),
        (forge_header(alg="rs256"), "not in access.jwt.algorithms"),
        (forge_header(alg="ES256K"), "not in access.jwt.algorithms"),
        (forge_header(alg="ES256"), "no key"),
        # Keys that the token brings along
        (OTHER.sign(None, OTHER.header(jwk=OTHER.jwk())), "no key"),
        (OTHER.sign(None, OTHER.header(jku="https://evil.test/keys.json")), "no key"),
        (OTHER.sign(None, OTHER.header(x5u="https://evil.test/cert.pem", x5c=["MII"])), "no key"),
        (forge_header(kid="../../../../dev/null"), "no key"),
        (forge_header(kid="' OR 1=1 --"), "no key"),
        (forge_header(kid=""), "no key"),
        (forge_header(kid=5), "kid"),
        (forge_header(kid=["key-1"]), "kid"),
        (forge_header(kid="x" * 1000), "kid"),
        # Headers that change what is signed
        (forge_header(crit=["exp"]), "crit"),
        (forge_header(crit=[]), "crit"),
        (forge_header(b64=False, crit=["b64"]), "crit"),
        (forge_header(b64=True), "b64"),
        (forge_header(typ="logout+jwt"), "typ"),
        (forge_header(typ="secevent+jwt"), "typ"),
        (forge_header(typ=5), "typ"),
        (ISSUER.sign(None, "[]"), "malformed"),
        (ISSUER.sign(None, '{"alg": "RS256", "alg": "none", "kid": "key-1"}'), "malformed"),
        (ISSUER.sign(None, '{"alg": "RS256", "kid": NaN}'), "malformed"),
        (ISSUER.sign(None, "{"), "malformed"),
        (ISSUER.sign(None, "[" * 3000), "malformed"),
        # Claims
        (ISSUER.sign('{"iss": "https://issuer.test", "iss": "https://issuer.test", "aud": "dockyard"}'), "malformed"),
        (ISSUER.sign('{"iss": "https://issuer.test", "aud": "dockyard", "exp": 1e999}'), "malformed"),
        (forge(aud="other"), "aud"),
        (forge(aud=None), "aud"),
        (forge(aud=""), "aud"),
        (forge(aud=[]), "aud"),
        (forge(aud=["other"]), "aud"),
        (forge(aud="DOCKYARD"), "aud"),
        (forge(aud="dockyard2"), "aud"),
        (forge(aud={"dockyard": 1}), "aud"),
        (forge(aud=[["dockyard"]]), "aud"),
        (forge(aud=["dockyard", 5]), "InvalidAudienceError"),
        (forge(exp=None), "exp is missing"),
        (forge(exp=NOW - 120), "expired"),
        (forge(exp=0), "expired"),
        (forge(exp=-5), "expired"),
        (forge(exp=True), "expired"),
        (forge(exp="9999999999"), "time"),
        (forge(exp=[9999999999]), "time"),
        (forge(exp=10**300), "time"),
        (forge(exp={}), "time"),
        (forge(nbf=NOW + DAY_S), "future"),
        (forge(nbf="soon"), "time"),
        (forge(iat=NOW + DAY_S), "future"),
        (forge(iat=[]), "time"),
        (forge(sub=None), "claim sub"),
        (forge(sub=""), "claim sub"),
        (forge(sub="a\nb"), "claim sub"),
        (forge(sub="a\x00b"), "claim sub"),
        (forge(sub="a\x7fb"), "claim sub"),
        (forge(sub="a\u2028b"), "claim sub"),
        (forge(sub="a\u202eb"), "claim sub"),
        (forge(sub="a\ud800b"), "claim sub"),
        (forge(sub="x" * (MAX_NAME_CHARS + 1)), "claim sub"),
        (forge(sub=5), "InvalidSubjectError"),
        (forge(sub=["robot"]), "InvalidSubjectError"),
        # Not of three parts
        (ISSUER.sign() + ".x", "not a signed token"),
        (ISSUER.sign() + ".x.y", "not a signed token"),
        (ISSUER.sign().replace(".", f".{encode_json(ISSUER.claims())}.", 1), "not a signed token"),
        (ISSUER.sign() + "=", "not a signed token"),
        (ISSUER.sign() + "\u00e9", "not a signed token"),
        (ISSUER.sign() + "!!!!", "not a signed token"),
    ],
    ids=count(),
)  # fmt: skip
def test_a_forged_token_is_refused(token: str, reason: str) -> None:
    """It is ours and wrong: never a client without a login, and never one for an upstream."""
    assert reason in is_refused(token)


@pytest.mark.parametrize(
    ("claims", "is_right"),
    [
        ({"exp": NOW - MAX_SKEW_S + 30}, True),
        ({"exp": NOW - MAX_SKEW_S - 30}, False),
        ({"nbf": NOW + MAX_SKEW_S - 30}, True),
        ({"nbf": NOW + MAX_SKEW_S + 30}, False),
        ({"iat": NOW + MAX_SKEW_S - 30}, True),
        ({"iat": NOW + MAX_SKEW_S + 30}, False),
        ({"nbf": None, "iat": None}, True),
        ({"exp": NOW + 300.5}, True),
        ({"exp": NOW + 10 * 365 * 86400}, True),
    ],
    ids=count(),
)
def test_clocks_may_differ_by_a_minute(claims: dict[str, object], is_right: bool) -> None:  # noqa: FBT001
    """The times of a token, relative to the clock of this machine, which the test allows half a minute."""
    now = int(time.time())
    moved = {name: value + now - NOW if isinstance(value, int | float) else value for name, value in claims.items()}
    if is_right:
        assert make().verify(forge(**moved)).name == "ci:robot"
    else:
        is_refused(forge(**moved))


def test_a_type_of_token_is_written_in_each_case() -> None:
    """`JWT`, an access token (RFC 9068), or nothing."""
    for kind in ("JWT", "jwt", "at+jwt", "application/at+JWT", None):
        assert make().verify(forge_header(typ=kind)).name == "ci:robot"


def test_a_name_may_have_other_letters() -> None:
    """Any that can be printed."""
    assert make().verify(forge(sub="J\u00fcrgen M. \u5c71")).name == "ci:J\u00fcrgen M. \u5c71"


@pytest.mark.parametrize(
    ("claim", "name"),
    [
        ("sub", "robot"),
        ("https://example.com/user", "jane"),
        ("/a/b", "deep"),
        ("/a~1b/~0c", "escaped"),
        ("/list/1", "second"),
        ("/list/01", None),
        ("/list/9", None),
        ("/list/-", None),
        ("/list/\u0661", None),
        ("/a/b/c", None),
        ("/a/x", None),
        ("/", None),
        ("/a", None),
        ("missing", None),
        ("a/b", None),
        ("number", None),
        ("/number", None),
        ("null", None),
    ],
)
def test_the_claim_with_the_name(claim: str, name: str | None) -> None:
    """A key, or a JSON Pointer; a claim that is missing or no text refuses the token."""
    token = forge(
        **{
            "https://example.com/user": "jane",
            "a": {"b": "deep"},
            "a/b": {"~c": "escaped"},
            "list": ["first", "second"],
            "number": 5,
        }
    )
    tokens = make(settings=attrs.evolve(SETTINGS, name_claim=claim))
    if name is None:
        assert "claim" in is_refused(token, tokens)
    else:
        assert tokens.verify(token).name == f"ci:{name}"


@pytest.mark.parametrize(
    ("value", "groups"),
    [
        (None, set()),
        ([], set()),
        ("dev", {"ci:dev"}),
        (["dev", "ops", "dev"], {"ci:dev", "ci:ops"}),
        (["group/team:x"], {"ci:group/team:x"}),
        (5, None),
        ({"dev": 1}, None),
        (["dev", 5], None),
        (["dev", ""], None),
        (["de\nv"], None),
        ("", None),
        (["x" * (MAX_NAME_CHARS + 1)], None),
        ([f"g{number}" for number in range(MAX_GROUPS + 1)], None),
    ],
)
def test_the_claim_with_the_groups(value: object, groups: set[str] | None) -> None:
    """A text or a list of texts; anything else refuses the token."""
    tokens = make(settings=attrs.evolve(SETTINGS, groups_claim="groups"))
    if groups is None:
        assert "claim groups" in is_refused(forge(groups=value), tokens)
    else:
        assert tokens.verify(forge(groups=value)).groups == groups
    assert make().verify(forge(groups=value)).groups == frozenset()


# Keys


def test_a_token_without_a_kid() -> None:
    """All keys that fit are tried."""
    source = FakeSource(OTHER, TokenIssuer(kid=None, number=2), ISSUER)
    assert make(source).verify(forge_header(kid=None)).name == "ci:robot"
    assert make(source).find(forge_header(kid=None))


def test_an_unknown_kid_refreshes_the_keys() -> None:
    """Once; a known one does not, even if its signature is wrong."""
    new = TokenIssuer(kid="new", number=1)
    source = FakeSource(ISSUER)
    source.may_refresh = True
    tokens = make(source)
    assert tokens.find(new.sign()) is None
    assert source.calls == []
    source.next = _parse(ISSUER, new)
    assert tokens.verify(new.sign()).name == "ci:robot"
    assert source.calls == ["read", "refresh"]
    assert tokens.find(new.sign())
    with pytest.raises(LoginRequired):
        tokens.find(OTHER.sign())
    with pytest.raises(LoginRequired):
        tokens.verify(OTHER.sign())
    assert source.calls == ["read", "refresh", "read"]


def test_an_unknown_kid_is_refused_without_blocking_if_no_refresh_is_allowed() -> None:
    """Forged tokens do not keep threads busy."""
    source = FakeSource(ISSUER)
    with pytest.raises(LoginRequired):
        make(source).find(TokenIssuer(kid="new", number=1).sign())
    assert source.calls == []


def test_keys_that_were_never_read() -> None:
    """The token can be neither right nor wrong; what is wrong without a key is wrong."""
    tokens = make(FakeSource())
    assert tokens.find(ISSUER.sign()) is None
    with pytest.raises(Unavailable) as caught:
        tokens.verify(ISSUER.sign())
    assert caught.value.retry_after_s == 7
    with pytest.raises(LoginRequired):
        tokens.verify(forge(aud="other"))
    with pytest.raises(LoginRequired):
        tokens.find(forge_header(alg="none"))


def test_keys_that_are_due_are_read_first() -> None:
    """Not where nothing may block."""
    source = FakeSource(ISSUER)
    source.is_due = True
    tokens = make(source)
    assert tokens.find(ISSUER.sign()) is None
    assert tokens.verify(ISSUER.sign()).name == "ci:robot"


def test_an_identity_is_current_while_the_keys_stay() -> None:
    """Other keys, or keys that must be read, verify it again."""
    source = FakeSource(ISSUER)
    identity = make(source).verify(ISSUER.sign())
    assert identity.is_current()
    source.is_due = True
    assert not identity.is_current()
    source.is_due = False
    source.keys = _parse(ISSUER)
    assert not identity.is_current()


@pytest.mark.parametrize(("lifetime_s", "remember_s"), [(600, MAX_REMEMBERED_S), (20, 20.0), (0, 0.0), (-30, 0.0)])
def test_a_token_is_remembered_no_longer_than_it_is_valid(lifetime_s: int, remember_s: float) -> None:
    """And at most for a minute."""
    now = int(time.time())
    tokens = Tokens([SETTINGS], lambda _: FakeSource(ISSUER), clock=lambda: now)
    assert tokens.verify(forge(exp=now + lifetime_s)).remember_s == remember_s


def test_several_issuers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each token is verified by keys of its issuer. Two clusters may have the same `iss`: then each has its keys."""
    east, west = TokenIssuer(kid="east"), TokenIssuer(kid="west", number=1)
    other = TokenIssuer("https://other.test", kid="other", number=2)
    sources = {"east": FakeSource(east), "west": FakeSource(west), "other": FakeSource(other)}
    settings = [
        JwtIssuer("east", ISSUER.url, "dockyard", "1"),
        JwtIssuer("west", ISSUER.url, "dockyard", "2"),
        JwtIssuer("other", other.url, "dockyard", "3"),
    ]
    find: Callable[[JwtIssuer], Any] = lambda issuer: sources[issuer.name]  # noqa: E731
    tokens = Tokens(settings, find)
    for issuer in (east, west, other):
        assert tokens.verify(issuer.sign()).name == f"{issuer.kid}:robot"
        assert tokens.find(issuer.sign())
    assert [source.calls.count("refresh") for source in sources.values()] == [0, 0, 0]
    # The keys of one issuer are worth nothing for another, and `other` does not say so by its `iss`.
    is_refused(other.sign(other.claims(iss=ISSUER.url)), tokens)
    is_refused(east.sign(east.claims(iss=other.url)), tokens)
    # A token that one of them may have signed is not wrong while the keys of the other are unknown.
    sources["west"].keys = None
    assert tokens.verify(east.sign()).name == "east:robot"
    with pytest.raises(Unavailable):
        tokens.verify(west.sign())


def test_two_audiences_of_one_issuer() -> None:
    """The audience tells which settings hold."""
    settings = [JwtIssuer(name, ISSUER.url, name, "x") for name in ("one", "two")]
    tokens = Tokens(settings, lambda _: FakeSource(ISSUER))
    assert tokens.verify(forge(aud="two")).name == "two:robot"
    assert tokens.verify(forge(aud=["x", "one"])).name == "one:robot"
    is_refused(forge(aud="three"), tokens)


def test_the_number_of_tried_keys_has_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """A token without a kid does not make a long computation."""
    tried: list[object] = []
    monkeypatch.setattr(module, "_find_claims", lambda text, key, *_: tried.append(key))
    issuers = [TokenIssuer(kid=f"k{number}", algorithm="ES256", number=number) for number in range(30)]
    with pytest.raises(LoginRequired):
        make(FakeSource(*issuers)).find(issuers[0].sign(None, issuers[0].header(kid=None)))
    assert len(tried) == module.MAX_TRIED_KEYS
