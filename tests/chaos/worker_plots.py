"""Section P of the matrix, workers: one that dies, one that freezes, and all of them at once."""

import contextlib
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable

import attrs

from tests.chaos.cells import State
from tests.chaos.lanes import REPO, wait_for
from tests.chaos.limits import SLACK_S
from tests.chaos.outcomes import Got, Outcome, Seen, cut, hit, hit1, new
from tests.chaos.scenes import MIB, Fault, Part, Plot, Scene
from tests.support.http_client import StreamedResponse, send_request
from tests.support.worker_state import download_owners, workers_by_client_port

WORKERS = 4
LAYER_BYTES = 12 * MIB
CLIENTS = 24  # of one layer: so many that each worker has some
CONNECTIONS = 10
RESPAWN_S = 2.0
WATCHDOG_S = 7.0
WAKES_AFTER_S = 2.5
READ_BYTES = 64 * 1024


def cut_by_death(within_s: float) -> Outcome:
    """What the clients of the worker itself see. Their layer is stored all the same: others go on with it."""
    return attrs.evolve(cut(within_s), is_stored=None)


def goes_on(gets: int) -> Outcome:
    """What the clients of the other workers see: the whole layer, at the cost of so many GETs in all at most."""
    says = "the whole layer; another worker goes on where it stopped"
    return Outcome(f"RES({gets - 1})", says, frozenset({200}), gets=(1, gets), is_stored=True, has_ranges=gets > 1)


# The states


def _tag_cached(part: Part) -> None:
    path, image = part.lane.manifest_path("cached"), part.lane.images["cached"]
    part.warm(path, image.body)
    part.meet()
    part.see(path, image.body, part.outcomes[0], image.digest)
    connect_again(part, path, image.body)


def _tag_cold(part: Part) -> None:
    path, image = part.lane.manifest_path("cold"), part.lane.images["cold"]
    part.meet()
    part.see(path, image.body, part.outcomes[0], image.digest)
    connect_again(part, path, image.body)


def _manifest(part: Part) -> None:
    part.warm(part.lane.digest_path("cached"), part.lane.images["cached"].body)
    part.meet()
    for tag, outcome in zip(("cached", "cold"), part.outcomes, strict=True):
        image = part.lane.images[tag]
        part.see(part.lane.digest_path(tag), image.body, outcome, image.digest)
        connect_again(part, part.lane.digest_path(tag), image.body)


def _blob_cached(part: Part) -> None:
    path, truth = part.lane.blob_path("cached"), part.lane.layers["cached"]
    part.warm(path, truth.data)
    with contextlib.ExitStack() as stack:
        readers = [
            stack.enter_context(StreamedResponse(part.deployment.address, path, receive_buffer=READ_BYTES))
            for _ in range(CLIENTS)
        ]
        for reader in readers:
            assert truth.data.startswith(reader.head().read(READ_BYTES))
        by_port = workers_by_client_port(part.deployment)
        part.scene.props["readers"] = {reader: by_port[reader.socket.getsockname()[1]] for reader in readers}
        part.meet()
        victim, workers = part.scene.props["victim"], part.scene.props["readers"]
        readers.sort(key=lambda reader: workers[reader] != victim)  # the time of those that are cut is looked at
        got = {reader: finish(part, reader) for reader in readers}
    judge_groups(part, got, part.scene.props["readers"], truth.digest)
    part.see(path, truth.data, hit(), truth.digest)


def _blob_cold(part: Part) -> None:
    path, truth = part.lane.blob_path("cold"), part.lane.layers["cold"]
    part.meet()
    part.see(path, truth.data, part.outcomes[0], truth.digest)
    connect_again(part, path, truth.data)


def _download(part: Part) -> None:
    truth = part.lane.layers["cold"]
    with part.download(CLIENTS) as crowd:
        (owner,) = (
            pid
            for pid, paths in download_owners(part.deployment).items()
            if any(truth.digest[7:] in path for path in paths)
        )
        by_port = workers_by_client_port(part.deployment)
        workers = {id(each): by_port[each.socket.getsockname()[1]] for each in crowd.members}
        assert set(workers.values()) == set(part.deployment.dockyard.worker_pids()), "not every worker has a client"
        part.scene.props["owner"] = owner
        part.meet_in_download()
        got = part.land(crowd)
        ends = dict(zip(map(id, crowd.members), got, strict=True))
    judge_groups(part, ends, workers, truth.digest)
    sent = sum(each.sent_bytes for each in part.lane.fake_registry.received("blob"))
    part.check(sent <= 2 * truth.size, f"{sent} bytes from upstream for a layer of {truth.size}")


