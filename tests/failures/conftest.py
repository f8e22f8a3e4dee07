"""Compare what was seen of a failure with the page, or write it there.

pytest tests/failures                  make each failure and compare its line with ops/ERRORS.md
pytest tests/failures --write-errors   write the lines into the page
"""

from collections.abc import Callable

import pytest

from tests.failures.checks import find_problems
from tests.failures.failure import Failure, Seen
from tests.failures.page import parse_page, read_page, record
from tests.failures.table import GROUPS
from tests.s3.service.conftest import bucket_view
from tests.s3.store.conftest import minio
from tests.support.deployment_fixtures import module_deployment

__all__ = ["bucket_view", "minio", "module_deployment"]

Check = Callable[[Failure, Seen], None]


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option that writes the page."""
    parser.addoption("--write-errors", action="store_true", help="write the lines that are seen into ops/ERRORS.md")


@pytest.fixture
def check(request: pytest.FixtureRequest) -> Check:
    """A function that compares what was seen of a failure with the page, and searches it for what must not be there."""

    def check(failure: Failure, seen: Seen) -> None:
        if request.config.getoption("--write-errors"):
            record(GROUPS, failure.cause, seen.line)
        expected = parse_page(read_page()).get(failure.cause, "")
        assert seen.line == expected, "a message has changed: pytest tests/failures --write-errors updates the page"
        assert find_problems(failure, seen) == []

    return check
