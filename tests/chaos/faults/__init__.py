"""The tables of faults: what is done, and which outcome clients must see in each state.

U: faults of an upstream. S: of the bucket and the disk. P: of processes, clients and the clock.
"""

from tests.chaos.engine.variant import Fault
from tests.chaos.faults import (
    access,
    client_behaviour,
    client_disconnects,
    clock,
    disk,
    isolation,
    process_shutdown,
    process_workers,
    ranges_ahead,
    s3_damage,
    s3_outages,
    s3_reads,
    s3_writes,
    upstream_broken_bodies,
    upstream_errors,
    upstream_front_ends,
    upstream_redirects,
    upstream_slow_bodies,
    upstream_unreachable,
    upstream_wrong_bodies,
)

UPSTREAM_FAULTS: tuple[Fault, ...] = (
    *upstream_broken_bodies.FAULTS,
    *upstream_errors.FAULTS,
    *upstream_front_ends.FAULTS,
    *upstream_redirects.FAULTS,
    *upstream_slow_bodies.FAULTS,
    *upstream_unreachable.FAULTS,
    *upstream_wrong_bodies.FAULTS,
)
DEPLOYMENT_FAULTS: tuple[Fault, ...] = (
    *s3_outages.FAULTS,
    *s3_writes.FAULTS,
    *s3_reads.FAULTS,
    *s3_damage.FAULTS,
    *disk.FAULTS,
    *process_workers.FAULTS,
    *process_shutdown.FAULTS,
    *client_disconnects.FAULTS,
    *client_behaviour.FAULTS,
    *clock.FAULTS,
    *isolation.FAULTS,
    *access.FAULTS,
    *ranges_ahead.FAULTS,
)
FAULTS: tuple[Fault, ...] = tuple(sorted((*UPSTREAM_FAULTS, *DEPLOYMENT_FAULTS), key=lambda fault: fault.id))
