"""The messages between the workers of one server, and how they are written.

A message is one line of JSON, `{"type": "BlobRequest", ...}`, at most MAX_LINE_BYTES long. One that has a `body` is
followed by that many raw bytes; the line says how many in `body_bytes`. Bytes of blobs never travel this way: they stay
in the partial file that DownloadProgress names.

| request | replies, after Acknowledged |
|---|---|
| BlobRequest | DownloadProgress, repeated until `is_complete`; or NotDownloading, DiskFull, ErrorReply |
| TagRequest | TagReply or ErrorReply |
| PiecesRequest | PiecesReply; or NotDownloading, ErrorReply |
| SizeRequest | SizeReply or ErrorReply |
| ManifestRequest | ManifestReply or ErrorReply |
| TagListRequest, ReferrersRequest | ListReply or ErrorReply |
| AdmissionRequest | AdmissionReply or ErrorReply |

The login of a client travels sealed (`access.seal`): in `Repository.login`.
"""

import json
from collections.abc import Mapping
from typing import Any, Final, Self

import attrs
import cattrs

from dockyard import errors
from dockyard.errors import FailureDetails, RegistryError
from dockyard.oci.reference import Digest, Name, Tag
from dockyard.routing import Target

MAX_LINE_BYTES: Final = 64 * 1024
MAX_BODY_BYTES: Final = 8 * 1024 * 1024


class MalformedMessage(Exception):
    """What was received is not a message."""


@attrs.frozen
class Repository:
    """The repository that a request is about: the upstream's prefix, the path there, and the full name.

    `login` is the sealed login of the client at this upstream; empty for none. `passed`: the servers that the request
    has passed.
    """

    upstream: str
    path: str
    name: Name
    login: str = attrs.field(default="", repr=False)
    passed: tuple[str, ...] = ()

    @classmethod
    def of(cls, target: Target, login: str = "") -> Self:
        """The repository of a routed request."""
        return cls(target.upstream.prefix, target.repository, target.name, login, target.passed)


@attrs.frozen
class BlobRequest:
    """Asks for the progress of a download. It is started if there is none, unless `only_running`.

    `is_range`: for a reader of a range.
    """

    repository: Repository
    digest: Digest
    only_running: bool = False
    is_range: bool = False


@attrs.frozen
class PiecesRequest:
    """Asks a worker to receive these bytes of a blob, which it is fetching, before others.

    The reply comes when the byte at `start` is there.
    """

    repository: Repository
    digest: Digest
    start: int
    stop: int


@attrs.frozen
class SizeRequest:
    """Asks for the size of a blob that this worker and the bucket do not have."""

    repository: Repository
    digest: Digest


@attrs.frozen
class TagRequest:
    """Asks for the digest that a tag points to, checked with the upstream."""

    repository: Repository
    tag: Tag


@attrs.frozen
class ManifestRequest:
    """Asks for a manifest by digest, fetched if necessary."""

    repository: Repository
    digest: Digest


@attrs.frozen
class TagListRequest:
    """Asks for the tags of a repository. `is_continued`: for a page after the first one."""

    repository: Repository
    is_continued: bool = False


@attrs.frozen
class ReferrersRequest:
    """Asks for the referrers of a manifest. `is_continued`: for a page after the first one."""

    repository: Repository
    subject: Digest
    is_continued: bool = False


@attrs.frozen
class AdmissionRequest:
    """Asks whether the upstream admits the login, or clients without one, to what is requested in the repository.

    `kind` and `reference` are what is requested: see `cache.admissions`. `reference` may be empty.
    """

    repository: Repository
    kind: str
    reference: str


PeerRequest = (
    BlobRequest
    | PiecesRequest
    | SizeRequest
    | TagRequest
    | ManifestRequest
    | TagListRequest
    | ReferrersRequest
    | AdmissionRequest
)


