"""A Dockyard server in front of a fake registry, with the requests and checks that most tests need."""

import contextlib
import os
import re
import ssl
import stat
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import attrs

from tests.support.bodies import Body
from tests.support.busy_machine import EVENT_TIMEOUT_S, SLACK_S, is_within
from tests.support.dockyard import Dockyard, running
from tests.support.fake_registry import FakeRegistry
from tests.support.http_client import Crowd, Response, StreamedResponse, send_request

POLL_S = 0.02
CHECK_TIMEOUT_S = 2
STALL_TIMEOUT_S = 10


def sum_samples(metrics: Response, name: str, **labels: str) -> float:
    """The sum of the samples of a metric that have these labels, in a response of `/metrics`."""
    return sum(
        float(line.split()[-1])
        for line in metrics.body.decode().splitlines()
        if line.startswith((f"{name} ", f"{name}{{"))
        and all(f'{label}="{value}"' in line for label, value in labels.items())
    )


@attrs.define(eq=False)
class Deployment:
    """A server and its fake registry. Paths are given without the host, as a client sends them."""

    fake_registry: FakeRegistry
    dockyard: Dockyard
    tls: ssl.SSLContext | None = None

    @property
    def address(self) -> tuple[str, int]:
        return "127.0.0.1", self.dockyard.port

    def get(self, path: str, **headers: str) -> Response:
        """Send a GET request; header names are given with underscores for hyphens."""
        return send_request(self.address, path, _header_names(headers), tls=self.tls)

    def head(self, path: str, **headers: str) -> Response:
        return send_request(self.address, path, _header_names(headers), method="HEAD", tls=self.tls)

    def request(self, method: str, path: str, **headers: str) -> Response:
        return send_request(self.address, path, _header_names(headers), method=method, tls=self.tls)

    def stream(self, path: str, *, receive_buffer: int | None = None, **headers: str) -> StreamedResponse:
        """Send a GET request whose response the test reads step by step."""
        return StreamedResponse(self.address, path, _header_names(headers), receive_buffer=receive_buffer)

    def send_raw(self, request: bytes, *, receive_buffer: int | None = None) -> StreamedResponse:
        """Send these bytes as the request."""
        return StreamedResponse(self.address, "", request=request, receive_buffer=receive_buffer)

    def crowd(self, path: str, expected: Body, size: int, headers: Sequence[Mapping[str, str]] = ()) -> Crowd:
        """Download one body with many clients at once."""
        return Crowd(self.address, path, expected, size, headers)

    def get_concurrently(self, paths: Sequence[str], **headers: str) -> list[Response]:
        """Send one GET request per path, all at once."""
        with ThreadPoolExecutor(len(paths)) as pool:
            return list(pool.map(lambda path: self.get(path, **headers), paths))

    def metric(self, name: str, **labels: str) -> float:
        """The sum of the samples of a metric that have these labels."""
        return sum_samples(self.get("/metrics"), name, **labels)

    def stored_files(self, digest: str) -> list[Path]:
        """The files in the storage directory whose names contain the digest, without partial files."""
        encoded = digest.partition(":")[2]
        found = []
        for directory, folders, files in os.walk(self.dockyard.storage):
            folders[:] = [name for name in folders if name not in ("partial", "run")]
            found += [Path(directory, name) for name in files if encoded in name]
        return found

    def partial_files(self) -> list[Path]:
        """The partial files of running downloads, which are locked, and temporary files."""
        locked = set(re.findall(r"\b[0-9a-f]+:[0-9a-f]+:(\d+)\b", Path("/proc/locks").read_text()))
        found = []
        for path in self.dockyard.storage.glob("**/partial/**/*"):
            with contextlib.suppress(FileNotFoundError):  # a download has just ended
                status = path.stat()
                if stat.S_ISREG(status.st_mode) and (path.suffix == ".tmp" or str(status.st_ino) in locked):
                    found.append(path)
        return found

    def interrupted_downloads(self) -> list[Path]:
        """The partial files that nobody writes: the downloads are continued there when they are requested again."""
        running = self.partial_files()
        found = self.dockyard.storage.glob("**/partial/**/*")
        return [path for path in found if path.is_file() and path not in running]

    def wait_for_workers(self, count: int) -> None:
        """Wait until this number of workers answers peer requests."""
        eventually(lambda: len(list(self.dockyard.storage.glob("run/shard-*.sock"))) == count, "all workers serve")

    def wait_for_log(self, text: str) -> str:
        """Wait until the log contains this text; return the log."""
        eventually(lambda: text in self.dockyard.read_log(), f"{text!r} in the log")
        return self.dockyard.read_log()

    def read_log(self) -> str:
        """Return the log with the lines of all requests that have ended: wait for the line of one more request."""
        path = f"/{uuid.uuid4().hex}"
        self.get(path)
        return self.wait_for_log(path)

    def assert_no_leak(self, response: Response) -> None:
        """Check that an error response contains no address of the upstream and no path of this machine."""
        text = response.body.decode() + str(response.headers)
        hosts = {listener.authority for listener in self.fake_registry.listeners.values()}
        for secret in (*hosts, "127.0.0.", "X-Amz", "Signature", str(self.dockyard.storage), "Traceback"):
            assert secret not in text, f"{secret!r} in {text}"


