"""The endpoint of `/`: what this server is, for people with a browser, and the prefixes, for `dockyard pull`.

The page is complete in itself. Its Content-Security-Policy allows its own style sheet, by its hash, and nothing else.
"""

import base64
import hashlib
import html
import json
from collections.abc import Iterator, Sequence

import falcon.asgi

from dockyard import __version__
from dockyard.config.hosts import is_loopback, parse_authority
from dockyard.config.settings import Upstream
from dockyard.first_pull import example_image
from dockyard.oci.origin import bracket, join_host_port
from dockyard.web.gate import Gate
from dockyard.web.request_record import SCOPE_KEY

HTML = "text/html; charset=utf-8"
JSON = "application/json"
UNKNOWN_ADDRESS = "ADDRESS:PORT"
"""Instead of the address of this server, if the request does not have a valid one."""

_STYLE = """
:root { color-scheme: light dark; --line: #d0d7de; --back: #f6f8fa; }
@media (prefers-color-scheme: dark) { :root { --line: #444c56; --back: #22272e; } }
body { font: 1rem/1.5 system-ui, sans-serif; max-width: 44rem; margin: 0 auto; padding: 1rem; }
h1 small { font-size: 1rem; font-weight: normal; opacity: .7; }
h2 { font-size: 1.1rem; margin-top: 2rem; }
pre { background: var(--back); border: 1px solid var(--line); border-radius: .4rem; padding: .6rem; margin: .5rem 0;
  white-space: pre-wrap; overflow-wrap: anywhere; }
code { font-family: ui-monospace, monospace; font-size: .9rem; overflow-wrap: anywhere; }
"""
_STYLE_HASH = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
_HEADERS = {
    "cache-control": "no-store",
    "vary": "Accept",
    "referrer-policy": "no-referrer",
    "content-security-policy": (
        f"default-src 'none'; style-src 'sha256-{_STYLE_HASH}'; img-src data:; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    ),
}


class PageEndpoint:
    """`GET /`: a page in HTML; version and prefixes in JSON for clients that prefer it."""

    def __init__(self, gate: Gate) -> None:
        self._gate = gate

    async def on_get(self, req: falcon.asgi.Request, resp: falcon.asgi.Response) -> None:
        """200. Raises RegistryError."""
        upstreams = await self._gate.check_page(req, resp, req.scope[SCOPE_KEY])
        resp.set_headers(_HEADERS)
        if self._gate.restricts:
            resp.set_header("vary", "Authorization, Accept")
        if req.client_prefers(("text/html", JSON)) == JSON:
            resp.content_type = JSON
            prefixes = [upstream.prefix for upstream in upstreams]
            resp.data = json.dumps({"version": __version__, "prefixes": prefixes}).encode()
            return
        resp.content_type = HTML
        address = find_address(req.get_header("Host") or "", is_tls=req.forwarded_scheme == "https")
        resp.data = render(address, upstreams, is_tls=req.forwarded_scheme == "https").encode()

    on_head = on_get


def find_address(host_header: str, *, is_tls: bool) -> str:
    """Return the host and port of a Host header as image names begin with them.

    A name without a dot gets the port in any case: without one, Docker takes it for a user of Docker Hub.
    """
    try:
        host, port = parse_authority(host_header)
    except ValueError:
        return UNKNOWN_ADDRESS
    if port is None and "." not in host and host != "localhost":
        port = 443 if is_tls else 80
    return join_host_port(host, port) if port else bracket(host)


def render(address: str, upstreams: Sequence[Upstream], *, is_tls: bool) -> str:
    """Return the page in HTML."""
    return "\n".join(_lines(html.escape(address), upstreams, needs_insecure=not is_tls and not _is_local(address)))


def _lines(address: str, upstreams: Sequence[Upstream], *, needs_insecure: bool) -> Iterator[str]:
    yield (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<title>Dockyard</title>\n<link rel="icon" href="data:,">\n'
        f"<style>{_STYLE}</style>\n</head>\n<body>"
    )
    yield f"<h1>Dockyard <small>{html.escape(__version__)}</small></h1>"
    yield (
        "<p>This is a pull-through cache for container images. It fetches each image from its registry once, and "
        "serves it from the cache afterwards. To use it, put the address of this server in front of the name of an "
        "image.</p>"
    )
    yield "<h2>Pull an image</h2>"
    for upstream in upstreams:
        yield f"<pre><code>docker pull {address}/{html.escape(example_image(upstream))}</code></pre>"
    if any("NAME:TAG" in example_image(upstream) for upstream in upstreams):
        yield "<p>Replace <code>NAME:TAG</code> with the name and the tag of an image.</p>"
    if needs_insecure:
        yield (
            "<p>Docker connects by HTTPS, except to localhost. For a server without HTTPS, add "
            f"<code>&quot;insecure-registries&quot;: [&quot;{address}&quot;]</code> to "
            "<code>/etc/docker/daemon.json</code> and restart Docker.</p>"
        )
    yield (
        "<h2>State of the server</h2>\n<ul>\n"
        '<li><a href="healthz">healthz</a>: whether it runs</li>\n'
        '<li><a href="readyz">readyz</a>: whether it takes requests</li>\n'
        '<li><a href="metrics">metrics</a>: its counts, for Prometheus</li>\n'
        "</ul>\n</body>\n</html>\n"
    )


def _is_local(address: str) -> bool:
    return address != UNKNOWN_ADDRESS and is_loopback(parse_authority(address)[0])
