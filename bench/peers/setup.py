"""Starts and stops what is needed for a run: the upstream, the caches, and an S3 server for their objects."""

import contextlib
import itertools
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import attrs

from bench.peers.accounting import ControlGroup
from bench.peers.caches import BASELINE, CacheServer, ObjectStore, make_cache
from bench.peers.content import UpstreamContent
from bench.peers.programs import ProgramResult, Programs
from bench.peers.upstream_process import UpstreamProcess
from bench.peers.workload import Environment, Sizes
from tests.s3.store.servers import Minio

WITH_STORE = ("dockyard", BASELINE, "distribution", "docker-registry")


@attrs.frozen
class Setup:
    """The running caches, and why others are missing."""

    environment: Environment
    caches: Sequence[CacheServer]
    missing: Mapping[str, str]


@contextlib.contextmanager
def start(
    names: Sequence[str], sizes: Sizes, programs: Programs, parent: Path | None, kind: str, baseline: Path | None = None
) -> Iterator[Setup]:
    """Start all processes, and stop them when the context ends.

    `kind` is "local" or "s3"; `baseline` is the checkout of another commit that BASELINE runs.
    """
    with contextlib.ExitStack() as stack:
        directory = Path(tempfile.mkdtemp(prefix="dockyard-bench-", dir=parent))
        stack.callback(shutil.rmtree, directory, ignore_errors=True)
        content = UpstreamContent(directory / "content")
        upstream = UpstreamProcess(content.directory)
        stack.callback(upstream.close)
        upstream.start()
        store, store_group = None, None
        if kind == "s3":
            store_group = ControlGroup.make("store")
            stack.callback(store_group.remove)
            minio = Minio(programs.need("minio"), directory / "minio")
            stack.callback(minio.close)
            with store_group.entered():
                minio.start()
            store = ObjectStore(minio.host)
        numbers = itertools.count()

        def build(name: str) -> CacheServer | ProgramResult:
            own = directory / str(next(numbers))
            return make_cache(name, programs, own, upstream.port, content.directory, store, baseline)

        def fresh(name: str) -> CacheServer:
            built = build(name)
            if isinstance(built, ProgramResult):
                raise SystemExit(built.reason)
            return built

        running, missing = [], {}
        for name in names:
            built = build(name)
            if isinstance(built, ProgramResult):
                missing[name] = built.reason
                continue
            stack.callback(built.close)
            built.start()
            running.append(built)
        environment = Environment(
            upstream, content, programs, directory, sizes, fresh, store_cpu_s=store_group.cpu_s if store_group else None
        )
        yield Setup(environment, running, missing)
