"""What the log says about a failed request: which server, which stage, which error, and the cure in the message.

Each case is a fault of a registry, its token service, its storage host, its proxy, or TLS. The message, which clients
get, names no host and no error of the system. No secret is in either.
"""

import json
import re
import socket
import ssl
import stat
import warnings
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import trustme

from dockyard.config.settings import Auth
from dockyard.config.types import Secret
from dockyard.errors import RegistryError
from dockyard.oci.reference import Digest
from dockyard.upstream.client import RegistryClient
from tests.support import faults
from tests.support.busy_machine import is_within
from tests.support.fake_auth import FakeTokenService, require_authorization
from tests.support.fake_registry import basic
from tests.support.processes import free_port
from tests.support.raw_server import RawConnection, RawServer, response
from tests.support.upstreams import LATEST, SHORT, Ward, certified, error_text

USER, PASSWORD, SIGNATURE = "canary-user-31ad", "canary-password-8c2f", "canary-signature-77be"
LOGIN = Auth("basic", USER, Secret(PASSWORD))


@pytest.fixture
def ward(tmp_path: Path) -> Iterator[Ward]:
    """A fake registry and what asks it."""
    with Ward(tmp_path) as ward:
        yield ward


def fail(registry: RegistryClient, operation: str = "head_manifest") -> RegistryError:
    """The error of an operation on `lib/app`. It contains no secret, and its message no address."""
    operations: Mapping[str, Callable[[], object]] = {
        "head_manifest": lambda: registry.head_manifest("lib/app", LATEST),
        "get_manifest": lambda: registry.get_manifest("lib/app", LATEST),
        "head_blob": lambda: registry.head_blob("lib/app", Digest.of(b"layer")),
        "open_blob": lambda: registry.open_blob("lib/app", Digest.of(b"layer")),
        "list_tags": lambda: registry.list_tags("lib/app"),
        "list_referrers": lambda: registry.list_referrers("lib/app", Digest.of(b"layer")),
    }
    with pytest.raises(RegistryError) as caught:
        operations[operation]()
    text = error_text(caught.value)
    for secret in (USER, PASSWORD, SIGNATURE, basic(USER, PASSWORD)):
        assert secret not in text
    for inner in ("127.0.0.", "Errno", "OpenSSL", "HTTP 5"):
        assert inner not in caught.value.message
    assert caught.value.details is not None, caught.value.message
    return caught.value


def fields(error: RegistryError) -> Mapping[str, Any]:
    """The fields of its log line."""
    return error.log_fields()


# No connection


def test_a_refused_connection(ward: Ward) -> None:
    """The address, and what the system said."""
    authority = f"127.0.0.1:{free_port()}"
    error = fields(fail(ward.registry(at=f"http://{authority}")))
    assert error == {
        "reason": "up0.test cannot be reached: connection failed",
        "host": authority,
        "stage": "connect",
        "error": f"{authority}: [Errno 111] Connection refused",
        "cure": "check that it runs and can be reached, and the port in `registry` of the upstream up0.test",
    }


