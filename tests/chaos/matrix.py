"""The whole matrix: all faults and all loads."""

from collections.abc import Iterator

from tests.chaos.engine.case import Case
from tests.chaos.engine.outcomes import Outcome
from tests.chaos.engine.variant import Fault
from tests.chaos.faults import FAULTS
from tests.chaos.load.loads import LOADS

SECTIONS = "USPL"  # upstream; bucket and disk; processes, clients and clock; load


def all_faults() -> list[Fault]:
    """Every fault and every load, in the order of the page."""
    return sorted((*FAULTS, *LOADS), key=lambda fault: (SECTIONS.index(fault.id[0]), fault.id))


def cases_of(fault: Fault) -> Iterator[tuple[Case, tuple[Outcome, ...]]]:
    """The cases of a fault, and the outcomes that must be seen in each."""
    for variant in fault.variants:
        for state, outcomes in variant.outcomes.items():
            yield Case(fault.id, variant.name, state), outcomes
