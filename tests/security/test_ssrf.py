"""Forbidden targets of redirects, realms and names, in a network where a connection to any address is recorded.

The registry is public: its name resolves to 8.8.4.4. The targets are forbidden, and accept connections. They are
reached by a redirect, by the realm of a challenge, or by a name that resolves to another address the second time.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from random import Random

import attrs
import pytest
import trustme

from tests.s3.store.proxy import S3Proxy, s3_error
from tests.security.canaries import WatchedDeployment
from tests.security.conftest import PASSWORD, bucket_settings, watched
from tests.security.isolated_network import ConnectionRecorder, FakeNameServer, IsolatedNetwork, require_root
from tests.support import faults
from tests.support.busy_machine import is_within
from tests.support.certificates import server_context
from tests.support.deployment import upstream
from tests.support.fake_registry import OCI_MANIFEST, FakeRegistry
from tests.support.http_client import Response
from tests.support.raw_http import Request

PUBLIC, ELSEWHERE = "8.8.4.4", "9.9.9.9"
PORT = 8080
PUBLIC_NAMES = {"registry.example.com": PUBLIC, "cdn.example.net": PUBLIC, "auth.example.net": ELSEWHERE}

# The 24 targets. `{s3}` is the port of the bucket.
TARGETS = {
    "loopback": "http://127.0.0.1:8080/x",
    "loopback, short": "http://127.1:8080/x",
    "all zeros": "http://0.0.0.0:8080/x",
    "loopback, a number": "http://2130706433:8080/x",
    "loopback, in hex": "http://0x7f000001:8080/x",
    "10/8": "http://10.1.2.3:8080/x",
    "172.16/12": "http://172.16.0.1:8080/x",
    "192.168/16": "http://192.168.0.1:8080/x",
    "100.64/10": "http://100.64.0.1:8080/x",
    "metadata": "http://169.254.169.254:8080/latest/meta-data",
    "loopback, IPv6": "http://[::1]:8080/x",
    "loopback, mapped": "http://[::ffff:127.0.0.1]:8080/x",
    "link-local": "http://[fe80::1]:8080/x",
    "unique local": "http://[fc00::1]:8080/x",
    "site-local": "http://[fec0::1]:8080/x",
    "6to4": "http://[2002:7f00:1::]:8080/x",
    "NAT64": "http://[64:ff9b::7f00:1]:8080/x",
    "multicast": "http://224.0.0.1:8080/x",
    "localhost with a dot": "http://localhost.:8080/x",
    "a name for inside": "http://inside.example.net:8080/x",
    "the bucket": "http://127.0.0.1:{s3}/x",
    "file": "file:///etc/passwd",
    "gopher": "gopher://127.0.0.1:8080/x",
    "http from https": "http://cdn.example.net:8080/x",
}
# The same for a name server: addresses only.
ADDRESSES = [
    *("127.0.0.1", "127.9.9.9", "0.0.0.0", "10.1.2.3", "172.16.0.1", "192.168.0.1"),  # noqa: S104  not bound to
    *("100.64.0.1", "169.254.169.254"),
    *("::1", "::ffff:127.0.0.1", "fe80::1", "fc00::1", "fec0::1", "2002:7f00:1::", "64:ff9b::7f00:1", "224.0.0.1"),
    *("100.100.100.200", "fd00:ec2::254", "::ffff:10.1.2.3", "64:ff9b::a01:203", "ff02::1", "255.255.255.255", "::"),
    "2001:0:53aa::1",
]
LISTENING = [
    *("127.0.0.1", "127.9.9.9", "10.1.2.3", "172.16.0.1", "192.168.0.1", "100.64.0.1", "169.254.169.254", "10.0.0.7"),
    *("::1", "fc00::1", "fec0::1", "2002:7f00:1::", "64:ff9b::7f00:1", "100.100.100.200", "fd00:ec2::254"),
    *("64:ff9b::a01:203", "2001:0:53aa::1", ELSEWHERE),
]


@attrs.define(eq=False)
class IsolatedDeployment:
    """A deployment in the isolated network; `up.test` (plain) and `safe.test` (TLS, a login) are public upstreams."""

    network: IsolatedNetwork
    deployment: WatchedDeployment
    recorder: ConnectionRecorder
    name_server: FakeNameServer
    bucket: S3Proxy

    @property
    def fake_registry(self) -> FakeRegistry:
        return self.deployment.fake_registry

    def get(self, path: str) -> Response:
        return self.network.run(lambda: self.deployment.get(path))

    def assert_untouched(self) -> None:
        """No connection was made to a forbidden address, and the bucket got no request of an upstream."""
        assert self.recorder.destinations == []
        assert [each.target for each in self.bucket.requests if each.target in ("/x", "/x?")] == []


def _start(network: IsolatedNetwork, directory: Path, stack: ExitStack) -> IsolatedDeployment:
    name_server = FakeNameServer(
        {name: [(address,)] for name, address in PUBLIC_NAMES.items()} | {"inside.example.net": [("10.0.0.7",)]}
    )
    stack.enter_context(name_server.served())
    authority = trustme.CA()
    context = server_context(authority, "registry.example.com")
    authority.cert_pem.write_to_path(str(directory / "ca.pem"))
    fake_registry = stack.enter_context(FakeRegistry())
    plain = fake_registry.listen("plain", PUBLIC)
    secure = fake_registry.listen("registry", PUBLIC, tls=context)
    fake_registry.listen("cdn", PUBLIC, port=PORT)
    recorder = stack.enter_context(closing(ConnectionRecorder(PORT, LISTENING)))
    bucket = stack.enter_context(closing(S3Proxy(0)))
    bucket.rule = lambda request: s3_error(404, "NoSuchKey")
    login = {"type": "basic", "username": "ann", "password": PASSWORD.text}
    deployment = watched(
        fake_registry,
        directory / "deployment",
        upstreams=[
            upstream("up.test", f"http://registry.example.com:{plain.port}"),
            upstream(
                "safe.test",
                f"https://registry.example.com:{secure.port}",
                auth=login,
                ca_file=str(directory / "ca.pem"),
            ),
            upstream("private.test", f"http://10.0.0.8:{fake_registry.listen('private', '10.0.0.8').port}"),
        ],
        storage=bucket_settings(bucket),
    )
    return IsolatedDeployment(network, stack.enter_context(deployment), recorder, name_server, bucket)


@pytest.fixture(scope="module")
def isolated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[IsolatedDeployment]:
    """The isolated network with a deployment in it."""
    require_root()
    directory = tmp_path_factory.mktemp("network")
    with closing(IsolatedNetwork(directory)) as network:
        stack = ExitStack()
        try:
            yield network.run(lambda: _start(network, directory, stack))
        finally:
            network.run(stack.close)


def test_the_isolated_network_records_every_connection(isolated: IsolatedDeployment) -> None:
    """The isolated network itself: connections to forbidden addresses, by number and by name, are recorded."""

    def connect() -> None:
        import socket  # noqa: PLC0415  the one test that goes where Dockyard must not

        for address in (*LISTENING, "inside.example.net", "0x7f000001", "127.1"):
            socket.create_connection((address, PORT), 5).close()

    isolated.network.run(connect)
    isolated.fake_registry.wait_for(
        lambda: len(isolated.recorder.destinations) == len(LISTENING) + 3, "all connections are seen"
    )
    assert set(isolated.recorder.destinations) == set(LISTENING)
    isolated.recorder.destinations.clear()
    isolated.name_server.queries.clear()


def _digest(isolated: IsolatedDeployment, seed: str) -> str:
    return isolated.fake_registry.add_blob(Random(seed).randbytes(1000))


@pytest.mark.parametrize("kind", ["blobs", "manifests"])
def test_r1_redirects(isolated: IsolatedDeployment, kind: str) -> None:
    """A redirect of a blob or a manifest to any of the 24 targets is 502, rejected before a connection is made."""
    assert len(TARGETS) == 24
    for name, target in TARGETS.items():
        digest = _digest(isolated, f"{kind} {name}")
        location = target.format(s3=isolated.bucket.host.rpartition(":")[2])
        rule = isolated.fake_registry.on(None, faults.redirected(location), reference=digest)
        response = isolated.get(f"/v2/{'safe' if name == 'http from https' else 'up'}.test/app/{kind}/{digest}")
        assert (response.status, is_within(response.took_s, 2)) == (502, True), name
        assert rule.applied > 0, name
        isolated.deployment.assert_no_leak(response)
        isolated.assert_untouched()


@pytest.mark.parametrize("login", ["anonymous", "with a login"])
def test_r3_realms(isolated: IsolatedDeployment, login: str) -> None:
    """A challenge whose realm is any of the 24 targets is rejected: no connection, no credentials."""
    prefix = "up" if login == "anonymous" else "safe"
    for number, (name, target) in enumerate(TARGETS.items()):
        realm = target.format(s3=isolated.bucket.host.rpartition(":")[2])
        if prefix == "safe" and name != "http from https":
            realm = realm.replace("http://", "https://")
        elif name == "http from https":
            continue  # for plain registries only
        repo = f"realm-{prefix}-{number}"
        rule = isolated.fake_registry.on(None, faults.challenged(f'Bearer realm="{realm}",service="s"'), repo=repo)
        for _ in range(2):  # the previous realm was cached, and fails once more
            response = isolated.get(f"/v2/{prefix}.test/{repo}/manifests/sha256:{'a' * 64}")
        assert (response.status, is_within(response.took_s, 2)) == (502, True), name
        assert rule.applied > 0, name
        isolated.deployment.assert_no_leak(response)
        isolated.assert_untouched()


REALMS = {
    "another domain": "https://auth.example.net:8080/token",
    "without TLS": "http://registry.example.com:8080/token",
    "another domain that ends alike": "https://registry.notexample.com:8080/token",
    "a user name": "https://registry.example.com@auth.example.net:8080/token",
}


@pytest.mark.parametrize("name", REALMS)
def test_r3_realms_of_other_domains(isolated: IsolatedDeployment, name: str) -> None:
    """With a login, no connection is made to a realm of another registrable domain or without TLS."""
    repo = f"other-domain-{list(REALMS).index(name)}"
    isolated.fake_registry.on(None, faults.challenged(f'Bearer realm="{REALMS[name]}",service="s"'), repo=repo)
    before = isolated.fake_registry.listeners["cdn"].connections
    assert isolated.get(f"/v2/safe.test/{repo}/manifests/sha256:{'b' * 64}").status == 502
    assert isolated.fake_registry.listeners["cdn"].connections == before
    isolated.assert_untouched()


def _to_name(isolated: IsolatedDeployment, name: str, digest: str) -> Callable[[Request], str]:
    def location(request: Request) -> str:
        return isolated.fake_registry.presign(digest, listener="cdn").replace(f"{PUBLIC}:", f"{name}:")

    return location


def test_r2_dns_rebinding(isolated: IsolatedDeployment) -> None:
    """A name that resolved to a public address resolves to a forbidden one the second time: rejected.

    Each connection costs one lookup, and uses the address that was checked.
    """
    assert len(ADDRESSES) == 24
    for number, address in enumerate(ADDRESSES):
        name = f"re-{number}.example.net"
        isolated.name_server.answers[name] = [(PUBLIC,), (address,)]
        first, second = (_digest(isolated, f"rebinding {address} {n}") for n in (1, 2))
        for digest in (first, second):
            isolated.fake_registry.on("blob", faults.redirected(_to_name(isolated, name, digest)), reference=digest)
        assert isolated.get(f"/v2/up.test/app/blobs/{first}").status == 200, address
        assert isolated.name_server.queries.count(name) == 1
        isolated.fake_registry.listeners["cdn"].drop_connections()
        response = isolated.get(f"/v2/up.test/app/blobs/{second}")
        assert (response.status, is_within(response.took_s, 2)) == (502, True), address
        assert isolated.name_server.queries.count(name) > 1, address
        isolated.assert_untouched()


def test_r2_a_name_with_public_and_private_addresses(isolated: IsolatedDeployment) -> None:
    """Of several addresses only the allowed ones are tried."""
    name = "both.example.net"
    isolated.name_server.answers[name] = [("10.1.2.3", "169.254.169.254", PUBLIC, "fc00::1")]
    digest = _digest(isolated, name)
    isolated.fake_registry.on("blob", faults.redirected(_to_name(isolated, name, digest)), reference=digest)
    assert isolated.get(f"/v2/up.test/app/blobs/{digest}").status == 200
    isolated.assert_untouched()


@pytest.mark.parametrize(
    ("address", "status"), [("10.0.0.9", 200), ("192.168.9.9", 200), ("127.0.0.1", 502), ("169.254.169.254", 502)]
)
def test_r5_a_private_registry_may_redirect_to_private_addresses(
    isolated: IsolatedDeployment, address: str, status: int
) -> None:
    """A registry on a private address may redirect to private addresses, not to this host or to metadata."""
    digest = _digest(isolated, f"private {address}")
    if status == 200:
        listener = isolated.network.run(lambda: isolated.fake_registry.listen(f"cdn {address}", address))
        isolated.fake_registry.on(
            "blob",
            faults.redirected(lambda _: isolated.fake_registry.presign(digest, listener=listener.name)),
            reference=digest,
        )
    else:
        isolated.fake_registry.on("blob", faults.redirected(f"http://{address}:{PORT}/x"), reference=digest)
    assert isolated.get(f"/v2/private.test/app/blobs/{digest}").status == status
    isolated.assert_untouched()


def test_r4_urls_in_a_manifest_are_not_followed(
    make_deployment: Callable[..., WatchedDeployment], fake_registry: FakeRegistry
) -> None:
    """A foreign layer is passed on as it is in the manifest; no connection is made to its `urls`."""
    elsewhere = fake_registry.listen("elsewhere", "127.0.0.2")
    layer = {"mediaType": "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip", "digest": f"sha256:{'f' * 64}"}
    layer |= {"size": 5, "urls": [f"{elsewhere.url}/layer"]}  # type: ignore[dict-item]
    config = {"mediaType": "application/json", "digest": fake_registry.add_blob(b"{}"), "size": 2}
    document = {"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": config, "layers": [layer]}
    digest = fake_registry.add_manifest("app", "v1", document, OCI_MANIFEST)
    deployment = make_deployment()
    for reference in ("v1", digest):
        assert deployment.get(f"/v2/up.test/app/manifests/{reference}").body == fake_registry.manifest_body(
            "app", digest
        )
    assert deployment.get(f"/v2/up.test/app/blobs/{layer['digest']}").status == 404
    assert elsewhere.connections == 0


def test_r6_proxies_of_the_environment_are_not_used(
    make_deployment: Callable[..., WatchedDeployment], fake_registry: FakeRegistry
) -> None:
    """HTTP_PROXY and similar variables change nothing, neither for upstreams nor for the bucket."""
    proxy = fake_registry.listen("proxy", "127.0.0.2")
    name_server = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy")
    with closing(S3Proxy(0)) as bucket:
        bucket.rule = lambda request: s3_error(404, "NoSuchKey")
        deployment = make_deployment(
            environ=dict.fromkeys(name_server, proxy.url) | {"NO_PROXY": ""}, storage=bucket_settings(bucket)
        )
        image = fake_registry.add_image("app", "v1")
        assert deployment.get("/v2/up.test/app/manifests/v1").body == image.body
        assert bucket.requests
    assert proxy.connections == 0
