"""Section P of the matrix, the end: SIGTERM during downloads, and kill -9 of everything."""

import contextlib
import http.client
import signal
import threading
import time

import attrs

from tests.chaos.cells import State
from tests.chaos.lanes import REPO, wait_for
from tests.chaos.limits import SLACK_S
from tests.chaos.outcomes import Outcome, cut, hit, hit1, new
from tests.chaos.scenes import MIB, PATIENCE_S, Fault, Part, Plot, Scene
from tests.chaos.worker_plots import READ_BYTES, finish
from tests.support import faults
from tests.support.dockyard import Dockyard
from tests.support.http_client import StreamedResponse, send_request

DRAIN_S = 8  # 25 s by default
SHORT_DRAIN_S = 2
NOTICE_S = 1.0  # how long a balancer has to see that the server is not ready; 5 s in practice
EXIT_S = 5.0  # beside the drain
LAYER_BYTES = 12 * MIB
DOWNLOADS = 10
FETCHES = 20
RESTART_S = 5.0


# P03


def _drain(scene: Scene) -> None:
    """What `ops/` does before SIGTERM: the server is not ready any more, and serves on."""
    (scene.deployment.dockyard.storage / "run" / "draining").touch()
    wait_for(lambda: send_request(scene.deployment.address, "/readyz").status == 503, "not ready", NOTICE_S)
    time.sleep(NOTICE_S)  # the time that a balancer is given
    parts = len(scene.lanes)
    scene.props["term"] = threading.Barrier(parts, action=lambda: _terminate(scene))


def _terminate(scene: Scene) -> None:
    process = scene.deployment.dockyard._running
    process.send(signal.SIGTERM)
    scene.props["terminated_at"] = scene.struck_at = time.monotonic()
    wait_for(lambda: _is_refused(scene.deployment.dockyard), "no new connections", EXIT_S)


def _is_refused(dockyard: Dockyard) -> bool:
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", dockyard.port, timeout=1)) as connection:
        try:
            connection.request("GET", "/v2/")
            return connection.getresponse().status == 503
        except (OSError, http.client.HTTPException):
            return True


def _tag_cached(part: Part) -> None:
    image, path = part.lane.images["cached"], part.lane.manifest_path("cached")
    part.warm(path, image.body)
    part.meet()
    part.see(path, image.body, part.outcomes[0], image.digest)
    _term(part)


def _tag_cold(part: Part) -> None:
    image = part.lane.images["cold"]
    part.meet()
    part.see(part.lane.manifest_path("cold"), image.body, part.outcomes[0], image.digest)
    _term(part)


def _manifest(part: Part) -> None:
    part.warm(part.lane.digest_path("cached"), part.lane.images["cached"].body)
    part.meet()
    for tag, outcome in zip(("cached", "cold"), part.outcomes, strict=True):
        image = part.lane.images[tag]
        part.see(part.lane.digest_path(tag), image.body, outcome, image.digest)
    _term(part)


def _blob_cached(part: Part) -> None:
    truth, path = part.lane.layers["cached"], part.lane.blob_path("cached")
    part.warm(path, truth.data)
    with contextlib.ExitStack() as stack:
        readers = [
            stack.enter_context(StreamedResponse(part.deployment.address, path, receive_buffer=READ_BYTES))
            for _ in range(DOWNLOADS)
        ]
        for reader in readers:
            reader.head().read(READ_BYTES)
        part.meet()
        _term(part)
        _wait_out(part)
        got = tuple(finish(part, reader) for reader in readers)
    part.judge(part.outcomes[0], got, truth.digest)
    for each in got:
        part.check_always(each)


def _blob_cold(part: Part) -> None:
    _download(part, 1)


def _blob_in_download(part: Part) -> None:
    _download(part, DOWNLOADS)


def _download(part: Part, clients: int) -> None:
    with part.download(clients) as crowd:
        part.meet_in_download()
        _term(part)
        _wait_out(part)
        got = part.land(crowd)
    part.judge(part.outcomes[0], got, part.lane.layers["cold"].digest)


def _term(part: Part) -> None:
    part.scene.props["term"].wait(PATIENCE_S)


def _wait_out(part: Part) -> None:
    """What takes longer than the drain stands still until it is over."""
    if part.plot.name != "short downloads":
        time.sleep(SHORT_DRAIN_S + 1)


def _has_ended(scene: Scene) -> None:
    """Exit status 0, within the drain time and a little."""
    dockyard, process = scene.deployment.dockyard, scene.deployment.dockyard._running
    drain_s = float(scene.settings["server"]["drain_timeout"].removesuffix("s"))
    within_s = drain_s + EXIT_S - (time.monotonic() - scene.props["terminated_at"])
    wait_for(lambda: not process.is_running, "the end", within_s)
    assert process.popen.returncode == 0, f"exit status {process.popen.returncode}"
    dockyard._process = None


def _start_again(scene: Scene) -> None:
    scene.deployment.dockyard.start()


def _is_ready(scene: Scene) -> None:
    wait_for(lambda: send_request(scene.deployment.address, "/readyz").status == 200, "ready", RESTART_S)
    lane = scene.control
    assert send_request(scene.deployment.address, lane.blob_path("cached")).body == lane.layers["cached"].data


