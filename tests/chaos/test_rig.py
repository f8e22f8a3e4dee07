"""The rig of the matrix itself: each fault is there for a plain client too, and bugs turn cells red.

A test that cannot fail proves nothing: here the faults are shown without Dockyard, and Dockyard without its virtues.
"""

from pathlib import Path

import pytest

from tests.chaos.audit import audit_directory
from tests.chaos.cells import Cell, Record, State
from tests.chaos.lanes import Lane
from tests.chaos.runs import run
from tests.chaos.seeds import environ_of
from tests.chaos.stories import Trouble
from tests.chaos.upstream import FAULTS
from tests.support.toxiproxy import Toxiproxy

TROUBLES = {f"{fault.id} {trouble.name}": trouble for fault in FAULTS for trouble in fault.variants}

# The bug, a fault that it is no match for, and the cells that must be red with a word of why.
BUGS: dict[str, tuple[str, dict[State, str]]] = {
    "no_tail_withheld": (
        "U10 one bit at 1 %",
        {State.BLOB_COLD: "WRONG BYTES SERVED WHOLE", State.BLOB_DOWNLOAD: "WRONG BYTES SERVED WHOLE"},
    ),
    "no_breaker": (
        "U14 503",
        {State.TAG_CACHED: "requests upstream in 10 answers that should come from memory"},
    ),
    "pointer_goes_back": ("U14 503", {State.TAG_CACHED: "pointer"}),
}


@pytest.mark.parametrize("name", TROUBLES)
def test_a_fault_is_there_without_dockyard(toxiproxy: Toxiproxy, tmp_path: Path, name: str) -> None:
    """A plain client sees it when it strikes, and neither before nor after."""
    trouble = TROUBLES[name]
    state = State.BLOB_CACHED  # where Dockyard asks for nothing: the fault is there for everybody
    with trouble.world(tmp_path) as world, Lane("rig", toxiproxy, direct=trouble.is_direct) as lane:
        trouble.prepare(lane, world)
        _is_not_there(trouble, lane)
        trouble.strike(lane, state)
        trouble.prove(lane, state)
        lane.mend()
        trouble.mend(lane)
        _is_not_there(trouble, lane)


def _is_not_there(trouble: Trouble, lane: Lane) -> None:
    with pytest.raises(AssertionError):
        trouble.prove(lane, State.BLOB_CACHED)


@pytest.mark.parametrize("bug", BUGS)
def test_a_bug_turns_cells_red(toxiproxy: Toxiproxy, tmp_path: Path, bug: str) -> None:
    """A Dockyard with the bug does not pass, and what is wrong is named."""
    fault_name, cells = BUGS[bug]
    fault = next(fault for fault in FAULTS if fault.id == fault_name.partition(" ")[0])
    records = run(fault, TROUBLES[fault_name], toxiproxy, tmp_path, environ=environ_of(bug))
    for state, word in cells.items():
        problems = "\n".join(records[state].problems)
        assert word in problems, f"{state}: {problems or 'green'}"


def test_an_audit_finds_what_is_wrong(tmp_path: Path) -> None:
    """A blob that is not what its name says, an empty one, a pointer to nowhere, a file that is not ours."""
    digest = "ab" + "0" * 62
    for key, content in {
        f"cache/blobs/sha256/ab/{digest}": b"other bytes",
        f"cache/manifests/up.test/app/sha256/{digest}": b"",
        "cache/manifests/up.test/app/tags/latest": b"nowhere",
        "cache/strange": b"",
    }.items():
        path = tmp_path / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    assert len(audit_directory(tmp_path)) == 4


def test_a_record_survives_its_line() -> None:
    """What is written is what is read."""
    record = Record(Cell("U01", "refused", State.BLOB_COLD), "Connection refused", "E503(2)", recovery_s=1.5)
    record.check(holds=False, problem="a problem")
    assert Record.parse(record.to_line()) == record
