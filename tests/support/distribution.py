"""A real upstream: distribution's registry as a process. Its access log shows which requests reached it."""

import base64
import contextlib
import http.client
import re
import secrets
import shutil
import signal
from collections.abc import Mapping
from pathlib import Path

import attrs

from tests.support.busy_machine import EVENT_TIMEOUT_S
from tests.support.htpasswd import write_htpasswd
from tests.support.loopback_server import LoopbackServer
from tests.support.processes import Process, SetupError, free_port, wait_until

TEST_USER_AGENT = "dockyard-tests"  # requests of the tests themselves are not counted

LOG_LINE = re.compile(
    r'"(?P<method>[A-Z]+) (?P<target>\S+) HTTP/[\d.]+" (?P<status>\d+) (?P<sent>\d+) "[^"]*" "(?P<agent>[^"]*)"'
)

HTPASSWD = "auth: {{htpasswd: {{realm: test, path: {path}}}}}\n"
CONFIG = """\
version: 0.1
log: {{level: warn, accesslog: {{disabled: false}}}}
storage: {{filesystem: {{rootdirectory: {root}}}, delete: {{enabled: true}}}}
http: {{addr: "{listen}:{port}", secret: test}}
"""


@attrs.frozen
class LoggedRequest:
    """One request that the registry has answered; `target` includes the query, `sent` is the number of body bytes."""

    method: str
    target: str
    status: int
    sent: int

    @property
    def path(self) -> str:
        return self.target.partition("?")[0]

    def __str__(self) -> str:
        return f"{self.method} {self.target} -> {self.status} ({self.sent} bytes)"


class DistributionRegistry(LoopbackServer):
    """A registry with its own port and directory; both stay the same when it is stopped and started again.

    With `users`, names and passwords, only they can pull and push; the tests themselves are the first of them. `listen`
    is the address that it listens on; the tests themselves always use that of loopback.
    """

    def __init__(
        self,
        program: Path,
        directory: Path,
        *,
        users: Mapping[str, str] | None = None,
        listen: str = "127.0.0.1",
    ) -> None:
        self.program = program
        self.directory = directory
        self.storage = directory / "storage"
        self.port = free_port()
        self.log = directory / "registry.log"
        self.access_log = directory / "access.log"
        self._config = directory / "config.yml"
        text = CONFIG.format(root=self.storage, listen=listen, port=self.port)
        self._headers = {"User-Agent": TEST_USER_AGENT}
        self.needs_login = bool(users)
        if users:
            text += HTPASSWD.format(path=write_htpasswd(directory / "htpasswd", users))
            login = ":".join(next(iter(users.items())))
            self._headers["Authorization"] = f"Basic {base64.b64encode(login.encode()).decode()}"
        self._config.write_text(text)
        self._process: Process | None = None
        self._read_from = 0

    @property
    def is_running(self) -> bool:
        return self._process is not None

    def start(self) -> None:
        """Start it and wait until it answers."""
        assert self._process is None, "the registry runs already"
        self._process = Process.start(
            [self.program, "serve", self._config],
            log=self.log,
            output=self.access_log,
            environ={"OTEL_TRACES_EXPORTER": "none", "PATH": "/usr/bin:/bin"},
        )
        self._process.wait_until(self.is_answering, "answering")

    def stop(self) -> None:
        """Kill it: connections are refused from now on, running downloads are cut."""
        process, self._process = self._process, None
        if process is not None:
            process.end(signal.SIGKILL)

    def close(self) -> None:
        """Stop it for good and delete its storage."""
        self.stop()
        shutil.rmtree(self.storage, ignore_errors=True)

    def freeze(self) -> None:
        """Freeze the process: connections are accepted by the kernel, no response is sent, until `thaw`."""
        assert self._process is not None, "the registry does not run"
        self._process.send(signal.SIGSTOP)

    def thaw(self) -> None:
        """End `freeze`."""
        assert self._process is not None, "the registry does not run"
        self._process.send(signal.SIGCONT)

    def clear_requests(self) -> None:
        """Start counting requests from here."""
        self._wait_for_log()
        self._read_from = self.access_log.stat().st_size

    def requests(self) -> list[LoggedRequest]:
        """Return the requests since `clear_requests` in the order in which they ended, without those still running."""
        self._wait_for_log()
        with self.access_log.open() as log:
            log.seek(self._read_from)
            found = [LOG_LINE.search(line) for line in log]
        return [
            LoggedRequest(line["method"], line["target"], int(line["status"]), int(line["sent"]))
            for line in found
            if line is not None and line["agent"] != TEST_USER_AGENT
        ]

    def put_blob(self, repository: str, digest: str, data: bytes) -> None:
        """Push a blob in one piece."""
        location = self.call("POST", f"/v2/{repository}/blobs/uploads/", expect=202).getheader("Location", "")
        target = location.removeprefix(self.url)
        joint = "&" if "?" in target else "?"
        self.call("PUT", f"{target}{joint}digest={digest}", data, "application/octet-stream", expect=201)

    def put_blob_file(self, repository: str, digest: str, source: Path) -> None:
        """Move a file into the registry's storage as a blob: faster than a push for very large blobs."""
        algorithm, _, encoded = digest.partition(":")
        root = self.storage / "docker" / "registry" / "v2"
        data = root / "blobs" / algorithm / encoded[:2] / encoded / "data"
        data.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(source, data)
        link = root / "repositories" / repository / "_layers" / algorithm / encoded / "link"
        link.parent.mkdir(parents=True, exist_ok=True)
        link.write_text(digest)

    def put_manifest(self, repository: str, reference: str, body: bytes, media_type: str) -> None:
        """Push a manifest under a tag or its digest."""
        self.call("PUT", f"/v2/{repository}/manifests/{reference}", body, media_type, expect=201)

    def call(
        self,
        method: str,
        target: str,
        body: bytes | None = None,
        content_type: str = "",
        *,
        expect: int = 200,
    ) -> http.client.HTTPResponse:
        """Send one request that is not counted; the response body has been read."""
        headers = self._headers | ({"Content-Type": content_type} if content_type else {})
        with contextlib.closing(
            http.client.HTTPConnection("127.0.0.1", self.port, timeout=EVENT_TIMEOUT_S)
        ) as connection:
            connection.request(method, target, body, headers)
            response = connection.getresponse()
            response_body = response.read()
        if response.status != expect:
            raise SetupError(f"registry: {method} {target} -> {response.status}, not {expect}: {response_body[:500]!r}")
        return response

    def is_answering(self) -> bool:
        """Whether `/v2/` answers; the request is not counted."""
        try:
            self.call("GET", "/v2/")
        except OSError:
            return False
        return True

    def _wait_for_log(self) -> None:
        """Wait until the log contains everything that was answered before now; a stopped registry adds nothing."""
        if self._process is None:
            return
        mark = f"/v2/?fence={secrets.token_hex(8)}"
        self.call("GET", mark)
        wait_until(lambda: mark in self.access_log.read_text(), "in the access log")