def finish(part: Part, reader: StreamedResponse) -> Got:
    """Read a download of the cached layer to its end."""
    truth = part.lane.layers["cached"].data
    before = reader.received
    body, ended = reader.rest()
    is_right = truth.startswith(body, before) and (ended != "length" or before + len(body) == len(truth))
    took_s = time.monotonic() - part.scene.struck_at
    return Got(reader.status, reader.headers, reader.received, is_right, ended == "length", took_s, ended)


def judge_groups(part: Part, got: dict[object, Got], workers: dict[object, int | None], digest: str) -> None:
    """Those of the struck worker apart from the others."""
    victim = part.scene.props["victim"]
    others, direct = part.outcomes
    groups = {
        outcome: tuple(each for client, each in got.items() if (workers[client] == victim) is is_direct)
        for outcome, is_direct in ((others, False), (direct, True))
    }
    part.judge(others, groups[others], digest)
    part.record.problems += direct.judge(Seen(groups[direct], (), is_stored=True))
    ends = Counter(each.describe() for each in groups[direct])
    part.record.seen += f"; of the struck worker: {', '.join(f'{count} x {end}' for end, count in ends.items())}"
    for each in groups[direct]:
        part.check(each.is_right, "a wrong byte")


def connect_again(part: Part, path: str, truth: bytes) -> None:
    """New connections, one after the other: none is refused, and each is answered in time."""
    limit = part.scene.props["limit_s"] + SLACK_S
    for _ in range(CONNECTIONS):
        try:
            reply = part.ask(path, timeout_s=limit)
            part.check((reply.status, reply.body == truth) == (200, True), f"a new connection gets {reply.status}")
        except OSError as exc:
            part.check(False, f"a new connection fails: {exc!r}")
    if part.retried:
        part.record.seen += f"; {part.retried} connections ended with the worker and were made again"


# The faults


def _kill_owner(scene: Scene) -> None:
    _kill(scene, scene.props["owner"])


def _kill_another(scene: Scene) -> None:
    _kill(scene, next(pid for pid in scene.deployment.dockyard.worker_pids() if pid != scene.props["owner"]))


def _kill(scene: Scene, pid: int) -> None:
    scene.props |= {"victim": pid, "limit_s": RESPAWN_S}
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: not os.path.exists(f"/proc/{pid}"), "the worker is dead with all its threads", RESPAWN_S)


def _prove_killed(scene: Scene) -> None:
    assert scene.props["victim"] not in scene.deployment.dockyard.worker_pids(), "nobody was killed"


def _all_serve(scene: Scene) -> None:
    """Four workers, each with its shard, and nothing partial left."""
    deployment = scene.deployment
    wait_for(lambda: len(deployment.dockyard.worker_pids()) == WORKERS, "four workers", 10.0)
    wait_for(lambda: not deployment.partial_files(), "no partial file", 10.0)
    lane = scene.control
    for _ in range(4 * WORKERS):
        assert send_request(deployment.address, lane.blob_path("cached")).body == lane.layers["cached"].data


TELL = {
    State.TAG_CACHED: _tag_cached,
    State.TAG_COLD: _tag_cold,
    State.MANIFEST: _manifest,
    State.BLOB_CACHED: _blob_cached,
    State.BLOB_COLD: _blob_cold,
    State.BLOB_DOWNLOAD: _download,
}


def _outcomes(gets: int, cut_s: float) -> dict[State, tuple[Outcome, ...]]:
    return {
        State.TAG_CACHED: (hit1(),),
        State.TAG_COLD: (new(),),
        State.MANIFEST: (hit(), new()),
        State.BLOB_CACHED: (hit(), cut_by_death(cut_s)),
        State.BLOB_COLD: (new(),),
        State.BLOB_DOWNLOAD: (goes_on(gets), cut_by_death(cut_s)),
    }


OWNER_KILLED = Fault(
    "P01",
    "kill -9 of the worker that fetches",
    (
        Plot(
            "owner",
            tell=TELL,
            outcomes=_outcomes(2, RESPAWN_S),
            strike=_kill_owner,
            prove=_prove_killed,
            recover=_all_serve,
            recovery_s=RESPAWN_S,
            workers=WORKERS,
            layer_bytes=LAYER_BYTES,
            again_within_s=RESPAWN_S + SLACK_S,
        ),
    ),
)

