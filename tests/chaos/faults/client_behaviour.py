"""A client that reads slowly, and clients that reset, half-close or pipeline: P06, P10."""

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Mapping
from typing import Self

import attrs

from tests.chaos.engine.case import State
from tests.chaos.engine.deployment_case import DeploymentCaseRun, Steps
from tests.chaos.engine.isolated_upstream import wait_for
from tests.chaos.engine.limits import SLACK_S
from tests.chaos.engine.outcomes import ObservedResponse, Outcome, hit, hit1, new
from tests.chaos.engine.run import Run
from tests.chaos.engine.variant import MIB, DeploymentVariant, Fault, do_nothing
from tests.support.bodies import Bytes
from tests.support.busy_machine import is_within
from tests.support.http_client import Crowd, StreamedResponse, is_part_of, request_bytes

LAYER_BYTES = 6 * MIB
FAST_CLIENTS = 99
SLOW_BYTES_PER_S = 1024
MAX_SLOWER = 1.1
CLIENTS = 9  # that behave as usual


# P06


def _read_slowly(case: DeploymentCaseRun) -> None:
    """Ninety-nine clients read as fast as they can, alone and then with a slow one."""
    upstream, address = case.upstream, case.deployment.address
    if case.state is State.BLOB_CACHED:
        truth, path = upstream.layers["cached"], upstream.blob_path("cached")
        case.cache(path, truth.data)
        case.wait_for_fault()
        usual_s = _download_all(case, path, truth, hit())
    else:
        truth, path = upstream.layers["cold"], upstream.blob_path("cold")
        case.wait_for_fault()
        usual_s = _download_all(case, upstream.blob_path("cached"), upstream.layers["cached"], new())
    case.upstream.fake_registry.clear_exchanges()
    with StreamedResponse(address, path, receive_buffer=4096) as slow, _SlowReader(slow) as reading:
        took_s = _download_all(case, path, truth, case.outcomes[0])
        is_fast = is_within(took_s, MAX_SLOWER * usual_s, slack_s=SLACK_S)
        case.check(is_fast, f"99 clients took {took_s:.2f} s with a slow one, {usual_s:.2f} s without")
        encoded = truth.digest.partition(":")[2]
        wait_for(
            lambda: not any(encoded in file.name for file in case.deployment.partial_files()),
            "no partial file is left",
        )
        reading.stop()
        case.check(is_part_of(truth, 0, reading.body), "wrong bytes for the slow client")
        body, ended = slow.rest()
        case.check(ended == "length", f"the slow client's download ends by {ended}")
        case.check(is_part_of(truth, len(reading.body), body), "wrong bytes for the slow client")


def _download_all(case: DeploymentCaseRun, path: str, truth: Bytes, outcome: Outcome) -> float:
    began_at = time.monotonic()
    with Crowd(case.deployment.address, path, truth, FAST_CLIENTS) as crowd:
        responses = case.wait_for_crowd(crowd, began_at)
        took_s = time.monotonic() - began_at
    case.judge(outcome, responses, truth.digest)
    return took_s


