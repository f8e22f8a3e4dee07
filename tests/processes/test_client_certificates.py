"""`server.client_ca`: only clients with a certificate of that authority can connect, to any path."""

import contextlib
import signal
import ssl
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import attrs
import pytest
import trustme

from tests.support.deployment import Deployment, eventually, upstream
from tests.support.dockyard import Dockyard
from tests.support.fake_registry import FakeRegistry
from tests.support.programs import need_on_path

PATHS = ["/v2/", "/healthz", "/metrics", "/v2/up.test/app/manifests/latest"]


@attrs.define
class Certificates:
    """The files of the server, and of clients of several authorities."""

    directory: Path
    servers: trustme.CA = attrs.field(factory=trustme.CA)
    clients: trustme.CA = attrs.field(factory=trustme.CA)

    def __attrs_post_init__(self) -> None:
        self.directory.mkdir()
        issued = self.servers.issue_cert("localhost", "127.0.0.1")
        issued.private_key_pem.write_to_path(str(self.directory / "tls.key"))
        issued.cert_chain_pems[0].write_to_path(str(self.directory / "tls.crt"))
        self.servers.cert_pem.write_to_path(str(self.directory / "server-ca.crt"))
        self.trust(self.clients)

    def trust(self, authority: trustme.CA) -> None:
        """Write the authority of the clients that may connect."""
        authority.cert_pem.write_to_path(str(self.directory / "client-ca.crt"))

    def issue(self, authority: trustme.CA) -> tuple[str, str]:
        """Issue a certificate of a client; return the paths of certificate and key."""
        certfile, keyfile = self.directory / "client.crt", self.directory / "client.key"
        issued = authority.issue_cert("client@example.org")
        certfile.write_bytes(issued.cert_chain_pems[0].bytes())
        keyfile.write_bytes(issued.private_key_pem.bytes())
        return str(certfile), str(keyfile)

    def context(self, authority: trustme.CA | None) -> ssl.SSLContext:
        """What a client with a certificate of this authority uses; None: without one."""
        context = ssl.create_default_context()
        self.servers.configure_trust(context)
        if authority:
            context.load_cert_chain(*self.issue(authority))
        return context


Start = Callable[[Certificates], Deployment]


@pytest.fixture
def certificates(tmp_path: Path) -> Certificates:
    """New authorities."""
    return Certificates(tmp_path / "tls")


@pytest.fixture
def deployment(certificates: Certificates, fake_registry: FakeRegistry, tmp_path: Path) -> Iterator[Deployment]:
    """A server that requires certificates, and a client that has one."""
    fake_registry.add_image("app", "latest")
    files = {"certfile": "tls.crt", "keyfile": "tls.key", "client_ca": "client-ca.crt"}
    server = {"tls": True} | {key: str(certificates.directory / name) for key, name in files.items()}
    dockyard = Dockyard(
        tmp_path / "deployment", [upstream("up.test", fake_registry.url)], workers=2, settings={"server": server}
    )
    deployment = Deployment(fake_registry, dockyard, tls=certificates.context(certificates.clients))
    with contextlib.ExitStack() as servers:
        servers.callback(dockyard.kill)
        dockyard.start(wait=False)
        eventually(lambda: is_served(deployment), "HTTPS")
        deployment.wait_for_workers(2)
        yield deployment


def is_served(deployment: Deployment, path: str = "/v2/") -> bool:
    """Whether a request gets a response; False if the connection fails."""
    try:
        response = deployment.get(path)
    except OSError:
        return False
    return response.status == 200


def with_context(deployment: Deployment, context: ssl.SSLContext) -> Deployment:
    """The deployment for another client."""
    return Deployment(deployment.fake_registry, deployment.dockyard, tls=context)


@pytest.mark.parametrize("path", PATHS)
def test_only_clients_with_a_certificate_are_served(
    deployment: Deployment, certificates: Certificates, path: str
) -> None:
    """Of the right authority. Probes are no exception: it is the connection that is refused."""
    assert is_served(deployment, path)
    assert not is_served(with_context(deployment, certificates.context(None)), path)
    assert not is_served(with_context(deployment, certificates.context(trustme.CA())), path)
    assert not is_served(with_context(deployment, certificates.context(certificates.servers)), path)


def test_curl_and_openssl_with_and_without_a_certificate(deployment: Deployment, certificates: Certificates) -> None:
    """Programs that are not ours see the same."""
    for program in ("curl", "openssl"):
        need_on_path(program)
    authority = str(certificates.directory / "server-ca.crt")
    certfile, keyfile = certificates.issue(certificates.clients)
    url = f"https://localhost:{deployment.dockyard.port}/v2/"
    curl = ["curl", "-sS", "--cacert", authority, "-o", "/dev/null", "-w", "%{http_code}", url]

    allowed = subprocess.run([*curl, "--cert", certfile, "--key", keyfile], capture_output=True, check=True)
    assert allowed.stdout == b"200"
    refused = subprocess.run(curl, capture_output=True, check=False)
    assert (refused.stdout, refused.returncode != 0) == (b"000", True)

    address = f"localhost:{deployment.dockyard.port}"
    command = ["openssl", "s_client", "-connect", address, "-CAfile", authority, "-ign_eof"]
    request = b"GET /v2/ HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    allowed = subprocess.run(
        [*command, "-cert", certfile, "-key", keyfile], input=request, capture_output=True, check=False
    )
    assert b"HTTP/1.1 200 OK" in allowed.stdout
    refused = subprocess.run(command, input=request, capture_output=True, check=False)
    assert b"HTTP/1.1" not in refused.stdout
    assert b"certificate required" in refused.stderr + refused.stdout


def test_the_authority_is_renewed_by_sighup(deployment: Deployment, certificates: Certificates) -> None:
    """As the certificate of the server; a file that cannot be used changes nothing."""
    path, renewed = certificates.directory / "client-ca.crt", trustme.CA()
    path.write_text("not a certificate")
    deployment.dockyard._running.send(signal.SIGHUP)
    deployment.wait_for_log("cannot use the new TLS certificate")
    assert "setting=server.client_ca" in deployment.dockyard.read_log()
    assert is_served(deployment)

    certificates.trust(renewed)
    deployment.dockyard._running.send(signal.SIGHUP)
    client = with_context(deployment, certificates.context(renewed))
    eventually(lambda: all(is_served(client) for _ in range(8)), "all workers accept the new certificate")
    eventually(lambda: not any(is_served(deployment) for _ in range(8)), "no worker accepts the former certificate")
