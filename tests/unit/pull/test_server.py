"""Which server responds to `dockyard pull`: its prefixes, or the reason why it is no Dockyard, with what to do."""

import json
import ssl
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import trustme

from dockyard.pull.client import DockyardClient
from dockyard.pull.retries import PullError
from tests.support.certificates import server_context
from tests.support.processes import free_port
from tests.support.raw_server import RawConnection, RawServer

NEW = {"/": (200, {}, {"version": "9", "prefixes": ["docker.io", "internal"]}), "/v2/": (200, {}, {})}
OLD = {"/version": (200, {}, {"version": "1"}), "/v2/": (200, {}, {})}
REGISTRY = {"/v2/": (200, {"Docker-Distribution-Api-Version": "registry/2.0"}, {})}
LOGIN = {"/v2/": (401, {"Docker-Distribution-Api-Version": "registry/2.0"}, {"errors": []})}

Responses = Mapping[str, tuple[int, Mapping[str, str], object]]


@contextmanager
def serving(responses: Responses, other_status: int = 404, tls: ssl.SSLContext | None = None) -> Iterator[str]:
    """A web server with these responses by path, as status, headers and JSON body. Yields its URL."""

    class Handler(BaseHTTPRequestHandler):
        server_version, sys_version = "Other/1", ""

        def do_GET(self) -> None:
            """Respond."""
            status, headers, document = responses.get(self.path, (other_status, {}, "<html>"))
            body = json.dumps(document).encode()
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Print nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    if tls:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    try:
        yield f"{'https' if tls else 'http'}://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def find_error(url: str, ca_file: str | None = None) -> str:
    """The error without `no Dockyard at URL: `."""
    client = DockyardClient(url, 1, ca_file)
    try:
        with pytest.raises(PullError) as caught:
            client.check()
    finally:
        client.close()
    start = f"no Dockyard at {url}: "
    assert caught.value.message.startswith(start)
    return caught.value.message.removeprefix(start)


def check(url: str, ca_file: str | None = None) -> frozenset[str] | None:
    """The prefixes of the server."""
    client = DockyardClient(url, 1, ca_file)
    try:
        return client.check()
    finally:
        client.close()


@pytest.mark.parametrize(("responses", "prefixes"), [(NEW, {"docker.io", "internal"}), (OLD, None)])
def test_a_dockyard_tells_its_prefixes(responses: Responses, prefixes: set[str] | None) -> None:
    """An older one has none to tell."""
    with serving(responses) as url:
        assert check(url) == prefixes


def test_a_redirect_to_the_server_is_followed() -> None:
    """Of a load balancer, for example from HTTP to HTTPS."""
    with serving(NEW) as url, serving({"/": (308, {"Location": f"{url}/"}, {})}) as redirecting:
        assert check(redirecting) == {"docker.io", "internal"}


@pytest.mark.parametrize("responses", [REGISTRY, LOGIN, {"/v2/": (200, {}, {})}])
def test_another_registry_is_no_dockyard(responses: Responses) -> None:
    """It would give other images under these names."""
    with serving(responses, 200) as url:
        assert find_error(url).startswith("the server (Other/1) is a registry, but not a Dockyard (set the URL")


@pytest.mark.parametrize("status", [200, 404, 500])
def test_another_web_server_is_no_dockyard(status: int) -> None:
    """Such as that of a wrong port."""
    with serving({}, status) as url:
        assert find_error(url) == (
            f"the server (Other/1) responds with status {status} to /v2/ (it is another program: check host and port "
            "in --server)"
        )


def test_a_server_that_speaks_no_http_is_no_dockyard() -> None:
    """Such as SSH."""

    def greet(connection: RawConnection) -> None:
        connection.send(b"SSH-2.0-OpenSSH_9.2\r\n")

    with RawServer(greet) as server:
        assert find_error(server.url).endswith("(check host and port in --server)")


def test_a_stopped_server_is_refused() -> None:
    """The address of the server is in the URL."""
    url = f"http://127.0.0.1:{free_port()}"
    assert find_error(url) == "Connection refused (is it running? set its URL with --server)"


def test_an_unknown_host_is_named() -> None:
    """With the error of the system."""
    error = find_error("http://no-such-host.invalid:5000")
    assert error.startswith("cannot resolve no-such-host.invalid: ")
    assert error.endswith(" (check the host name in --server)")


def test_http_to_an_https_server_says_to_use_https() -> None:
    """Whether it closes the connection or responds with 400."""
    with serving(NEW, tls=server_context(trustme.CA(), "127.0.0.1")) as url:
        plain = url.replace("https:", "http:")
        assert find_error(plain) == f"the server speaks HTTPS (use {url})"


def test_https_to_an_http_server_says_to_use_http() -> None:
    """Also with a CA file."""
    with serving(NEW) as url:
        assert find_error(url.replace("http:", "https:")) == (
            f"no trusted TLS connection: the server does not speak TLS on this port (use {url})"
        )


def test_a_private_authority_is_trusted_with_its_file(tmp_path: Path) -> None:
    """And not without it, or with another one, or for another host."""
    authority, ca_file, other_file = trustme.CA(), tmp_path / "ca.pem", tmp_path / "other.pem"
    authority.cert_pem.write_to_path(str(ca_file))
    trustme.CA().cert_pem.write_to_path(str(other_file))
    with serving(NEW, tls=server_context(authority, "127.0.0.1")) as url:
        assert check(url, str(ca_file)) == {"docker.io", "internal"}
        for file in (None, str(other_file)):
            assert find_error(url, file) == (
                "no trusted TLS connection: the certificate is not from a known certificate authority "
                "(name a file with the certificate of its authority with --ca-file)"
            )
    with serving(NEW, tls=server_context(authority, "cache.example")) as url:
        assert find_error(url, str(ca_file)).endswith("(set a host in --server that is in the certificate)")
