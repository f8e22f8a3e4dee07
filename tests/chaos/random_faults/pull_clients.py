"""Clients that pull random content concurrently and compare every byte.

A response is *wrong* if it is complete and not right: another body, another range, a digest that the tag never had.
Everything else that may happen under a fault (an error, a visible cut, no response) is counted by its name.
"""

import hashlib
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from random import Random
from typing import Self

import attrs

from tests.support.deployment import Deployment
from tests.support.http_client import Response, StreamedResponse, send_request

TIMEOUT_S = 20.0
NAME = "up.test/app"


@attrs.define(eq=False)
class Truth:
    """What is right: every digest that a tag ever had, and the bytes of every digest."""

    tags: dict[str, set[str]] = attrs.field(factory=dict)
    manifests: dict[str, bytes] = attrs.field(factory=dict)
    blobs: dict[str, bytes] = attrs.field(factory=dict)


def find_wrong(response: Response, body: bytes | None, start: int = 0, stop: int | None = None) -> str:
    """What is wrong with a response for which `body` (or that range of it) is right; empty if nothing is."""
    if response.status not in (200, 206):
        return "" if response.status >= 400 else f"status {response.status}"
    if response.header("Content-Length") is None or response.header("Transfer-Encoding") is not None:
        return "a body whose truncation would not be visible"
    if not response.is_complete:
        return ""
    if body is None:
        return "a body that never existed"
    wanted = body if response.status == 200 else body[start:stop]
    if response.body != wanted:
        return f"{len(response.body)} wrong bytes served whole, of {len(wanted)}"
    # While the blob is being fetched, the size after the slash is what the upstream announces, which U11 changes.
    content_range = (response.header("Content-Range") or "").partition("/")[0]
    if response.status == 206 and content_range != f"bytes {start}-{start + len(wanted) - 1}":
        return f"the right bytes as {content_range}"
    return ""


def name_of(response: Response) -> str:
    """The name under which a response is counted."""
    if response.status in (200, 206):
        stale = " stale" if response.header("Warning") else ""
        return f"{response.status}{stale}" if response.is_complete else f"{response.status} cut"
    return str(response.status)


class PullClients:
    """Runs clients, each in a thread, while the block runs. `is_under_fault` is called with each response."""

    def __init__(
        self, deployment: Deployment, truth: Truth, clients: int, seed: int, is_under_fault: Callable[[], bool]
    ) -> None:
        self.outcomes: Counter[str] = Counter()
        self.wrong: list[str] = []
        self.under_fault = 0  # responses, complete or cut, while a fault was active
        self._deployment = deployment
        self._truth = truth
        self._is_under_fault = is_under_fault
        self._mutex = threading.Lock()
        self._done = threading.Event()
        self._threads = [
            threading.Thread(target=self._pull_on, args=(Random(f"{seed} {number}"),), daemon=True)
            for number in range(clients)
        ]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        for thread in self._threads:
            thread.join()

    def _pull_on(self, rng: Random) -> None:
        actions = (self._pull_tag, self._pull_manifest, self._pull_blob, self._pull_range, self._disconnect)
        while not self._done.is_set():
            (action,) = rng.choices(actions, weights=(30, 30, 25, 13, 2))
            began_at = time.monotonic()
            try:
                outcome, wrong, is_response = action(rng)
            except (OSError, ValueError) as exc:
                outcome, wrong, is_response = f"no response: {type(exc).__name__}", "", False
            with self._mutex:
                self.outcomes[outcome] += 1
                self.under_fault += is_response and self._is_under_fault()
                if wrong:
                    self.wrong.append(wrong)
            if not is_response and time.monotonic() - began_at < 0.1:
                self._done.wait(0.05)  # connections are refused at once

    def _pull_tag(self, rng: Random) -> tuple[str, str, bool]:
        tag = rng.choice(sorted(self._truth.tags))
        response = self._get(f"manifests/{tag}")
        digest = response.header("Docker-Content-Digest") or ""
        wrong = find_wrong(response, self._truth.manifests.get(digest))
        if response.status == 200 and digest not in self._truth.tags[tag]:
            wrong = f"{digest}, which {tag} never pointed to"
        return name_of(response), wrong and f"{tag}: {wrong}", True

    def _pull_manifest(self, rng: Random) -> tuple[str, str, bool]:
        digest = rng.choice(list(self._truth.manifests))
        response = self._get(f"manifests/{digest}")
        wrong = find_wrong(response, self._truth.manifests[digest])
        return name_of(response), wrong and f"{digest}: {wrong}", True

    def _pull_blob(self, rng: Random) -> tuple[str, str, bool]:
        digest = rng.choice(list(self._truth.blobs))
        response = self._get(f"blobs/{digest}")
        wrong = find_wrong(response, self._truth.blobs[digest])
        return name_of(response), wrong and f"{digest}: {wrong}", True

    def _pull_range(self, rng: Random) -> tuple[str, str, bool]:
        digest = rng.choice(list(self._truth.blobs))
        body = self._truth.blobs[digest]
        start = rng.randrange(len(body))
        stop = min(len(body), start + rng.randrange(1, 50_000))
        response = self._get(f"blobs/{digest}", Range=f"bytes={start}-{stop - 1}")
        wrong = find_wrong(response, body, start, stop)
        return name_of(response), wrong and f"{digest} from {start} to {stop}: {wrong}", True

    def _disconnect(self, rng: Random) -> tuple[str, str, bool]:
        """P05, P10: request a blob, read a part and disconnect, by FIN or RST."""
        digest = rng.choice(list(self._truth.blobs))
        with StreamedResponse(self._deployment.address, f"/v2/{NAME}/blobs/{digest}", timeout_s=TIMEOUT_S) as download:
            download.head().read(min(rng.randrange(20_000), download.length or 0))
            if rng.random() < 0.5:
                download.reset()
        return "disconnected", "", False

    def _get(self, path: str, **headers: str) -> Response:
        return send_request(self._deployment.address, f"/v2/{NAME}/{path}", headers, timeout_s=TIMEOUT_S)


def digests_of(bodies: Sequence[bytes]) -> dict[str, bytes]:
    """The bodies by their digests."""
    return {f"sha256:{hashlib.sha256(body).hexdigest()}": body for body in bodies}
