"""Messages between workers: what is written is read back, and anything else is malformed."""

import json
from typing import Any

import pytest

from dockyard import errors
from dockyard.errors import RangeNotSatisfiable, RegistryError, Unavailable
from dockyard.oci.reference import Digest, Name, Tag
from dockyard.web.request_filter import HeadersTooLarge
from dockyard.workers import messages
from dockyard.workers.messages import (
    MAX_BODY_BYTES,
    Acknowledged,
    AdmissionReply,
    AdmissionRequest,
    BlobRequest,
    DiskFull,
    DownloadProgress,
    ErrorReply,
    ListReply,
    MalformedMessage,
    ManifestReply,
    ManifestRequest,
    NotDownloading,
    PiecesReply,
    PiecesRequest,
    ReferrersRequest,
    Repository,
    SizeReply,
    SizeRequest,
    TagListRequest,
    TagReply,
    TagRequest,
    decode_line,
    encode,
    error_reply,
    to_error,
)

REPOSITORY = Repository("up", "library/img", Name.parse("up/library/img"))
DIGEST = Digest.of(b"x")
ERROR = ErrorReply("Denied", "no", 3, remembered=True)
DETAILS = errors.FailureDetails("r.test:443", "HTTP 401 Unauthorized", "token", "~/.docker/config.json")

MESSAGES = [
    BlobRequest(REPOSITORY, DIGEST, only_running=True),
    PiecesRequest(REPOSITORY, DIGEST, 1048576, 2097152),
    TagRequest(REPOSITORY, Tag.parse("v1")),
    SizeRequest(REPOSITORY, DIGEST),
    ManifestRequest(REPOSITORY, DIGEST),
    TagListRequest(REPOSITORY),
    ReferrersRequest(REPOSITORY, DIGEST),
    AdmissionRequest(REPOSITORY, "manifest", "v1"),
    AdmissionRequest(Repository("up", "library/img", Name.parse("up/library/img"), "sealed"), "tags", ""),
    AdmissionReply(1),
    Acknowledged(),
    DownloadProgress(None, 0, 7, is_complete=False),
    DownloadProgress(3, 3, 7, is_complete=True),
    NotDownloading(),
    PiecesReply(2097152),
    DiskFull(),
    ERROR,
    ErrorReply("Denied", "no", details=DETAILS),
    SizeReply(4096),
    TagReply(DIGEST, "stale", 1.5, ERROR),
    TagReply(DIGEST, "hit", 1.5, valid_s=9.5),
    ManifestReply(b"\n{}", "a/b"),
    ListReply(b"[]", "hit", 2.0),
    ListReply(b"", "stale", 2.0, ERROR),
]


def decode(data: bytes) -> Any:
    """The message in these bytes."""
    line, _, body = data.partition(b"\n")
    message = decode_line(line)
    assert message.body_bytes == len(body)
    return message.complete(body)


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_what_is_written_is_read_back(message: Any) -> None:
    """Field by field, and the raw bytes behind the line."""
    assert decode(encode(message)) == message


def test_every_message_has_an_example() -> None:
    """A new message is added to the examples, which are read back above."""
    assert {type(message).__name__ for message in MESSAGES} == set(messages._TYPES)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"type": "Nothing"},
        {"type": ["NotDownloading"]},
        {"type": "NotDownloading", "unknown": 1},
        {"type": "DownloadProgress", "size_bytes": None, "released_bytes": "1", "inode": 1, "is_complete": True},
        {"type": "DownloadProgress", "size_bytes": None, "released_bytes": 1, "inode": True, "is_complete": True},
        {"type": "DownloadProgress", "size_bytes": None, "released_bytes": 1, "inode": 1, "is_complete": 1},
        {"type": "DownloadProgress", "released_bytes": 1, "inode": 1},
        {"type": "TagReply", "digest": "sha256:1", "how": "hit", "checked_at": 1.0},
        {"type": "TagReply", "digest": 7, "how": "hit", "checked_at": 1.0},
        {"type": "TagReply", "digest": str(DIGEST), "how": "hit", "checked_at": "now"},
        {"type": "TagListRequest", "repository": {"upstream": "u", "path": "p", "name": "../x"}},
        {"type": "TagListRequest", "repository": "up"},
        {"type": "ErrorReply", "error": "Denied", "message": []},
        {"type": "ErrorReply", "error": "Denied", "message": "", "retry_after_s": "x"},
        {"type": "ManifestReply", "body_bytes": -1},
        {"type": "ManifestReply", "body_bytes": MAX_BODY_BYTES + 1},
        {"type": "ManifestReply", "body_bytes": True},
        {"type": "ManifestReply", "body_bytes": 1.0},
    ],
)
def test_anything_else_is_malformed(fields: dict[str, Any]) -> None:
    """Nothing is converted, and nothing but MalformedMessage is raised."""
    with pytest.raises(MalformedMessage):
        decode_line(json.dumps(fields).encode()).complete(b"")


@pytest.mark.parametrize("line", [b"", b"[]", b"1", b"{", b"\xff", b"\0", b'{"a":' * 100_000])
def test_a_line_that_is_not_an_object_is_malformed(line: bytes) -> None:
    """Whatever it is."""
    with pytest.raises(MalformedMessage):
        decode_line(line)


def _subclasses(kind: type[RegistryError]) -> set[type[RegistryError]]:
    return {kind}.union(*map(_subclasses, kind.__subclasses__()))


def test_every_error_of_the_registry_is_in_the_table() -> None:
    """But for the one that only the worker with the client raises."""
    ours = {kind for kind in _subclasses(RegistryError) if kind.__module__ == errors.__name__}
    assert set(messages._ERRORS.values()) == ours - {RangeNotSatisfiable}
    assert all(name == kind.__name__ for name, kind in messages._ERRORS.items())


@pytest.mark.parametrize("kind", messages._ERRORS.values())
def test_an_error_is_the_same_at_the_other_worker(kind: type[RegistryError]) -> None:
    """Class, message, retry time, and whether it comes from memory."""
    error = to_error(error_reply(kind("why", retry_after_s=9, remembered=True)))
    assert type(error) is kind
    assert (error.message, error.retry_after_s, error.remembered) == ("why", 9, True)


def test_an_error_outside_the_table_is_sent_as_its_base() -> None:
    """And a name that is unknown here is an outage."""
    assert error_reply(HeadersTooLarge("large")).error == "RequestInvalid"
    assert type(to_error(ErrorReply("Nothing", "why"))) is Unavailable
