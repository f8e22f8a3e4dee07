"""One case while it runs: what its clients request, and the comparison with what they must see.

Whatever is not as expected becomes a problem of the case's record; nothing is raised out of `execute`.
"""

import contextlib
import threading
import time
import traceback
from collections.abc import Iterator, Mapping

import attrs

from tests.chaos.engine.case import State
from tests.chaos.engine.isolated_upstream import wait_for
from tests.chaos.engine.outcomes import Observation, ObservedResponse, Outcome, find_response_problems
from tests.chaos.engine.records import Record
from tests.chaos.engine.run import Run
from tests.support.busy_machine import EVENT_TIMEOUT_S
from tests.support.deployment import Deployment
from tests.support.http_client import Crowd, Response, send_request

TIMEOUT_S = 2 * EVENT_TIMEOUT_S  # of cases that wait for each other, and for faults of many seconds
RETRY_EVERY_S = 0.2
UNSEEN_BYTES = 64 * 1024  # the tail that is withheld until the digest is verified, and bytes on their way
# Nothing shows when the last of ten clients has joined a download that has not sent a byte yet.
UNSEEN_JOIN_S = 0.5
SECRETS = ("127.0.0.", "localhost", "X-Amz", "Signature", "Traceback", "canary")


@attrs.frozen
class Barriers:
    """Where the cases of a run wait for each other: before the fault is injected, and before it ends."""

    ready: threading.Barrier
    done: threading.Barrier


