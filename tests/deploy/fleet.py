"""A fleet as operators run it: three Dockyards, one bucket, and HAProxy with the configuration of ops/.

Only addresses are changed in that configuration, and what needs privileges: another user.
"""

import contextlib
import csv
import hashlib
import http.client
import io
import json
import shutil
import socket
import time
from collections.abc import Sequence
from pathlib import Path

import attrs

from tests.s3.service.bucket_view import BucketView
from tests.support.busy_machine import EVENT_TIMEOUT_S
from tests.support.deployment import upstream
from tests.support.dockyard import Dockyard
from tests.support.fake_registry import OCI_INDEX, OCI_MANIFEST, FakeRegistry
from tests.support.processes import Process, free_port, wait_until

REPLICAS = 3
EXAMPLES = [f"10.0.0.1{number}:5000" for number in (1, 2, 3)]  # the addresses in the configurations of ops/
EXAMPLE_LINES = "".join(f"    server dockyard-{n} {each} check\n" for n, each in enumerate(EXAMPLES, 1))
MAX_ATTEMPTS = 5  # as Docker and containerd do
RETRY_DELAY_S = 0.2  # between two attempts


class Balancer:
    """HAProxy with ops/haproxy/haproxy.cfg: `servers` are the addresses of the replicas, `bind` is its own.

    It is started, and asked for states, in the network namespace of the thread.
    """

    def __init__(self, program: Path, example: Path, directory: Path, servers: Sequence[str], bind: str = "") -> None:
        self.port = int(bind.rpartition(":")[2]) if bind else free_port()
        self._stats = free_port()
        self._program = program
        self._config = directory / "haproxy.cfg"
        self._log = directory / "haproxy.log"
        self._process: Process | None = None
        self._names = [f"dockyard-{number}" for number in range(1, len(servers) + 1)]
        text = example.read_text()
        lines = [f"    server {name} {address} check\n" for name, address in zip(self._names, servers, strict=True)]
        changes = {
            "    user haproxy\n    group haproxy\n": "",
            "bind :5000": f"bind {bind or f'127.0.0.1:{self.port}'}",
            "stats socket /run/haproxy/admin.sock mode 660": f"stats socket ipv4@127.0.0.1:{self._stats}",
            EXAMPLE_LINES: "".join(lines),
        }
        for old, new in changes.items():
            assert text.count(old) == 1, f"{old!r} is {text.count(old)} times in {example}"
            text = text.replace(old, new)
        self._config.write_text(text)

    def start(self) -> None:
        """Start it and wait until it considers all replicas up."""
        self._process = Process.start([self._program, "-db", "-f", self._config], log=self._log)
        self._process.wait_until(self._is_listening, "listening")
        self.wait_for(dict.fromkeys(self._names, "UP"))

    def close(self) -> None:
        if self._process is not None:
            self._process.end()

    def wait_for(self, wanted: dict[str, str]) -> None:
        """Wait until HAProxy reports these states of its servers."""
        wait_until(lambda: wanted.items() <= self.states().items(), f"seen as {wanted} by HAProxy")

    def states(self) -> dict[str, str]:
        """The state of each server: UP, DOWN, or a transition."""
        with socket.create_connection(("127.0.0.1", self._stats), EVENT_TIMEOUT_S) as connection:
            connection.sendall(b"show stat\n")
            output = b"".join(iter(lambda: connection.recv(65536), b"")).decode()
        rows = csv.DictReader(io.StringIO(output.removeprefix("# ")))
        return {row["svname"]: row["status"] for row in rows if row["svname"].startswith("dockyard-")}

    def _is_listening(self) -> bool:
        with contextlib.suppress(OSError):
            self.states()
            return True
        return False


def write_nginx_config(ops: Path, directory: Path, port: int) -> Path:
    """Write ops/nginx/nginx.conf with another port, and with all its files in the directory; return its path."""
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    changes = {
        "pid /run/nginx.pid": f"pid {directory}/nginx.pid",
        "/var/log/nginx/error.log": f"{directory}/error.log",
        "listen 5000": f"listen 127.0.0.1:{port}",
        "worker_connections 16384": "worker_connections 512",
        "access_log off;": "access_log off;" + "".join(f"\n    {kind}_temp_path {directory}/{kind};" for kind in kinds),
    }
    text = (ops / "nginx" / "nginx.conf").read_text()
    for old, new in changes.items():
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    config = directory / "nginx.conf"
    config.write_text(text)
    return config


