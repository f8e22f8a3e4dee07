"""What a fault is made of: variants, each with the expected outcomes per state.

`Variant` is enough for a load, whose tests run it themselves. The engine runs the two others:

- `UpstreamVariant`: each state has an upstream of its own (`IsolatedUpstream`). The fault is injected into each of
  them separately, and each case waits for its own recovery.
- `DeploymentVariant`: the fault concerns the whole Dockyard (its bucket, disk, processes, clients or clock). It is
  injected once, when the cases of all states are ready; it ends once, when all of them have their responses.
"""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import attrs

from tests.chaos.engine.case import State
from tests.chaos.engine.limits import RECOVERY_S, Limits
from tests.chaos.engine.outcomes import Observation, Outcome

if TYPE_CHECKING:
    from tests.chaos.engine.deployment_case import DeploymentCaseRun
    from tests.chaos.engine.isolated_upstream import IsolatedUpstream
    from tests.chaos.engine.run import Environment, Run
    from tests.chaos.engine.upstream_case import UpstreamCaseRun

MIB = 1024 * 1024
# One crowd of ten and five single clients, the two monitoring clients, and connections that have not closed yet.
UPSTREAM_CONNECTIONS = 24


def do_nothing(*_: Any) -> None:
    """Do nothing."""


@attrs.frozen
class Variant:
    """One form of a fault or of a load."""

    name: str
    outcomes: Mapping[State, tuple[Outcome, ...]]  # two for a manifest by digest: cached, not cached
    reason: str = ""  # why, where an outcome may surprise

    def __str__(self) -> str:
        return self.name


@attrs.frozen
class Fault:
    """A row of the matrix: a fault or a load. The first variant is run by default, the others by an option."""

    id: str
    title: str
    variants: tuple[Variant, ...]


@attrs.frozen(kw_only=True)
class InjectedVariant(Variant):
    """A variant that the engine runs: the options that both kinds have.

    `checks` are more checks of single states, called with each observation that was judged.
    """

    checks: Mapping[State, Callable[[Any, Observation], None]] = attrs.field(factory=dict)
    workers: int = 2
    max_connections: int  # open to Dockyard at a time: the limit on memory depends on it
    layer_bytes: int = 4 * MIB
    settings: Mapping[str, Any] = attrs.field(factory=dict)
    limits: Limits
    recovery_s: float = RECOVERY_S
    warm_up_s: float = 0.0  # how long a pull before the fault is retried
    checks_control_client: bool = True  # whether the control client and the liveness check must not notice the fault
    reconnects_within_s: float = 0.0  # if > 0, those may have to connect twice, with a response within this time
    may_reconnect: bool = False  # whether a request whose connection breaks is sent once more
    has_bucket: bool = False


@attrs.frozen(kw_only=True)
class UpstreamVariant(InjectedVariant):
    """A fault of an upstream.

    `inject` begins the fault for one upstream, `verify` raises AssertionError unless it is active there,
    `IsolatedUpstream.restore` ends it, and `end` ends what `restore` does not know about.
    """

    inject: Callable[["IsolatedUpstream", State], None]
    verify: Callable[["IsolatedUpstream", State], None]
    end: Callable[["IsolatedUpstream"], None] = do_nothing
    prepare_environment: Callable[["Environment"], None] = do_nothing
    prepare: Callable[["IsolatedUpstream", "Environment"], None] = do_nothing  # before Dockyard starts
    steps: Mapping[State, Callable[["UpstreamCaseRun"], None]] | None = None  # None: the standard ones
    checks_after_recovery: Mapping[State, Callable[["UpstreamCaseRun"], None]] = attrs.field(factory=dict)
    inject_early: frozenset[State] = frozenset()  # states in which the fault is active before the request is sent
    inject_at: float = 0.5  # the share of a download that has been fetched when the fault is injected
    breaks_download: bool = False  # the response of a running download is cut when the fault is injected
    stalls_download: bool = False  # the response of a running download does not continue after the injection
    hides_progress: bool = False  # clients of a running download get no byte before all of it has been fetched
    moves_tag: bool = False  # the cached tag points to another image from then on, so that a body is requested
    remembers_outage: bool = True  # from the sixth request on, no request is sent upstream
    is_direct: bool = False  # no toxiproxy in front of the upstream
    max_connections: int = UPSTREAM_CONNECTIONS
    limits: Limits = attrs.field(factory=Limits)
    warm_up_s: float = 20.0  # its limits are short, and the machine may be busy


@attrs.frozen(kw_only=True)
class DeploymentVariant(InjectedVariant):
    """A fault of a whole Dockyard.

    `inject` begins the fault once all cases are ready, `verify` raises AssertionError unless it was active, `end` ends
    it, and `wait_until_recovered` waits until everything works again.
    """

    steps: Mapping[State, Callable[["DeploymentCaseRun"], None]]
    inject: Callable[["Run"], None]
    verify: Callable[["Run"], None] = do_nothing
    end: Callable[["Run"], None] = do_nothing
    wait_until_recovered: Callable[["Run"], None] = do_nothing
    check_after: Callable[["Run"], None] = do_nothing  # after the recovery
    prepare: Callable[["Run"], None] = do_nothing  # before Dockyard starts
    max_connections: int = 70
    # A download is held until the cases of all states are ready.
    limits: Limits = attrs.field(factory=lambda: Limits(stall_s=30.0))
