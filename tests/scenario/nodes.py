"""Nodes: machines that pull images as containerd does, and verify each digest.

A pull is a HEAD of the tag, a GET of its manifest by digest, and GETs of the configuration and the layers, some at the
same time. A request that fails is sent to the next host of the node; when the last host has failed, the node waits and
begins again with the first. The rest of a body that was cut is requested with a Range.
"""

import contextlib
import hashlib
import http.client
import json
import threading
import time
from collections.abc import Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor

import attrs

from tests.support.fake_registry import OCI_INDEX, OCI_MANIFEST
from tests.support.images import PushedImage
from tests.support.networks import Machine

PARALLEL = 3  # as containerd
READ_BYTES = 256 * 1024
CONNECT_TIMEOUT_S = 5.0
READ_TIMEOUT_S = 60.0
MAX_ATTEMPTS = 10  # with all hosts
FIRST_DELAY_S = 0.5  # before the second attempt; each later one waits twice as long, up to:
MAX_DELAY_S = 5.0
MAX_MANIFEST_BYTES = 4 * 1024 * 1024

Host = tuple[str, int]


class PullError(Exception):
    """A request failed at all hosts and in all attempts."""


class WrongBytesError(Exception):
    """A complete response does not have the digest that was requested."""


@attrs.define
class Pull:
    """One pull. `problem` is empty if the image is right; `retries` counts failed requests."""

    node: str
    image: str
    began_at: float = 0.0  # on the monotonic clock
    took_s: float = 0.0
    retries: int = 0
    verified_bytes: int = 0
    problem: str = ""
    is_wrong: bool = False  # wrong bytes, which no retry may mend

    @property
    def is_right(self) -> bool:
        return not self.problem


@attrs.define(eq=False)
class _Transfer:
    """One GET with its attempts."""

    path: str
    hasher: "hashlib._Hash" = attrs.field(factory=hashlib.sha256)
    received: int = 0
    kept: bytearray | None = None  # the body, of manifests only


class Node:
    """A node with the hosts of its registry configuration, in their order. `received` counts bytes of bodies."""

    def __init__(self, machine: Machine, hosts: Sequence[Host], *, parallel: int = PARALLEL) -> None:
        self.machine = machine
        self.hosts = list(hosts)
        self.received = 0
        self._closed = threading.Event()
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(parallel, machine.name, initializer=machine.namespace.enter)

    @property
    def name(self) -> str:
        return self.machine.name

    def stop(self) -> None:
        """Let the pulls that are running fail, as soon as something happens on their connections."""
        self._closed.set()

    def close(self) -> None:
        """Wait until the pulls have ended."""
        self.stop()
        self._pool.shutdown(cancel_futures=True)

    def pull(self, prefix: str, image: PushedImage, *, max_attempts: int = MAX_ATTEMPTS) -> Pull:
        """Pull an image under the prefix of its upstream. Errors are in the result."""
        pull = Pull(self.name, f"{image.repository}:{image.tag}", time.monotonic())
        try:
            self._pull(pull, f"/v2/{prefix}/{image.repository}", image, max_attempts)
        except WrongBytesError as exc:
            pull.problem, pull.is_wrong = str(exc), True
        except PullError as exc:
            pull.problem = str(exc)
        except (CancelledError, RuntimeError):  # the pool is shut down
            if not self._closed.is_set():
                raise
            pull.problem = "the node was stopped"
        pull.took_s = time.monotonic() - pull.began_at
        return pull

    def _pull(self, pull: Pull, path: str, image: PushedImage, max_attempts: int) -> None:
        def run(method: str, rest: str, digest: str, *, is_kept: bool = False) -> bytes:
            return self._request(pull, method, f"{path}/{rest}", digest, max_attempts, is_kept=is_kept)

        self._pool.submit(run, "HEAD", f"manifests/{image.tag}", image.digest).result()
        get = self._pool.submit(run, "GET", f"manifests/{image.digest}", image.digest, is_kept=True)
        manifest = json.loads(get.result())
        digests = [each["digest"] for each in (manifest["config"], *manifest["layers"])]
        parts = [self._pool.submit(run, "GET", f"blobs/{digest}", digest) for digest in digests]
        problems = [problem for part in parts if (problem := part.exception()) is not None]
        for problem in sorted(problems, key=lambda each: not isinstance(each, WrongBytesError)):
            raise problem

    def _request(self, pull: Pull, method: str, path: str, digest: str, max_attempts: int, *, is_kept: bool) -> bytes:
        """Send a request until a response is complete, and verify it. Raises PullError, WrongBytesError."""
        transfer = _Transfer(path, kept=bytearray() if is_kept else None)
        problem = ""
        for attempt in range(max_attempts):
            for host in self.hosts:
                if self._closed.is_set():
                    raise PullError(f"{method} {path}: the node is stopped")
                try:
                    found = self._send(host, method, transfer)
                except (OSError, http.client.HTTPException) as exc:
                    problem = f"{host[0]}:{host[1]}: {type(exc).__name__}: {exc}"
                    with self._lock:
                        pull.retries += 1
                    continue
                if found != digest:
                    raise WrongBytesError(f"{method} {path} from {host[0]}: {transfer.received} bytes are {found}")
                with self._lock:
                    pull.verified_bytes += transfer.received
                return bytes(transfer.kept or b"")
            if attempt < max_attempts - 1:
                self._closed.wait(min(FIRST_DELAY_S * 2**attempt, MAX_DELAY_S))
        raise PullError(f"{method} {path}: {problem}")

    def _send(self, host: Host, method: str, transfer: _Transfer) -> str:
        """Send one request; return the digest of the complete body, or of the HEAD."""
        first = transfer.received
        headers = {"Accept": f"{OCI_MANIFEST}, {OCI_INDEX}"} | ({"Range": f"bytes={first}-"} if first else {})
        with contextlib.closing(http.client.HTTPConnection(*host, timeout=CONNECT_TIMEOUT_S)) as connection:
            connection.connect()
            assert connection.sock is not None
            connection.sock.settimeout(READ_TIMEOUT_S)
            connection.request(method, transfer.path, headers=headers)
            response = connection.getresponse()
            if response.status != (206 if first else 200):
                raise http.client.HTTPException(f"{response.status} {response.read(200)!r}")
            if method == "HEAD":
                return response.headers.get("Docker-Content-Digest", "")
            wanted = first + int(response.headers["Content-Length"])
            while data := response.read1(READ_BYTES):
                transfer.hasher.update(data)
                transfer.received += len(data)
                if transfer.kept is not None:
                    transfer.kept += data
                    if len(transfer.kept) > MAX_MANIFEST_BYTES:
                        raise http.client.HTTPException(f"a manifest of more than {MAX_MANIFEST_BYTES} bytes")
                with self._lock:
                    self.received += len(data)
                if self._closed.is_set():
                    raise PullError(f"{method} {transfer.path}: the node is stopped")
        if transfer.received != wanted:
            raise http.client.HTTPException(f"{transfer.received} of {wanted} bytes")
        return f"sha256:{transfer.hasher.hexdigest()}"
