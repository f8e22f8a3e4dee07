"""JSON Web Tokens (RFC 7519) of the issuers in `access.jwt`, signed with their keys. Blocking, for many threads.

What is checked (RFC 8725): the algorithm is one that the settings allow for the issuer, and one of the key; the key is
one of the issuer, chosen by `kid`. Keys and URLs in the header of a token are never used. Then issuer, audience and
times: `exp` is required, and clocks may differ by MAX_SKEW_S.

A text is a token of ours if its claims, whatever they are worth, name one of our issuers: it is right or wrong here,
and nobody else gets it.
"""

import base64
import binascii
import json
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final

import attrs
import jwt

from dockyard.access.identities import MAX_REMEMBERED_S, Identity
from dockyard.access.json_objects import parse_object
from dockyard.access.jwks import KeySource, KeysUnavailable, make_source
from dockyard.access.keys import MAX_KEY_ID_CHARS, Key, KeySet
from dockyard.config.settings import JwtIssuer
from dockyard.errors import FailureDetails, LoginRequired, Unavailable

MAX_SKEW_S: Final = 60.0
MAX_TIME_S: Final = 2**53  # since the epoch
MAX_NAME_CHARS: Final = 512
MAX_GROUPS: Final = 256
MAX_TRIED_KEYS: Final = 16
STAGE: Final = "token"
NO_KEY: Final = "no key of its issuer has signed it"

_TOKEN: Final = re.compile(r"([A-Za-z0-9_-]+)\.([A-Za-z0-9_-]+)\.([A-Za-z0-9_-]+)", re.ASCII)
_CLAIMS: Final = re.compile(r"[^.\s]*\.([A-Za-z0-9_/+=-]+)(?:\..*)?", re.ASCII | re.DOTALL)
_TYPES: Final = frozenset({"jwt", "at+jwt", "application/jwt", "application/at+jwt"})


@attrs.frozen
class _Issuer:
    settings: JwtIssuer
    keys: KeySource


class _Refused(Exception):
    """A token is wrong. `reason` is for the log, `message` for the client."""

    def __init__(self, reason: str, message: str = "the token is not valid") -> None:
        super().__init__(reason)
        self.reason = reason
        self.message = message


@attrs.frozen
class _Request:
    """A token whose signature is to be verified: by keys of which issuers, and by which key of theirs."""

    text: str = attrs.field(repr=False)
    algorithm: str
    key_id: str | None
    issuers: Sequence[_Issuer]


