"""The whole matrix: the faults of all test modules of this package."""

import importlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from tests.chaos.cells import Cell, State
from tests.chaos.outcomes import Outcome


class Variant(Protocol):
    """A fault in one of its forms."""

    @property
    def name(self) -> str: ...

    @property
    def outcomes(self) -> Mapping[State, tuple[Outcome, ...]]:
        """What each state's clients must see."""


class Row(Protocol):
    """A fault."""

    @property
    def id(self) -> str: ...

    @property
    def title(self) -> str: ...

    @property
    def variants(self) -> Sequence[Variant]: ...


def all_rows() -> list[Row]:
    """Every fault, in the order of the matrix."""
    rows: list[Row] = []
    for path in sorted(Path(__file__).parent.glob("test_*.py")):
        module = importlib.import_module(f"tests.chaos.{path.stem}")
        rows += getattr(module, "FAULTS", ()) if path.stem != "test_rig" else ()
    return sorted(rows, key=lambda row: row.id)


def cells_of(row: Row) -> Iterator[tuple[Cell, tuple[Outcome, ...]]]:
    """The cells of a fault, and what must be seen in each."""
    for variant in row.variants:
        for state, outcomes in variant.outcomes.items():
            yield Cell(row.id, variant.name, state), outcomes
