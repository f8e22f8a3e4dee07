"""A scene: the upstream, the peers, and the S3 server behind them if there is one; all end with it."""

import contextlib
import itertools
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import attrs

from bench.peers.accounting import Group
from bench.peers.contestants import Peer, Store, make
from bench.peers.origin import Upstream
from bench.peers.place import Place, Sizes
from bench.peers.programs import Had, Programs
from bench.peers.truth import Truth
from tests.s3.store.servers import Minio

WITH_STORE = ("dockyard", "distribution", "docker-registry")


@attrs.frozen
class Scene:
    """What there is, and why some peers are not there."""

    place: Place
    peers: Sequence[Peer]
    missing: Mapping[str, str]


@contextlib.contextmanager
def opened(names: Sequence[str], sizes: Sizes, programs: Programs, parent: Path | None, kind: str) -> Iterator[Scene]:
    """Start everything; `kind` is "local" or "s3"."""
    with contextlib.ExitStack() as stack:
        directory = Path(tempfile.mkdtemp(prefix="dockyard-bench-", dir=parent))
        stack.callback(shutil.rmtree, directory, ignore_errors=True)
        truth = Truth(directory / "truth")
        upstream = Upstream(truth.directory)
        stack.callback(upstream.close)
        upstream.start()
        store, store_group = None, None
        if kind == "s3":
            store_group = Group.make("store")
            stack.callback(store_group.remove)
            minio = Minio(programs.need("minio"), directory / "minio")
            stack.callback(minio.close)
            with store_group.entered():
                minio.start()
            store = Store(minio.host)
        numbers = itertools.count()

        def build(name: str) -> Peer | Had:
            return make(name, programs, directory / str(next(numbers)), upstream.port, truth.directory, store)

        def fresh(name: str) -> Peer:
            built = build(name)
            if isinstance(built, Had):
                raise SystemExit(built.said)
            return built

        running, missing = [], {}
        for name in names:
            built = build(name)
            if isinstance(built, Had):
                missing[name] = built.said
                continue
            stack.callback(built.close)
            built.start()
            running.append(built)
        place = Place(
            upstream, truth, programs, directory, sizes, fresh, store_cpu_s=store_group.cpu_s if store_group else None
        )
        yield Scene(place, running, missing)