def _terminated(name: str, drain_s: int, cached: Outcome, cold: Outcome) -> Plot:
    return Plot(
        name,
        tell={
            State.TAG_CACHED: _tag_cached,
            State.TAG_COLD: _tag_cold,
            State.MANIFEST: _manifest,
            State.BLOB_CACHED: _blob_cached,
            State.BLOB_COLD: _blob_cold,
            State.BLOB_DOWNLOAD: _blob_in_download,
        },
        outcomes={
            State.TAG_CACHED: (hit1(),),
            State.TAG_COLD: (new(),),
            State.MANIFEST: (hit(), new()),
            State.BLOB_CACHED: (cached,),
            State.BLOB_COLD: (cold,),
            State.BLOB_DOWNLOAD: (cold,),
        },
        strike=_drain,
        prove=_has_ended,
        mend=_start_again,
        recover=_is_ready,
        layer_bytes=LAYER_BYTES,
        is_watched=False,
        settings={"server": {"drain_timeout": f"{drain_s}s"}},
        reason="SIGTERM closes the listener at once; `run/draining` turns readiness red before it",
    )


_CUT = attrs.evolve(cut(SHORT_DRAIN_S + EXIT_S), is_stored=None)
TERMINATED = Fault(
    "P03",
    "SIGTERM during downloads",
    (
        _terminated("short downloads", DRAIN_S, hit(), new()),
        _terminated("downloads longer than the drain", SHORT_DRAIN_S, _CUT, _CUT),
    ),
)


# P09


def _kill_all_and_restart(scene: Scene) -> None:
    dockyard = scene.deployment.dockyard
    lane = scene.lanes[State.BLOB_DOWNLOAD]
    dockyard.kill()
    scene.props["left"] = list(scene.deployment.partial_files())
    lane.half.set()
    if scene.shim is not None:
        scene.store.requests.clear()
    began_at = time.monotonic()
    dockyard.start()
    scene.check(time.monotonic() - began_at <= RESTART_S + SLACK_S, "the start takes long")


def _had_fetches(scene: Scene) -> None:
    assert scene.props["left"], "nothing was being fetched"
    if scene.shim is not None:
        lists = [each.target for each in scene.store.requests if each.method == "GET" and "list-type" in each.target]
        assert not lists, "the start lists the bucket"


def _nothing_partial(scene: Scene) -> None:
    wait_for(lambda: not scene.deployment.partial_files(), "the partial files are swept", RESTART_S)


def _cached_after(part: Part) -> None:
    path, image = part.lane.manifest_path("cached"), part.lane.images["cached"]
    part.warm(path, image.body)
    part.meet()
    part.see(path, image.body, part.outcomes[0], image.digest)


def _cold_after(part: Part) -> None:
    image = part.lane.images["cold"]
    part.meet()
    part.see(part.lane.manifest_path("cold"), image.body, part.outcomes[0], image.digest)


def _manifest_after(part: Part) -> None:
    part.warm(part.lane.digest_path("cached"), part.lane.images["cached"].body)
    part.meet()
    for tag, outcome in zip(("cached", "cold"), part.outcomes, strict=True):
        image = part.lane.images[tag]
        part.see(part.lane.digest_path(tag), image.body, outcome, image.digest)


def _blob_after(part: Part) -> None:
    truth, path = part.lane.layers["cached"], part.lane.blob_path("cached")
    part.warm(path, truth.data)
    part.meet()
    part.see(path, truth.data, part.outcomes[0], truth.digest)


def _cold_blob_after(part: Part) -> None:
    truth = part.lane.layers["cold"]
    part.meet()
    part.see(part.lane.blob_path("cold"), truth.data, part.outcomes[0], truth.digest)


def _download_of_many(part: Part) -> None:
    """Twenty fetches: ten clients of a layer, and one of each of nineteen others."""
    lane, address = part.lane, part.deployment.address
    others = [lane.fake_registry.add_blob(f"fetch {number} of P09".encode() * 100_000) for number in range(FETCHES - 1)]
    paths = [f"/v2/{lane.prefix}/{REPO}/blobs/{digest}" for digest in others]
    with part.download() as crowd, contextlib.ExitStack() as stack:
        stalled = lane.fake_registry.on("blob", faults.stalled(MIB // 2, lane.half), method="GET")
        readers = [stack.enter_context(StreamedResponse(address, path)).head() for path in paths]
        for reader in readers:
            assert reader.read(1000)
        part.meet_in_download()
        lane.fake_registry.remove_rules(stalled)
        got = part.land(crowd)
        ends = [reader.rest()[1] for reader in readers]
    part.check(all(end in ("fin", "rst") for end in ends), f"downloads of a killed server end by {set(ends)}")
    part.judge(part.outcomes[0], got, lane.layers["cold"].digest)
    for path in paths:
        reply = send_request(address, path)
        part.check(reply.status == 200 and reply.is_complete, "a layer cannot be had after the restart")


_RESTARTED = {
    State.TAG_CACHED: (attrs.evolve(hit1(), within_s=RESTART_S),),
    State.TAG_COLD: (new(),),
    State.MANIFEST: (hit(), new()),
    State.BLOB_CACHED: (attrs.evolve(hit(), within_s=1.0),),
    State.BLOB_COLD: (new(),),
    State.BLOB_DOWNLOAD: (attrs.evolve(cut(RESTART_S), is_stored=None),),
}


def _killed(name: str, *, has_bucket: bool) -> Plot:
    return Plot(
        name,
        tell={
            State.TAG_CACHED: _cached_after,
            State.TAG_COLD: _cold_after,
            State.MANIFEST: _manifest_after,
            State.BLOB_CACHED: _blob_after,
            State.BLOB_COLD: _cold_blob_after,
            State.BLOB_DOWNLOAD: _download_of_many,
        },
        outcomes=_RESTARTED,
        strike=_kill_all_and_restart,
        prove=_had_fetches,
        recover=_nothing_partial,
        is_watched=False,
        has_bucket=has_bucket,
        workers=4,
    )


EVERYTHING_KILLED = Fault(
    "P09",
    "kill -9 of everything during twenty fetches",
    (_killed("with a bucket", has_bucket=True), _killed("local", has_bucket=False)),
)

FAULTS = (TERMINATED, EVERYTHING_KILLED)