def test_an_unknown_name(ward: Ward, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which name it was."""

    def look_up(host: str, *_: object, **__: object) -> object:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    error = fields(fail(ward.registry(at="https://registry.invalid")))
    assert error == {
        "reason": "up0.test cannot be reached: name resolution failed",
        "host": "registry.invalid:443",
        "stage": "name resolution",
        "error": "registry.invalid: [Errno -2] Name or service not known",
        "cure": (
            "correct the host name in `registry` of the upstream up0.test, or check the name servers in "
            "/etc/resolv.conf: `getent hosts` with this name"
        ),
    }


def test_a_server_that_does_not_respond(ward: Ward) -> None:
    """How long it was waited for."""
    ward.fake_registry.on("manifest", faults.silent())
    error = fields(fail(ward.registry(limits=SHORT)))
    assert error["reason"] == "up0.test did not respond in time"
    assert (error["host"], error["stage"]) == (ward.fake_registry.authority, "response")
    waited = re.fullmatch(r"timed out after ([0-9.]+) s, 0 bytes received", error["error"])
    assert waited
    waited_s, slack_s = float(waited[1]), 0.2
    assert waited_s >= SHORT.check_timeout - slack_s
    assert is_within(waited_s, SHORT.check_timeout, slack_s=slack_s)


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (faults.disconnected("rst"), "[Errno 104] Connection reset by peer"),
        (faults.disconnected("fin"), "the connection was closed after 0 bytes"),
    ],
)
def test_a_connection_that_is_closed(ward: Ward, change: Any, error: str) -> None:
    """By a server that perhaps expects TLS."""
    ward.fake_registry.on("manifest", change)
    failed = fields(fail(ward.registry()))
    assert failed["reason"].startswith("up0.test closed the connection before its response was complete")
    assert failed["reason"].endswith("if it requires TLS, write `registry: https://...` for the upstream up0.test")
    assert (failed["host"], failed["error"]) == (ward.fake_registry.authority, error)


# Statuses, by the server that sent them


@pytest.mark.parametrize("operation", ["head_manifest", "get_manifest", "head_blob", "open_blob", "list_tags"])
@pytest.mark.parametrize("status", [404, 429, 500, 503])
def test_the_status_of_the_registry(ward: Ward, operation: str, status: int) -> None:
    """With the host, whatever was requested."""
    ward.fake_registry.on(None, faults.error_response(status))
    error = fields(fail(ward.registry(), operation))
    assert (error["host"], error["stage"]) == (ward.fake_registry.authority, "response")
    assert error["error"].startswith(f"HTTP {status} ")


def test_what_a_server_writes_into_its_status_line_is_not_logged(ward: Ward) -> None:
    """The name of the status is that of the standard."""
    with RawServer(_respond(f"HTTP/1.1 500 {PASSWORD}\r\nContent-Length: 0\r\n\r\n".encode())) as server:
        assert fields(fail(ward.registry(at=server.url)))["error"] == "HTTP 500 Internal Server Error"


@pytest.mark.parametrize("status", [403, 503])
def test_the_status_of_a_storage_host(ward: Ward, status: int) -> None:
    """A redirect led there; its signature is not logged."""
    cdn = ward.fake_registry.listen("cdn", "127.0.0.2")
    ward.fake_registry.on("blob", faults.redirected(f"{cdn.url}/cdn/x?X-Amz-Signature={SIGNATURE}"))
    ward.fake_registry.on("cdn", faults.error_response(status))
    error = fields(fail(ward.registry(), "open_blob"))
    assert error["host"] == cdn.authority
    assert error["error"].startswith(f"HTTP {status} ")
    assert error["reason"].startswith("a host that up0.test redirects to")


@pytest.mark.parametrize("status", [401, 403, 429, 500])
def test_the_status_of_a_token_service(ward: Ward, status: int) -> None:
    """With the source of the credentials."""
    tokens = ward.fake_registry.listen("tokens", "127.0.0.3")
    FakeTokenService(ward.fake_registry, realm=f"{tokens.url}/token?secret={SIGNATURE}")
    ward.fake_registry.on("token", faults.error_response(status))
    error = fields(fail(ward.registry(auth=LOGIN, trusted_hosts=(tokens.authority,))))
    assert (error["host"], error["stage"]) == (tokens.authority, "token")
    assert error["error"].startswith(f"HTTP {status} ")
    assert error["credentials"] == "`auth` in the settings"


def test_a_token_service_that_refuses_connections(ward: Ward) -> None:
    """Its own host is named, not the registry's."""
    authority = f"127.0.0.1:{free_port()}"
    FakeTokenService(ward.fake_registry, realm=f"http://{authority}/token")
    error = fields(fail(ward.registry()))
    assert error["reason"] == "the token service of up0.test cannot be reached: connection failed"
    assert (error["host"], error["stage"]) == (authority, "connect")


# Logins


@pytest.mark.parametrize("operation", ["head_manifest", "get_manifest", "head_blob", "open_blob", "list_tags"])
def test_a_registry_that_requires_a_login(ward: Ward, operation: str) -> None:
    """Without one: it is missing, or what was requested does not exist."""
    ward.fake_registry.on(None, faults.challenged('Basic realm="x"'))
    error = fields(fail(ward.registry(), operation))
    assert error["reason"].endswith(", or it needs a login: set `auth` for this prefix")
    assert error["error"] == "HTTP 401 Unauthorized"
    assert error["credentials"] == "none"


def test_what_does_not_exist_needs_no_login(ward: Ward) -> None:
    """404 is clear."""
    assert fields(fail(ward.registry()))["reason"] == "up0.test has no lib/app:latest"


@pytest.mark.parametrize(
    ("auths", "source"),
    [
        (None, "none: there is no keychain file ({directory}/docker/config.json)"),
        ({}, "none: {directory}/docker/config.json has no login for {host}"),
        ({"other.test": {"auth": "eDp5"}}, "none: {directory}/docker/config.json has no login for {host}"),
        (
            {"127.0.0.1": {"auth": "eDp5"}},
            "none: {directory}/docker/config.json has no login for {host}, but for 127.0.0.1",
        ),
        (
            {"https://user:hunter2@127.0.0.1:1/v1/?token=hunter2": {"auth": "eDp5"}},
            "none: {directory}/docker/config.json has no login for {host}, but for https://127.0.0.1:1/v1/",
        ),
        ({"{host}": {}}, "none: the entry for 127.0.0.1 in {directory}/docker/config.json is empty"),
        ({"{host}": {"auth": "eDp5"}}, "{directory}/docker/config.json"),
    ],
)
def test_the_keychain_in_the_log(ward: Ward, tmp_path: Path, auths: Mapping[str, Any] | None, source: str) -> None:
    """Where the login came from, or why there is none; also when the rejection is remembered."""
    host = ward.fake_registry.authority
    if auths is not None:
        path = tmp_path / "docker" / "config.json"
        path.parent.mkdir()
        path.write_text(json.dumps({"auths": {key.replace("{host}", host): entry for key, entry in auths.items()}}))
    require_authorization(ward.fake_registry, "nobody")
    registry = ward.registry(auth=Auth("keychain"), environ={"DOCKER_CONFIG": str(tmp_path / "docker")})
    for _ in range(2):
        assert fields(fail(registry))["credentials"] == source.format(directory=tmp_path, host=host)


@pytest.mark.parametrize(
    ("script", "reason", "error"),
    [
        ("exit 3", "failed", "exit status 3 of "),
        ("echo {}", "gave no sensible answer", "the output is not a JSON object with Username and Secret"),
        (None, "is not installed", "not found in PATH"),
    ],
)
def test_a_credential_helper_that_fails(
    ward: Ward, tmp_path: Path, script: str | None, reason: str, error: str
) -> None:
    """The program is named, and not what it printed."""
    if script:
        program = tmp_path / "docker-credential-x"
        program.write_text(f"#!/bin/sh\necho {PASSWORD} >&2\n{script}\n")
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
    (tmp_path / "config.json").write_text(json.dumps({"credsStore": "x"}))
    environ = {"DOCKER_CONFIG": str(tmp_path), "PATH": f"{tmp_path}:/bin:/usr/bin"}
    failed = fields(fail(ward.registry(auth=Auth("keychain"), environ=environ)))
    assert failed["reason"].startswith(f"the credential helper docker-credential-x {reason}")
    assert failed["host"] == "docker-credential-x"
    assert failed["error"].startswith(error)


# TLS


def _ca_file(authority: trustme.CA, directory: Path) -> str:
    path = directory / "ca.pem"
    authority.cert_pem.write_to_path(str(path))
    return str(path)


def test_an_unknown_authority(ward: Ward) -> None:
    """`ca_file` is the cure; the certificate is described."""
    tls = ward.fake_registry.listen("tls", tls=certified(trustme.CA(), "127.0.0.1"))
    error = fields(fail(ward.registry(at=tls.url, auth=LOGIN)))
    assert error["reason"] == (
        "no trusted TLS connection to up0.test: the certificate is not from a known certificate authority: "
        "set `ca_file` of the upstream up0.test to a PEM file with the certificate of that authority"
    )
    assert (error["host"], error["stage"]) == (tls.authority, "TLS")
    assert "verify error 20" in error["error"]
    assert "issued by organizationName=trustme" in error["error"]


def test_a_self_signed_certificate(ward: Ward, tmp_path: Path) -> None:
    """It is its own authority: `ca_file` or `insecure_skip_verify`."""
    authority, context = trustme.CA(), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.private_key_pem.write_to_path(str(tmp_path / "key.pem"))
    context.load_cert_chain(_ca_file(authority, tmp_path), tmp_path / "key.pem")
    tls = ward.fake_registry.listen("tls", tls=context)
    error = fields(fail(ward.registry(at=tls.url)))
    assert error["reason"] == (
        "no trusted TLS connection to up0.test: the certificate is self-signed: set `ca_file` of the upstream "
        "up0.test to a PEM file with this certificate, or, only for tests, `insecure_skip_verify: true`"
    )
    assert "verify error 18" in error["error"]


def test_credentials_that_are_rejected(ward: Ward) -> None:
    """Their source, also while they are not sent again."""
    require_authorization(ward.fake_registry, "nobody")
    registry = ward.registry(auth=LOGIN)
    first, second = (fields(fail(registry, "get_manifest")) for _ in range(2))
    assert first == {
        "reason": "up0.test rejects the credentials for lib/app: check `auth` of this prefix",
        "host": ward.fake_registry.authority,
        "stage": "response",
        "error": "HTTP 401 Unauthorized",
        "credentials": "`auth` in the settings",
    }
    assert second == {**first, "remembered": True}


def test_another_host_name(ward: Ward, tmp_path: Path) -> None:
    """The names of the certificate, and the one that was requested."""
    authority = trustme.CA()
    tls = ward.fake_registry.listen("tls", tls=certified(authority, "one.test", "two.test"))
    error = fields(fail(ward.registry(at=tls.url, ca_file=_ca_file(authority, tmp_path))))
    assert error["reason"].endswith("use a name of the certificate in `registry` of the upstream up0.test")
    assert "for one.test, two.test, " in error["error"]
    assert error["error"].endswith("; requested: 127.0.0.1")


def test_an_expired_certificate(ward: Ward, tmp_path: Path) -> None:
    """Since when."""
    authority, context = trustme.CA(), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ended = datetime.now(UTC) - timedelta(days=3)
    authority.issue_cert("127.0.0.1", not_after=ended).configure_cert(context)
    tls = ward.fake_registry.listen("tls", tls=context)
    error = fields(fail(ward.registry(at=tls.url, ca_file=_ca_file(authority, tmp_path))))
    assert "the certificate has expired: renew it there" in error["reason"]
    assert f"to {ended:%b} {ended.day:2} {ended:%H:%M:%S %Y} GMT" in error["error"]


def test_a_server_without_tls(ward: Ward) -> None:
    """`registry: http://` is the cure."""
    error = fields(fail(ward.registry(at=ward.fake_registry.url.replace("http:", "https:"))))
    assert error["reason"].startswith("no trusted TLS connection to up0.test: ")
    assert "write `registry: http://...` for the upstream up0.test" in error["reason"]
    assert (error["host"], error["stage"]) == (ward.fake_registry.authority, "TLS")


def test_an_old_version_of_tls(ward: Ward) -> None:
    """No version in common."""
    context = certified(trustme.CA(), "127.0.0.1")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_1
    context.set_ciphers("ALL:@SECLEVEL=0")
    tls = ward.fake_registry.listen("tls", tls=context)
    error = fields(fail(ward.registry(at=tls.url)))
    assert error["reason"].endswith("the server supports no version of TLS that this machine accepts")
    assert error["error"].startswith("OpenSSL: ")


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.0 400 Bad Request\r\n\r\nClient sent an HTTP request to an HTTPS server.\n",
        b"HTTP/1.1 400 X\r\nContent-Type: text/html\r\n\r\n<p>HTTP request was sent to HTTPS port</p>",
        b"\x15\x03\x01\x00\x02\x02\x46",
    ],
)
def test_a_server_that_requires_tls(ward: Ward, answer: bytes) -> None:
    """Go, nginx, and a TLS alert: `registry: https://` is the cure."""
    with RawServer(_respond(answer)) as server:
        error = fields(fail(ward.registry(at=server.url)))
    assert error["reason"] == "up0.test requires TLS: write `registry: https://...` for the upstream up0.test"


