"""Headers of responses as values."""

import pytest

from dockyard.upstream.headers import (
    MAX_AGE_S,
    ContentRange,
    find_age,
    find_digest,
    find_media_type,
    find_unsatisfied_size,
    is_of_dockyard,
    is_stale,
    parse_content_range,
    parse_length,
    parse_retry_after,
)

NOW = 1_700_000_000.0


@pytest.mark.parametrize(
    ("values", "length"), [([], None), (["0"], 0), (["12"], 12), (["12", "12"], 12), (["12, 12"], 12), ([" 7 "], 7)]
)
def test_a_length_is_read(values: list[str], length: int | None) -> None:
    """The same length twice is one length."""
    assert parse_length(values) == length


@pytest.mark.parametrize("values", [["1", "2"], ["1, 2"], ["x"], [""], ["-1"], ["+1"], ["1.0"], ["٣"], ["9" * 19]])
def test_an_invalid_length_is_rejected(values: list[str]) -> None:
    """Two values that differ, and a value that is not a number."""
    with pytest.raises(ValueError, match="Content-Length"):
        parse_length(values)


def test_a_content_range_is_read() -> None:
    """First, last and total."""
    assert parse_content_range("bytes 5-9/20") == ContentRange(5, 9, 20)
    assert parse_content_range("bytes 5-9/*") == ContentRange(5, 9, None)


@pytest.mark.parametrize(
    "value", [None, "", "bytes 9-5/*", "bytes */20", "bytes 9-5/20", "bytes 5-20/20", "items 0-1/2", "bytes 0-1/2 x"]
)
def test_an_invalid_content_range_is_rejected(value: str | None) -> None:
    """Also one of no bytes."""
    with pytest.raises(ValueError, match="Content-Range"):
        parse_content_range(value)


@pytest.mark.parametrize(("value", "size"), [("bytes */0", 0), ("bytes */77", 77), ("bytes 0-1/2", None), (None, None)])
def test_a_416_response_may_contain_the_size(value: str | None, size: int | None) -> None:
    """`bytes */size`."""
    assert find_unsatisfied_size(value) == size


@pytest.mark.parametrize(
    ("value", "media_type"),
    [("Application/JSON; charset=utf-8", "application/json"), ("text/html", "text/html"), ("", None), (None, None)],
)
def test_a_media_type_loses_its_parameters(value: str | None, media_type: str | None) -> None:
    """It is converted to lower case."""
    assert find_media_type(value) == media_type


@pytest.mark.parametrize("value", [None, "", "sha256:garbage", "md5:" + "0" * 32, '"sha256:' + "0" * 64 + '"'])
def test_a_digest_that_cannot_be_used_is_none(value: str | None) -> None:
    """The caller computes it from the body."""
    assert find_digest(value) is None


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (None, 5),
        ("", 5),
        ("abc", 5),
        ("-3", 5),
        ("0", 1),
        ("1", 1),
        ("59", 59),
        ("999999", 60),
        ("9" * 1000, 60),
        ("Tue, 14 Nov 2023 22:13:50 GMT", 30),
        ("Tue, 14 Nov 2023 22:13:50", 30),
        ("Tue, 14 Nov 2023 20:00:00 GMT", 1),
        ("Tue, 14 Nov 2093 20:00:00 GMT", 60),
        ("Tue, 99 Nov 2023 20:00:00 GMT", 5),
    ],
)
def test_retry_after_is_seconds_or_a_date_within_a_minute(value: str | None, seconds: int) -> None:
    """Five seconds if it is missing or invalid."""
    assert parse_retry_after(value, NOW) == seconds


@pytest.mark.parametrize(
    ("value", "age_s"), [(None, 0), ("0", 0), (" 412 ", 412), ("-1", 0), ("x", 0), ("1.5", 0), ("9" * 18, MAX_AGE_S)]
)
def test_an_age_is_read(value: str | None, age_s: int) -> None:
    """What is no number of seconds is no age; a very long one is limited."""
    assert find_age(value) == age_s


@pytest.mark.parametrize(
    ("values", "is_ours", "stale"),
    [
        ([], False, False),
        (["Dockyard"], True, False),
        (["Dockyard; hit"], True, False),
        (["Dockyard; hit; ttl=-412; detail=breaker"], True, True),
        (["Dockyard; fwd=stale; fwd-status=429; ttl=-412; detail=stale-if-error"], True, True),
        (["Origin; hit, Dockyard; fwd=stale; ttl=-1; detail=stale-if-error"], True, True),
        (["Dockyard; hit, Other; fwd=stale; detail=stale-if-error"], True, False),
        (["Other; hit", "Dockyard; hit; detail=breaker"], True, True),
        (["Other; fwd=stale; detail=stale-if-error"], False, False),
        (["My-Dockyard; hit; detail=breaker", "Dockyards; hit; detail=breaker"], False, False),
        (["Dockyard; hit; detail=breakers"], True, False),
    ],
)
def test_a_response_of_a_dockyard_says_if_it_is_stale(values: list[str], is_ours: bool, stale: bool) -> None:  # noqa: FBT001
    """By its own member of Cache-Status, not by that of another cache."""
    assert (is_of_dockyard(values), is_stale(values)) == (is_ours, stale)
