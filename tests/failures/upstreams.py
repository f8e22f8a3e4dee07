"""Failures of upstreams, TLS, proxies and logins: each has an upstream of its own, all at one server."""

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import attrs
import trustme

from tests.failures.certificates import issued, make_authority, old_protocol, self_signed
from tests.failures.failure import Failure
from tests.security.canaries import Canary
from tests.support import faults
from tests.support.fake_auth import FakeScopedTokens, FakeTokenService, bearer_challenge
from tests.support.fake_registry import FakeRegistry, basic
from tests.support.raw_server import RawConnection, RawServer, response

REPOSITORY = "org/app"
TAG = f"{REPOSITORY}/manifests/v1"
PASSWORD = Canary("canary-password-5e1f")
PROXY_PASSWORD = Canary("canary-proxy-password-77d0")
SIGNATURE = Canary("canary-signature-0a9c")
HELPER_OUTPUT = Canary("canary-helper-output-31be")
CANARIES = (PASSWORD, PROXY_PASSWORD, SIGNATURE, HELPER_OUTPUT)
LOGIN = {"type": "basic", "username": "ann", "password": PASSWORD.text}
ANONYMOUS = {"type": "anonymous"}
METADATA_SERVICE = "http://169.254.169.254/latest/meta-data"


@attrs.define
class Place:
    """Where a failure arranges its servers. `settings` is the entry in `upstreams`, `path` what a client requests."""

    directory: Path
    servers: ExitStack
    authority: trustme.CA
    prefix: str
    keychain: dict[str, Any]
    settings: dict[str, Any] = attrs.field(factory=lambda: {"auth": ANONYMOUS})
    names: dict[str, str] = attrs.field(factory=dict)
    path: str = TAG
    method: str = "GET"
    is_configured: bool = True

    def registry(self, name: str = "HOST", **listener: Any) -> FakeRegistry:
        """A registry with an image; it is the upstream. With arguments of `listen`, at a listener with these."""
        registry = self.servers.enter_context(FakeRegistry())
        registry.add_image(REPOSITORY, "v1")
        if listener:
            registry.listener = registry.listen("other", **listener)
        self.use(registry.url, registry.authority, name)
        return registry

    def use(self, url: str, authority: str, name: str = "HOST") -> None:
        """Make this the address of the upstream."""
        self.settings["registry"] = url
        self.name(authority, name)

    def name(self, authority: str, name: str) -> None:
        """Let an address appear in lines as a placeholder."""
        host, _, port = authority.rpartition(":")
        self.names |= {authority: f"{name}:PORT", f"{host}, port {port}": f"{name}, port PORT"}

    def raw(self, serve: Callable[[RawConnection], None], name: str = "HOST") -> RawServer:
        """A server of bytes."""
        server = self.servers.enter_context(RawServer(serve))
        self.name(server.host, name)
        return server

    def be_unknown(self) -> None:
        """Leave the prefix out of the settings."""
        self.is_configured = False

    def push(self) -> None:
        """Let the client push."""
        self.registry()
        self.method = "PUT"

    def trust(self) -> None:
        """Trust the authority of the tests for this upstream."""
        self.settings["ca_file"] = str(self.directory / "ca.pem")


Arrange = Callable[[Place], object]


@attrs.frozen
class UpstreamFailure(Failure):
    """A failure of an upstream. `arrange` makes it; `keychain` is the text of the keychain file, where it fails."""

    arrange: Arrange
    keychain: str | None = None


def _refuse(place: Place) -> None:
    place.registry().listener.close()


def _accept_nothing(place: Place) -> None:
    place.registry().listener.drop_syns()


def _change(change: faults.Change, kind: str | None = None) -> Arrange:
    """The registry answers everything, or all requests of a kind, in a changed way."""
    return lambda place: place.registry().on(kind, change)


def _send_wrong_layer(place: Place) -> None:
    registry = place.registry()
    digest = registry.add_blob(b"a layer that arrives with other bytes")
    registry.on("blob", faults.flipped(3))
    place.path = f"{REPOSITORY}/blobs/{digest}"


def _cut_layers(place: Place) -> None:
    registry = place.registry()
    digest = registry.add_blob(bytes(100_000))
    registry.on("blob", faults.cut(1000))
    registry.on("blob", faults.disconnected())
    place.path = f"{REPOSITORY}/blobs/{digest}"


def redirect_layers(location: str) -> Arrange:
    """The registry redirects downloads of layers to another place."""

    def arrange(place: Place) -> None:
        registry = place.registry()
        digest = registry.add_blob(b"a layer that is somewhere else")
        registry.on("blob", faults.redirected(f"{location}?X-Amz-Signature={SIGNATURE.text}"))
        place.path = f"{REPOSITORY}/blobs/{digest}"

    return arrange


