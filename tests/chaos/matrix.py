"""The whole matrix: the faults of all test modules of this package, and the loads."""

import importlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from tests.chaos.cells import Cell, State
from tests.chaos.loads import LOADS
from tests.chaos.outcomes import Outcome

SECTIONS = "USPL"  # upstream; store; processes, clients and clocks; load


class Variant(Protocol):
    """A fault or a load in one of its forms."""

    @property
    def name(self) -> str: ...

    @property
    def outcomes(self) -> Mapping[State, tuple[Outcome, ...]]:
        """What each state's clients must see."""

    @property
    def reason(self) -> str:
        """Why, where that may surprise."""


class Row(Protocol):
    """A fault or a load."""

    @property
    def id(self) -> str: ...

    @property
    def title(self) -> str: ...

    @property
    def variants(self) -> Sequence[Variant]: ...


def all_rows() -> list[Row]:
    """Every fault and every load, in the order of the matrix."""
    rows: list[Row] = list(LOADS)
    for path in sorted(Path(__file__).parent.glob("test_*.py")):
        module = importlib.import_module(f"tests.chaos.{path.stem}")
        rows += getattr(module, "FAULTS", ()) if path.stem != "test_rig" else ()
    return sorted(rows, key=lambda row: (SECTIONS.index(row.id[0]), row.id))


def cells_of(row: Row) -> Iterator[tuple[Cell, tuple[Outcome, ...]]]:
    """The cells of a fault, and what must be seen in each."""
    for variant in row.variants:
        for state, outcomes in variant.outcomes.items():
            yield Cell(row.id, variant.name, state), outcomes
