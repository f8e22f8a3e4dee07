"""The load balancer configurations are accepted by HAProxy, nginx and Envoy, and send each layer to one replica."""

import contextlib
import http.client
import re
import threading
from collections.abc import Iterator, Mapping
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import yaml

from tests.deploy.commands import run
from tests.deploy.fleet import EXAMPLES, Client, Fleet, write_nginx_config
from tests.support.busy_machine import EVENT_TIMEOUT_S
from tests.support.processes import Process, free_port
from tests.support.programs import Programs

DIGEST = "sha256:" + "ab" * 32
PATHS = [  # path without its query, and the part that is hashed
    (f"/v2/docker.io/library/alpine/blobs/{DIGEST}", DIGEST),
    (f"/docker.io/v2/library/alpine/blobs/{DIGEST}", DIGEST),
    (f"/v2/docker.io/library/alpine/manifests/{DIGEST}", DIGEST),
    (f"/v2/docker.io/library/alpine/referrers/{DIGEST}", DIGEST),
    ("/v2/docker.io/library/alpine/manifests/3.20", "/v2/docker.io/library/alpine"),
    ("/v2/docker.io/library/alpine/tags/list", "/v2/docker.io/library/alpine"),
]


@pytest.mark.parametrize("file", ["haproxy/haproxy.cfg", "kubernetes/balancer/haproxy.cfg"])
def test_haproxy_accepts_its_configuration(ops: Path, programs: Programs, tmp_path: Path, file: str) -> None:
    """HAProxy finds no error and gives no warning; its user may not exist on this machine."""
    config = tmp_path / "haproxy.cfg"
    config.write_text((ops / file).read_text().replace("    user haproxy\n    group haproxy\n", ""))
    output = run(programs.need("haproxy"), "-c", "-f", config)
    assert "WARNING" not in output, output


@pytest.mark.parametrize("limit", [20_000, 1024, 256])
def test_haproxy_starts_with_few_open_files(
    ops: Path, programs: Programs, recorder: "Recorder", tmp_path: Path, limit: int
) -> None:
    """Containers and shells limit them; HAProxy then accepts fewer connections, and does not fail to start."""
    port = free_port()
    changes = {"    user haproxy\n    group haproxy\n": "", "bind :5000": f"bind 127.0.0.1:{port}"}
    changes |= {"/run/haproxy/admin.sock": f"{tmp_path}/admin.sock"}
    changes |= dict.fromkeys(EXAMPLES, f"127.0.0.1:{recorder.port}")
    (tmp_path / "haproxy.cfg").write_text(_changed((ops / "haproxy" / "haproxy.cfg").read_text(), changes))
    command = ["prlimit", f"--nofile={limit}", programs.need("haproxy"), "-db", "-f", tmp_path / "haproxy.cfg"]
    haproxy = Process.start(command, log=tmp_path / "haproxy.log")
    try:
        haproxy.wait_until(lambda: _answers(Client(port)), "answering")
    finally:
        haproxy.end()


def test_haproxy_has_one_limit_of_open_files(ops: Path) -> None:
    """`maxconn` would be a number that the system may not allow."""
    files = ("haproxy/haproxy.cfg", "kubernetes/balancer/haproxy.cfg", "helm/dockyard/templates/balancer.yaml")
    for text in ((ops / file).read_text() for file in files):
        assert re.findall(r"(?:maxconn|fd-hard-limit) \d+", text) == ["fd-hard-limit 33000"]


def test_both_haproxy_configurations_hash_alike(ops: Path) -> None:
    """The one for Kubernetes differs in its servers only: the hash and its input are the same."""
    both = [(ops / file).read_text() for file in ("haproxy/haproxy.cfg", "kubernetes/balancer/haproxy.cfg")]
    rule = re.compile(r"^ +((?:acl|http-request|balance|hash-type|http-check) .*)$", re.MULTILINE)
    rules = [rule.findall(text) for text in both]
    assert rules[0] == rules[1]
    assert len(rules[0]) == 11


@pytest.fixture
def nginx_config(ops: Path, tmp_path: Path) -> Path:
    """A copy of nginx's configuration with a port and directories of the test."""
    return write_nginx_config(ops, tmp_path, free_port())


