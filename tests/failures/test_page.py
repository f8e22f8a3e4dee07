"""The page has all failures and no others, and each line has what an operator needs."""

from pathlib import Path

import pytest

from tests.failures.checks import find_problems, has_cure
from tests.failures.failure import Failure, Seen, replace_variables
from tests.failures.page import parse_groups, parse_page, read_page, record, write_page
from tests.failures.table import FAILURES, GROUPS


def test_the_page_has_all_failures_in_their_order() -> None:
    """It is what would be written from its own lines."""
    page = read_page()
    lines = parse_page(page)
    assert list(lines) == [failure.cause for failure in FAILURES]
    assert len(lines) >= 40
    assert parse_groups(page) == list(GROUPS)
    assert page == write_page(GROUPS, lines)


@pytest.mark.parametrize("failure", FAILURES, ids=lambda failure: failure.cause)
def test_a_line_of_the_page_has_all_parts(failure: Failure) -> None:
    """Also those that this machine cannot make: where it happened, why, and what to do."""
    line = parse_page(read_page())[failure.cause]
    assert find_problems(failure, Seen(line)) == []


def test_a_line_is_read_as_it_was_written(tmp_path: Path) -> None:
    """With bars and backquotes."""
    page = tmp_path / "page.md"
    line = 'error `a` ``b`` | c="\\d" | `'
    record(GROUPS, FAILURES[0].cause, line, page)
    record(GROUPS, FAILURES[1].cause, "another", page)
    lines = parse_page(page.read_text())
    assert lines[FAILURES[0].cause] == line
    assert lines[FAILURES[1].cause] == "another"


def test_what_varies_is_replaced() -> None:
    """The longest name first, and never a part of a longer number."""
    line = (
        "2026-11-28T11:31:32.702Z warn  x url=http://127.0.0.1:80/ seconds=0.12 upstreams[12].auth process 77 (pid=8)"
    )
    assert replace_variables(line, {"127.0.0.1": "HOST", "127.0.0.1:80": "HOST:PORT"}) == (
        "warn  x url=http://HOST:PORT/ seconds=SECONDS upstreams[N].auth process PID (pid=PID)"
    )


@pytest.mark.parametrize(
    "line",
    ["HOST:PORT refused the connection: set `auth`", "check storage.endpoint", "set --server", "allow s3:PutObject"],
)
def test_a_cure_is_a_setting_or_a_command(line: str) -> None:
    """Or an option, or a permission."""
    assert has_cure(line)


@pytest.mark.parametrize(
    "line", ["HOST:PORT refused the connection", "something is wrong, see the storage documentation"]
)
def test_words_are_no_cure(line: str) -> None:
    """They name nothing that can be changed."""
    assert not has_cure(line)


@pytest.mark.parametrize(
    ("seen", "problem"),
    [
        (Seen("HOST:PORT: refused; set `registry`", b"", ""), ""),
        (Seen("HOST:PORT: set `registry`"), "why"),
        (Seen("somewhere: refused; set `registry`"), "where"),
        (Seen("HOST:PORT: refused"), "cure"),
        (Seen("HOST:PORT: refused; set `registry`", b"127.0.0.1 is away"), "the client sees"),
        (Seen("HOST:PORT: refused; set `registry`", b"x: Connection refused"), "the client sees"),
        (Seen("HOST:PORT: refused; set `registry`", b"", "canary-password-5e1f"), "is shown"),
    ],
)
def test_a_line_that_lacks_a_part_is_found(seen: Seen, problem: str) -> None:
    """Each check finds its own."""
    problems = find_problems(Failure("cause", "HOST:PORT", "refused", "registry"), seen)
    assert (problem in str(problems)) if problem else (problems == [])
