"""Response headers about content and freshness, and the conditions in request headers.

Sources: RFC 9110 sections 8.8 and 13 (validators, conditions), RFC 9111 (freshness), RFC 9211 (Cache-Status), and the
OCI distribution specification, "Pulling manifests", "Pulling blobs" and "Warnings".
"""

import time
from collections.abc import Mapping
from typing import Protocol

import falcon.asgi

from dockyard.errors import Outage, RegistryError, TooManyRequests
from dockyard.oci.ranges import ByteRange, parse_ranges
from dockyard.oci.reference import Digest
from dockyard.upstream.dialer import Stage

YEAR_S = 31_536_000
UPSTREAM_STAGES = frozenset({*(stage.value for stage in Stage), "token"})
NO_SNIFFING = (b"x-content-type-options", b"nosniff")
_STATUS = {
    "miss": "fwd=uri-miss; stored",
    "asked": "fwd=uri-miss",
    "joined": "fwd=uri-miss; collapsed",
    "match": "fwd=stale; fwd-status=200; detail=head-match",
    "checked": "fwd=stale; fwd-status=200",
    "changed": "fwd=stale; stored",
}


class CachedContent(Protocol):
    """Content and where it came from. `checked_at` (seconds since the epoch) is None for content that cannot change."""

    @property
    def how(self) -> str:
        """hit, miss, asked, joined, match, checked, changed or stale."""

    @property
    def checked_at(self) -> float | None:
        """When the upstream last confirmed the content."""

    @property
    def error(self) -> RegistryError | None:
        """Why the content is stale; None if it is not."""


def content_headers(content: CachedContent, digest: Digest, content_type: str, *, is_public: bool) -> dict[str, str]:
    """The headers of every 200, 206 and 304 with content of this digest, those about freshness included."""
    text = str(digest)
    return {
        "accept-ranges": "bytes",
        "content-type": content_type,
        "docker-content-digest": text,
        "etag": f'"{text}"',
        **freshness_headers(content, is_public=is_public),
    }


def freshness_headers(content: CachedContent, *, is_public: bool) -> dict[str, str]:
    """Cache-Control and Cache-Status; for tags and lists Age; for stale content a Warning that clients may show."""
    if content.checked_at is None:
        status = f"hit; ttl={YEAR_S}" if content.how == "hit" else _STATUS[content.how]
        scope = "public" if is_public else "private"
        return {
            "cache-control": f"{scope}, max-age={YEAR_S}, immutable",
            "cache-status": f"Dockyard; {status}",
        }
    age = max(int(time.time() - content.checked_at), 0)
    headers = {"cache-control": "no-cache", "age": str(age)}
    if content.error is not None:
        headers["cache-status"] = f"Dockyard; {_stale_status(content.error, age)}"
        headers["warning"] = '299 - "served from cache: the upstream could not be asked"'
    else:
        status = "hit" if content.how == "hit" else _STATUS[content.how]
        headers["cache-status"] = f"Dockyard; {status}"
    return headers


def failure_headers(error: RegistryError) -> dict[str, str]:
    """Cache-Status of an error that is a failure of the upstream; nothing for others.

    A Dockyard of an inner tier sees by it that this server works, and may have other content.
    """
    if not isinstance(error, Outage | TooManyRequests) or error.details is None:
        return {}
    if error.details.stage not in UPSTREAM_STAGES:
        return {}
    limited = "; fwd-status=429" if isinstance(error, TooManyRequests) else ""
    forwarded = "detail=breaker" if error.remembered else f"fwd=uri-miss{limited}"
    return {"cache-status": f"Dockyard; {forwarded}"}


def redirect_headers(url: str) -> dict[str, str]:
    """The headers of a redirect to the bucket. The URL expires, so the redirect must not be cached."""
    return {"location": url, "cache-control": "no-store", "cache-status": "Dockyard; hit; detail=redirect"}


def location_headers(req: falcon.asgi.Request, digest: Digest) -> dict[str, str]:
    """Location for Ollama, which requires it in every response to a GET of a blob, also in a 200; nothing for others.

    It is relative, so that it is right whatever the path of the request is at a proxy before Dockyard. Ollama sends the
    requests for parts of the blob there, without its User-Agent.
    """
    return {"location": f"./{digest}"} if (req.user_agent or "").startswith("ollama/") else {}


def unverified_headers(headers: Mapping[str, str]) -> dict[str, str]:
    """The headers that change when bytes are sent whose blob may still turn out to be wrong: no cache may keep them."""
    return {"cache-control": "no-store", "cache-status": f"{headers['cache-status']}; detail=unverified-range"}


def is_not_modified(req: falcon.asgi.Request, digest: Digest) -> bool:
    """Whether If-None-Match contains this digest: quoted, weak, `*`, or bare as some clients send it."""
    wanted = req.get_header("If-None-Match")
    if not wanted:
        return False
    tags = (tag.strip().removeprefix("W/").strip('"') for tag in wanted.split(","))
    return any(tag in {"*", str(digest)} for tag in tags)


def find_ranges(req: falcon.asgi.Request, digest: Digest, size: int) -> tuple[ByteRange, ...] | None:
    """Return the ranges that a request asks for of content with this digest; None for all of it.

    Range is evaluated without If-Range, or if that contains this digest (RFC 9110 section 13.1.5). Raises what
    `parse_ranges` raises.
    """
    header = req.get_header("Range")
    if header is None:
        return None
    condition = req.get_header("If-Range")
    return parse_ranges(header, size) if condition is None or condition.strip() == f'"{digest}"' else None


def _stale_status(error: RegistryError, age: int) -> str:
    if error.remembered:
        return f"hit; ttl=-{max(age, 1)}; detail=breaker"
    forwarded = "fwd-status=429; " if isinstance(error, TooManyRequests) else ""
    return f"fwd=stale; {forwarded}ttl=-{max(age, 1)}; detail=stale-if-error"
