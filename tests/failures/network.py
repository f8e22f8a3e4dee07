"""Failures of names and routes, in a network of its own with its own name server. Needs root."""

from collections.abc import Sequence

from tests.failures.upstreams import ANONYMOUS, LOGIN, PROXY_PASSWORD, Place, UpstreamFailure
from tests.security.isolated_network import FakeNameServer
from tests.support import faults

UNKNOWN = "no-such-host.example"
SILENT = "silent.example"
INTERNAL = "internal.example"
PUBLIC = "registry.example"
ADDRESSES = {INTERNAL: "10.0.0.7", PUBLIC: "93.184.216.34"}
SPECIAL = "its name server does not respond"


def name_server() -> FakeNameServer:
    """It knows two names, and does not respond for one."""
    return FakeNameServer({name: [(address,)] for name, address in ADDRESSES.items()}, silent={SILENT})


def _use_unknown_name(place: Place) -> None:
    place.settings["registry"] = UNKNOWN


def _use_silent_name(place: Place) -> None:
    place.settings["registry"] = SILENT


def _use_unknown_proxy(place: Place) -> None:
    place.settings |= {"registry": PUBLIC, "proxy": f"http://ann:{PROXY_PASSWORD.text}@{UNKNOWN}:3128"}


def _send_login_without_tls(place: Place) -> None:
    registry = place.registry(host=ADDRESSES[INTERNAL])
    registry.on(None, faults.challenged('Basic realm="registry"'))
    place.settings |= {"registry": f"http://{INTERNAL}:{registry.listener.port}", "auth": LOGIN}
    place.name(f"{INTERNAL}:{registry.listener.port}", INTERNAL)


def _redirect_inside(place: Place) -> None:
    registry = place.registry(host=ADDRESSES[PUBLIC])
    digest = registry.add_blob(b"a layer that is inside")
    registry.on("blob", faults.redirected(f"http://{INTERNAL}:8080/layer"))
    place.settings |= {"registry": f"http://{PUBLIC}:{registry.listener.port}", "auth": ANONYMOUS}
    place.name(f"{PUBLIC}:{registry.listener.port}", PUBLIC)
    place.path = f"org/app/blobs/{digest}"


NAMES: Sequence[UpstreamFailure] = (
    UpstreamFailure(
        "the host name of the registry does not exist",
        UNKNOWN,
        "Name or service not known",
        "`registry",
        _use_unknown_name,
    ),
    UpstreamFailure(
        "the name server does not respond",
        SILENT,
        "Temporary failure in name resolution",
        "/etc/resolv.conf",
        _use_silent_name,
    ),
    UpstreamFailure(
        "the host name of the proxy does not exist", UNKNOWN, "Name or service not known", "`proxy", _use_unknown_proxy
    ),
    UpstreamFailure(
        "a login for a registry without TLS", f"{INTERNAL}:PORT", "plain HTTP", "https", _send_login_without_tls
    ),
    UpstreamFailure(
        "a registry redirects to a private address", f"{INTERNAL}:8080", "10.0.0.7", "trusted_hosts", _redirect_inside
    ),
)
