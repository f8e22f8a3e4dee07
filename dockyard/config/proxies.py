"""The proxy variables of the environment, which are not used.

Each upstream has its own `proxy`: which addresses a registry may redirect to is checked here, and behind a proxy it is
the proxy that resolves names. So no upstream gets one because of a variable that is set for every program.
"""

from collections.abc import Mapping

from dockyard.config.settings import Settings

VARIABLES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy")


def find_ignored_variables(settings: Settings, environ: Mapping[str, str]) -> list[str]:
    """The proxy variables that are set, if they could be meant for an upstream without `proxy`, or for the bucket."""
    is_direct = bool(settings.storage.bucket) or any(not upstream.proxy for upstream in settings.upstreams)
    return [name for name in VARIABLES if environ.get(name)] if is_direct else []