class Fleet:
    """The fake registry, the bucket, the replicas and the balancer."""

    def __init__(
        self, ops: Path, haproxy: Path, directory: Path, fake_registry: FakeRegistry, bucket_view: BucketView
    ) -> None:
        self.fake_registry = fake_registry
        self.bucket_view = bucket_view
        settings = {"storage": bucket_view.storage(), "upstream": {"stall_timeout": "30s"}}
        self.replicas = [
            Dockyard(directory / f"{number}", [upstream("up.test", fake_registry.url)], workers=2, settings=settings)
            for number in range(REPLICAS)
        ]
        self.balancer = Balancer(
            haproxy, ops / "haproxy" / "haproxy.cfg", directory, [each.host for each in self.replicas]
        )

    def start(self) -> None:
        for replica in self.replicas:
            replica.start(wait=False)
        for replica in self.replicas:
            wait_until(replica.is_answering, "answering")
        self.balancer.start()

    def close(self) -> None:
        self.balancer.close()
        for replica in self.replicas:
            replica.kill()
            shutil.rmtree(replica.storage, ignore_errors=True)

    def server_name(self, replica: Dockyard) -> str:
        """The name of a replica in HAProxy."""
        return f"dockyard-{self.replicas.index(replica) + 1}"

    def replicas_with(self, digest: str, where: str = "cache") -> list[Dockyard]:
        """The replicas that have a blob in this part of their directory: `cache` or `partial`."""
        encoded = digest.partition(":")[2]
        return [each for each in self.replicas if any((each.storage / where).glob(f"**/*{encoded}*"))]

    def restart(self, replica: Dockyard) -> None:
        """Restart a replica as preStop and ExecStop do: it becomes not ready, is drained, stopped, and started."""
        (replica.storage / "run" / "draining").touch()
        self.balancer.wait_for({self.server_name(replica): "DOWN"})
        replica.stop()
        replica.start()
        self.balancer.wait_for({self.server_name(replica): "UP"})


@attrs.define
class Client:
    """A client that retries failed requests, and resumes a body that was cut; `retries` counts both.

    `received` is the number of bytes of the current body.
    """

    port: int
    retries: int = 0
    received: int = 0

    def pull(self, repository: str, tag: str) -> None:
        """Pull an image: its manifest by tag, its configuration and its layers; all digests are checked."""
        manifest = json.loads(self.get(f"/v2/{repository}/manifests/{tag}"))
        for part in (manifest["config"], *manifest["layers"]):
            self.blob(repository, part["digest"])

    def blob(self, repository: str, digest: str) -> bytes:
        """Pull a layer and check its digest."""
        body = self.get(f"/v2/{repository}/blobs/{digest}")
        assert f"sha256:{hashlib.sha256(body).hexdigest()}" == digest, f"wrong bytes of {digest}"
        return body

    def get(self, path: str) -> bytes:
        """The body of a response; raises the error of the last attempt."""
        body = bytearray()
        for left in reversed(range(MAX_ATTEMPTS)):
            try:
                return self._resume(path, body)
            except (OSError, http.client.HTTPException):
                if not left:
                    raise
            self.retries += 1
            time.sleep(RETRY_DELAY_S)  # a client waits between two attempts
        raise AssertionError("unreachable")

    def _resume(self, path: str, body: bytearray) -> bytes:
        headers = {"Accept": f"{OCI_MANIFEST}, {OCI_INDEX}"} | ({"Range": f"bytes={len(body)}-"} if body else {})
        with contextlib.closing(
            http.client.HTTPConnection("127.0.0.1", self.port, timeout=EVENT_TIMEOUT_S)
        ) as connection:
            connection.request("GET", path, headers=headers)
            response = connection.getresponse()
            if response.status != (206 if body else 200):
                raise http.client.HTTPException(f"GET {path} -> {response.status} {response.read()[:200]!r}")
            wanted = len(body) + int(response.headers["Content-Length"])
            while piece := response.read1(65536):
                body += piece
                self.received = len(body)
        if len(body) != wanted:
            raise http.client.IncompleteRead(bytes(body), wanted - len(body))
        return bytes(body)
