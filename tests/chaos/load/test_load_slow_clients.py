"""L04: clients that send their headers a byte at a time, and clients that read nothing, among ordinary ones."""

import contextlib
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from itertools import chain, count
from statistics import median

import pytest

from tests.chaos.engine.case import State
from tests.chaos.engine.control_client import CONTROL_FLOOR_S
from tests.chaos.engine.memory import MemoryLimit
from tests.chaos.load.constant_rate_client import ConstantRateClient, TimedResponse, run_together
from tests.chaos.load.loads import KIB, MIB, SLOW_CLIENTS, RecordLoad, note
from tests.chaos.load.slow_clients import SlowClients
from tests.chaos.load.test_load_blobs import full_deployment
from tests.support import faults
from tests.support.bodies import Synthetic
from tests.support.busy_machine import is_within
from tests.support.deployment import Deployment, set_at_exit
from tests.support.fake_registry import FakeRegistry

HEADERS_CLOSED_S = 10.0
READERS_CLOSED_S = 60.0
SLACK_S = 4.0  # the machine has two cores, which everything that runs shares
BEFORE_S = 3.0
LOOK_EVERY_S = 0.1
DOWNLOAD_EVERY_S = 0.5
BLOB_BYTES = 16 * KIB
DOWNLOAD_BYTES = 4 * MIB
IN_DOWNLOAD = 10
RATE_CLIENTS = 5  # for all states but the running download
PER_CLIENT_S = 2  # requests
# The repository of each state at the fake registry.
REPOS = {
    State.TAG_CACHED: "tag-cached",
    State.TAG_COLD: "tag-cold",
    State.MANIFEST: "manifest",
    State.BLOB_CACHED: "blob-cached",
    State.BLOB_COLD: "blob-cold",
    State.BLOB_DOWNLOAD: "download",
}


def _path(state: State, reference: str) -> str:
    kind = "manifests" if state in (State.TAG_CACHED, State.TAG_COLD, State.MANIFEST) else "blobs"
    return f"/v2/up.test/{REPOS[state]}/{kind}/{reference}"


def _add_cached(fake_registry: FakeRegistry) -> dict[State, str]:
    """Add what is cached before; return the path by state."""
    references = {
        State.TAG_CACHED: fake_registry.add_image(REPOS[State.TAG_CACHED], "latest").tag,
        State.MANIFEST: fake_registry.add_image(REPOS[State.MANIFEST], None, [b"cached"]).digest,
        State.BLOB_CACHED: fake_registry.add_blob(Synthetic(BLOB_BYTES)),
    }
    return {state: _path(state, reference) for state, reference in references.items()}


def _add_cold(fake_registry: FakeRegistry, how_many: int) -> dict[State, list[str]]:
    """Add what is requested once; return the paths by state."""
    numbers = range(1, how_many + 1)
    references = {
        State.TAG_COLD: [fake_registry.add_image(REPOS[State.TAG_COLD], f"v{number}").tag for number in numbers],
        State.MANIFEST: [
            fake_registry.add_image(REPOS[State.MANIFEST], None, [b"%d" % number]).digest for number in numbers
        ],
        State.BLOB_COLD: [fake_registry.add_blob(Synthetic(BLOB_BYTES, first=number)) for number in numbers],
    }
    return {state: [_path(state, each) for each in found] for state, found in references.items()}


def _join_download(deployment: Deployment, fake_registry: FakeRegistry, number: int) -> float:
    """Ten clients join a download of which half has been fetched; return how long the rest took."""
    truth = Synthetic(DOWNLOAD_BYTES, first=1_000_000 + 1_000 * number)
    path = _path(State.BLOB_DOWNLOAD, fake_registry.add_blob(truth))
    with set_at_exit(threading.Event()) as go_on:
        rule = fake_registry.on("blob", faults.stalled(0.5, go_on), reference=truth.digest)
        with deployment.crowd(path, truth, IN_DOWNLOAD) as crowd:
            crowd.run(until=lambda: all(member.received > MIB for member in crowd.members))
            went_on_at = time.monotonic()
            go_on.set()
            crowd.run()
            took_s = time.monotonic() - went_on_at
            assert all(member.is_right for member in crowd.members), crowd.summary()
        fake_registry.remove_rules(rule)
    return took_s


