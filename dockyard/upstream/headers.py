"""The headers of a response, and the body of an error, as values. Pure functions; the current time is an argument."""

import json
import re
from collections.abc import Iterable
from datetime import UTC
from email.utils import parsedate_to_datetime

import attrs

from dockyard.errors import DigestInvalid
from dockyard.oci.reference import Digest

DEFAULT_LIMIT_S = 5
LIMIT_S = (1, 60)
MAX_AGE_S = 10 * 365 * 24 * 3600

_NUMBER = re.compile(r"[0-9]{1,18}")
_CONTENT_RANGE = re.compile(r"bytes ([0-9]{1,18})-([0-9]{1,18})/([0-9]{1,18}|\*)")
_DOCKYARD = re.compile(r"(?:^|,)[ \t]*Dockyard[ \t]*(?:;|$)")
_STALE = re.compile(r"(?:^|,)[ \t]*Dockyard[ \t]*;[^,]*\bdetail=(?:stale-if-error|breaker)\b")
_UNSATISFIED = re.compile(r"bytes \*/([0-9]{1,18})")


@attrs.frozen
class ContentRange:
    """`bytes first-last/total`; `total` is None when it is `*`."""

    first: int
    last: int
    total: int | None

    @property
    def length(self) -> int:
        return self.last - self.first + 1


def parse_length(values: Iterable[str]) -> int | None:
    """The Content-Length of a response, None without one. Raises ValueError if it is invalid or two values differ."""
    lengths = {part.strip() for value in values for part in value.split(",")}
    if not lengths:
        return None
    if len(lengths) > 1 or not all(_NUMBER.fullmatch(length) for length in lengths):
        raise ValueError("a Content-Length that makes no sense")
    return int(lengths.pop())


def find_limit(value: str | None) -> int | None:
    """The number of a `ratelimit-limit` or `ratelimit-remaining` header, such as `100;w=21600`."""
    number = (value or "").partition(";")[0].strip()
    return int(number) if _NUMBER.fullmatch(number) else None


def parse_content_range(value: str | None) -> ContentRange:
    """A Content-Range. Raises ValueError."""
    match = _CONTENT_RANGE.fullmatch((value or "").strip())
    if match is None:
        raise ValueError("a Content-Range that makes no sense")
    total = None if match[3] == "*" else int(match[3])
    content_range = ContentRange(int(match[1]), int(match[2]), total)
    if content_range.first > content_range.last or (total is not None and content_range.last >= total):
        raise ValueError("a Content-Range that makes no sense")
    return content_range


def find_unsatisfied_size(value: str | None) -> int | None:
    """The size in the Content-Range of a 416 response, `bytes */size`."""
    match = _UNSATISFIED.fullmatch((value or "").strip())
    return int(match[1]) if match else None


def find_media_type(value: str | None) -> str | None:
    """A Content-Type without its parameters, in lower case."""
    return (value or "").partition(";")[0].strip().lower() or None


def find_age(value: str | None) -> int:
    """The seconds of an Age header, at most MAX_AGE_S; 0 without a valid one (RFC 9111 section 5.1)."""
    text = (value or "").strip()
    return min(int(text), MAX_AGE_S) if _NUMBER.fullmatch(text) else 0


def is_of_dockyard(cache_statuses: Iterable[str]) -> bool:
    """Whether a response comes from a Dockyard, which has said how it came to it (RFC 9211)."""
    return any(_DOCKYARD.search(value) for value in cache_statuses)


def is_stale(cache_statuses: Iterable[str]) -> bool:
    """Whether a Dockyard says that it serves a stale copy."""
    return any(_STALE.search(value) for value in cache_statuses)


def find_digest(value: str | None) -> Digest | None:
    """A Docker-Content-Digest if it can be used."""
    try:
        return Digest.parse((value or "").strip())
    except DigestInvalid:
        return None


def has_oci_errors(body: bytes) -> bool:
    """Whether the body of an error response is that of a registry: JSON with a list of errors."""
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        return False
    return isinstance(document, dict) and isinstance(document.get("errors"), list)


def parse_retry_after(value: str | None, now: float) -> int:
    """Seconds to wait, from seconds or an HTTP date, within 1 to 60; 5 when there is nothing sensible."""
    text = (value or "").strip()
    if re.fullmatch(r"[0-9]{1,1000}", text):
        seconds = int(text[:18]) if len(text) <= 18 else LIMIT_S[1]
        return max(LIMIT_S[0], min(seconds, LIMIT_S[1]))
    try:
        when = parsedate_to_datetime(text)
        when = when if when.tzinfo else when.replace(tzinfo=UTC)
        return max(LIMIT_S[0], min(round(when.timestamp() - now), LIMIT_S[1]))
    except (ValueError, TypeError, OverflowError):
        return DEFAULT_LIMIT_S