def eventually(
    condition: Callable[[], Any], what: str, within_s: float | None = None, *, slack_s: float = SLACK_S
) -> Any:
    """Wait until `condition` returns something true, and return that.

    `within_s` is for what is promised within a time (see `is_within`); it is not needed for what must only happen.
    """
    began_at = time.monotonic()
    while not (found := condition()):
        waited_s = time.monotonic() - began_at
        if waited_s > EVENT_TIMEOUT_S if within_s is None else not is_within(waited_s, within_s, slack_s=slack_s):
            raise AssertionError(f"not within {waited_s:.0f} s: {what}")
        time.sleep(POLL_S)
    return found


def stays(condition: Callable[[], Any], what: str, for_s: float) -> None:
    """Check repeatedly for `for_s` seconds that `condition` holds: for what must not happen."""
    deadline = time.monotonic() + for_s
    while time.monotonic() < deadline:
        assert condition(), f"no longer true: {what}"
        time.sleep(POLL_S)


@contextlib.contextmanager
def set_at_exit(event: threading.Event) -> Iterator[threading.Event]:
    """Set the event when the block ends, also by an exception."""
    try:
        yield event
    finally:
        event.set()


def parse_cache_status(response: Response) -> dict[str, str | bool]:
    """The parameters of Dockyard's entry in Cache-Status (RFC 9211); the key `""` is the name of the cache."""
    value = response.header("Cache-Status") or ""
    name, *parameters = re.split(r"\s*;\s*", value)
    parts = (parameter.partition("=") for parameter in parameters)
    return {"": name, **{key: value.strip('"') if equals else True for key, equals, value in parts}}


def _header_names(headers: Mapping[str, str]) -> dict[str, str]:
    return {name.replace("_", "-"): value for name, value in headers.items()}


def upstream(prefix: str, registry: str, **more: Any) -> dict[str, Any]:
    """One entry of `upstreams:`; anonymous unless `more` contains `auth`."""
    return {"prefix": prefix, "registry": registry, "auth": {"type": "anonymous"}, **more}


@contextlib.contextmanager
def open_deployment(
    fake_registry: FakeRegistry,
    directory: Path,
    *,
    workers: int = 1,
    upstreams: Sequence[Mapping[str, Any]] | None = None,
    environ: Mapping[str, str] | None = None,
    descriptors: int = 0,
    wrapper: Sequence[str] = (),
    **settings: Any,
) -> Iterator[Deployment]:
    """Start a Dockyard with short timeouts whose prefix `up.test` and default `docker.io` lead to the fake registry."""
    limits = {"check_timeout": f"{CHECK_TIMEOUT_S}s", "connect_timeout": "1s", "stall_timeout": f"{STALL_TIMEOUT_S}s"}
    settings["upstream"] = {**limits, **settings.get("upstream", {})}
    upstreams = (
        [upstream("docker.io", fake_registry.url), upstream("up.test", fake_registry.url)]
        if upstreams is None
        else upstreams
    )
    with running(
        Dockyard(
            directory,
            upstreams,
            workers=workers,
            settings=settings,
            environ=environ,
            descriptors=descriptors,
            wrapper=wrapper,
        )
    ) as dockyard:
        yield Deployment(fake_registry, dockyard)
