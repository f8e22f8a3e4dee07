"""Run all cases of one variant at the same time, in one Dockyard.

    control client, liveness check ---.
    clients of each state ------------ Dockyard ---- an upstream per state (IsolatedUpstream)
                                           `-------- bucket, where the variant has one

Breakers, counts and records of the states do not mix, and a variant takes as long as its slowest case.
"""

import contextlib
import threading
import time
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.chaos.engine import deployment_case
from tests.chaos.engine.audit import audit_directory, find_leaks, list_files
from tests.chaos.engine.case import Case, State
from tests.chaos.engine.case_run import Barriers, CaseRun
from tests.chaos.engine.control_client import ControlClient
from tests.chaos.engine.deployment_case import DeploymentCaseRun
from tests.chaos.engine.isolated_upstream import IsolatedUpstream, wait_for
from tests.chaos.engine.outcomes import describe
from tests.chaos.engine.records import Record
from tests.chaos.engine.run import Environment, Run
from tests.chaos.engine.upstream_case import UpstreamCaseRun
from tests.chaos.engine.variant import DeploymentVariant, Fault, InjectedVariant, UpstreamVariant
from tests.s3.service.bucket_view import BucketView
from tests.s3.store.proxy import S3Proxy
from tests.support.deployment import open_deployment
from tests.support.http_client import send_request
from tests.support.toxiproxy import Toxiproxy

CONTROL_BYTES = 64 * 1024


def run_variant(
    fault: Fault,
    variant: InjectedVariant,
    directory: Path,
    *,
    toxiproxy: Toxiproxy | None = None,
    bucket: BucketView | None = None,
    environ: Mapping[str, str] | None = None,
) -> dict[State, Record]:
    """Run a variant in all states that it has outcomes for; a record for each. `environ` is for Dockyard.

    Faults of upstreams and of the bucket need `toxiproxy`.
    """
    records = {
        state: Record(Case(fault.id, variant.name, state), fault.title, describe(outcomes))
        for state, outcomes in variant.outcomes.items()
    }
    with contextlib.ExitStack() as stack:
        run = _create_run(variant, directory, stack, toxiproxy)
        if bucket is not None:
            assert toxiproxy is not None, "a bucket is reached through toxiproxy"
            _add_bucket(run, bucket, toxiproxy)
        _prepare(run)
        environment = run.environment
        run._deployment = stack.enter_context(
            open_deployment(
                run.control.fake_registry,
                directory / "deployment",
                workers=variant.workers,
                upstreams=[
                    *(each.settings() for each in (*run.upstreams.values(), run.control)),
                    *environment.upstreams,
                ],
                environ={**environment.environ, **(environ or {})},
                wrapper=environment.wrapper,
                **environment.settings,
            )
        )
        _run_cases(run, records)
        dockyard = run.deployment.dockyard
        problems = audit_directory(dockyard.storage)
        if dockyard.is_running:
            dockyard.stop()
        problems += audit_directory(dockyard.storage)
        if bucket is not None:
            problems += bucket.audit()
    for record in records.values():
        record.problems += list(dict.fromkeys(run.problems + problems))
    return records


def _create_run(
    variant: InjectedVariant, directory: Path, stack: contextlib.ExitStack, toxiproxy: Toxiproxy | None
) -> Run:
    directory.mkdir(parents=True, exist_ok=True)
    environment = Environment(directory, stack)
    environment.settings = {
        **variant.settings,
        "upstream": {**variant.limits.settings, **variant.settings.get("upstream", {})},
    }
    through = toxiproxy if isinstance(variant, UpstreamVariant) and not variant.is_direct else None
    upstreams = {
        state: stack.enter_context(IsolatedUpstream(state, through, layer_bytes=variant.layer_bytes))
        for state in variant.outcomes
    }
    control = stack.enter_context(IsolatedUpstream("control", None, layer_bytes=CONTROL_BYTES))
    return Run(variant, environment, upstreams, control)


def _add_bucket(run: Run, bucket: BucketView, toxiproxy: Toxiproxy) -> None:
    stack = run.environment.stack
    run._bucket = bucket
    run._s3_proxy = stack.enter_context(contextlib.closing(S3Proxy(bucket.server.port)))
    run._s3_network = stack.enter_context(contextlib.closing(toxiproxy.create_proxy(run.s3_proxy.port)))
    run.environment.settings["storage"] = bucket.storage(
        run.s3_network.authority, **run.variant.settings.get("storage", {})
    )


def _prepare(run: Run) -> None:
    match run.variant:
        case UpstreamVariant() as variant:
            variant.prepare_environment(run.environment)
            for upstream in run.upstreams.values():
                variant.prepare(upstream, run.environment)
        case DeploymentVariant() as variant:
            variant.prepare(run)


def _run_cases(run: Run, records: Mapping[State, Record]) -> None:
    deployment, variant = run.deployment, run.variant
    path, body = run.control.blob_path("cached"), run.control.layers["cached"].data
    response = send_request(deployment.address, path)
    assert (response.status, response.body == body) == (200, True), f"the control blob: {response}"
    deployment.wait_for_workers(variant.workers)
    files_before = {pid: list_files(pid) for pid in deployment.dockyard.worker_pids()}
    with ControlClient(deployment, path, body, variant.reconnects_within_s) as control_client:

        def begin_fault() -> None:
            control_client.mark_fault()
            if isinstance(variant, DeploymentVariant):
                variant.inject(run)
                run.injected_at = time.monotonic()

        def end_fault() -> None:
            if isinstance(variant, DeploymentVariant):
                variant.verify(run)
                variant.end(run)
                run.ended_at = time.monotonic()

        barriers = Barriers(
            ready=threading.Barrier(len(records), action=begin_fault),
            done=threading.Barrier(len(records), action=end_fault),
        )
        cases = [_create_case(run, record, barriers, control_client) for record in records.values()]
        with ThreadPoolExecutor(len(cases)) as pool:
            list(pool.map(CaseRun.execute, cases))
        if isinstance(variant, DeploymentVariant) and not barriers.done.broken:
            deployment_case.check_recovery(run, variant, records)
    if variant.checks_control_client:
        problems = control_client.find_problems(variant.max_connections)
    else:
        problems = control_client.find_memory_problems(variant.max_connections)
    problems += _find_lasting_leaks(run, files_before)
    for record in records.values():
        record.rss_max_bytes = control_client.memory.peak
        record.problems += problems


def _create_case(run: Run, record: Record, barriers: Barriers, control_client: ControlClient) -> CaseRun:
    match run.variant:
        case UpstreamVariant() as variant:
            return UpstreamCaseRun(run, record, barriers, variant, control_client)
        case DeploymentVariant() as variant:
            return DeploymentCaseRun(run, record, barriers, variant)
    raise AssertionError(f"the engine cannot run {run.variant!r}")


def _find_lasting_leaks(run: Run, files_before: Mapping[int, Counter[str]]) -> list[str]:
    with contextlib.suppress(AssertionError):
        wait_for(lambda: not find_leaks(run.deployment, files_before), "no leak")
    return find_leaks(run.deployment, files_before)