class OrdinaryClients:
    """A client for each state and one download after the other; `took_s` has the times of the last run."""

    def __init__(self, deployment: Deployment, fake_registry: FakeRegistry, of_each: int, for_s: float) -> None:
        self._deployment = deployment
        self._fake_registry = fake_registry
        self._rate_per_s = PER_CLIENT_S * of_each
        self._downloads = count()
        self.cached = _add_cached(fake_registry)
        cold = _add_cold(fake_registry, int(self._rate_per_s * for_s) + 2)
        by_turns = chain.from_iterable((path, self.cached[State.MANIFEST]) for path in cold[State.MANIFEST])
        paths: dict[State, str | Iterable[str]] = {**self.cached, **cold, State.MANIFEST: by_turns}
        self.rate_clients = {
            state: ConstantRateClient(deployment.address, path, of_each) for state, path in paths.items()
        }
        self.took_s: dict[State, list[float]] = {}

    def run(self, for_s: float, meanwhile: Callable[[], object] = lambda: None) -> None:
        """Send requests for so long; `meanwhile` is called repeatedly."""
        with ThreadPoolExecutor(2) as pool:
            requesting = pool.submit(run_together, list(self.rate_clients.values()), self._rate_per_s, for_s)
            downloading = pool.submit(self._download_until, requesting)
            while not requesting.done():
                meanwhile()
                wait([requesting], LOOK_EVERY_S)
        for state, responses in zip(self.rate_clients, requesting.result(), strict=True):
            self.took_s[state] = [each.took_s for each in responses]
        self.took_s[State.BLOB_DOWNLOAD] = downloading.result()

    def _download_until(self, requesting: Future[list[list[TimedResponse]]]) -> list[float]:
        took_s = []
        while not wait([requesting], DOWNLOAD_EVERY_S).done:
            took_s.append(_join_download(self._deployment, self._fake_registry, next(self._downloads)))
        return took_s

    def find_wrong(self, state: State) -> list[str]:
        """What was wrong with the responses of a state, or with the requests upstream."""
        found = []
        if rate_client := self.rate_clients.get(state):
            kinds = {(each.status, each.is_stale, each.is_right) for each in rate_client.responses}
            if kinds != {(200, False, True)}:
                found.append(f"responses: {kinds}")
            if rate_client.failures:
                found.append(f"{rate_client.failures} connections that ended without a response")
        gets = Counter(each.request.reference for each in self._fake_registry.received(method="GET", repo=REPOS[state]))
        is_cached = state in (State.TAG_CACHED, State.BLOB_CACHED)
        if set(gets.values()) != (set() if is_cached else {1}):
            found.append(f"not fetched as often as expected: {gets.most_common(3)}")
        return found


def _p99(times_s: Sequence[float]) -> float:
    return sorted(times_s)[int(len(times_s) * 0.99)]


@pytest.mark.parametrize(
    ("slow_clients", "clients", "seconds"),
    [
        pytest.param(150, 25, HEADERS_CLOSED_S + SLACK_S, id="300 slow clients"),
        pytest.param(
            1000,
            50,
            READERS_CLOSED_S + 3 * SLACK_S,
            id="2000 slow clients",
            marks=[pytest.mark.long],
        ),
    ],
)
def test_slow_clients_among_ordinary_ones(
    make_deployment: Callable[..., Deployment],
    fake_registry: FakeRegistry,
    record_load: RecordLoad,
    slow_clients: int,
    clients: int,
    seconds: float,
) -> None:
    """Every ordinary client gets its response, about as fast as before; slow clients are disconnected in time."""
    truth = Synthetic(16 * MIB)
    blob = f"/v2/up.test/app/blobs/{fake_registry.add_blob(truth)}"
    with record_load("L04", SLOW_CLIENTS, *REPOS) as records, contextlib.ExitStack() as stack:
        deployment = full_deployment(make_deployment)
        with deployment.stream(blob) as download:
            download.head()
            assert download.find_mismatch(truth) is None
        ordinary = OrdinaryClients(
            deployment, fake_registry, (clients - IN_DOWNLOAD) // RATE_CLIENTS, BEFORE_S + seconds
        )
        for path in ordinary.cached.values():
            assert deployment.get(path).status == 200
        fake_registry.clear_exchanges()
        memory = stack.enter_context(MemoryLimit(deployment))
        for rate_client in ordinary.rate_clients.values():
            stack.enter_context(rate_client)
        ordinary.run(BEFORE_S)
        before_s = dict(ordinary.took_s)
        with SlowClients(deployment, blob, slow_clients, slow_clients) as slow:
            ordinary.run(seconds, meanwhile=slow.step)
            headers_left, readers_left = slow.left
        # On a machine that other tests use, one response in a hundred is late whatever Dockyard does.
        statistic = _p99 if seconds > READERS_CLOSED_S else median
        for record in records:
            state = record.case.state
            before, beside = statistic(before_s[state]), statistic(ordinary.took_s[state])
            name = statistic.__name__.strip("_")
            seen = f"{2 * slow_clients:,} slow clients, {clients} clients: {name} {before * 1000:.0f} ms"
            note(record, f"{seen}, with them {beside * 1000:.0f} ms", fake_registry, memory, repo=REPOS[state])
            record.problems += ordinary.find_wrong(state)
            bound_s = max(2 * before, CONTROL_FLOOR_S)
            record.check(
                is_within(beside, 0, slack_s=bound_s), f"{beside:.3f} s with slow clients, expected {bound_s:.3f} s"
            )
        tags = Counter(each.digest for each in ordinary.rate_clients[State.TAG_COLD].responses)
        assert max(tags.values()) == 1, "one image for two tags"
        assert headers_left == 0
        assert is_within(max(slow.header_closed_s), HEADERS_CLOSED_S, slack_s=SLACK_S)
        if seconds > READERS_CLOSED_S:
            assert readers_left == 0
            assert is_within(max(slow.reader_closed_s), READERS_CLOSED_S, slack_s=3 * SLACK_S)
        assert all(each >= READERS_CLOSED_S - 1 for each in slow.reader_closed_s)
        memory.assert_held()
