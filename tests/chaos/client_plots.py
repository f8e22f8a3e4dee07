"""Section P of the matrix, clients that stay: one that is slow, and those that speak oddly."""

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Mapping
from typing import Self

import attrs

from tests.chaos.cells import State
from tests.chaos.lanes import wait_for
from tests.chaos.limits import SLACK_S
from tests.chaos.outcomes import Got, Outcome, hit, hit1, new
from tests.chaos.scenes import MIB, PATIENCE_S, Fault, Part, Plot, Scene, Tell, nothing
from tests.support.bodies import Bytes
from tests.support.http_client import Crowd, StreamedResponse, is_part_of, request_bytes

CROWDED_BYTES = 6 * MIB
FAST_CLIENTS = 99
SLOW_BYTES_PER_S = 1024
SLOWED_AT_MOST = 1.1
MEMBERS = 9  # that ask as ever, beside the odd one


# P06


def _among_many(part: Part) -> None:
    """Ninety-nine as fast as they can, alone and then with one that hardly reads."""
    lane, address = part.lane, part.deployment.address
    if part.state is State.BLOB_CACHED:
        truth, path = lane.layers["cached"], lane.blob_path("cached")
        part.warm(path, truth.data)
        part.meet()
        usual_s = _download_all(part, path, truth, hit())
    else:
        truth, path = lane.layers["cold"], lane.blob_path("cold")
        part.meet()
        usual_s = _download_all(part, lane.blob_path("cached"), lane.layers["cached"], new())
    part.lane.fake_registry.clear_exchanges()
    with StreamedResponse(address, path, receive_buffer=4096) as slow, _Reading(slow) as reading:
        took_s = _download_all(part, path, truth, part.outcomes[0])
        bound_s = SLOWED_AT_MOST * usual_s + SLACK_S
        part.check(took_s <= bound_s, f"99 clients took {took_s:.2f} s with a slow one, {usual_s:.2f} s without")
        encoded = truth.digest.partition(":")[2]
        wait_for(
            lambda: not any(encoded in file.name for file in part.deployment.partial_files()),
            "no partial file is left",
            5.0,
        )
        reading.stop()
        part.check(is_part_of(truth, 0, reading.body), "wrong bytes for the slow one")
        body, ended = slow.rest()
        part.check(ended == "length", f"the slow client's download ends by {ended}")
        part.check(is_part_of(truth, len(reading.body), body), "wrong bytes for the slow one")


def _download_all(part: Part, path: str, truth: Bytes, outcome: Outcome) -> float:
    began_at = time.monotonic()
    with Crowd(part.deployment.address, path, truth, FAST_CLIENTS) as crowd:
        crowd.run(within_s=PATIENCE_S)
        took_s = time.monotonic() - began_at
        got = tuple(Got.of_member(each, (each.ended_at or began_at) - began_at) for each in crowd.members)
    part.judge(outcome, got, truth.digest)
    return took_s


