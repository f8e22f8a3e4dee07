"""What the log says that an operator may do: by what failed, and by what the connection was to."""

import pytest

from dockyard.oci.origin import Origin
from dockyard.upstream.cures import closed_cure, connection_cure, status_cure, timeout_cure
from dockyard.upstream.dialer import Stage

ORIGIN = Origin("https", "registry.example", 443)


@pytest.mark.parametrize("stage", list(Stage))
def test_the_setting_of_what_cannot_be_reached(stage: Stage) -> None:
    """The registry and the proxy are in the settings; other servers are not."""
    named = connection_cure(stage, ORIGIN, "up.test", is_proxy=False, is_registry=True)
    proxy = connection_cure(stage, ORIGIN, "up.test", is_proxy=True, is_registry=False)
    other = connection_cure(stage, ORIGIN, "up.test", is_proxy=False, is_registry=False)
    if stage is Stage.TUNNEL:
        assert named == proxy == other
        assert "registry.example:443" in proxy
        assert "`proxy` of the upstream up.test" in proxy
        return
    assert "`registry` of the upstream up.test" in named
    assert "`proxy` of the upstream up.test" in proxy
    assert "up.test" not in other
    assert "the registry names" in other


@pytest.mark.parametrize(
    ("status", "part"),
    [
        (401, "`auth` of the upstream up.test"),
        (403, "`auth` of the upstream up.test"),
        (404, "check the name"),
        (410, "check the name"),
        (429, "limits are higher with a login"),
        (200, "`curl -i https://registry.example/v2/`"),
        (500, "`curl -i https://registry.example/v2/`"),
    ],
)
def test_what_to_do_after_a_response(status: int, part: str) -> None:
    """By its status."""
    assert part in status_cure(status, ORIGIN, "up.test", is_registry=True)


def test_another_server_is_not_in_the_settings() -> None:
    """The registry named it."""
    assert "`registry`" not in status_cure(500, ORIGIN, "up.test", is_registry=False)


def test_a_command_shows_what_happens() -> None:
    """From the machine of the server."""
    assert "`curl -v https://registry.example/v2/`" in timeout_cure("upstream.check_timeout", ORIGIN)
    assert "`upstream.check_timeout`" in timeout_cure("upstream.check_timeout", ORIGIN)
    assert "`curl -v https://registry.example/v2/`" in closed_cure(ORIGIN)