def key_of(request: PeerRequest) -> str:
    """What a request asks for, in the log."""
    match request:
        case TagRequest():
            return f"{request.repository.name}:{request.tag}"
        case TagListRequest():
            return f"{request.repository.name}?tags"
        case ReferrersRequest():
            return f"{request.repository.name}?{request.subject}"
        case AdmissionRequest():
            return f"{request.repository.name}?access"
        case _:
            return f"{request.repository.name}@{request.digest}"


@attrs.frozen
class Acknowledged:
    """The first reply to every request: the event loop of the peer runs."""


@attrs.frozen
class DownloadProgress:
    """How far a download is.

    `size_bytes` is None while it is unknown. The first `released_bytes` of the partial file with this inode may be
    read; `is_complete` says that size and digest were verified, `is_stored` that the file is in the local store already
    and is being verified, `is_joined` that it was running when the request for its progress came.
    """

    size_bytes: int | None
    released_bytes: int
    inode: int
    is_complete: bool
    is_stored: bool = False
    is_joined: bool = False


@attrs.frozen
class NotDownloading:
    """The peer is not fetching this blob."""


@attrs.frozen
class PiecesReply:
    """The bytes from the `start` of the request up to `stop` are in the partial file; none yet if both are the same."""

    stop: int


@attrs.frozen
class DiskFull:
    """The download continues in the memory of the peer: what is missing must be fetched without it."""


@attrs.frozen
class ErrorReply:
    """A RegistryError: the name of its class, and its fields."""

    error: str
    message: str
    retry_after_s: int | None = None
    remembered: bool = False
    details: FailureDetails | None = None


@attrs.frozen
class SizeReply:
    """The size of a blob."""

    size_bytes: int


@attrs.frozen
class TagReply:
    """What a tag points to. `how` and `checked_at` as in `cache.tags.FoundTag`; `stale_because` for a stale one.

    `valid_s` is for how long it need not be checked again.
    """

    digest: Digest
    how: str
    checked_at: float
    stale_because: ErrorReply | None = None
    valid_s: float = 0.0


@attrs.frozen
class ManifestReply:
    """The bytes of a manifest, which the receiver verifies, and its media type."""

    body: bytes = attrs.field(repr=False)
    media_type: str


@attrs.frozen
class ListReply:
    """A list as JSON text. The other fields as in TagReply."""

    body: bytes = attrs.field(repr=False)
    how: str
    checked_at: float
    stale_because: ErrorReply | None = None


@attrs.frozen
class AdmissionReply:
    """What the upstream has decided: the value of an `access.verdicts.Verdict`."""

    verdict: int


PeerReply = (
    Acknowledged
    | DownloadProgress
    | NotDownloading
    | PiecesReply
    | DiskFull
    | ErrorReply
    | SizeReply
    | TagReply
    | ManifestReply
    | ListReply
    | AdmissionReply
)

_TYPES: Final[Mapping[str, type[Any]]] = {
    kind.__name__: kind
    for kind in (
        *(
            BlobRequest,
            PiecesRequest,
            SizeRequest,
            TagRequest,
            ManifestRequest,
            TagListRequest,
            ReferrersRequest,
            AdmissionRequest,
        ),
        *(
            Acknowledged,
            DownloadProgress,
            NotDownloading,
            PiecesReply,
            DiskFull,
            ErrorReply,
            SizeReply,
            TagReply,
            ManifestReply,
            ListReply,
            AdmissionReply,
        ),
    )
}

_WITH_BODY: Final = frozenset(kind for kind in _TYPES.values() if "body" in attrs.fields_dict(kind))

