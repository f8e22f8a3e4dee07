"""A run: one Dockyard with an upstream for each state, in which all cases of a variant run at the same time."""

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs

from tests.chaos.engine.case import State
from tests.chaos.engine.dns_server import DnsServer
from tests.chaos.engine.fake_clock import FakeClock
from tests.chaos.engine.isolated_upstream import IsolatedUpstream
from tests.chaos.engine.variant import InjectedVariant
from tests.s3.service.bucket_view import BucketView
from tests.s3.store.proxy import S3Proxy
from tests.support.deployment import Deployment
from tests.support.toxiproxy import TcpProxy


@attrs.define(eq=False)
class Environment:
    """What Dockyard is started with; the functions of a variant may change it before the start."""

    directory: Path
    stack: contextlib.ExitStack  # closed after Dockyard has stopped
    environ: dict[str, str] = attrs.field(factory=dict)
    settings: dict[str, Any] = attrs.field(factory=dict)
    upstreams: list[dict[str, Any]] = attrs.field(factory=list)  # more entries of `upstreams:`
    wrapper: list[str] = attrs.field(factory=list)  # a command that runs another one
    dns: DnsServer | None = None
    clock: FakeClock | None = None


@attrs.define(eq=False)
class Run:
    """What the functions of a variant work with. `data` is for values that they share.

    Dockyard reaches the bucket through `s3_network` (toxiproxy) and `s3_proxy` (scripted responses).
    """

    variant: InjectedVariant
    environment: Environment
    upstreams: Mapping[State, IsolatedUpstream]
    control: IsolatedUpstream  # which no fault is injected into
    data: dict[str, Any] = attrs.field(factory=dict)
    problems: list[str] = attrs.field(factory=list)  # of all cases
    injected_at: float = 0.0
    ended_at: float = 0.0
    _deployment: Deployment | None = None
    _bucket: BucketView | None = None
    _s3_proxy: S3Proxy | None = None
    _s3_network: TcpProxy | None = None

    @property
    def directory(self) -> Path:
        return self.environment.directory

    @property
    def deployment(self) -> Deployment:
        assert self._deployment is not None, "Dockyard has not been started"
        return self._deployment

    @property
    def has_bucket(self) -> bool:
        return self._bucket is not None

    @property
    def bucket(self) -> BucketView:
        assert self._bucket is not None, "there is no bucket"
        return self._bucket

    @property
    def s3_proxy(self) -> S3Proxy:
        assert self._s3_proxy is not None, "there is no bucket"
        return self._s3_proxy

    @property
    def s3_network(self) -> TcpProxy:
        assert self._s3_network is not None, "there is no bucket"
        return self._s3_network

    def check(self, holds: object, problem: str) -> None:
        """Add a problem to all cases unless `holds` is true."""
        if not holds and problem not in self.problems:
            self.problems.append(problem)
