"""Key sets, and which of their keys may verify a token."""

import json

import pytest

from dockyard.access.keys import MAX_KEYS, parse_key_set
from tests.support.token_issuer import TokenIssuer, key_set, make_key

RSA = TokenIssuer()
ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA", "HS256", "none")


@pytest.mark.parametrize(
    ("issuer", "fitting"),
    [
        (RSA, {"RS256", "RS384", "RS512", "PS256", "PS384", "PS512"}),
        (TokenIssuer(algorithm="ES256"), {"ES256"}),
        (TokenIssuer(algorithm="ES384"), {"ES384"}),
        (TokenIssuer(algorithm="ES512"), {"ES512"}),
        (TokenIssuer(algorithm="EdDSA"), {"EdDSA"}),
        (TokenIssuer(algorithm="Ed448"), {"EdDSA"}),
    ],
)
def test_a_key_fits_the_algorithms_of_its_type(issuer: TokenIssuer, fitting: set[str]) -> None:
    """Those of its type and its curve."""
    keys = parse_key_set(key_set(issuer.jwk()))
    assert {algorithm for algorithm in ALGORITHMS if keys.find("key-1", algorithm)} == fitting
    assert {algorithm for algorithm in ALGORITHMS if keys.find(None, algorithm)} == fitting


@pytest.mark.parametrize(
    ("members", "fitting"),
    [
        ({"alg": "RS512"}, {"RS512"}),
        ({"use": None}, {"RS256", "RS512"}),
        ({"key_ops": ["verify"]}, {"RS256", "RS512"}),
        ({"alg": 5}, {"RS256", "RS512"}),
        ({"x5c": ["MII"], "x5t": "x", "issuer": "https://a.test", "x5u": "https://a.test/"}, {"RS256", "RS512"}),
    ],
)
def test_members_that_restrict_a_key(members: dict[str, object], fitting: set[str]) -> None:
    """`alg`, `use` and `key_ops`; certificates and unknown members change nothing."""
    keys = parse_key_set(key_set(RSA.jwk(**members)))
    assert {algorithm for algorithm in ("RS256", "RS512", "ES256") if keys.find("key-1", algorithm)} == fitting


@pytest.mark.parametrize(
    "members",
    [
        {"use": "enc"},
        {"use": 1},
        {"key_ops": ["encrypt"]},
        {"key_ops": "verify"},
        {"alg": "HS256"},
        {"alg": "none"},
        {"alg": "RSA-OAEP"},
        {"alg": "ES256"},
        {"kty": "oct", "k": "c2VjcmV0"},
        {"kty": "EC"},
        {"kty": None},
        {"kty": ["RSA"]},
        {"kty": "XYZ"},
        {"kid": 5},
        {"kid": "x" * 1000},
        {"n": None},
        {"n": ""},
        {"n": "!"},
        {"n": 5},
        {"e": None},
        {"e": "AA"},
        {"e": "Ag"},
    ],
)
def test_keys_that_are_ignored(members: dict[str, object]) -> None:
    """Symmetric ones, those for other uses, and malformed ones; the others are used."""
    other = TokenIssuer(kid="other", number=1)
    keys = parse_key_set(json.dumps({"keys": [RSA.jwk(**members), 5, None, other.jwk()]}).encode())
    assert [key.key_id for key in keys.keys] == ["other"]
    with pytest.raises(ValueError, match="no public key"):
        parse_key_set(key_set(RSA.jwk(**members)))


def test_a_short_key_is_ignored() -> None:
    """Fewer than 2048 bits of RSA can be factored."""
    numbers = make_key("RSA1024").public_key().public_numbers()
    modulus = RSA.jwk()["n"]
    assert numbers.n.bit_length() == 1024
    with pytest.raises(ValueError, match="no public key"):
        parse_key_set(key_set(RSA.jwk(n=modulus[: len(modulus) // 2])))


def test_a_private_key_is_used_as_a_public_one() -> None:
    """Its private part is not kept."""
    keys = parse_key_set(key_set(RSA.jwk(d="c2VjcmV0", p="c2VjcmV0", q="c2VjcmV0")))
    assert not hasattr(keys.keys[0].value, "private_numbers")
    assert "c2Vj" not in repr(keys)


def test_the_choice_of_keys() -> None:
    """By `kid`; without one all that fit; a key without one is for tokens whose `kid` no key has."""
    one, two, same, nameless, other = (
        TokenIssuer(kid=kid, number=number, algorithm=algorithm)
        for kid, number, algorithm in (
            ("one", 0, "RS256"),
            ("two", 1, "RS256"),
            ("two", 2, "RS256"),
            (None, 3, "RS256"),
            ("two", 0, "ES256"),
        )
    )
    keys = parse_key_set(key_set(*(each.jwk() for each in (one, two, same, nameless, other))))
    by_issuer = dict(zip((one, two, same, nameless, other), keys.keys, strict=True))
    assert keys.find("one", "RS256") == [by_issuer[one]]
    assert keys.find("two", "RS256") == [by_issuer[two], by_issuer[same]]
    assert keys.find("two", "ES256") == [by_issuer[other]]
    assert keys.find("one", "ES256") == []
    assert keys.find("new", "RS256") == [by_issuer[nameless]]
    assert keys.find("new", "ES256") == []
    assert keys.find(None, "RS256") == [by_issuer[each] for each in (one, two, same, nameless)]
    assert keys.has_key_id("one")
    assert not keys.has_key_id("new")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"{}",
        b'{"keys": {}}',
        b'{"keys": []}',
        b'{"keys": "x"}',
        b"\xff",
        b'{"keys": [], "keys": []}',
        b"[" * 100_000,
        b'{"keys": NaN}',
        key_set(*[RSA.jwk()] * (MAX_KEYS + 1)),
        json.dumps(RSA.jwk()).encode(),
    ],
)
def test_what_is_no_key_set(data: bytes) -> None:
    """ValueError, whose message quotes nothing."""
    with pytest.raises(ValueError, match=r"^(is|has) ") as caught:
        parse_key_set(data)
    assert len(str(caught.value)) < 100