class CaseRun:
    """One case of a run. The subclasses differ in when the fault is injected and when it ends."""

    def __init__(self, run: Run, record: Record, barriers: Barriers) -> None:
        self.run = run
        self.record = record
        self.barriers = barriers
        self.upstream = run.upstreams[record.case.state]
        self.reconnects = 0
        self._has_waited = False

    @property
    def deployment(self) -> Deployment:
        return self.run.deployment

    @property
    def state(self) -> State:
        return self.record.case.state

    @property
    def outcomes(self) -> tuple[Outcome, ...]:
        return self.run.variant.outcomes[self.state]

    def execute(self) -> None:
        """Run the case from the warm-up to the end."""
        try:
            self.follow_steps()
        except threading.BrokenBarrierError:
            self.record.problems.append("another case of the run failed before its end")
        except Exception:  # noqa: BLE001  any exception is a problem of this case
            self.record.problems.append(traceback.format_exc(limit=-4))
            self._release_others()
        finally:
            self.clean_up()

    def follow_steps(self) -> None:
        """Do what the variant says for this state."""
        raise NotImplementedError

    def clean_up(self) -> None:
        """Release what still waits for this case."""
        self.upstream.resume_download.set()

    def _release_others(self) -> None:
        self.barriers.done.abort()
        if not self._has_waited:  # aborting a barrier that others are about to leave would break it for them
            self.barriers.ready.abort()

    # Before the fault

    def cache(self, path: str, truth: bytes) -> None:
        """Pull something so that it is cached. Raises AssertionError if that fails."""
        deadline = time.monotonic() + self.run.variant.warm_up_s
        while not (response := self.get(path, truth)).is_right_and_whole:
            assert time.monotonic() < deadline, f"{path}: {response.describe()}"
            time.sleep(RETRY_EVERY_S)
        digest = response.header("Docker-Content-Digest") or ""
        wait_for(lambda: self.is_stored(digest), f"{path} is stored")

    def wait_for_fault(self) -> None:
        """Wait until the cases of all states are ready. Requests that reach the upstream are counted from here on."""
        self.upstream.fake_registry.clear_exchanges()
        self.wait_for_fault_during_download()

    def wait_for_fault_during_download(self) -> None:
        """Wait until the cases of all states are ready; the requests of the running download are counted, too."""
        self.barriers.ready.wait(TIMEOUT_S)
        self._has_waited = True

    # Requests

    def get(self, path: str, truth: bytes, **headers: str) -> ObservedResponse:
        """Send one GET and check what holds for every response."""
        response = ObservedResponse.of(self.send(path, headers), truth)
        self.check_response(response)
        return response

    def send(self, path: str, headers: Mapping[str, str] | None = None, timeout_s: float = TIMEOUT_S) -> Response:
        """Send one GET, and once more if the fault may have broken its connection; the time is that of both."""
        began_at = time.monotonic()
        try:
            return send_request(self.deployment.address, path, headers, timeout_s=timeout_s)
        except ConnectionError:
            if not self.run.variant.may_reconnect:
                raise
        self.reconnects += 1
        response = send_request(self.deployment.address, path, headers, timeout_s=timeout_s)
        return attrs.evolve(response, took_s=time.monotonic() - began_at)

    def request_and_judge(self, path: str, truth: bytes, outcome: Outcome, digest: str) -> Observation:
        """Send one GET and compare the response, and the requests upstream that it caused, with an outcome."""
        before = len(self.upstream.requests())
        return self.judge(outcome, (self.get(path, truth),), digest, before)

    @contextlib.contextmanager
    def download(
        self, clients: int = 10, *, offset: int | None = None, breaks: bool = False, hides_progress: bool = False
    ) -> Iterator[Crowd]:
        """A download of the cold layer that is held at `offset` (half of it) when all clients have joined it.

        With `breaks`, the upstream cuts the response there when it goes on. With `hides_progress`, clients get nothing
        until all of it has been fetched.
        """
        path, truth = self.upstream.blob_path("cold"), self.upstream.layers["cold"]
        place = truth.size // 2 if offset is None else offset
        is_unseen = hides_progress or place <= UNSEEN_BYTES
        self.upstream.fake_registry.clear_exchanges()
        hold = self.upstream.hold_download(place, breaks=breaks)
        with Crowd(self.deployment.address, path, truth, clients) as crowd:

            def have_joined() -> bool:
                if is_unseen:
                    return self.upstream.fake_registry.sent_bytes(self.upstream.body_kind) >= place
                return all(each.status and each.received >= place - UNSEEN_BYTES for each in crowd.members)

            crowd.run(have_joined, TIMEOUT_S)
            if is_unseen:
                time.sleep(UNSEEN_JOIN_S)
            yield crowd
        assert hold.begun == 1, f"the download was begun {hold.begun} times before the fault"

    def finish_download(self, crowd: Crowd) -> tuple[ObservedResponse, ...]:
        """Let the upstream send the rest, wait until all downloads have ended, and return them."""
        began_at = time.monotonic()
        self.upstream.resume_download.set()
        return self.wait_for_crowd(crowd, began_at)

    def wait_for_crowd(self, crowd: Crowd, began_at: float) -> tuple[ObservedResponse, ...]:
        """Wait until all downloads of a crowd have ended, and check what holds for every response."""
        crowd.run(within_s=TIMEOUT_S)
        responses = tuple(
            ObservedResponse.of_member(each, (each.ended_at or began_at) - began_at) for each in crowd.members
        )
        for each in responses:
            self.check_response(each)
        return responses

    # Judgement

    def judge(
        self, outcome: Outcome, responses: tuple[ObservedResponse, ...], digest: str, before: int = 0
    ) -> Observation:
        """Compare responses, and the requests upstream from number `before` on, with an outcome."""
        self._wait_until_stored(outcome, responses, digest)
        observation = Observation(responses, tuple(self.upstream.requests())[before:], self.is_stored(digest))
        self.record.problems += outcome.judge(observation)
        if digest in (layer.digest for layer in self.upstream.layers.values()):
            self.record.problems += outcome.judge_bytes(observation, self.upstream.layers["cold"].size)
        self.note(observation)
        if check := self.run.variant.checks.get(self.state):
            check(self, observation)
        return observation

    def note(self, observation: Observation) -> None:
        """Add an observation to the record."""
        self.record.seen += f"{' / ' if self.record.seen else ''}{observation.describe()}"
        self.record.requests += len(observation.requests)
        self.record.received_bytes += sum(each.sent_bytes for each in observation.requests)

    def is_stored(self, digest: str) -> bool:
        """Whether the local store has a complete file for the digest."""
        return bool(self.deployment.stored_files(digest))

    def check(self, holds: object, problem: str) -> None:
        """Add a problem unless `holds` is true."""
        self.record.check(holds, problem)

    def check_response(self, response: ObservedResponse) -> None:
        """Check what holds for every response, and the form of an error."""
        self.record.problems += [each for each in find_response_problems(response) if each not in self.record.problems]
        if response.response is None or response.status < 400:
            return
        try:
            assert response.response.error, "an error without a code"
            text = response.response.body.decode() + str(response.response.headers)
            secrets = (*SECRETS, str(self.deployment.dockyard.storage))
            leaked = [secret for secret in secrets if secret in text]
            assert not leaked, f"an error contains {leaked}"
        except (AssertionError, ValueError, KeyError) as exc:
            self.record.problems.append(f"the form of an error: {exc}")

    def _wait_until_stored(self, outcome: Outcome, responses: tuple[ObservedResponse, ...], digest: str) -> None:
        """A response may end a moment before its content is stored: wait for what must be stored."""
        must_be_stored = any(each.is_stored for each in (outcome, *outcome.others))
        if not must_be_stored or (responses and not any(each.is_right_and_whole for each in responses)):
            return
        with contextlib.suppress(AssertionError):
            wait_for(lambda: self.is_stored(digest), "stored")