# Proxies


def _respond(answer: bytes) -> Callable[[RawConnection], None]:
    """What a raw server does with a connection."""

    def serve(connection: RawConnection) -> None:
        connection.receive_request()
        connection.send(answer)

    return serve


@pytest.mark.parametrize(
    ("status", "reason"),
    [
        (407, "the proxy requires a login: set user and password in `proxy` of the upstream up0.test"),
        (403, "the proxy rejects the request with status 403"),
        (502, "the proxy rejects the request with status 502"),
    ],
)
def test_a_proxy_that_makes_no_tunnel(ward: Ward, status: int, reason: str) -> None:
    """The proxy is the host, and its status the error."""
    with RawServer(_respond(f"HTTP/1.1 {status} words-of-the-proxy\r\n\r\n".encode())) as proxy:
        registry = ward.registry(at="https://registry.test", proxy=f"http://{USER}:{PASSWORD}@{proxy.host}")
        error = fields(fail(registry))
    assert error["reason"] == f"up0.test cannot be reached: {reason}"
    assert (error["host"], error["stage"]) == (proxy.host, "CONNECT by the proxy")
    assert error["error"].startswith(f"HTTP {status} ")
    assert "words-of-the-proxy" not in str(error)


@pytest.mark.parametrize("at", ["http://registry.test", "https://registry.test"])
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_proxy_that_refuses_connections(ward: Ward, at: str, scheme: str) -> None:
    """It is the proxy, not the registry."""
    proxy = f"127.0.0.1:{free_port()}"
    error = fields(fail(ward.registry(at=at, proxy=f"{scheme}://{USER}:{PASSWORD}@{proxy}")))
    assert error["reason"] == "up0.test cannot be reached: the proxy cannot be reached: connection failed"
    assert (error["host"], error["stage"]) == (proxy, "connect")
    assert error["error"] == f"{proxy}: [Errno 111] Connection refused"