def _redirect_to_closed_host(place: Place) -> None:
    registry = place.registry()
    storage = place.servers.enter_context(FakeRegistry())
    storage.listener.close()
    place.name(storage.authority, "STORAGE")
    digest = registry.add_blob(b"a layer that is at another host")
    registry.on("blob", faults.redirected(f"{storage.url}/x?X-Amz-Signature={SIGNATURE.text}"))
    place.path = f"{REPOSITORY}/blobs/{digest}"


def _redirect_to_login(place: Place) -> None:
    registry = place.registry()
    other = place.servers.enter_context(FakeRegistry())
    other.on(None, faults.challenged('Basic realm="other"'))
    place.name(other.authority, "OTHER")
    registry.on("manifest", faults.redirected(lambda request: f"{other.url}{request.target}"))


def _speak_http_on_https(place: Place) -> None:
    registry = place.registry()
    place.settings["registry"] = registry.url.replace("http:", "https:")


def _speak_https_on_http(place: Place) -> None:
    """What a server in Go responds."""

    def serve(connection: RawConnection) -> None:
        connection.receive_request()
        connection.send(response(b"Client sent an HTTP request to an HTTPS server.\n", status=400))

    server = place.raw(serve)
    place.use(server.url, server.host)


def _tls(make: Callable[[Place], Any], *, is_trusted: bool = True) -> Arrange:
    """The registry speaks TLS with this context."""

    def arrange(place: Place) -> None:
        place.registry(tls=make(place))
        if is_trusted:
            place.trust()

    return arrange


def _close_in_handshake(place: Place) -> None:
    server = place.raw(lambda connection: connection.receive_some())
    place.use(f"https://{server.host}", server.host)


def _proxied(place: Place, proxy: str) -> None:
    """The registry is behind this proxy, which needs a login."""
    place.settings |= {"registry": "https://registry.example", "proxy": f"http://ann:{PROXY_PASSWORD.text}@{proxy}"}


def _refuse_at_proxy(place: Place) -> None:
    proxy = place.servers.enter_context(FakeRegistry())
    proxy.listener.close()
    place.name(proxy.authority, "PROXY")
    _proxied(place, proxy.authority)


def _answer_connect(status: int, *headers: str) -> Arrange:
    """The proxy answers every request with this status."""

    def arrange(place: Place) -> None:
        def serve(connection: RawConnection) -> None:
            connection.receive_request()
            connection.send(response(b"<p>proxy</p>", "Content-Type: text/html", *headers, status=status))

        _proxied(place, place.raw(serve, "PROXY").host)

    return arrange


def _speak_ssh(place: Place) -> None:
    def serve(connection: RawConnection) -> None:
        connection.send(b"SSH-2.0-OpenSSH_9.2p1\r\n")
        connection.wait_for_end()

    _proxied(place, place.raw(serve, "PROXY").host)


def _intercept(place: Place) -> None:
    registry = place.servers.enter_context(FakeRegistry())
    proxy = registry.listen("proxy", tunnel=issued(make_authority(), "registry.example"))
    place.name(proxy.authority, "PROXY")
    _proxied(place, proxy.authority)


def _require_login(auth: Mapping[str, str]) -> Arrange:
    """The registry requires a login that these settings do not have."""

    def arrange(place: Place) -> None:
        place.registry().on(None, faults.challenged('Basic realm="registry"'))
        place.settings["auth"] = auth

    return arrange


def _token_service(change: faults.Change | None, auth: Mapping[str, str] = ANONYMOUS) -> Arrange:
    """The registry requires tokens; the token service answers in a changed way, or refuses connections (None)."""

    def arrange(place: Place) -> None:
        registry = place.registry()
        tokens = registry.listen("tokens")
        place.name(tokens.authority, "TOKENS")
        FakeTokenService(registry, realm=f"{tokens.url}/token", login=basic("bob", "another"))
        place.settings["auth"] = auth
        if change is None:
            tokens.close()
        else:
            registry.on("token", change)

    return arrange


def _refuse_scope(place: Place) -> None:
    registry = place.registry()
    FakeScopedTokens(
        registry,
        grant=lambda name, scopes: [],
        challenge=lambda repo, token: bearer_challenge(f"{registry.url}/token/main", repo),
    )
    place.settings["auth"] = ANONYMOUS