def test_nginx_accepts_its_configuration(programs: Programs, nginx_config: Path, tmp_path: Path) -> None:
    """No error and no warning."""
    output = run(programs.need("nginx"), "-t", "-p", tmp_path, "-c", nginx_config)
    assert "[warn]" not in output, output


def test_nginx_sends_each_layer_to_one_replica(
    fleet: Fleet, programs: Programs, nginx_config: Path, tmp_path: Path
) -> None:
    """Through nginx, each layer is kept by one replica, and layers are spread; the probes are not forwarded."""
    text = nginx_config.read_text()
    for old, replica in zip(EXAMPLES, fleet.replicas, strict=True):
        text = text.replace(old, replica.host)
    nginx_config.write_text(text)
    found = re.search(r"listen 127\.0\.0\.1:(\d+)", text)
    assert found is not None
    nginx = Process.start(
        [programs.need("nginx"), "-p", tmp_path, "-c", nginx_config, "-g", "daemon off;"], log=tmp_path / "nginx.log"
    )
    _check_that_each_layer_has_one_replica(fleet, nginx, int(found[1]))


def _check_that_each_layer_has_one_replica(fleet: Fleet, balancer: Process, port: int) -> None:
    client = Client(port)
    try:
        balancer.wait_until(lambda: _answers(client), "answering")
        digests = [fleet.fake_registry.add_blob(f"through {balancer.name} {number}".encode()) for number in range(24)]
        for digest in digests * 2:
            client.blob("up.test/team/app", digest)
        with pytest.raises(Exception, match="404"):
            client.get("/metrics")
    finally:
        balancer.end()
    replicas_with = [fleet.replicas_with(digest) for digest in digests]
    assert [len(each) for each in replicas_with] == [1] * len(digests)
    assert len({each.port for (each,) in replicas_with}) == len(fleet.replicas)


def _answers(client: Client) -> bool:
    with contextlib.suppress(OSError):
        client.get("/v2/")
        return True
    return False


def test_envoy_accepts_its_configuration(ops: Path, programs: Programs) -> None:
    """Envoy finds no error and gives no warning."""
    output = run(programs.need("envoy"), "--mode", "validate", "-c", ops / "envoy" / "envoy.yaml")
    assert "[warning]" not in output, output


def test_envoy_sends_each_layer_to_one_replica(fleet: Fleet, ops: Path, programs: Programs, tmp_path: Path) -> None:
    """Through Envoy, each layer is kept by one replica too."""
    port = free_port()
    text = (ops / "envoy" / "envoy.yaml").read_text()
    changes = {"address: 0.0.0.0, port_value: 5000": f"address: 127.0.0.1, port_value: {port}"}
    for example, replica in zip(EXAMPLES, fleet.replicas, strict=True):
        host, _, number = example.partition(":")
        changes[f"address: {host}, port_value: {number}"] = f"address: 127.0.0.1, port_value: {replica.port}"
    for old, new in changes.items():
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    config = tmp_path / "envoy.yaml"
    config.write_text(text)
    options = ["-c", config, "--concurrency", "2", "--use-dynamic-base-id"]
    envoy = Process.start([programs.need("envoy"), *options], log=tmp_path / "envoy.log")
    _check_that_each_layer_has_one_replica(fleet, envoy, port)


