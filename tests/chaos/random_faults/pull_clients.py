"""Clients that pull what they like, at once and without end, and compare every byte with the truth.

An answer is *wrong* when it is complete and not the truth: another body, another range, a digest that the tag never
had. Everything else that can happen under a fault (an error, a visible cut, no answer) is counted by its name.
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


def find_wrong(reply: Response, body: bytes | None, start: int = 0, stop: int | None = None) -> str:
    """What is wrong with an answer, for which `body` (or that range of it) is the truth; nothing when nothing is."""
    if reply.status not in (200, 206):
        return "" if reply.status >= 400 else f"status {reply.status}"
    if reply.header("Content-Length") is None or reply.header("Transfer-Encoding") is not None:
        return "a body whose truncation would not be seen"
    if not reply.is_complete:
        return ""
    if body is None:
        return "a body that was never there"
    wanted = body if reply.status == 200 else body[start:stop]
    if reply.body != wanted:
        return f"{len(reply.body)} wrong bytes served whole, of {len(wanted)}"
    # The size behind the slash is what the upstream claims (U11) while the blob is still being fetched.
    said = (reply.header("Content-Range") or "").partition("/")[0]
    if reply.status == 206 and said != f"bytes {start}-{start + len(wanted) - 1}":
        return f"the right bytes as {said}"
    return ""


def name_of(reply: Response) -> str:
    """How it is counted."""
    if reply.status in (200, 206):
        stale = " stale" if reply.header("Warning") else ""
        return f"{reply.status}{stale}" if reply.is_complete else f"{reply.status} cut"
    return str(reply.status)


class PullClients:
    """So many clients, each a thread, while the block runs. `is_under_fault` is asked when an answer has come."""

    def __init__(
        self, deployment: Deployment, truth: Truth, clients: int, seed: int, is_under_fault: Callable[[], bool]
    ) -> None:
        self.outcomes: Counter[str] = Counter()
        self.wrong: list[str] = []
        self.under_fault = 0  # responses, whole or cut, that came while a fault was on
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
        actions = (self._pull_tag, self._pull_manifest, self._pull_blob, self._pull_range, self._leave)
        while not self._done.is_set():
            (action,) = rng.choices(actions, weights=(30, 30, 25, 13, 2))
            began_at = time.monotonic()
            try:
                outcome, wrong, is_answer = action(rng)
            except (OSError, ValueError) as exc:
                outcome, wrong, is_answer = f"no answer: {type(exc).__name__}", "", False
            with self._mutex:
                self.outcomes[outcome] += 1
                self.under_fault += is_answer and self._is_under_fault()
                if wrong:
                    self.wrong.append(wrong)
            if not is_answer and time.monotonic() - began_at < 0.1:
                self._done.wait(0.05)  # refused at once

    def _pull_tag(self, rng: Random) -> tuple[str, str, bool]:
        tag = rng.choice(sorted(self._truth.tags))
        reply = self._ask(f"manifests/{tag}")
        digest = reply.header("Docker-Content-Digest") or ""
        wrong = find_wrong(reply, self._truth.manifests.get(digest))
        if reply.status == 200 and digest not in self._truth.tags[tag]:
            wrong = f"{digest}, which {tag} never was"
        return name_of(reply), wrong and f"{tag}: {wrong}", True

    def _pull_manifest(self, rng: Random) -> tuple[str, str, bool]:
        digest = rng.choice(list(self._truth.manifests))
        reply = self._ask(f"manifests/{digest}")
        wrong = find_wrong(reply, self._truth.manifests[digest])
        return name_of(reply), wrong and f"{digest}: {wrong}", True

    def _pull_blob(self, rng: Random) -> tuple[str, str, bool]:
        digest = rng.choice(list(self._truth.blobs))
        reply = self._ask(f"blobs/{digest}")
        wrong = find_wrong(reply, self._truth.blobs[digest])
        return name_of(reply), wrong and f"{digest}: {wrong}", True

    def _pull_range(self, rng: Random) -> tuple[str, str, bool]:
        digest = rng.choice(list(self._truth.blobs))
        body = self._truth.blobs[digest]
        start = rng.randrange(len(body))
        stop = min(len(body), start + rng.randrange(1, 50_000))
        reply = self._ask(f"blobs/{digest}", Range=f"bytes={start}-{stop - 1}")
        wrong = find_wrong(reply, body, start, stop)
        return name_of(reply), wrong and f"{digest} from {start} to {stop}: {wrong}", True

    def _leave(self, rng: Random) -> tuple[str, str, bool]:
        """P05, P10: begin a blob and go, politely or not."""
        digest = rng.choice(list(self._truth.blobs))
        with StreamedResponse(self._deployment.address, f"/v2/{NAME}/blobs/{digest}", timeout_s=TIMEOUT_S) as download:
            download.head().read(min(rng.randrange(20_000), download.length or 0))
            if rng.random() < 0.5:
                download.reset()
        return "left", "", False

    def _ask(self, path: str, **headers: str) -> Response:
        return send_request(self._deployment.address, f"/v2/{NAME}/{path}", headers, timeout_s=TIMEOUT_S)


def digests_of(bodies: Sequence[bytes]) -> dict[str, bytes]:
    """Bodies by their digests."""
    return {f"sha256:{hashlib.sha256(body).hexdigest()}": body for body in bodies}
