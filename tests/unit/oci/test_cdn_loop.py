"""The CDN-Loop header: what is passed on of what clients send, and whether a server is in it."""

import time

import pytest

from dockyard.oci.cdn_loop import MAX_BYTES, format_passed, has_passed, make_server_name, parse_passed
from tests.support.busy_machine import SLACK_S

NAME = make_server_name(bytes(range(8)))


@pytest.mark.parametrize(
    ("values", "passed"),
    [
        ([], ()),
        ([""], ()),
        (
            ['foo123.foocdn.example, barcdn.example; trace="abcdef"', 'AnotherCDN; abc=123; def="456"'],
            ("foo123.foocdn.example", 'barcdn.example; trace="abcdef"', 'AnotherCDN; abc=123; def="456"'),
        ),
        (["a,,b, ,c"], ("a", "b", "c")),
        (['a; x="1,2", b'], ('a; x="1,2"', "b")),
        (['a; x="1\\",2", b'], ('a; x="1\\",2"', "b")),
        (["[2001:db8::1]:443, cdn:80"], ("[2001:db8::1]:443", "cdn:80")),
        (["a b, c"], ("c",)),
        (["a;, b; x, c; x=, d"], ("d",)),
        (['"quoted", a'], ("a",)),
        (['a; x="open, b', "c"], ("c",)),
        (["b\xe9, a\x00, c\x7f, d"], ("d",)),
    ],
)
def test_parse(values: list[str], passed: tuple[str, ...]) -> None:
    """Members are taken as they are, over several headers; malformed ones are left out."""
    assert parse_passed(values) == passed


def test_the_last_members_are_kept() -> None:
    """However much a client sends, the servers after it stay known, and the header small."""
    passed = parse_passed([", ".join(f"cdn{number}.example" for number in range(5000)), NAME])
    assert passed[-2:] == ("cdn4999.example", NAME)
    assert 1800 < len(", ".join(passed)) <= MAX_BYTES
    assert parse_passed([f"{'x' * 3000}, a"]) == ("a",)
    assert parse_passed([f"a, {'x' * 3000}"]) == ()


def test_long_garbage_is_fast() -> None:
    """A header as long as headers may be is parsed at once, whatever is in it."""
    start = time.thread_time()
    for unit in ('"', '\\"', "a;", ";a=", 'a;b="', ",", " ", '"\\', "a ;", "=", 'a; x="\\'):
        parse_passed([unit * (16_000 // len(unit))])
    assert time.thread_time() - start < SLACK_S


def test_a_server_finds_its_own_name() -> None:
    """Also with parameters; not as a part of another name."""
    assert has_passed(("a", NAME), NAME)
    assert has_passed((f"{NAME} ; hops=1", "b"), NAME)
    assert not has_passed((f"{NAME}0", f"x{NAME}", f"a; x={NAME}"), NAME)
    assert not has_passed((), NAME)


def test_a_server_appends_its_name() -> None:
    """The value is one header, which the next server reads as it was meant."""
    assert NAME == "dockyard-0001020304050607"
    assert format_passed((), NAME) == NAME
    value = format_passed(('a; x="1,2"', "b"), NAME)
    assert parse_passed([value]) == ('a; x="1,2"', "b", NAME)
