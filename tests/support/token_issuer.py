"""An issuer of JSON Web Tokens: its keys, its key set, and tokens that it has signed, or that are forged."""

import base64
import functools
import hashlib
import hmac
import json
import time
from collections.abc import Mapping
from typing import Any

import attrs
import jwt
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, padding, rsa, utils

DAY_S = 24 * 3600  # tables of tests are made long before their tests run

_CURVES = {"ES256": ec.SECP256R1, "ES384": ec.SECP384R1, "ES512": ec.SECP521R1}
_HASHES: dict[str, hashes.HashAlgorithm] = {"256": hashes.SHA256(), "384": hashes.SHA384(), "512": hashes.SHA512()}


def encode(data: bytes) -> str:
    """Base64url without padding."""
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode("ascii")


def encode_json(value: object) -> str:
    """A header or claims as they are in a token; a text is taken as it is."""
    return encode((value if isinstance(value, str) else json.dumps(value)).encode())


@functools.cache
def make_key(kind: str, number: int = 0) -> Any:
    """Return a private key for an algorithm; each number has another one. `RSA1024` is too short."""
    if kind in _CURVES:
        return ec.generate_private_key(_CURVES[kind]())
    match kind:
        case "EdDSA":
            return ed25519.Ed25519PrivateKey.generate()
        case "Ed448":
            return ed448.Ed448PrivateKey.generate()
        case "RSA1024":
            return rsa.generate_private_key(65537, 1024)  # noqa: S505  it must be refused
        case _:
            return rsa.generate_private_key(65537, 2048)


@attrs.frozen
class TokenIssuer:
    """An issuer with one key. `kid` may be None."""

    url: str = "https://issuer.test"
    audience: str = "dockyard"
    algorithm: str = "RS256"
    kid: str | None = "key-1"
    number: int = 0

    @property
    def private_key(self) -> Any:
        return make_key("RSA" if self.algorithm[0] in "RP" else self.algorithm, self.number)

    def jwk(self, **members: object) -> dict[str, Any]:
        """The public key, with other members than usual; None removes one."""
        public = self.private_key.public_key()
        made = {
            "R": jwt.algorithms.RSAAlgorithm,
            "P": jwt.algorithms.RSAAlgorithm,
            "E": jwt.algorithms.ECAlgorithm,
        }.get(self.algorithm[0], jwt.algorithms.OKPAlgorithm)
        if self.algorithm[:2] == "Ed":
            made = jwt.algorithms.OKPAlgorithm
        jwk: dict[str, Any] = json.loads(made.to_jwk(public))  # type: ignore[attr-defined]
        jwk.pop("key_ops", None)
        jwk |= {"kid": self.kid, "use": "sig"} | members
        return {name: value for name, value in jwk.items() if value is not None}

    def claims(self, **claims: object) -> dict[str, Any]:
        """Usual claims, with others than usual; None removes one."""
        now = int(time.time())
        usual = {"iss": self.url, "aud": self.audience, "sub": "robot", "iat": now, "nbf": now, "exp": now + DAY_S}
        return {name: value for name, value in (usual | claims).items() if value is not None}

    def header(self, **members: object) -> dict[str, Any]:
        """The usual header, with other members than usual; None removes one."""
        usual = {"alg": "EdDSA" if self.algorithm == "Ed448" else self.algorithm, "typ": "JWT", "kid": self.kid}
        return {name: value for name, value in (usual | members).items() if value is not None}

    def sign(self, claims: Mapping[str, Any] | str | None = None, header: Mapping[str, Any] | str | None = None) -> str:
        """Return a token. The signature is that of `algorithm`, whatever the header says."""
        text = f"{encode_json(self.header() if header is None else header)}."
        text += encode_json(self.claims() if claims is None else claims)
        return f"{text}.{encode(self.signature(text.encode()))}"

    def signature(self, data: bytes) -> bytes:
        """The signature of some bytes (RFC 7518 section 3)."""
        key, digest = self.private_key, _HASHES.get(self.algorithm[2:], hashes.SHA256())
        match self.algorithm[:2]:
            case "RS":
                return bytes(key.sign(data, padding.PKCS1v15(), digest))
            case "PS":
                return bytes(key.sign(data, padding.PSS(padding.MGF1(digest), digest.digest_size), digest))
            case "ES":
                size = (key.curve.key_size + 7) // 8
                return b"".join(
                    part.to_bytes(size, "big") for part in utils.decode_dss_signature(key.sign(data, ec.ECDSA(digest)))
                )
            case _:
                return bytes(key.sign(data))


def key_set(*keys: Mapping[str, Any]) -> bytes:
    """A JSON Web Key Set."""
    return json.dumps({"keys": keys}).encode()


def sign_with_public_key(issuer: TokenIssuer, form: str) -> str:
    """Return a token with an HMAC whose key is the public key, in one of the forms that libraries have taken for it."""
    public = issuer.private_key.public_key()
    secret = {
        "pem": public.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo),
        "der": public.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo),
        "jwk": json.dumps(issuer.jwk()).encode(),
        "empty": b"",
    }[form]
    text = f"{encode_json(issuer.header(alg='HS256'))}.{encode_json(issuer.claims())}"
    return f"{text}.{encode(hmac.digest(secret, text.encode(), hashlib.sha256))}"