ANOTHER_KILLED = Fault(
    "P02",
    "kill -9 of a worker that does not fetch",
    (
        Plot(
            "another",
            tell=TELL,
            outcomes=_outcomes(1, RESPAWN_S),
            strike=_kill_another,
            prove=_prove_killed,
            recover=_all_serve,
            recovery_s=RESPAWN_S,
            workers=WORKERS,
            layer_bytes=LAYER_BYTES,
            again_within_s=RESPAWN_S + SLACK_S,
        ),
    ),
)


def _freeze(scene: Scene) -> None:
    pid = scene.props["owner"]
    scene.props |= {"victim": pid, "limit_s": WATCHDOG_S}
    os.kill(pid, signal.SIGSTOP)


def _freeze_for_a_while(scene: Scene) -> None:
    _freeze(scene)
    threading.Timer(WAKES_AFTER_S, os.kill, (scene.props["victim"], signal.SIGCONT)).start()


def _prove_awake(scene: Scene) -> None:
    assert scene.props["victim"] in scene.deployment.dockyard.worker_pids(), "the worker was killed before it woke up"


def _tag_moves(part: Part) -> None:
    """The tag moves upstream while its owner may be frozen; afterwards it is the new one, here and on disk."""
    path, old, new_one = part.lane.manifest_path("cached"), part.lane.images["cached"], part.lane.images["cold"]
    part.warm(path, old.body)
    part.meet()
    part.lane.fake_registry.add_manifest(REPO, "cached", new_one.body, new_one.media_type)
    part.see(path, new_one.body, part.outcomes[0], new_one.digest)
    connect_again(part, path, new_one.body)


def _is_not_moved_back(scene: Scene) -> None:
    """Long after the waking: who slept has not written what it knew."""
    lane = scene.lanes[State.TAG_CACHED]
    pointer = scene.deployment.dockyard.storage / "cache" / "manifests" / lane.prefix / REPO / "tags" / "cached"
    for _ in range(4 * WORKERS):
        reply = send_request(scene.deployment.address, lane.manifest_path("cached"))
        assert reply.body == lane.images["cold"].body, "the tag has moved back"
    assert pointer.read_text() == lane.images["cold"].digest, "the pointer of the tag has moved back"


def _frozen(direct: Outcome) -> dict[State, tuple[Outcome, ...]]:
    within = {"within_s": WATCHDOG_S}
    return {
        State.TAG_CACHED: (attrs.evolve(new(), heads=(1, 2), is_stored=None, **within),),
        State.TAG_COLD: (attrs.evolve(new(2), **within),),
        State.MANIFEST: (attrs.evolve(hit(), **within), attrs.evolve(new(2), **within)),
        State.BLOB_CACHED: (hit(), direct),
        State.BLOB_COLD: (attrs.evolve(new(WORKERS), is_stored=None, **within),),
        State.BLOB_DOWNLOAD: (attrs.evolve(goes_on(WORKERS), is_stored=None, has_ranges=False), direct),
    }


def _frozen_plot(
    name: str, strike: Callable[[Scene], None], prove: Callable[[Scene], None], direct: Outcome, recovery_s: float
) -> Plot:
    return Plot(
        name,
        tell={**TELL, State.TAG_CACHED: _tag_moves},
        outcomes=_frozen(direct),
        strike=strike,
        prove=prove,
        recover=_all_serve,
        after=_is_not_moved_back,
        workers=WORKERS,
        layer_bytes=LAYER_BYTES,
        may_retry=True,
        again_within_s=WATCHDOG_S + SLACK_S,
        recovery_s=recovery_s,
        reason="the kernel has given connections to a frozen worker: they end with it, and clients ask again",
    )


def _wait_killed(scene: Scene) -> None:
    victim = scene.props["victim"]
    wait_for(lambda: victim not in scene.deployment.dockyard.worker_pids(), "the watchdog kills", WATCHDOG_S)


OWNER_FROZEN = Fault(
    "P04",
    "SIGSTOP of the worker that fetches",
    (
        _frozen_plot("until it is killed", _freeze, _wait_killed, cut_by_death(WATCHDOG_S), RESPAWN_S),
        _frozen_plot(
            "and it wakes up",
            _freeze_for_a_while,
            _prove_awake,
            Outcome("HIT", "a pause, and the rest", frozenset({200}), within_s=WATCHDOG_S),
            RESPAWN_S,
        ),
    ),
)

FAULTS = (OWNER_KILLED, ANOTHER_KILLED, OWNER_FROZEN)
