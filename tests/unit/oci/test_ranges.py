"""The Range header: tables of headers and their ranges, and a comparison with a slow parser."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dockyard.errors import RangeNotSatisfiable, RequestInvalid
from dockyard.oci.ranges import MAX_RANGES, ByteRange, has_open_end, parse_ranges

SIZE = 2048
HUGE = "9" * 5000


@pytest.mark.parametrize(
    ("requested", "expected"),
    [
        ("500-1499", "bytes 500-1499/2048"),
        ("500-", "bytes 500-2047/2048"),
        ("-500", "bytes 1548-2047/2048"),
        ("0-0", "bytes 0-0/2048"),
        ("0-", "bytes 0-2047/2048"),
        ("2000-5000", "bytes 2000-2047/2048"),
        ("-9999", "bytes 0-2047/2048"),
        ("2047-2047", "bytes 2047-2047/2048"),
        ("-1", "bytes 2047-2047/2048"),
        ("007-08", "bytes 7-8/2048"),
        (f"0-{HUGE}", "bytes 0-2047/2048"),
        (f"-{HUGE}", "bytes 0-2047/2048"),
        (f"{'0' * 5000}-1", "bytes 0-1/2048"),
    ],
)
def test_one_range_is_cut_to_the_blob(requested: str, expected: str) -> None:
    """At its end."""
    ranges = parse_ranges(f"bytes={requested}", SIZE)
    assert ranges is not None
    assert [part.content_range(SIZE) for part in ranges] == [expected]


@pytest.mark.parametrize(
    "requested", ["2048-", "5000-10000", "500-0", "-0", "-000", f"{HUGE}-", f"{HUGE}-{HUGE}", "9-8,-0"]
)
def test_a_range_without_a_byte_cannot_be_satisfied(requested: str) -> None:
    """The error has the size, for Content-Range."""
    with pytest.raises(RangeNotSatisfiable) as caught:
        parse_ranges(f"bytes={requested}", SIZE)
    assert caught.value.size == SIZE


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        "bytes",
        "bytes=",
        "bytes=,",
        "bytes=, ,",
        "bytes=x",
        "bytes=-",
        "bytes=1",
        "bytes=--1",
        "bytes=1--2",
        "bytes=-1-2",
        "bytes=+0-1",
        "bytes=0-+1",
        "bytes=0x0-1",
        "bytes=0 - 1",
        "bytes=0-1;2-3",
        "bytes=0-1,x",
        "bytes=0-\u0661",
        "bytes=0-1\n",
        "bytes 0-1",
        "items=0-1",
        "=0-1",
        HUGE,
    ],
)
def test_an_invalid_header_means_the_whole_body(header: str | None) -> None:
    """It is ignored (RFC 9110 section 14.2)."""
    assert parse_ranges(header, SIZE) is None


@pytest.mark.parametrize("header", ["Bytes=0-9", "bytes= 0-9 ", "bytes=,0-9,", "BYTES=\t0-9"])
def test_all_notations_of_the_grammar_are_parsed(header: str) -> None:
    """Units in any case, and lists with blanks and empty elements."""
    assert parse_ranges(header, SIZE) == (ByteRange(0, 10),)


@pytest.mark.parametrize(
    ("requested", "expected"),
    [
        ("0-9,100-109,2000-", [(0, 10), (100, 110), (2000, 2048)]),
        ("2000-, 0-9", [(2000, 2048), (0, 10)]),
        ("0-9,10-19", [(0, 10), (10, 20)]),
        ("0-9,5-14,0-9", [(0, 10), (5, 15), (0, 10)]),
        ("0-9,5000-,7-3,-0,-1", [(0, 10), (2047, 2048)]),
        ("0-,0-", [(0, 2048), (0, 2048)]),
    ],
)
def test_ranges_stay_in_the_requested_order(requested: str, expected: list[tuple[int, int]]) -> None:
    """They are never merged or sorted, and ignored only if they are empty."""
    assert parse_ranges(f"bytes={requested}", SIZE) == tuple(ByteRange(*part) for part in expected)


@pytest.mark.parametrize("count", [100, MAX_RANGES])
def test_many_ranges_are_accepted(count: int) -> None:
    """Lazy pulls request a hundred ranges at once."""
    ranges = parse_ranges("bytes=" + ",".join(f"{i * 2}-{i * 2}" for i in range(count)), SIZE)
    assert ranges is not None
    assert len(ranges) == count


@pytest.mark.parametrize("count", [MAX_RANGES + 1, 10_000])
@pytest.mark.parametrize("requested", ["0-0", "9999-", "x"])
def test_too_many_ranges_are_a_bad_request(count: int, requested: str) -> None:
    """After a 400 clients request the whole blob; the ranges are not even parsed."""
    with pytest.raises(RequestInvalid):
        parse_ranges("bytes=" + ",".join([requested] * count), SIZE)


def test_ranges_of_more_than_twice_the_blob_are_a_bad_request() -> None:
    """A small request must not cause a much larger response."""
    with pytest.raises(RequestInvalid):
        parse_ranges("bytes=0-,0-,0-0", SIZE)


@pytest.mark.parametrize("requested", ["0-1", "0-", "-1", "0-0,-1"])
def test_no_range_of_an_empty_blob_is_satisfiable(requested: str) -> None:
    """It has no bytes."""
    with pytest.raises(RangeNotSatisfiable) as caught:
        parse_ranges(f"bytes={requested}", 0)
    assert caught.value.size == 0


@pytest.mark.parametrize("requested", ["0-1", "0-", "-1", "-7"])
def test_a_blob_of_one_byte_has_one_range(requested: str) -> None:
    """All satisfiable ranges are that byte."""
    ranges = parse_ranges(f"bytes={requested}", 1)
    assert ranges is not None
    assert [part.content_range(1) for part in ranges] == ["bytes 0-0/1"]


specs = st.tuples(st.none() | st.integers(0, 40), st.none() | st.integers(0, 40)).filter(
    lambda spec: spec != (None, None)
)


@given(st.lists(specs, min_size=1, max_size=6), st.integers(0, 30))
def test_ranges_agree_with_slicing(requested: list[tuple[int | None, int | None]], size: int) -> None:
    """Of a list with the offset of each byte."""
    body = list(range(size))
    expected = []
    for first, last in requested:
        if first is None:
            part = [byte for byte in body if byte >= size - (last or 0)]
        else:
            part = [byte for byte in body if first <= byte and (last is None or byte <= last)]
        if part:
            expected.append(part)
    header = "bytes=" + ",".join(f"{'' if a is None else a}-{'' if b is None else b}" for a, b in requested)
    try:
        ranges = parse_ranges(header, size)
    except RangeNotSatisfiable:
        assert not expected
        return
    except RequestInvalid:
        assert sum(len(part) for part in expected) > 2 * size
        return
    assert ranges is not None
    assert [body[part.start : part.stop] for part in ranges] == expected
    assert [part.length for part in ranges] == [len(part) for part in expected]


@given(st.text(alphabet="bytes=0123-, \t\nx\u0661"), st.integers(0, 100))
def test_any_header_gives_ranges_of_the_blob_or_one_of_two_errors(header: str, size: int) -> None:
    """Parsing raises no other error, and no range exceeds the blob."""
    try:
        ranges = parse_ranges(header, size)
    except (RangeNotSatisfiable, RequestInvalid):
        return
    assert ranges is None or all(0 <= part.start < part.stop <= size for part in ranges)


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("bytes=0-", True),
        ("Bytes = ,8388608-,", True),
        ("bytes=0-5", False),
        ("bytes=-5", False),
        ("bytes=0-,5-", False),
        ("bytes=-", False),
        ("bytes=", False),
        ("items=0-", False),
        ("", False),
        (None, False),
    ],
)
def test_one_range_without_an_end(header: str | None, expected: bool) -> None:  # noqa: FBT001
    """A suffix has an end, and several ranges are another kind of response."""
    assert has_open_end(header) is expected