class _Reading:
    """Reads a download at one KiB a second, in a thread."""

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
        """Read no more here."""
        self._done.set()
        self._thread.join()

    def _read(self) -> None:
        while not self._done.wait(0.25):
            self.body += self._download.read(SLOW_BYTES_PER_S // 4)


SLOW = Fault(
    "P06",
    "One client reads 1 KiB/s among many",
    (
        Plot(
            "1 KiB/s",
            tell=dict.fromkeys((State.BLOB_CACHED, State.BLOB_COLD, State.BLOB_DOWNLOAD), _among_many),
            outcomes={State.BLOB_CACHED: (hit(),), State.BLOB_COLD: (new(),), State.BLOB_DOWNLOAD: (new(),)},
            strike=nothing,
            layer_bytes=CROWDED_BYTES,
            connections=3 * FAST_CLIENTS,
            is_watched=False,  # the clients themselves take the processors
            reason="the slow one goes on reading the file of the local store: there is no partial file to free",
        ),
    ),
)


# P10


def _beside_odd_one(part: Part) -> None:
    """Nine that ask as ever while a tenth is odd."""
    tag = "cached" if part.state in (State.TAG_CACHED, State.BLOB_CACHED) else "cold"
    asked: list[tuple[str, bytes, str, Outcome]] = []
    lane = part.lane
    image, layer = lane.images[tag], lane.layers[tag]
    if part.state in (State.TAG_CACHED, State.TAG_COLD):
        asked.append((lane.manifest_path(tag), image.body, image.digest, part.outcomes[0]))
    elif part.state is State.MANIFEST:
        for which, outcome in zip(("cached", "cold"), part.outcomes, strict=True):
            found = lane.images[which]
            asked.append((lane.digest_path(which), found.body, found.digest, outcome))
    else:
        asked.append((lane.blob_path(tag), layer.data, layer.digest, part.outcomes[0]))
    if part.state in (State.TAG_CACHED, State.MANIFEST, State.BLOB_CACHED):
        part.warm(asked[0][0], asked[0][1])
    part.meet()
    for path, truth, digest, outcome in asked:
        before = len(lane.seen())
        odd = threading.Thread(target=part.scene.props["odd"], args=(part, path, truth))
        with contextlib.ExitStack() as stack:
            members = [stack.enter_context(StreamedResponse(part.deployment.address, path)) for _ in range(MEMBERS)]
            odd.start()
            got = tuple(_take(part, each, truth) for each in members)
        odd.join()
        part.judge(outcome, got, digest, before)


def _take(part: Part, download: StreamedResponse, truth: bytes) -> Got:
    download.head()
    body, ended = download.rest()
    is_right = truth.startswith(body) and (ended != "length" or len(body) == len(truth))
    took_s = time.monotonic() - download.began_at
    got = Got(download.status, download.headers, len(body), is_right, ended == "length", took_s, ended)
    part.check_always(got)
    return got


def _resets(part: Part, path: str, _: bytes) -> None:
    """Ask, and reset at once; ask, read a little, and reset."""
    StreamedResponse(part.deployment.address, path).reset()
    download = StreamedResponse(part.deployment.address, path, receive_buffer=4096)
    with contextlib.suppress(ConnectionError):
        download.head().read(100)
    download.reset()


def _half_closes(part: Part, path: str, truth: bytes) -> None:
    """Ask, and shut the sending side: the answer is whole and right, or the connection is closed; nothing else."""
    with StreamedResponse(part.deployment.address, path) as download:
        download.socket.shutdown(socket.SHUT_WR)
        try:
            status = download.head().status
        except ConnectionError:
            return
        body, ended = download.rest()
        part.check(status == 200, f"a half-closed client gets {status}")
        part.check(
            truth.startswith(body) and (ended != "length" or body == truth), "a half-closed client gets wrong bytes"
        )


def _pipelines(part: Part, path: str, truth: bytes) -> None:
    """Two requests in one packet: two answers in their order, each its own."""
    first = request_bytes("GET", "/v2/", part.deployment.address, {})
    second = request_bytes("GET", path, part.deployment.address, {"Connection": "close"})
    with StreamedResponse(part.deployment.address, "", request=first + second) as download:
        ping = (download.head().status, download.read(download.length or 0))
        part.check(ping == (200, b"{}"), f"the first of two pipelined requests gets {ping}")
        download.received = 0
        status = download.head().status
        body, ended = download.rest()
        part.check((status, ended, body == truth) == (200, "length", True), f"the second gets {status}, {ended}")


def _odd(name: str, odd: Callable[[Part, str, bytes], None]) -> Plot:
    def strike(scene: Scene) -> None:
        scene.props |= {"odd": odd, "workers": scene.deployment.dockyard.worker_pids()}

    def prove(scene: Scene) -> None:
        assert scene.deployment.dockyard.worker_pids() == scene.props["workers"], "a worker has died"

    many = (0, MEMBERS + 2)
    told: Mapping[State, Tell] = dict.fromkeys(State, _beside_odd_one)
    return Plot(
        name,
        tell=told,
        outcomes={
            State.TAG_CACHED: (attrs.evolve(hit1(), heads=(1, MEMBERS + 2)),),
            State.TAG_COLD: (attrs.evolve(new(), heads=many),),
            State.MANIFEST: (hit(), new()),
            State.BLOB_CACHED: (hit(),),
            State.BLOB_COLD: (new(),),
            State.BLOB_DOWNLOAD: (new(),),
        },
        strike=strike,
        prove=prove,
    )


ODD = Fault(
    "P10",
    "A client resets, half-closes or pipelines",
    (_odd("RST", _resets), _odd("half-closed", _half_closes), _odd("pipelined", _pipelines)),
)

FAULTS = (SLOW, ODD)
