"""Lanes: one upstream of Dockyard each, with its own fake registry and its own way there.

A fault strikes in several states at the same time, each in a lane, so that breakers, records and counts do not mix and
a fault costs as long as its slowest lane.

    Dockyard --- lane.way (toxiproxy) --- lane.fake_registry (token service and CDN: behind ways of their own)

A lane can be walked without Dockyard: `look` is what a plain client sees there. Its requests are marked and do not
count.
"""

import hashlib
import random
import ssl
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import attrs

from tests.chaos.resolver import NameServer
from tests.support import faults
from tests.support.bodies import Bytes
from tests.support.fake_auth import FakeTokenService
from tests.support.fake_registry import Change, FakeRegistry, Image, Rule
from tests.support.http_client import StreamedResponse
from tests.support.raw_http import Exchange, Request, ScriptedResponse
from tests.support.toxiproxy import TcpProxy, Toxiproxy

MIB = 1024 * 1024
REPO = "team/app"
PLAIN = ("X-Plain-Client", "yes")
LAYER_BYTES = 4 * MIB
LOOK_S = 1.0


def is_plain(request: Request) -> bool:
    """Whether a request comes from the rig's own plain client."""
    return request.header(PLAIN[0]) is not None


class Lane:
    """One upstream, behind toxiproxy or, where toxiproxy would be in the way of the fault, `direct`."""

    def __init__(
        self, name: str, toxiproxy: Toxiproxy, *, layer_bytes: int = LAYER_BYTES, seed: int = 0, direct: bool = False
    ) -> None:
        self.name = name
        self.prefix = f"{name.replace(' ', '-')}.test"
        self.fake_registry = FakeRegistry()
        self.way: TcpProxy | None = None if direct else toxiproxy.create_proxy(self.fake_registry.listener.port)
        self.token_way: TcpProxy | None = None
        self.cdn_way: TcpProxy | None = None
        self.tokens: FakeTokenService | None = None
        self.upstream: dict[str, Any] = {}  # more for its entry in the settings
        self.front = self.way.authority if self.way else self.fake_registry.authority  # as Dockyard is told
        self.rules: list[Rule] = []
        self.once: list[Rule] = []  # of those, the ones that only Dockyard's next answers have
        self.tls: ssl.SSLContext | None = None  # of a client that trusts the lane's certificate
        self.names: NameServer | None = None
        self.has_mended_itself = False
        self.connects: Path | None = None  # where Dockyard's connects are put down, if they are
        self.connects_before = 0
        self.released = threading.Event()  # what stalls here goes on when this is set
        self.half = threading.Event()  # the layer in progress goes on from its half when this is set
        self._toxiproxy = toxiproxy
        dice = random.Random(f"{name} {seed}")
        self.layers = {tag: Bytes(dice.randbytes(layer_bytes)) for tag in ("cached", "cold")}
        self.images = {tag: self._add(tag) for tag in ("cached", "cold")}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.released.set()
        self.half.set()
        for way in (self.way, self.token_way, self.cdn_way):
            if way is not None:
                way.close()
        self.fake_registry.__exit__()

    # What stands there

    def add_tokens(self) -> None:
        """Registry requests need a token from the lane's own token service, behind a way of its own."""
        listener = self.fake_registry.listen("token")
        self.token_way = self.add_way(listener.port)
        self.tokens = FakeTokenService(self.fake_registry, realm=f"{self.token_way.url}/token")

    def add_way(self, port: int) -> TcpProxy:
        """A way through toxiproxy of the lane's own."""
        return self._toxiproxy.create_proxy(port)

    def add_cdn(self) -> None:
        """Blobs are redirected to presigned addresses of the lane's own CDN, behind a way of its own."""
        listener = self.fake_registry.listen("cdn")
        self.cdn_way = way = self.add_way(listener.port)

        def location(request: Request) -> str:
            url = self.fake_registry.presign(request.reference, method=request.method, listener="cdn")
            return url.replace(listener.authority, way.authority)

        self.fake_registry.on("blob", faults.redirected(location))

    def settings(self) -> dict[str, Any]:
        """Its entry in `upstreams:`."""
        return {
            "prefix": self.prefix,
            "registry": f"http://{self.front}",
            "auth": {"type": "anonymous"},
            **self.upstream,
        }

    # What is asked for

    def manifest_path(self, tag: str) -> str:
        """By tag."""
        return f"/v2/{self.prefix}/{REPO}/manifests/{tag}"

    def digest_path(self, tag: str) -> str:
        """The same manifest by digest."""
        return f"/v2/{self.prefix}/{REPO}/manifests/{self.images[tag].digest}"

    def blob_path(self, tag: str) -> str:
        """The layer of an image."""
        return f"/v2/{self.prefix}/{REPO}/blobs/{self.layers[tag].digest}"

    # Trouble

    def on(self, kind: str | None, change: Change, **options: Any) -> Rule:
        """Change the answers of the lane until `mend`."""
        rule = self.fake_registry.on(kind, change, **options)
        self.rules.append(rule)
        return rule

    def on_once(self, kind: str | None, change: Change, *, times: int = 1, **options: Any) -> Rule:
        """Change the next answer that Dockyard gets."""
        rule = self.on(kind, change, times=times, when=lambda request: not is_plain(request), **options)
        self.once.append(rule)
        return rule

    def hold(self, place: int, *, breaks: bool = False) -> "Hold":
        """The next layer that Dockyard gets stops at a byte until `half` is set; there it `breaks` off then."""
        hold = Hold()

        def change(request: Request, answer: ScriptedResponse) -> ScriptedResponse:
            if is_plain(request) or answer.status not in (200, 206) or hold.begun:
                return answer
            hold.begun += 1
            held = faults.stalled(place, self.half)(request, answer)
            return faults.cut(place)(request, held) if breaks else held

        self.rules.append(self.fake_registry.on(self.body_kind, change, method="GET"))
        return hold

    def show_earlier(self) -> Image:
        """The tag `cached` means an older image, until `show`."""
        return self.fake_registry.add_image(REPO, "cached", [b"an older layer"])

    def show(self, tag: str) -> None:
        """The tag means the lane's image (again)."""
        self.fake_registry.add_manifest(REPO, tag, self.images[tag].body, self.images[tag].media_type)

    def move_tag(self) -> Image:
        """The tag of the cached image means another one from now on."""
        return self.fake_registry.add_image(REPO, "cached", [Bytes(self.layers["cached"].data[::-1])])

    def path_upstream(self, path: str) -> str:
        """What Dockyard asks for, for a client's path."""
        return path.replace(f"/{self.prefix}/", "/")

    @property
    def body_kind(self) -> str:
        """Which requests bring the bytes of a layer."""
        return "blob" if self.cdn_way is None else "cdn"

    def mend(self) -> None:
        """All is well again."""
        self.released.set()
        if self.rules:
            self.fake_registry.remove_rules(*self.rules)
            self.rules.clear()
        for listener in self.fake_registry.listeners.values():
            listener.accept_syns()
        for way in (self.way, self.token_way, self.cdn_way):
            if way is not None:
                way.restore()

    # What reached it

    def seen(self, kind: str | None = None, method: str | None = None) -> list[Exchange]:
        """The requests that Dockyard made here since `forget`."""
        return [each for each in self.fake_registry.received(kind, method) if not is_plain(each.request)]

    def count_connects(self) -> int:
        """How often Dockyard has connected to the front of the lane, or tried to."""
        assert self.connects is not None, "connects are not put down"
        host, _, port = self.front.rpartition(":")
        return self.connects.read_text().splitlines().count(str((host, int(port))))

    def look(self, path: str = "", *, way: TcpProxy | None = None, method: str = "GET") -> str:
        """What a plain client sees here now: `refused`, `reset`, `silence`, or status, bytes and end of the answer."""
        chosen = way or self.way
        address = chosen.address if chosen else (self.fake_registry.listener.host, self.fake_registry.listener.port)
        token = self.tokens and self.tokens.issue()
        return look(address, path or f"/v2/{REPO}/manifests/cached", method=method, tls=self.tls, token=token)

    def look_at_range(self, tag: str, start: int) -> str:
        """The status and Content-Range that a plain client gets for the rest of a layer."""
        assert self.way is not None
        headers = {PLAIN[0]: PLAIN[1], "Range": f"bytes={start}-"}
        with StreamedResponse(self.way.address, self.path_upstream(self.blob_path(tag)), headers) as download:
            download.head()
            return f"{download.status} {download.header('Content-Range')}"

    def time_bytes(self, path: str, amount: int) -> float:
        """The seconds that a plain client waits for the first bytes of a body."""
        assert self.way is not None
        with StreamedResponse(self.way.address, path, {PLAIN[0]: PLAIN[1]}) as download:
            download.head()
            began_at = time.monotonic()
            download.read(amount)
            return time.monotonic() - began_at

    def measure(self, path: str) -> tuple[int, int]:
        """The bytes of the head and of the body of an answer, as toxiproxy counts them."""
        address = (self.fake_registry.listener.host, self.fake_registry.listener.port)
        with StreamedResponse(address, path, {PLAIN[0]: PLAIN[1]}) as download:
            download.head()
            lines = [f"HTTP/1.1 {download.status} Scripted", *(f"{key}: {value}" for key, value in download.headers)]
            return len("\r\n".join([*lines, "", ""])), download.length or 0

    def mend_way_at_second(self, kind: str) -> None:
        """The way is well again from the second body on that Dockyard asks for."""
        way, begun = self.way, 0
        assert way is not None

        def change(request: Request, answer: ScriptedResponse) -> ScriptedResponse:
            nonlocal begun
            if not is_plain(request):
                begun += 1
                if begun == 2:
                    way.restore()
                    self.has_mended_itself = True
            # Toxiproxy would end a connection that began with a reset by another one, and lose what is under way.
            return answer.with_header("Connection") if self.has_mended_itself else answer

        self.on(kind, change, method="GET")

    def _add(self, tag: str) -> Image:
        return self.fake_registry.add_image(REPO, tag, [self.layers[tag]])


