"""The public keys of an issuer: a JSON Web Key Set (RFC 7517), and which of its keys may verify a token.

A key is used for the signature algorithms of its type and curve only, and if it says more (`use`, `key_ops`, `alg`),
for that only. Keys that are for something else, of an unknown type, or malformed are ignored, as the specification
wants it; symmetric keys always. Of a private key only the public part is used.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import attrs
import jwt
from cryptography.exceptions import UnsupportedAlgorithm

from dockyard.access.json_objects import parse_object

MAX_KEYS: Final = 100
MAX_KEY_ID_CHARS: Final = 512
MIN_RSA_BITS: Final = 2048

# By `kty` and `crv` (RFC 7518 section 3.1 and RFC 8037): the public members of a key, and the algorithms it may be for.
_KINDS: Final[Mapping[tuple[str, str], tuple[tuple[str, ...], tuple[str, ...]]]] = {
    ("RSA", ""): (("n", "e"), ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512")),
    ("EC", "P-256"): (("crv", "x", "y"), ("ES256",)),
    ("EC", "P-384"): (("crv", "x", "y"), ("ES384",)),
    ("EC", "P-521"): (("crv", "x", "y"), ("ES512",)),
    ("OKP", "Ed25519"): (("crv", "x"), ("EdDSA",)),
    ("OKP", "Ed448"): (("crv", "x"), ("EdDSA",)),
}


@attrs.frozen(eq=False)
class Key:
    """A public key. `key_id` is its `kid`, if it has one; `algorithms` are those that it may verify."""

    key_id: str | None
    algorithms: frozenset[str]
    value: Any = attrs.field(repr=False)


@attrs.frozen(eq=False)
class KeySet:
    """The usable keys of an issuer."""

    keys: Sequence[Key] = ()

    def has_key_id(self, key_id: str) -> bool:
        return any(key.key_id == key_id for key in self.keys)

    def find(self, key_id: str | None, algorithm: str) -> list[Key]:
        """Return the keys that may verify a token with this `kid` and this `alg`.

        Without a `kid` all that fit are tried; a key without one is tried for each token whose `kid` no key has.
        """
        fitting = [key for key in self.keys if algorithm in key.algorithms]
        if key_id is None:
            return fitting
        return [key for key in fitting if key.key_id == (key_id if self.has_key_id(key_id) else None)]


def parse_key_set(data: bytes) -> KeySet:
    """Parse a key set. Raises ValueError if it has no usable key; the message quotes nothing of it."""
    listed = parse_object(data).get("keys")
    if not isinstance(listed, list):
        raise ValueError("is not a JSON Web Key Set: it has no list of keys")  # noqa: TRY004  a wrong text
    if len(listed) > MAX_KEYS:
        raise ValueError(f"has more than {MAX_KEYS} keys")
    keys = [key for each in listed if isinstance(each, dict) and (key := _find_key(each))]
    if not keys:
        raise ValueError("has no public key for signatures")
    return KeySet(keys)


def _find_key(jwk: Mapping[str, Any]) -> Key | None:
    """Return a key that may verify signatures; None for all others."""
    kind, curve, key_id, operations = (jwk.get(name) for name in ("kty", "crv", "kid", "key_ops"))
    try:
        members, algorithms = _KINDS[str(kind), "" if kind == "RSA" else str(curve)]
    except KeyError:
        return None
    if jwk.get("use", "sig") != "sig" or (operations is not None and "verify" not in _as_list(operations)):
        return None
    allowed = frozenset(algorithms) & {jwk["alg"]} if _is_text(jwk.get("alg")) else frozenset(algorithms)
    if not allowed or not (key_id is None or (_is_text(key_id) and len(key_id) <= MAX_KEY_ID_CHARS)):
        return None
    try:
        value = jwt.PyJWK({"kty": kind} | {name: jwk[name] for name in members}, algorithm=algorithms[0]).key
    except (jwt.PyJWTError, ValueError, TypeError, KeyError, AttributeError, UnsupportedAlgorithm):
        return None
    if kind == "RSA" and value.key_size < MIN_RSA_BITS:
        return None
    return Key(key_id, allowed, value)


def _as_list(value: object) -> list[object]:
    return value if isinstance(value, list) else []


def _is_text(value: object) -> bool:
    return isinstance(value, str)
