"""Starts and stops what is needed for a run: the upstream, the caches, and an S3 server for their objects."""

import contextlib
import itertools
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import attrs

from bench.peers.accounting import ControlGroup
from bench.peers.caches import BASELINE, DEFAULT, CacheServer, ObjectStore, Variant, make_cache
from bench.peers.content import UpstreamContent
from bench.peers.programs import ProgramResult, Programs
from bench.peers.upstream_process import UpstreamProcess
from bench.peers.workload import Environment, Sizes
from tests.s3.store.servers import Minio

WITH_STORE = ("dockyard", BASELINE, "distribution", "docker-registry")


@attrs.define(eq=False)
class Setup:
    """The running caches with default configuration, and why others are missing."""

    environment: Environment
    caches: Sequence[CacheServer]
    missing: Mapping[str, str]
    _start: Callable[[str, Variant], CacheServer]
    _variant: Variant = attrs.field(default=DEFAULT, init=False)
    _others: list[CacheServer] = attrs.field(factory=list, init=False)

    def caches_for(self, variant: Variant) -> Sequence[CacheServer]:
        """Return the caches of a variant, which are started; those of another variant are closed then."""
        if variant == DEFAULT:
            return self.caches
        if variant != self._variant:
            self.close_others()
            self._variant = variant
            for cache in self.caches:
                self._others.append(self._start(cache.name, variant))
        return self._others

    def close_others(self) -> None:
        """Close the caches that are not configured by default."""
        self._variant = DEFAULT
        while self._others:
            self._others.pop().close()


@contextlib.contextmanager
def start(
    names: Sequence[str],
    sizes: Sizes,
    programs: Programs,
    parent: Path | None,
    kind: str,
    trees: Mapping[str, Path] | None = None,
) -> Iterator[Setup]:
    """Start all processes, and stop them when the context ends.

    `kind` is "local" or "s3"; `trees` are checkouts of other commits, for Dockyard and for BASELINE.
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

        def build(name: str, variant: Variant) -> CacheServer | ProgramResult:
            own = directory / str(next(numbers))
            return make_cache(name, programs, own, upstream.port, content.directory, store, trees, variant)

        def fresh(name: str, variant: Variant = DEFAULT) -> CacheServer:
            built = build(name, variant)
            if isinstance(built, ProgramResult):
                raise SystemExit(built.reason)
            return built

        def fresh_started(name: str, variant: Variant) -> CacheServer:
            cache = fresh(name, variant)
            stack.callback(cache.close)
            cache.start()
            return cache

        running, missing = [], {}
        for name in names:
            built = build(name, DEFAULT)
            if isinstance(built, ProgramResult):
                missing[name] = built.reason
                continue
            stack.callback(built.close)
            built.start()
            running.append(built)
        environment = Environment(
            upstream, content, programs, directory, sizes, fresh, store_cpu_s=store_group.cpu_s if store_group else None
        )
        yield Setup(environment, running, missing, fresh_started)