def _helper(script: str | None) -> Arrange:
    """The login comes from a credential helper that runs this script (None: it is not installed)."""

    def arrange(place: Place) -> None:
        registry = place.registry()
        registry.on(None, faults.challenged('Basic realm="registry"'))
        name = place.prefix.partition(".")[0]
        place.names[f"docker-credential-{name}"] = "docker-credential-HELPER"
        place.keychain["credHelpers"][registry.authority] = name
        place.settings["auth"] = {"type": "keychain"}
        if script is not None:
            program = place.directory / "bin" / f"docker-credential-{name}"
            program.write_text(f"#!/bin/sh\n{script}\n")
            program.chmod(0o755)

    return arrange


def _use_broken_keychain(place: Place) -> None:
    place.registry()
    place.settings["auth"] = {"type": "keychain"}


UPSTREAMS = (
    UpstreamFailure("the registry refuses connections", "HOST:PORT", "Connection refused", "`registry", _refuse),
    UpstreamFailure("a firewall drops packets", "HOST:PORT", "connect", "upstream.connect_timeout", _accept_nothing),
    UpstreamFailure(
        "it accepts connections but does not respond",
        "HOST:PORT",
        "respond",
        "upstream.check_timeout",
        _change(faults.silent()),
    ),
    UpstreamFailure(
        "it closes connections without a response",
        "HOST:PORT",
        "closed",
        "`registry",
        _change(faults.disconnected("fin")),
    ),
    UpstreamFailure("it responds with 500", "HOST:PORT", "500", "`registry", _change(faults.error_response(500))),
    UpstreamFailure("it responds with 503", "HOST:PORT", "503", "`registry", _change(faults.error_response(503))),
    UpstreamFailure(
        "it limits the rate: 429",
        "HOST:PORT",
        "429",
        "`auth",
        _change(faults.error_response(429, "TOOMANYREQUESTS", "30")),
    ),
    UpstreamFailure(
        "it leads back to this server: 508", "HOST:PORT", "508", "`registry", _change(faults.error_response(508))
    ),
    UpstreamFailure(
        "the web page of a firewall or a captive portal", "HOST:PORT", "web page", "`proxy", _change(faults.html_page())
    ),
    UpstreamFailure(
        "a firewall blocks it: 403 with a web page",
        "HOST:PORT",
        "403",
        "`proxy",
        _change(faults.replaced(403, faults.HTML, ("Content-Type", "text/html"))),
    ),
    UpstreamFailure(
        "it is not a registry: 404 with a web page",
        "HOST:PORT",
        "404",
        "`registry",
        _change(faults.replaced(404, faults.HTML, ("Content-Type", "text/html"))),
    ),
    UpstreamFailure(
        "the image does not exist", "HOST:PORT", "404", "`auth", _change(faults.error_response(404, "MANIFEST_UNKNOWN"))
    ),
    UpstreamFailure("a layer arrives with another digest", "HOST:PORT", "digest", "`proxy", _send_wrong_layer),
    UpstreamFailure("a layer breaks off each time", "HOST:PORT", "closed", "`registry", _cut_layers),
    UpstreamFailure(
        "it redirects to the metadata service of the cloud",
        "169.254.169.254",
        "not allowed",
        "trusted_hosts",
        redirect_layers(METADATA_SERVICE),
    ),
    UpstreamFailure(
        "it redirects to a host that is down",
        "STORAGE:PORT",
        "Connection refused",
        "curl",
        _redirect_to_closed_host,
    ),
    UpstreamFailure(
        "it redirects to a host that requires a login", "OTHER:PORT", "401", "trusted_hosts", _redirect_to_login
    ),
)

TLS = (
    UpstreamFailure(
        "`https` for a registry with plain HTTP", "HOST:PORT", "does not speak TLS", "`registry", _speak_http_on_https
    ),
    UpstreamFailure("`http` for a registry with TLS", "HOST:PORT", "TLS", "`registry", _speak_https_on_http),
    UpstreamFailure(
        "a self-signed certificate",
        "HOST:PORT",
        "self-signed",
        "ca_file",
        _tls(lambda place: self_signed(place.directory), is_trusted=False),
    ),
    UpstreamFailure(
        "a certificate of an unknown authority",
        "HOST:PORT",
        "unable to get local issuer certificate",
        "ca_file",
        _tls(lambda place: issued(place.authority), is_trusted=False),
    ),
    UpstreamFailure(
        "a certificate that has expired",
        "HOST:PORT",
        "certificate has expired",
        "certificate",
        _tls(lambda place: issued(place.authority, first_day=-9, last_day=-2)),
    ),
    UpstreamFailure(
        "a certificate that is not valid yet",
        "HOST:PORT",
        "not yet valid",
        "clock",
        _tls(lambda place: issued(place.authority, first_day=2, last_day=9)),
    ),
    UpstreamFailure(
        "a certificate for another name",
        "HOST:PORT",
        "127.0.0.1",
        "`registry",
        _tls(lambda place: issued(place.authority, "other.example")),
    ),
    UpstreamFailure(
        "a server that speaks TLS 1.1 at most",
        "HOST:PORT",
        "protocol version",
        "openssl s_client",
        _tls(lambda place: old_protocol(place.authority)),
    ),
    UpstreamFailure(
        "the connection is closed in the TLS handshake", "HOST:PORT", "handshake", "`registry", _close_in_handshake
    ),
)

