"""What the answers of a registry say: descriptors, sizes, bodies. Whatever makes no sense is a Fault."""

from dockyard import metrics
from dockyard.oci.manifest import ACCEPT, MAX_MANIFEST_BYTES, Descriptor
from dockyard.oci.reference import Digest, Reference
from dockyard.upstream import errors
from dockyard.upstream.headers import (
    find_digest,
    find_limit,
    find_media_type,
    find_unsatisfied_size,
    parse_content_range,
    parse_length,
)
from dockyard.upstream.source import UpstreamBlob
from dockyard.upstream.transport import UpstreamResponse


def find_descriptor(answer: UpstreamResponse, reference: Reference) -> Descriptor | None:
    """What a HEAD told, if it told all of it in a way that can be used."""
    digest = find_digest(answer.header("Docker-Content-Digest"))
    media_type = find_media_type(answer.header("Content-Type"))
    try:
        length = parse_length(answer.header_values("Content-Length"))
    except ValueError:
        return None
    if digest is None or media_type not in ACCEPT or not length or length > MAX_MANIFEST_BYTES:
        return None
    if answer.header("Transfer-Encoding") or answer.header("Content-Encoding"):
        return None
    if isinstance(reference, Digest) and digest != reference:
        return None
    return Descriptor(media_type, digest, length)


def open_source(answer: UpstreamResponse, start: int) -> UpstreamBlob:
    """The body behind a 200 or 206, if its headers make sense. Raises Fault."""
    check_content(answer)
    length = length_of(answer)
    if answer.header("Transfer-Encoding") is not None:
        length = None
    size, begin = length, 0
    if answer.status == 206:
        try:
            content_range = parse_content_range(answer.header("Content-Range"))
        except ValueError as exc:
            raise errors.bad_response(answer.who, f"sent {exc}") from exc
        is_asked = start > 0 and content_range.first == start and content_range.last == content_range.total - 1
        if not is_asked or length not in (None, content_range.length):
            raise errors.bad_response(answer.who, "sent another range than was asked for")
        size, begin = content_range.total, start
    answer.lift_deadline()
    return UpstreamBlob(answer, size, begin)


def length_of(answer: UpstreamResponse) -> int | None:
    """The Content-Length, None when there is none. Raises Fault."""
    try:
        return parse_length(answer.header_values("Content-Length"))
    except ValueError as exc:
        raise errors.bad_response(answer.who, f"sent {exc}") from exc


def check_encoding(answer: UpstreamResponse) -> None:
    """Nothing is ever decoded: what comes encoded is not what the digest is about. Raises Fault."""
    if (answer.header("Content-Encoding") or "identity").strip().lower() != "identity":
        raise errors.bad_response(answer.who, "encoded what it sent, though asked not to")
    if (answer.header("Transfer-Encoding") or "chunked").strip().lower() != "chunked":
        raise errors.bad_response(answer.who, "sent an unknown Transfer-Encoding")


def check_content(answer: UpstreamResponse) -> None:
    """As check_encoding; and no web page: captive portals and log-in forms answer 200. Raises Fault."""
    check_encoding(answer)
    if find_media_type(answer.header("Content-Type")) == "text/html":
        raise errors.bad_response(answer.who, "sent a web page instead of a blob")


def find_size(answer: UpstreamResponse) -> int | None:
    """The size of a blob, from the answer to a question for its first byte; None when the status tells none.

    Raises Fault.
    """
    try:
        match answer.status:
            case 206:
                check_content(answer)
                return parse_content_range(answer.header("Content-Range")).total
            case 200:
                check_content(answer)
                if (length := length_of(answer)) is None:
                    raise errors.bad_response(answer.who, "does not tell the size of a blob")
                return length
            case 416:
                return find_unsatisfied_size(answer.header("Content-Range"))
    except ValueError as exc:
        raise errors.bad_response(answer.who, f"sent {exc}") from exc
    return None


def note_limits(who: str, answer: UpstreamResponse) -> None:
    """Count what the registry says of its limits, which Docker Hub counts by manifests."""
    for header, gauge in (
        ("ratelimit-limit", metrics.ratelimit_limit),
        ("ratelimit-remaining", metrics.ratelimit_remaining),
    ):
        if (count := find_limit(answer.header(header))) is not None:
            gauge.labels(who).set(count)
