"""The headers of an answer: what it is, how fresh it is, and whether the client has it already.

Sources: RFC 9110 sections 8.8 and 13 (validators, conditions), RFC 9111 (freshness), RFC 9211 (Cache-Status), and the
OCI distribution specification, "Pulling manifests", "Pulling blobs" and "Warnings".
"""

import time
from typing import Protocol

import falcon.asgi

from dockyard.errors import RegistryError, TooManyRequests
from dockyard.oci.reference import Digest

YEAR_S = 31_536_000
_STATUS = {
    "miss": "fwd=uri-miss; stored",
    "asked": "fwd=uri-miss",
    "joined": "fwd=uri-miss; collapsed",
    "match": "fwd=stale; fwd-status=200; detail=head-match",
    "checked": "fwd=stale; fwd-status=200",
    "changed": "fwd=stale; stored",
}


class Answered(Protocol):
    """How a request was answered. `checked_at` (seconds since the epoch) is None for content that cannot change."""

    @property
    def how(self) -> str:
        """hit, miss, asked, joined, match, checked, changed or stale."""

    @property
    def checked_at(self) -> float | None:
        """When the upstream last confirmed it."""

    @property
    def error(self) -> RegistryError | None:
        """Why it is stale."""


def content_headers(digest: Digest, content_type: str) -> dict[str, str]:
    """What every 200, 206 and 304 says of its content."""
    return {
        "accept-ranges": "bytes",
        "content-type": content_type,
        "docker-content-digest": str(digest),
        "etag": f'"{digest}"',
    }


def freshness_headers(answered: Answered, *, is_public: bool) -> dict[str, str]:
    """Cache-Control, Cache-Status, and for tags Age; a stale answer carries a Warning that clients may show."""
    if answered.checked_at is None:
        status = f"hit; ttl={YEAR_S}" if answered.how == "hit" else _STATUS[answered.how]
        scope = "public" if is_public else "private"
        return {
            "cache-control": f"{scope}, max-age={YEAR_S}, immutable",
            "cache-status": f"Dockyard; {status}",
        }
    age = max(int(time.time() - answered.checked_at), 0)
    headers = {"cache-control": "no-cache", "age": str(age)}
    if answered.error is not None:
        headers["cache-status"] = f"Dockyard; {_stale_status(answered.error, age)}"
        headers["warning"] = '299 - "served from cache: the upstream could not be asked"'
    else:
        status = "hit" if answered.how == "hit" else _STATUS[answered.how]
        headers["cache-status"] = f"Dockyard; {status}"
    return headers


def redirect_headers(url: str) -> dict[str, str]:
    """Where a blob is instead; nobody may keep the URL, which is valid for a while only."""
    return {"location": url, "cache-control": "no-store", "cache-status": "Dockyard; hit; detail=redirect"}


def is_not_modified(req: falcon.asgi.Request, digest: Digest) -> bool:
    """Whether If-None-Match names this digest: quoted, weak, in a list, `*`, or bare as some clients send it."""
    wanted = req.get_header("If-None-Match")
    if not wanted:
        return False
    tags = (tag.strip().removeprefix("W/").strip('"') for tag in wanted.split(","))
    return any(tag in {"*", str(digest)} for tag in tags)


def range_applies(req: falcon.asgi.Request, digest: Digest) -> bool:
    """Whether Range may be looked at: there is no If-Range, or it names this digest (RFC 9110 section 13.1.5)."""
    condition = req.get_header("If-Range")
    return condition is None or condition.strip() == f'"{digest}"'


def _stale_status(error: RegistryError, age: int) -> str:
    if error.remembered:
        return f"hit; ttl=-{max(age, 1)}; detail=breaker"
    answered = "fwd-status=429; " if isinstance(error, TooManyRequests) else ""
    return f"fwd=stale; {answered}ttl=-{max(age, 1)}; detail=stale-if-error"