@pytest.mark.parametrize("at", ["http://registry.test", "https://registry.test"])
def test_a_proxy_whose_certificate_is_not_trusted(ward: Ward, at: str) -> None:
    """TLS with the proxy failed, not with the registry."""
    with RawServer(_respond(b""), certified(trustme.CA(), "127.0.0.1")) as proxy:
        error = fields(fail(ward.registry(at=at, proxy=f"https://{USER}:{PASSWORD}@{proxy.host}")))
    assert error["reason"].startswith("no trusted TLS connection to the proxy of up0.test: ")
    assert (error["host"], error["stage"]) == (proxy.host, "TLS with the proxy")


def test_a_status_through_a_proxy(ward: Ward) -> None:
    """Of a request without a tunnel: the proxy or the registry may have made it. 407 is the proxy's."""
    statuses = iter((503, 407, 407))

    def serve(connection: RawConnection) -> None:
        connection.receive_request()
        connection.send(response(b"", "Connection: close", status=next(statuses)))

    with RawServer(serve) as proxy:
        found = [fields(fail(ward.registry(at="http://registry.test", proxy=f"http://{proxy.host}"))) for _ in range(2)]
    assert (found[0]["host"], found[0]["error"]) == (
        "registry.test:80",
        f"HTTP 503 Service Unavailable (through the proxy {proxy.host})",
    )
    assert (found[1]["host"], found[1]["error"]) == (proxy.host, "HTTP 407 Proxy Authentication Required")


# Remembered


def test_the_details_are_remembered(ward: Ward) -> None:
    """By the circuit breaker, also in another worker, and by the failures of a repository."""
    authority = f"127.0.0.1:{free_port()}"
    registry = ward.registry(at=f"http://{authority}")
    first, second = fields(fail(registry)), fields(fail(registry))
    assert second == {**first, "remembered": True}
    other = ward.registry(at=f"http://{authority}", name="up0.test")
    assert fields(fail(other, "open_blob")) == second


def test_the_details_of_a_failing_repository_are_remembered(ward: Ward) -> None:
    """The request is not sent again."""
    ward.fake_registry.on("manifest", faults.silent())
    registry = ward.registry(limits=SHORT)
    first, second = fields(fail(registry)), fields(fail(registry))
    assert second == {**first, "remembered": True}