class Tokens:
    """Verifies tokens."""

    def __init__(
        self,
        issuers: Sequence[JwtIssuer],
        make_source: Callable[[JwtIssuer], KeySource] = make_source,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._issuers = [_Issuer(issuer, make_source(issuer)) for issuer in issuers]
        self._names = frozenset(_fold(issuer.issuer) for issuer in issuers)
        self._clock = clock

    def is_ours(self, text: str) -> bool:
        """Return whether a text is, or contains, a token that names one of our issuers, whatever else is in it."""
        if not self._names:
            return False
        return any(_fold(name) in self._names for word in text.split() for name in _find_named_issuers(word))

    def find(self, text: str) -> Identity | None:
        """Verify a token of ours by the keys in memory; None if others must be read. Does not block.

        Raises LoginRequired.
        """
        with _as_login_errors():
            request = self._parse(text.strip())
            found = [(issuer, issuer.keys.find()) for issuer in request.issuers]
            sets = [(issuer, keys) for issuer, keys in found if keys is not None]
            if identity := self._try(request, sets):
                return identity
            if len(sets) < len(found) or any(issuer.keys.may_refresh for issuer in _find_unknown(request, sets)):
                return None
            raise _Refused(NO_KEY)

    def verify(self, text: str) -> Identity:
        """Verify a token of ours. Blocks. Raises LoginRequired, Unavailable if its keys were never read."""
        with _as_login_errors():
            request = self._parse(text.strip())
            unavailable: KeysUnavailable | None = None
            sets = []
            for issuer in request.issuers:
                try:
                    sets.append((issuer, issuer.keys.read()))
                except KeysUnavailable as exc:
                    unavailable = exc
            if identity := self._try(request, sets):
                return identity
            unknown = _find_unknown(request, sets)
            if identity := self._try(request, [(issuer, issuer.keys.refresh()) for issuer in unknown]):
                return identity
            if unavailable is not None:
                raise Unavailable("the token cannot be verified now", retry_after_s=unavailable.retry_after_s)
            raise _Refused(NO_KEY)

    def _parse(self, text: str) -> _Request:
        """Check all of a token that needs no key. Raises _Refused."""
        header, claims = _parse_token(text)
        algorithm, key_id = _check_header(header)
        if all(claims.get("iss") != issuer.settings.issuer for issuer in self._issuers):
            raise _Refused("its iss is not exactly `issuer` in access.jwt")
        issuers = [issuer for issuer in self._issuers if _is_for(claims, issuer.settings)]
        if not issuers:
            raise _Refused("the claim aud has no audience of this issuer", "the token is for another audience")
        issuers = [issuer for issuer in issuers if algorithm in issuer.settings.algorithms]
        if not issuers:
            raise _Refused("the algorithm is not in access.jwt.algorithms")
        return _Request(text, algorithm, key_id, issuers)

    def _try(self, request: _Request, sets: Sequence[tuple[_Issuer, KeySet]]) -> Identity | None:
        """Return the identity of a token if one of these keys has signed it. Raises _Refused for its claims."""
        for issuer, keys in sets:
            for key in keys.find(request.key_id, request.algorithm)[:MAX_TRIED_KEYS]:
                claims = _find_claims(request.text, key, request.algorithm, issuer.settings)
                if claims is not None:
                    return self._identify(claims, issuer, keys)
        return None

    def _identify(self, claims: Mapping[str, Any], issuer: _Issuer, keys: KeySet) -> Identity:
        settings = issuer.settings
        name = f"{settings.name}:{_find_name(claims, settings.name_claim)}"
        groups = frozenset(f"{settings.name}:{group}" for group in _find_groups(claims, settings.groups_claim))

        def is_current() -> bool:
            return issuer.keys.find() is keys

        remember_s = min(MAX_REMEMBERED_S, max(0.0, claims["exp"] - self._clock()))
        return Identity(name, groups, "jwt", is_current, remember_s)


@contextmanager
def _as_login_errors() -> Iterator[None]:
    """Raise LoginRequired instead of _Refused."""
    try:
        yield
    except _Refused as exc:
        raise LoginRequired(exc.message, details=FailureDetails(error=exc.reason, stage=STAGE)) from None


def _find_unknown(request: _Request, sets: Sequence[tuple[_Issuer, KeySet]]) -> list[_Issuer]:
    """Return the issuers that may have signed a token with a key that is not among these."""
    return [issuer for issuer, keys in sets if request.key_id is None or not keys.has_key_id(request.key_id)]


def _fold(issuer: str) -> str:
    """An issuer without what others, and settings, write in another way."""
    return issuer.strip().rstrip("/").casefold()


def _find_named_issuers(text: str) -> list[str]:
    """Return each `iss` in the claims of what looks like a token; a parser of others may use any of them."""
    match = _CLAIMS.fullmatch(text)
    if match is None:
        return []
    try:
        data = base64.b64decode(match[1].replace("-", "+").replace("_", "/").rstrip("=") + "==")
        pairs = json.loads(data.decode("utf-8-sig", "replace"), object_pairs_hook=list)
    except (ValueError, RecursionError):
        return []
    if not isinstance(pairs, list):
        return []
    return [pair[1] for pair in pairs if isinstance(pair, tuple) and pair[0] == "iss" and isinstance(pair[1], str)]


def _parse_token(text: str) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """Return the header and the claims of a token, which are not verified. Raises _Refused."""
    match = _TOKEN.fullmatch(text)
    if match is None:
        raise _Refused("it is not a signed token")
    try:
        header, claims = (
            parse_object(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4))) for part in match.groups()[:2]
        )
    except (ValueError, binascii.Error):
        raise _Refused("it is malformed") from None
    times = [claims[name] for name in ("exp", "nbf", "iat") if name in claims]
    if not all(isinstance(time, int | float) and abs(time) < MAX_TIME_S for time in times):
        raise _Refused("a time in it is not a number of seconds")
    return header, claims


