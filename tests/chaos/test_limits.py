"""The bounds of the matrix are those of its table when the settings are the defaults."""

import pytest

from dockyard.config.settings import UpstreamLimits
from dockyard.upstream import client as registry
from dockyard.upstream import dialer as sockets
from tests.chaos.limits import DEFAULTS, Limits

TABLE = {
    "at_once": 0.5,
    "untrusted": 1.0,
    "no": 2.0,
    "bad_content": 5.0,
    "connect": 3.5,
    "connect_twice": 7.0,
    "check": 5.5,
    "lookup": 5.5,
    "lookup_error": 6.0,
    "answer": 10.5,
    "first_byte": 15.5,
    "stalls": 75.0,
    "breaks": 12.0,
    "breaks_silently": 25.0,
}


@pytest.mark.parametrize("name", TABLE)
def test_a_bound_of_the_table(name: str) -> None:
    """Each formula gives the table's number."""
    assert getattr(DEFAULTS, name)() == TABLE[name]


def test_the_defaults_are_dockyards_own() -> None:
    """What is taken for default is what the program has."""
    limits = UpstreamLimits()
    ours = (limits.connect_timeout, limits.check_timeout, limits.stall_timeout)
    assert (DEFAULTS.connect_s, DEFAULTS.check_s, DEFAULTS.stall_s) == ours
    for each in (DEFAULTS, Limits()):
        assert each.lookup_s == sockets.LOOKUP_TIMEOUT_S
        assert each.answer_s == registry.ANSWER_TIMEOUT_S
