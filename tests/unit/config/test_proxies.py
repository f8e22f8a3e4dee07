"""Proxy variables of the environment."""

import pytest

from dockyard.config.loader import load
from dockyard.config.proxies import VARIABLES, find_ignored_variables
from dockyard.preconditions import find_start_warnings

PROXY = "http://user:pr0xy-pass@proxy.test:3128"
BEHIND_PROXY = (
    "upstreams: [{prefix: up.test, registry: up.test, proxy: 'http://proxy.test:3128', auth: {type: anonymous}}]"
)


def test_variables_are_named_when_an_upstream_has_no_proxy() -> None:
    """The default upstreams have none."""
    settings = load(None, {"HOME": "/nonexistent"})
    for name in VARIABLES:
        assert find_ignored_variables(settings, {name: PROXY, "PATH": "/bin"}) == [name]
    assert find_ignored_variables(settings, {"NO_PROXY": "*", "HTTPS_PROXY": ""}) == []


@pytest.mark.parametrize(("more", "found"), [("", []), ("\nstorage: {bucket: images}", ["HTTPS_PROXY"])])
def test_variables_do_not_matter_when_everything_has_a_proxy(tmp_path, more, found) -> None:  # type: ignore[no-untyped-def]  # noqa: ANN001
    """The bucket has none."""
    path = tmp_path / "config.yaml"
    path.write_text(BEHIND_PROXY + more)
    assert find_ignored_variables(load(path, {"HOME": "/nonexistent"}), {"HTTPS_PROXY": PROXY}) == found


def test_a_warning_names_the_setting_and_no_password() -> None:
    """At the start."""
    warnings = list(find_start_warnings(load(None, {"HOME": "/nonexistent"}), {"HTTPS_PROXY": PROXY}))
    (warning,) = [warning for warning in warnings if "proxy" in warning.event]
    assert "set `proxy` of the upstreams" in warning.event
    assert warning.fields == {"variables": ["HTTPS_PROXY"]}
    assert "pr0xy-pass" not in str(warnings)