def _check_header(header: Mapping[str, Any]) -> tuple[str, str | None]:
    """Return the algorithm and the `kid`. Raises _Refused."""
    algorithm, key_id, kind = header.get("alg"), header.get("kid"), header.get("typ", "JWT")
    if "crit" in header or "b64" in header:
        raise _Refused("its header has crit or b64, which are not supported")
    if not isinstance(kind, str) or kind.lower() not in _TYPES:
        raise _Refused("its typ is not JWT")
    if not isinstance(algorithm, str) or algorithm.startswith("HS") or algorithm.lower() == "none":
        raise _Refused("its algorithm is none or symmetric")
    if key_id is not None and not (isinstance(key_id, str) and len(key_id) <= MAX_KEY_ID_CHARS):
        raise _Refused("its kid is malformed")
    return algorithm, key_id


def _is_for(claims: Mapping[str, Any], issuer: JwtIssuer) -> bool:
    """Return whether a token is of this issuer and for its audience, by claims that are not verified."""
    audience = claims.get("aud")
    return claims.get("iss") == issuer.issuer and issuer.audience in (
        audience if isinstance(audience, list) else [audience]
    )


def _find_claims(text: str, key: Key, algorithm: str, issuer: JwtIssuer) -> Mapping[str, Any] | None:
    """Return the verified claims of a token; None if this key has not signed it. Raises _Refused."""
    try:
        return jwt.decode(
            text,
            key.value,
            algorithms=[algorithm],
            audience=issuer.audience,
            issuer=issuer.issuer,
            leeway=MAX_SKEW_S,
            options={"require": ["exp", "iss", "aud"]},
        )
    except (jwt.InvalidSignatureError, jwt.InvalidKeyError, jwt.InvalidAlgorithmError):
        return None
    except jwt.ExpiredSignatureError:
        raise _Refused("it has expired", "the token has expired") from None
    except jwt.ImmatureSignatureError:
        raise _Refused("its nbf or iat is in the future", "the token is not valid yet") from None
    except jwt.MissingRequiredClaimError:
        raise _Refused("exp is missing", "the token has no expiration") from None
    except (jwt.PyJWTError, ValueError, TypeError, OverflowError) as exc:
        raise _Refused(f"its claims are invalid: {type(exc).__name__}") from None


def _find_name(claims: Mapping[str, Any], claim: str) -> str:
    name = _find_claim(claims, claim)
    if not _is_name(name):
        raise _Refused(f"the claim {claim} is not a name", f"the token has no name in the claim {claim}")
    return str(name)


def _find_groups(claims: Mapping[str, Any], claim: str) -> Sequence[Any]:
    found = _find_claim(claims, claim) if claim else None
    groups: list[Any] = [] if found is None else found if isinstance(found, list) else [found]
    if len(groups) > MAX_GROUPS or not all(map(_is_name, groups)):
        raise _Refused(
            f"the claim {claim} is not a list of at most {MAX_GROUPS} names",
            f"the token has no list of names in the claim {claim}",
        )
    return groups


def _is_name(value: object) -> bool:
    """Return whether a value is a text without control characters and the like, for rules and logs."""
    return isinstance(value, str) and 0 < len(value) <= MAX_NAME_CHARS and value.isprintable()


def _find_claim(claims: Mapping[str, Any], claim: str) -> object:
    """Return the value of a claim by its key or its JSON Pointer (RFC 6901); None without one."""
    if not claim.startswith("/"):
        return claims.get(claim)
    found: object = claims
    for part in claim[1:].split("/"):
        key = part.replace("~1", "/").replace("~0", "~")
        if isinstance(found, Mapping):
            found = found.get(key)
        elif isinstance(found, list) and re.fullmatch(r"0|[1-9][0-9]{0,3}", key) and int(key) < len(found):
            found = found[int(key)]
        else:
            return None
    return found
