"""`dockyard check --connect` against registries, and beside a running server."""

import ssl
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import trustme
import yaml

from tests.support import faults
from tests.support.certificates import server_context
from tests.support.deployment import Deployment, upstream
from tests.support.fake_registry import FakeRegistry, basic
from tests.support.paths import ROOT
from tests.support.processes import free_port
from tests.support.raw_server import RawConnection, RawServer, response
from tests.support.token_issuer import TokenIssuer, key_set

LIMIT_S = 30.0
SECRET = "canary-9c1e"
NOTHING_SENT = "nothing was sent"


def check(
    directory: Path, upstreams: list[dict[str, Any]], *options: str, **settings: Any
) -> tuple[int, list[str], str]:
    """Run the command. Returns the exit status, the lines about upstreams, and the whole output."""
    document: Mapping[str, Any] = {
        "server": {"host": "127.0.0.1", "port": free_port()},
        "storage": {"directory": str(directory / "cache")},
        "upstream": {"connect_timeout": "2s"},
        "upstreams": upstreams,
        **settings,
    }
    done = subprocess.run(
        [sys.executable, "-m", "dockyard", "check", "-c", "-", *options],
        env={"HOME": str(directory), "PATH": "/usr/bin:/bin"},
        cwd=ROOT,
        input=yaml.safe_dump(document),
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    assert done.stderr == ""
    assert SECRET not in done.stdout
    return done.returncode, [line for line in done.stdout.splitlines() if " upstream " in line], done.stdout


def test_nothing_is_sent_without_the_option(tmp_path: Path, fake_registry: FakeRegistry) -> None:
    """And the summary says so."""
    status, _, output = check(tmp_path, [upstream("up.test", fake_registry.url)])

    assert (status, NOTHING_SENT in output) == (0, True)
    assert fake_registry.received() == []
    assert list(tmp_path.iterdir()) == []


def test_an_upstream_that_responds_is_ok(tmp_path: Path, fake_registry: FakeRegistry) -> None:
    """One request."""
    status, lines, output = check(tmp_path, [upstream("up.test", fake_registry.url)], "--connect")

    assert (status, NOTHING_SENT in output) == (0, False)
    assert lines == [
        f"ok       upstream up.test ({fake_registry.url}): the registry responds, and requires no login for /v2/"
    ]
    assert [exchange.request.target for exchange in fake_registry.received()] == ["/v2/"]


@pytest.mark.parametrize(
    ("auth", "status", "part"),
    [
        ({"type": "basic", "username": "user", "password": SECRET}, 0, "the registry responds, and accepts the login"),
        ({"type": "basic", "username": "user", "password": f"{SECRET}-wrong"}, 1, "rejects the login: correct `auth`"),
        ({"type": "anonymous"}, 1, "requires a login: set `auth` for this prefix"),
        ({"type": "keychain"}, 1, "requires a login: set `auth` for this prefix"),
    ],
)
def test_the_login_is_tried(
    tmp_path: Path, fake_registry: FakeRegistry, auth: dict[str, str], status: int, part: str
) -> None:
    """As an operation would send it."""
    wanted = basic("user", SECRET)
    refusal = faults.challenged('Basic realm="origin"')
    fake_registry.on(None, refusal, when=lambda request: request.header("Authorization") != wanted)

    done, lines, _ = check(tmp_path, [upstream("up.test", fake_registry.url, auth=auth)], "--connect")

    assert (done, [line for line in lines if part in line and "up.test" in line]) == (status, lines[-1:])


def test_each_failure_names_stage_host_error_and_cure(tmp_path: Path, fake_registry: FakeRegistry) -> None:
    """All upstreams are asked."""
    port = free_port()
    with FakeRegistry() as tls_registry:
        secure = tls_registry.listen("tls", tls=server_context(trustme.CA(), "127.0.0.1"))

        def page(connection: RawConnection) -> None:
            connection.receive_some()  # bytes before the request are another failure
            connection.send(response(b"<html>", "Content-Type: text/html", status=404))

        with RawServer(page) as other:
            status, lines, _ = check(
                tmp_path,
                [
                    upstream("good.test", fake_registry.url),
                    upstream("dns.test", "no-such-host.invalid"),
                    upstream("refused.test", f"127.0.0.1:{port}"),
                    upstream("tls.test", f"https://{secure.authority}"),
                    upstream("web.test", other.url),
                    upstream("proxy.test", "registry.test", proxy=f"http://user:{SECRET}@127.0.0.1:{port}"),
                ],
                "--connect",
            )

    assert status == 1
    by_prefix = {line.split()[2]: line for line in lines}
    assert by_prefix["good.test"].startswith("ok ")
    for prefix, parts in {
        "dns.test": ("error", "no-such-host.invalid", "while name resolution", "correct the host name in `registry`"),
        "refused.test": ("error", f"127.0.0.1:{port}", "while connect", "refused", "the port in `registry`"),
        "tls.test": ("error", secure.authority, "while TLS", "certificate", "ca_file"),
        "web.test": ("error", "is not a registry", other.host, "correct `registry`"),
        "proxy.test": ("error", f"127.0.0.1:{port}", "the port in `proxy` of the upstream proxy.test"),
    }.items():
        assert [part for part in parts if part not in by_prefix[prefix]] == [], by_prefix[prefix]


def test_what_a_server_sends_cannot_control_the_terminal(tmp_path: Path, fake_registry: FakeRegistry) -> None:
    """Such as the name in its certificate, which is not trusted."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("127.0.0.1", common_name="x\x1b[2J\rok").configure_cert(context)
    secure = fake_registry.listen("tls", tls=context)

    status, (line,), _ = check(tmp_path, [upstream("up.test", f"https://{secure.authority}")], "--connect")

    assert (status, "certificate of x" in line, line.isprintable()) == (1, True, True)


def test_a_bucket_that_does_not_respond_is_an_error(tmp_path: Path, fake_registry: FakeRegistry) -> None:
    """With its endpoint."""
    endpoint = f"127.0.0.1:{free_port()}"
    keys = {"access_key": "key", "secret_key": SECRET}
    storage = {"directory": str(tmp_path / "cache"), "bucket": "images", "endpoint": endpoint, **keys}

    status, _, output = check(tmp_path, [upstream("up.test", fake_registry.url)], "--connect", storage=storage)

    (line,) = [line for line in output.splitlines() if f"bucket images at {endpoint}" in line]
    assert (status, line.split()[0]) == (1, "error")
    assert "storage.endpoint" in line


def test_the_settings_of_a_running_server_pass(
    make_deployment: Callable[..., Deployment], fake_registry: FakeRegistry
) -> None:
    """Its port and its directory are in use, by itself."""
    deployment = make_deployment(upstreams=[upstream("up.test", fake_registry.url)])

    done = subprocess.run(
        [sys.executable, "-m", "dockyard", "check", "-c", str(deployment.dockyard.config)],
        env={"HOME": "/nonexistent", "PATH": "/usr/bin:/bin"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )

    assert (done.returncode, done.stderr) == (0, "")
    assert f"a Dockyard (process {deployment.dockyard.pid}) runs with {deployment.dockyard.storage}" in done.stdout
    assert f"port {deployment.dockyard.port} is in use by the Dockyard that runs" in done.stdout
    assert deployment.get("/v2/").status == 200


def test_the_keys_of_issuers_are_read(tmp_path: Path, fake_registry: FakeRegistry) -> None:
    """As for a token: with the token of the file, which no output shows."""
    token = tmp_path / "token"
    token.write_text(SECRET)

    def serve(connection: RawConnection) -> None:
        found = "/good" in connection.receive_request()
        connection.send(response(key_set(TokenIssuer().jwk())) if found else response(b"", status=404))

    with RawServer(serve) as server:
        issuers = [
            {"name": name, "issuer": name, "audience": "a", "jwks": f"{server.url}/{name}", "token_file": str(token)}
            for name in ("good", "bad")
        ]
        status, _, output = check(
            tmp_path, [upstream("up.test", fake_registry.url)], "--connect", access={"jwt": issuers}
        )

    assert status == 1
    assert f"ok       keys of the issuer good ({server.url}/good): 1 for signatures" in output
    assert f"error    keys of the issuer bad ({server.url}/bad): the server responded with status 404" in output
    assert all(f"Authorization: Bearer {SECRET}".encode() in head for head in server.heads)
