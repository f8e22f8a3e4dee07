"""A run: one Dockyard, one variant of a fault, every state of it in a lane of its own and at the same time."""

import contextlib
import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.chaos.audit import audit_directory, count_files, find_leaks
from tests.chaos.bystanders import Bystanders
from tests.chaos.cells import Cell, Record, State
from tests.chaos.lanes import Lane, wait_for
from tests.chaos.limits import Limits
from tests.chaos.outcomes import describe
from tests.chaos.stories import FOLLOWERS, Fault, Story, Trouble
from tests.support.bodies import Bytes
from tests.support.deployment import Deployment, open_deployment
from tests.support.http_client import send_request
from tests.support.toxiproxy import Toxiproxy

CONTROL_BYTES = 64 * 1024
LEAK_GONE_S = 10.0
# In each of six lanes a crowd at the most, two bystanders and some that have not closed yet.
CONNECTIONS_AT_MOST = FOLLOWERS + 1 + 6 + 2 + 6


def run(
    fault: Fault,
    trouble: Trouble,
    toxiproxy: Toxiproxy,
    directory: Path,
    *,
    seed: int = 0,
    environ: Mapping[str, str] | None = None,
) -> dict[State, Record]:
    """Strike in all states that the fault applies to; a record for each. `environ` is for Dockyard."""
    limits = Limits()
    states = list(trouble.outcomes)
    records = {
        state: Record(Cell(fault.id, trouble.name, state), fault.title, describe(trouble.outcomes[state]), seed=seed)
        for state in states
    }
    with contextlib.ExitStack() as stack:
        lanes = {
            state: stack.enter_context(
                Lane(state, toxiproxy, layer_bytes=trouble.layer_bytes, seed=seed, direct=trouble.is_direct)
            )
            for state in states
        }
        directory.mkdir(parents=True, exist_ok=True)
        world = stack.enter_context(trouble.world(directory))
        for lane in lanes.values():
            trouble.prepare(lane, world)
        control = stack.enter_context(Lane("control", toxiproxy, layer_bytes=CONTROL_BYTES, seed=seed))
        settings = {**trouble.settings, "upstream": {**limits.settings, **trouble.settings.get("upstream", {})}}
        deployment = stack.enter_context(
            open_deployment(
                control.fake_registry,
                directory,
                workers=trouble.workers,
                upstreams=[lane.settings() for lane in (*lanes.values(), control)],
                environ={**world.environ, **(environ or {})},
                wrapper=world.wrapper,
                **settings,
            )
        )
        _tell(deployment, lanes, records, trouble, limits, control)
        problems = audit_directory(deployment.dockyard.storage)
        deployment.dockyard.stop()
        problems += audit_directory(deployment.dockyard.storage)
    for record in records.values():
        record.problems += list(dict.fromkeys(problems))
    return records


def _tell(
    deployment: Deployment,
    lanes: Mapping[State, Lane],
    records: Mapping[State, Record],
    trouble: Trouble,
    limits: Limits,
    control: Lane,
) -> None:
    path, body = control.blob_path("cached"), control.layers["cached"]
    _fetch(deployment, path, body)
    with Bystanders(deployment, path, body.data) as bystanders:
        files_before = {pid: count_files(pid) for pid in deployment.dockyard.worker_pids()}
        met = threading.Barrier(len(lanes), action=bystanders.strike)
        stories = [
            Story(deployment, lane, trouble, records[state], limits, met, bystanders.pace_s)
            for state, lane in lanes.items()
        ]
        with ThreadPoolExecutor(len(stories)) as pool:
            list(pool.map(Story.tell, stories))
    leaks = _leaks_in_the_end(deployment, files_before)
    seen_by_all = bystanders.problems(CONNECTIONS_AT_MOST) + leaks
    for record in records.values():
        record.rss_max_bytes = bystanders.memory.peak
        record.problems += seen_by_all


def _fetch(deployment: Deployment, path: str, body: Bytes) -> None:
    reply = send_request(deployment.address, path)
    assert (reply.status, reply.body == body.data) == (200, True), f"the control blob: {reply}"


def _leaks_in_the_end(deployment: Deployment, before: Mapping[int, int]) -> list[str]:
    with contextlib.suppress(AssertionError):
        wait_for(lambda: not find_leaks(deployment, dict(before)), "nothing is left", LEAK_GONE_S)
    return find_leaks(deployment, dict(before))