@attrs.define
class Hold:
    """A layer that stops on its way: how often it was begun."""

    begun: int = 0


def look(
    address: tuple[str, int],
    path: str,
    *,
    method: str = "GET",
    tls: ssl.SSLContext | None = None,
    token: str | None = None,
    timeout_s: float = LOOK_S,
) -> str:
    """What a plain client sees.

    `refused`, `no connection`, `reset`, `closed` or `silence` when there is no answer, `tls` and the reason when there
    is no trust; else the status and `whole`, `wrong` (whole, but not what its digest says), what is odd about it, or
    how it ended and where.
    """
    headers = {PLAIN[0]: PLAIN[1]} | ({"Authorization": f"Bearer {token}"} if token else {})
    try:
        with StreamedResponse(address, path, headers, method=method, tls=tls, timeout_s=timeout_s) as download:
            try:
                download.head()
            except TimeoutError:
                return "silence"
            if kind := _oddity(download):
                return f"{download.status} {kind}"
            body, ended = download.rest()
            if ended != "length":
                return f"{download.status} {ended} at {download.received}"
            digest = download.header("Docker-Content-Digest") or ""
            is_right = method == "HEAD" or not digest or digest == f"sha256:{hashlib.sha256(body).hexdigest()}"
            return f"{download.status} {'whole' if is_right else 'wrong'}"
    except ConnectionRefusedError:
        return "refused"
    except ConnectionResetError:
        return "reset"
    except ssl.SSLError as exc:
        return f"tls {exc.reason}"
    except TimeoutError:
        return "no connection"
    except ConnectionError:
        return "closed"


def _oddity(download: StreamedResponse) -> str:
    lengths = {value for name, value in download.headers if name.lower() == "content-length"}
    if len(lengths) > 1:
        return "two lengths"
    if lengths and download.header("Transfer-Encoding"):
        return "length and chunks"
    is_page = download.header("Content-Type") in ("text/html", "application/json")
    return "page" if is_page and download.status == 200 else ""


def wait_for(condition: Callable[[], bool], what: str, within_s: float) -> float:
    """Wait until something holds; the seconds that it took."""
    began_at = time.monotonic()
    while not condition():
        if time.monotonic() - began_at > within_s:
            raise AssertionError(f"not within {within_s} s: {what}")
        time.sleep(0.02)
    return time.monotonic() - began_at