PROXIES = (
    UpstreamFailure("the proxy refuses connections", "PROXY:PORT", "Connection refused", "`proxy", _refuse_at_proxy),
    UpstreamFailure(
        "the proxy requires another login: 407",
        "PROXY:PORT",
        "407",
        "`proxy",
        _answer_connect(407, 'Proxy-Authenticate: Basic realm="proxy"'),
    ),
    UpstreamFailure("the proxy does not allow the host: 403", "PROXY:PORT", "403", "`proxy", _answer_connect(403)),
    UpstreamFailure("the proxy cannot reach the registry: 502", "PROXY:PORT", "502", "`proxy", _answer_connect(502)),
    UpstreamFailure("`proxy` names a web server: 405", "PROXY:PORT", "405", "`proxy", _answer_connect(405)),
    UpstreamFailure("`proxy` names an SSH server", "PROXY:PORT", "malformed status line", "`proxy", _speak_ssh),
    UpstreamFailure(
        "the proxy intercepts TLS", "registry.example", "unable to get local issuer certificate", "ca_file", _intercept
    ),
)

LOGINS = (
    UpstreamFailure("a login is needed and none is set: 401", "HOST:PORT", "401", "`auth", _require_login(ANONYMOUS)),
    UpstreamFailure("wrong user or password: 401", "HOST:PORT", "401", "`auth", _require_login(LOGIN)),
    UpstreamFailure(
        "a login without permission: 403",
        "HOST:PORT",
        "403",
        "`auth",
        lambda place: (_change(faults.error_response(403, "DENIED"))(place), place.settings.update(auth=LOGIN)),
    ),
    UpstreamFailure(
        "the token service rejects the login: 401",
        "TOKENS:PORT",
        "401",
        "`auth",
        _token_service(lambda request, answer: answer, LOGIN),
    ),
    UpstreamFailure(
        "the token service refuses connections",
        "TOKENS:PORT",
        "Connection refused",
        "curl",
        _token_service(None),
    ),
    UpstreamFailure(
        "the token service responds with 500",
        "TOKENS:PORT",
        "500",
        "curl",
        _token_service(faults.error_response(500)),
    ),
    UpstreamFailure(
        "the token service responds with 400",
        "TOKENS:PORT",
        "400",
        "curl",
        _token_service(faults.error_response(400)),
    ),
    UpstreamFailure(
        "the token service sends no token",
        "TOKENS:PORT",
        "no valid token",
        "curl",
        _token_service(faults.replaced(200, b"{}", ("Content-Type", "application/json"))),
    ),
    UpstreamFailure("the token does not cover the repository", "HOST:PORT", "401", "`auth", _refuse_scope),
    UpstreamFailure(
        "a credential helper is not installed", "docker-credential-HELPER", "PATH", "install", _helper(None)
    ),
    UpstreamFailure(
        "a credential helper fails",
        "docker-credential-HELPER",
        "exit status 1",
        "get",
        _helper(f"echo {HELPER_OUTPUT.text}; exit 1"),
    ),
    UpstreamFailure(
        "a credential helper prints no login",
        "docker-credential-HELPER",
        "JSON",
        "get",
        _helper(f"echo {HELPER_OUTPUT.text}"),
    ),
    UpstreamFailure(
        "a credential helper hangs", "docker-credential-HELPER", "did not end", "get", _helper("exec sleep 60")
    ),
    UpstreamFailure(
        "the keychain file is not JSON",
        "config.json",
        "JSON",
        "`auth",
        _use_broken_keychain,
        keychain=f"{{auths: {PASSWORD.text}",
    ),
    UpstreamFailure(
        "the keychain file cannot be read", "config.json", "directory", "`auth", _use_broken_keychain, keychain=""
    ),
)

CLIENTS = (
    UpstreamFailure(
        "a client pulls from a registry that is not configured",
        "PREFIX",
        "no upstream",
        "upstreams",
        lambda place: place.be_unknown(),
    ),
    UpstreamFailure("a client pushes", "PREFIX/org/app", "405", "read-only", lambda place: place.push()),
)