class _SlowReader:
    """Reads a response at one KiB per second, in a thread."""

    def __init__(self, download: StreamedResponse) -> None:
        self.body = b""
        self._download = download
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._read)

    def __enter__(self) -> Self:
        self._download.head()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Stop reading."""
        self._done.set()
        self._thread.join()

    def _read(self) -> None:
        while not self._done.wait(0.25):
            self.body += self._download.read(SLOW_BYTES_PER_S // 4)


SLOW = Fault(
    "P06",
    "One client reads 1 KiB/s among many",
    (
        DeploymentVariant(
            "1 KiB/s",
            steps=dict.fromkeys((State.BLOB_CACHED, State.BLOB_COLD, State.BLOB_DOWNLOAD), _read_slowly),
            outcomes={State.BLOB_CACHED: (hit(),), State.BLOB_COLD: (new(),), State.BLOB_DOWNLOAD: (new(),)},
            inject=do_nothing,
            layer_bytes=LAYER_BYTES,
            max_connections=3 * FAST_CLIENTS,
            checks_control_client=False,  # the clients need the processors
            reason="the slow client reads from the local store to the end: no partial file is kept for it",
        ),
    ),
)


# P10


def _request_beside_misbehaving_client(case: DeploymentCaseRun) -> None:
    """Nine clients send ordinary requests while a tenth misbehaves."""
    tag = "cached" if case.state in (State.TAG_CACHED, State.BLOB_CACHED) else "cold"
    requests: list[tuple[str, bytes, str, Outcome]] = []
    upstream = case.upstream
    image, layer = upstream.images[tag], upstream.layers[tag]
    if case.state in (State.TAG_CACHED, State.TAG_COLD):
        requests.append((upstream.manifest_path(tag), image.body, image.digest, case.outcomes[0]))
    elif case.state is State.MANIFEST:
        for which, outcome in zip(("cached", "cold"), case.outcomes, strict=True):
            found = upstream.images[which]
            requests.append((upstream.digest_path(which), found.body, found.digest, outcome))
    else:
        requests.append((upstream.blob_path(tag), layer.data, layer.digest, case.outcomes[0]))
    if case.state in (State.TAG_CACHED, State.MANIFEST, State.BLOB_CACHED):
        case.cache(requests[0][0], requests[0][1])
    case.wait_for_fault()
    for path, truth, digest, outcome in requests:
        before = len(upstream.requests())
        misbehaving = threading.Thread(target=case.run.data["misbehave"], args=(case, path, truth))
        with contextlib.ExitStack() as stack:
            members = [stack.enter_context(StreamedResponse(case.deployment.address, path)) for _ in range(CLIENTS)]
            misbehaving.start()
            responses = tuple(_read(case, each, truth) for each in members)
        misbehaving.join()
        case.judge(outcome, responses, digest, before)


def _read(case: DeploymentCaseRun, download: StreamedResponse, truth: bytes) -> ObservedResponse:
    download.head()
    body, ended = download.rest()
    is_right = truth.startswith(body) and (ended != "length" or len(body) == len(truth))
    took_s = time.monotonic() - download.began_at
    response = ObservedResponse(
        download.status, download.headers, len(body), is_right, ended == "length", took_s, ended
    )
    case.check_response(response)
    return response


def _reset(case: DeploymentCaseRun, path: str, _: bytes) -> None:
    """Send a request and reset at once; send another one, read a little, and reset."""
    StreamedResponse(case.deployment.address, path).reset()
    download = StreamedResponse(case.deployment.address, path, receive_buffer=4096)
    with contextlib.suppress(ConnectionError):
        download.head().read(100)
    download.reset()


def _half_close(case: DeploymentCaseRun, path: str, truth: bytes) -> None:
    """Send a request and close the sending side: the response is whole and right, or the connection is closed."""
    with StreamedResponse(case.deployment.address, path) as download:
        download.socket.shutdown(socket.SHUT_WR)
        try:
            status = download.head().status
        except ConnectionError:
            return
        body, ended = download.rest()
        case.check(status == 200, f"a half-closed client gets {status}")
        case.check(
            truth.startswith(body) and (ended != "length" or body == truth), "a half-closed client gets wrong bytes"
        )


def _pipeline(case: DeploymentCaseRun, path: str, truth: bytes) -> None:
    """Send two requests in one packet: there are two responses, in the same order."""
    first = request_bytes("GET", "/v2/", case.deployment.address, {})
    second = request_bytes("GET", path, case.deployment.address, {"Connection": "close"})
    with StreamedResponse(case.deployment.address, "", request=first + second) as download:
        ping = (download.head().status, download.read(download.length or 0))
        case.check(ping == (200, b"{}"), f"the first of two pipelined requests gets {ping}")
        download.received = 0
        status = download.head().status
        body, ended = download.rest()
        case.check((status, ended, body == truth) == (200, "length", True), f"the second gets {status}, {ended}")


def _misbehaving(name: str, misbehave: Callable[[DeploymentCaseRun, str, bytes], None]) -> DeploymentVariant:
    def inject(run: Run) -> None:
        run.data |= {"misbehave": misbehave, "workers": run.deployment.dockyard.worker_pids()}

    def verify(run: Run) -> None:
        assert run.deployment.dockyard.worker_pids() == run.data["workers"], "a worker has died"

    steps: Mapping[State, Steps] = dict.fromkeys(State, _request_beside_misbehaving_client)
    return DeploymentVariant(
        name,
        steps=steps,
        outcomes={
            State.TAG_CACHED: (attrs.evolve(hit1(), heads=(1, CLIENTS + 2)),),
            State.TAG_COLD: (attrs.evolve(new(), heads=(0, CLIENTS + 2)),),
            State.MANIFEST: (hit(), new()),
            State.BLOB_CACHED: (hit(),),
            State.BLOB_COLD: (new(),),
            State.BLOB_DOWNLOAD: (new(),),
        },
        inject=inject,
        verify=verify,
    )


MISBEHAVING = Fault(
    "P10",
    "A client resets, half-closes or pipelines",
    (_misbehaving("RST", _reset), _misbehaving("half-closed", _half_close), _misbehaving("pipelined", _pipeline)),
)

FAULTS = (SLOW, MISBEHAVING)
