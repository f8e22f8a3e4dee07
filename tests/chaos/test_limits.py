"""The limits of the matrix with the default settings."""

import pytest

from dockyard.config.settings import MIN_RESPONSE_TIMEOUT_S, UpstreamLimits
from dockyard.upstream import dialer as sockets
from tests.chaos.engine.limits import DEFAULTS, Limits

WITH_DEFAULTS = {
    "at_once": 0.5,
    "untrusted": 1.0,
    "no": 2.0,
    "bad_content": 5.0,
    "connect": 3.5,
    "connect_twice": 7.0,
    "check": 5.5,
    "lookup": 5.5,
    "lookup_error": 6.0,
    "response": 10.5,
    "first_byte": 15.5,
    "stalls": 75.0,
    "breaks": 12.0,
    "breaks_silently": 25.0,
}


@pytest.mark.parametrize("name", WITH_DEFAULTS)
def test_a_limit_with_the_default_settings(name: str) -> None:
    """Each formula gives this number of seconds."""
    assert getattr(DEFAULTS, name)() == WITH_DEFAULTS[name]


def test_the_defaults_are_those_of_dockyard() -> None:
    """The default settings and the fixed timeouts are those of the program."""
    limits = UpstreamLimits()
    ours = (limits.connect_timeout, limits.check_timeout, limits.stall_timeout)
    assert (DEFAULTS.connect_s, DEFAULTS.check_s, DEFAULTS.stall_s) == ours
    for each in (DEFAULTS, Limits()):
        assert each.lookup_s == sockets.LOOKUP_TIMEOUT_S
        assert each.response_s == MIN_RESPONSE_TIMEOUT_S
