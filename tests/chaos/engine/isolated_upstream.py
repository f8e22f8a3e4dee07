"""An upstream of Dockyard that one case has for itself.

    Dockyard --- proxy (toxiproxy) --- fake registry (its token service and CDN: each behind a proxy of its own)

Requests of the direct client are marked, and are left out of what `requests` returns.
"""

import random
import ssl
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import attrs

from tests.chaos.engine.direct_client import DIRECT_HEADER, describe_response, is_direct
from tests.chaos.engine.dns_server import DnsServer
from tests.chaos.engine.limits import SLACK_S
from tests.support import faults
from tests.support.bodies import Bytes
from tests.support.deployment import eventually
from tests.support.fake_auth import FakeTokenService
from tests.support.fake_registry import Change, FakeRegistry, Image, Rule
from tests.support.http_client import StreamedResponse
from tests.support.raw_http import Exchange, Request, ScriptedResponse
from tests.support.toxiproxy import TcpProxy, Toxiproxy

MIB = 1024 * 1024
REPO = "team/app"
LAYER_BYTES = 4 * MIB


class IsolatedUpstream:
    """A fake registry behind toxiproxy; directly reachable if `toxiproxy` is None.

    It has two images, `cached` and `cold`, of one layer each. Whether they are cached is up to the case.
    """

    def __init__(self, name: str, toxiproxy: Toxiproxy | None, *, layer_bytes: int = LAYER_BYTES) -> None:
        self.name = name
        self.prefix = f"{name.replace(' ', '-')}.test"
        self.fake_registry = FakeRegistry()
        port = self.fake_registry.listener.port
        self.proxy: TcpProxy | None = toxiproxy.create_proxy(port) if toxiproxy else None
        self.token_proxy: TcpProxy | None = None
        self.cdn_proxy: TcpProxy | None = None
        self.tokens: FakeTokenService | None = None
        self.extra_settings: dict[str, Any] = {}  # added to its entry in `upstreams:`
        self.authority = self.proxy.authority if self.proxy else self.fake_registry.authority  # that Dockyard uses
        self.rules: list[Rule] = []
        self.one_time_rules: list[Rule] = []  # of those, the ones that only the next responses to Dockyard have
        self.tls: ssl.SSLContext | None = None  # of a client that trusts the upstream's certificate
        self.dns: DnsServer | None = None
        self.has_recovered = False
        self.connect_log: Path | None = None  # where the connects of Dockyard are logged, if they are
        self.connects_before = 0
        self.stalls_over = threading.Event()  # stalled responses go on when this is set
        self.resume_download = threading.Event()  # the download that `hold_download` holds goes on when this is set
        self._toxiproxy = toxiproxy
        rng = random.Random(name)
        self.layers = {tag: Bytes(rng.randbytes(layer_bytes)) for tag in ("cached", "cold")}
        self.images = {tag: self.fake_registry.add_image(REPO, tag, [layer]) for tag, layer in self.layers.items()}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stalls_over.set()
        self.resume_download.set()
        for proxy in self._proxies():
            proxy.close()
        self.fake_registry.__exit__()

    # Before Dockyard starts

    def add_tokens(self) -> None:
        """Require a token of a token service behind a proxy of its own."""
        listener = self.fake_registry.listen("token")
        self.token_proxy = self.add_proxy(listener.port)
        self.tokens = FakeTokenService(self.fake_registry, realm=f"{self.token_proxy.url}/token")

    def add_cdn(self, *, uses: int | None = None) -> None:
        """Redirect requests for blobs to presigned URLs of a CDN behind a proxy of its own; `uses`: of each URL."""
        listener = self.fake_registry.listen("cdn")
        self.cdn_proxy = proxy = self.add_proxy(listener.port)

        def location(request: Request) -> str:
            url = self.fake_registry.presign(request.reference, method=request.method, listener="cdn", uses=uses)
            return url.replace(listener.authority, proxy.authority)

        self.fake_registry.on("blob", faults.redirected(location))

    def add_proxy(self, port: int) -> TcpProxy:
        """Put toxiproxy in front of another port."""
        assert self._toxiproxy is not None, "this upstream has no toxiproxy"
        return self._toxiproxy.create_proxy(port)

    def settings(self) -> dict[str, Any]:
        """Its entry in `upstreams:`."""
        return {
            "prefix": self.prefix,
            "registry": f"http://{self.authority}",
            "auth": {"type": "anonymous"},
            **self.extra_settings,
        }

    # Paths

    def manifest_path(self, tag: str) -> str:
        """The path of a manifest by tag, at Dockyard."""
        return f"/v2/{self.prefix}/{REPO}/manifests/{tag}"

    def digest_path(self, tag: str) -> str:
        """The path of the same manifest by digest, at Dockyard."""
        return f"/v2/{self.prefix}/{REPO}/manifests/{self.images[tag].digest}"

    def blob_path(self, tag: str) -> str:
        """The path of the layer of an image, at Dockyard."""
        return f"/v2/{self.prefix}/{REPO}/blobs/{self.layers[tag].digest}"

    def upstream_path(self, path: str) -> str:
        """The path at the upstream for a path at Dockyard."""
        return path.replace(f"/{self.prefix}/", "/")

    # Faults

    def on(self, kind: str | None, change: Change, **options: Any) -> Rule:
        """Change the responses of the registry until `restore`."""
        rule = self.fake_registry.on(kind, change, **options)
        self.rules.append(rule)
        return rule

    def on_once(self, kind: str | None, change: Change, *, times: int = 1, **options: Any) -> Rule:
        """Change the next response that Dockyard gets."""
        rule = self.on(kind, change, times=times, when=lambda request: not is_direct(request), **options)
        self.one_time_rules.append(rule)
        return rule

    def hold_download(self, offset: int, *, breaks: bool = False) -> "Hold":
        """Hold the next layer that Dockyard gets at a byte until `resume_download`; with `breaks`, cut it there."""
        hold = Hold()

        def change(request: Request, response: ScriptedResponse) -> ScriptedResponse:
            if is_direct(request) or response.status not in (200, 206) or hold.begun:
                return response
            hold.begun += 1
            held = faults.stalled(offset, self.resume_download)(request, response)
            return faults.cut(offset)(request, held) if breaks else held

        self.rules.append(self.fake_registry.on(self.body_kind, change, method="GET"))
        return hold

    def publish_earlier_image(self) -> Image:
        """Let the tag `cached` point to an older image, until `publish`."""
        return self.fake_registry.add_image(REPO, "cached", [b"an older layer"])

    def publish(self, tag: str) -> None:
        """Let a tag point to its image (again)."""
        self.fake_registry.add_manifest(REPO, tag, self.images[tag].body, self.images[tag].media_type)

    def move_tag(self) -> Image:
        """Let the tag `cached` point to another image from now on."""
        return self.fake_registry.add_image(REPO, "cached", [Bytes(self.layers["cached"].data[::-1])])

    @property
    def body_kind(self) -> str:
        """The kind of the requests whose responses have the bytes of a layer."""
        return "blob" if self.cdn_proxy is None else "cdn"

    def restore_proxy_at_second_body(self, kind: str) -> None:
        """End the faults of the proxy when Dockyard requests the second body."""
        proxy, begun = self.proxy, 0
        assert proxy is not None

        def change(request: Request, response: ScriptedResponse) -> ScriptedResponse:
            nonlocal begun
            if not is_direct(request):
                begun += 1
                if begun == 2:
                    proxy.restore()
                    self.has_recovered = True
            # Toxiproxy would end a connection that began with a reset by another one, and lose what is under way.
            return response.with_header("Connection") if self.has_recovered else response

        self.on(kind, change, method="GET")

    def restore(self) -> None:
        """End all faults that were injected by way of this object."""
        self.stalls_over.set()
        if self.rules:
            self.fake_registry.remove_rules(*self.rules)
            self.rules.clear()
        for listener in self.fake_registry.listeners.values():
            listener.accept_syns()
        for proxy in self._proxies():
            proxy.restore()

    # Requests that reached it

    def requests(self, kind: str | None = None, method: str | None = None) -> list[Exchange]:
        """The requests of Dockyard since `fake_registry.clear_exchanges`."""
        return [each for each in self.fake_registry.received(kind, method) if not is_direct(each.request)]

    def count_connects(self) -> int:
        """How often Dockyard has connected, or tried to connect."""
        assert self.connect_log is not None, "connects are not logged"
        host, _, port = self.authority.rpartition(":")
        return self.connect_log.read_text().splitlines().count(str((host, int(port))))

    # Direct requests

    def request_directly(self, path: str = "", *, proxy: TcpProxy | None = None, method: str = "GET") -> str:
        """What a direct client gets now; see `describe_response`."""
        chosen = proxy or self.proxy
        address = chosen.address if chosen else self._listener_address()
        token = self.tokens.issue() if self.tokens else None
        return describe_response(
            address, path or f"/v2/{REPO}/manifests/cached", method=method, tls=self.tls, token=token
        )

    def request_range_directly(self, tag: str, start: int) -> str:
        """The status and Content-Range that a direct client gets for the rest of a layer."""
        assert self.proxy is not None
        headers = {DIRECT_HEADER[0]: DIRECT_HEADER[1], "Range": f"bytes={start}-"}
        with StreamedResponse(self.proxy.address, self.upstream_path(self.blob_path(tag)), headers) as response:
            response.head()
            return f"{response.status} {response.header('Content-Range')}"

    def time_bytes(self, path: str, amount: int) -> float:
        """The seconds until a direct client has the first bytes of a body."""
        assert self.proxy is not None
        with StreamedResponse(self.proxy.address, path, {DIRECT_HEADER[0]: DIRECT_HEADER[1]}) as response:
            response.head()
            began_at = time.monotonic()
            response.read(amount)
            return time.monotonic() - began_at

    def measure_response(self, path: str) -> tuple[int, int]:
        """The size of the head and of the body of a response, as toxiproxy counts them."""
        with StreamedResponse(self._listener_address(), path, {DIRECT_HEADER[0]: DIRECT_HEADER[1]}) as response:
            response.head()
            lines = [f"HTTP/1.1 {response.status} Scripted", *(f"{key}: {value}" for key, value in response.headers)]
            return len("\r\n".join([*lines, "", ""])), response.length or 0

    def _listener_address(self) -> tuple[str, int]:
        return self.fake_registry.listener.host, self.fake_registry.listener.port

    def _proxies(self) -> list[TcpProxy]:
        return [proxy for proxy in (self.proxy, self.token_proxy, self.cdn_proxy) if proxy is not None]


@attrs.define
class Hold:
    """A response that is held on its way: how often it was begun."""

    begun: int = 0


def wait_for(condition: Callable[[], Any], what: str, within_s: float | None = None) -> float:
    """Wait until a condition holds (see `eventually`); the seconds that it took. Raises AssertionError."""
    began_at = time.monotonic()
    eventually(condition, what, within_s, slack_s=SLACK_S)
    return time.monotonic() - began_at