# The errors that a peer may reply with. RangeNotSatisfiable is not among them: ranges are the business of the worker
# that has the client.
_ERRORS: Final[Mapping[str, type[RegistryError]]] = {
    "RegistryError": errors.RegistryError,
    "NameInvalid": errors.NameInvalid,
    "ReferenceInvalid": errors.ReferenceInvalid,
    "DigestInvalid": errors.DigestInvalid,
    "RequestInvalid": errors.RequestInvalid,
    "Denied": errors.Denied,
    "LoginRequired": errors.LoginRequired,
    "AccessDenied": errors.AccessDenied,
    "NameUnknown": errors.NameUnknown,
    "ManifestUnknown": errors.ManifestUnknown,
    "BlobUnknown": errors.BlobUnknown,
    "Unsupported": errors.Unsupported,
    "TooManyRequests": errors.TooManyRequests,
    "Outage": errors.Outage,
    "BadUpstream": errors.BadUpstream,
    "LoopDetected": errors.LoopDetected,
    "Unavailable": errors.Unavailable,
    "UpstreamTimeout": errors.UpstreamTimeout,
}


def error_reply(error: RegistryError) -> ErrorReply:
    """The message for an error. A subclass that is not in the table is sent as its nearest base that is."""
    name = next(kind.__name__ for kind in type(error).__mro__ if kind.__name__ in _ERRORS)
    return ErrorReply(name, error.message, error.retry_after_s, error.remembered, error.details)


def to_error(reply: ErrorReply) -> RegistryError:
    """The error of a message; Unavailable for a name that is not in the table."""
    kind = _ERRORS.get(reply.error, errors.Unavailable)
    return kind(reply.message, retry_after_s=reply.retry_after_s, remembered=reply.remembered, details=reply.details)


def encode(message: PeerRequest | PeerReply) -> bytes:
    """The line of a message, and the body behind it."""
    fields = _CONVERTER.unstructure(message)
    body: bytes = fields.pop("body", b"")
    if body:
        fields["body_bytes"] = len(body)
    return json.dumps({"type": type(message).__name__, **fields}).encode() + b"\n" + body


def decode_line(line: bytes) -> "PartialMessage":
    """The line of a message; the body, of `body_bytes` bytes, is still to be read. Raises MalformedMessage."""
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError) as exc:
        raise MalformedMessage("not a line of JSON") from exc
    if not isinstance(fields, dict) or not isinstance(kind := _TYPES.get(str(fields.pop("type", ""))), type):
        raise MalformedMessage("not a message of a known type")
    body_bytes = fields.pop("body_bytes", 0)
    if type(body_bytes) is not int or not 0 <= body_bytes <= MAX_BODY_BYTES:
        raise MalformedMessage("a body of an impossible length")
    return PartialMessage(kind, fields, body_bytes)


@attrs.frozen
class PartialMessage:
    """A message whose body was not read yet."""

    kind: type[Any]
    fields: dict[str, Any]
    body_bytes: int

    def complete(self, body: bytes) -> Any:
        """The message. Raises MalformedMessage."""
        fields = {**self.fields, "body": body} if self.kind in _WITH_BODY else self.fields
        try:
            return _CONVERTER.structure(fields, self.kind)
        except (cattrs.ForbiddenExtraKeysError, RegistryError, ValueError, TypeError, KeyError, AttributeError) as exc:
            raise MalformedMessage(f"a malformed {self.kind.__name__}") from exc


def _make_converter() -> cattrs.Converter:
    converter = cattrs.Converter(forbid_extra_keys=True, detailed_validation=False)
    for kind in (Digest, Name, Tag):
        converter.register_structure_hook(kind, lambda text, kind: kind.parse(_check_type(text, str)))
        converter.register_unstructure_hook(kind, str)
    converter.register_structure_hook(bytes, lambda body, _: _check_type(body, bytes))
    converter.register_unstructure_hook(bytes, lambda body: body)
    for scalar in (str, bool, int):
        converter.register_structure_hook(scalar, _check_type)
    converter.register_structure_hook(float, lambda value, _: float(_check_type(value, (int, float))))
    return converter


def _check_type(value: Any, kind: Any) -> Any:
    """The value, if it is exactly of this type: JSON has these types itself, so nothing is converted."""
    kinds = kind if isinstance(kind, tuple) else (kind,)
    if type(value) not in kinds:
        raise TypeError(f"not a {kind}")
    return value


_CONVERTER = _make_converter()