class Recorder:
    """A server in the place of a Dockyard that records the headers of requests; each response is 200."""

    def __init__(self) -> None:
        self.requests: list[Message] = []
        recorder = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                if self.path != "/readyz":
                    recorder.requests.append(self.headers)
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002
                """Log nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self._server.server_port
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def recorder() -> Iterator[Recorder]:
    """A server that records requests."""
    with contextlib.closing(Recorder()) as recorder:
        yield recorder


@pytest.mark.parametrize("name", ["haproxy", "nginx", "envoy"])
def test_balancers_tell_the_address_of_the_client(
    ops: Path, programs: Programs, recorder: Recorder, tmp_path: Path, request: pytest.FixtureRequest, name: str
) -> None:
    """The last hop in X-Forwarded-For is the client, whatever it has sent itself; its login arrives unchanged."""
    port, client = free_port(), "127.0.0.7"
    examples = dict.fromkeys(EXAMPLES, f"127.0.0.1:{recorder.port}")
    match name:
        case "haproxy":
            changes = {"    user haproxy\n    group haproxy\n": ""}
            changes |= {"bind :5000": f"bind 127.0.0.1:{port}", "/run/haproxy/admin.sock": f"{tmp_path}/admin.sock"}
            text = _changed((ops / "haproxy" / "haproxy.cfg").read_text(), changes | examples)
            (tmp_path / "haproxy.cfg").write_text(text)
            command = [programs.need("haproxy"), "-db", "-f", tmp_path / "haproxy.cfg"]
        case "nginx":
            config: Path = request.getfixturevalue("nginx_config")
            text = re.sub(r"listen 127\.0\.0\.1:\d+", f"listen 127.0.0.1:{port}", config.read_text())
            config.write_text(_changed(text, examples))
            command = [programs.need("nginx"), "-p", tmp_path, "-c", config, "-g", "daemon off;"]
        case _:
            changes = {"address: 0.0.0.0, port_value: 5000": f"address: 127.0.0.1, port_value: {port}"}
            for example in EXAMPLES:
                host, _, number = example.partition(":")
                changes[f"address: {host}, port_value: {number}"] = f"address: 127.0.0.1, port_value: {recorder.port}"
            (tmp_path / "envoy.yaml").write_text(_changed((ops / "envoy" / "envoy.yaml").read_text(), changes))
            options = ["-c", tmp_path / "envoy.yaml", "--concurrency", "1", "--use-dynamic-base-id"]
            command = [programs.need("envoy"), *options]
    balancer = Process.start(command, log=tmp_path / f"{name}.log")
    try:
        balancer.wait_until(lambda: _answers(Client(port)), "answering")
        recorder.requests.clear()
        with contextlib.closing(
            http.client.HTTPConnection("127.0.0.1", port, EVENT_TIMEOUT_S, source_address=(client, 0))
        ) as connection:
            sent = {"X-Forwarded-For": "10.9.9.9", "Authorization": "Basic dXNlcjpwYXNzd29yZA=="}
            connection.request("GET", "/v2/docker.io/library/alpine/tags/list", headers=sent)
            assert connection.getresponse().status == 200
    finally:
        balancer.end()
    (received,) = recorder.requests
    hops = ", ".join(received.get_all("X-Forwarded-For", []))
    assert re.split(", *", hops) == (["10.9.9.9", client] if name == "envoy" else [client])
    assert received.get_all("Authorization") == [sent["Authorization"]]


def _changed(text: str, changes: Mapping[str, str]) -> str:
    for old, new in changes.items():
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    return text


@pytest.mark.parametrize(("path", "key"), PATHS)
def test_envoy_hashes_digest_or_name(ops: Path, path: str, key: str) -> None:
    """Its regular expressions, applied to the paths of clients, leave the part that is hashed."""
    document = yaml.safe_load((ops / "envoy" / "envoy.yaml").read_text())
    (cluster,) = document["static_resources"]["clusters"]
    assert cluster["lb_policy"] == "RING_HASH"
    assert cluster["health_checks"][0]["http_health_check"]["path"] == "/readyz"
    (listener,) = document["static_resources"]["listeners"]
    manager = listener["filter_chains"][0]["filters"][0]["typed_config"]
    (host,) = manager["route_config"]["virtual_hosts"]
    for query in ("", "?ns=docker.io"):
        route = next(route for route in host["routes"] if _matches(route["match"], path))
        (policy,) = route["route"]["hash_policy"]
        rewrite = policy["header"]["regex_rewrite"]
        hashed = re.sub(rewrite["pattern"]["regex"], rewrite["substitution"], path + query)
        assert key.removeprefix("sha256:") == hashed


def _matches(match: dict[str, object], path: str) -> bool:
    match match:
        case {"safe_regex": {"regex": str(regex)}}:
            return re.fullmatch(regex, path) is not None
        case {"prefix": str(prefix)}:
            return path.startswith(prefix)
    raise AssertionError(match)
