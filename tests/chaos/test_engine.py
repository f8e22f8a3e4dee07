"""The engine itself: each fault of an upstream affects a direct client, and a Dockyard with a bug fails its cases."""

import contextlib
from pathlib import Path

import pytest

from tests.chaos.engine.audit import audit_directory
from tests.chaos.engine.case import Case, State
from tests.chaos.engine.isolated_upstream import IsolatedUpstream
from tests.chaos.engine.records import Record
from tests.chaos.engine.run import Environment
from tests.chaos.engine.runner import run_variant
from tests.chaos.engine.variant import Fault, UpstreamVariant
from tests.chaos.faults import UPSTREAM_FAULTS
from tests.chaos.mutants import environ_of
from tests.support.toxiproxy import Toxiproxy

VARIANTS: dict[str, tuple[Fault, UpstreamVariant]] = {
    f"{fault.id} {variant.name}": (fault, variant)
    for fault in sorted(UPSTREAM_FAULTS, key=lambda fault: fault.id)
    for variant in fault.variants
    if isinstance(variant, UpstreamVariant)
}

# The mutant, a variant that it does not survive, and the cases that must fail with a part of the problem.
MUTANTS: dict[str, tuple[str, dict[State, str]]] = {
    "no_tail_withheld": (
        "U10 one bit at 1 %",
        {State.BLOB_COLD: "WRONG BYTES SERVED WHOLE", State.BLOB_DOWNLOAD: "WRONG BYTES SERVED WHOLE"},
    ),
    "no_breaker": (
        "U14 503",
        {State.TAG_CACHED: "requests upstream for 10 responses that need no upstream"},
    ),
    "pointer_goes_back": ("U14 503", {State.TAG_CACHED: "pointer"}),
}

MAX_ATTEMPTS = 3


@pytest.mark.parametrize("name", VARIANTS)
def test_a_fault_affects_a_direct_client(toxiproxy: Toxiproxy, tmp_path: Path, name: str) -> None:
    """A client without Dockyard observes the fault while it is active, and neither before nor after."""
    _, variant = VARIANTS[name]
    state = State.BLOB_CACHED  # Dockyard sends no request in this state: the fault is active for every client
    with contextlib.ExitStack() as stack:
        environment = Environment(tmp_path, stack)
        variant.prepare_environment(environment)
        through = None if variant.is_direct else toxiproxy
        upstream = stack.enter_context(IsolatedUpstream("engine", through))
        variant.prepare(upstream, environment)
        _assert_inactive(variant, upstream)
        variant.inject(upstream, state)
        variant.verify(upstream, state)
        upstream.restore()
        variant.end(upstream)
        _assert_inactive(variant, upstream)


def _assert_inactive(variant: UpstreamVariant, upstream: IsolatedUpstream) -> None:
    with pytest.raises(AssertionError):
        variant.verify(upstream, State.BLOB_CACHED)


@pytest.mark.parametrize("mutant", MUTANTS)
def test_a_mutant_fails(toxiproxy: Toxiproxy, tmp_path: Path, mutant: str) -> None:
    """The cases find the bug, and say what is wrong; on a busy machine, a bug may not show every time."""
    name, cases = MUTANTS[mutant]
    missed: dict[State, str] = {}
    for attempt in range(MAX_ATTEMPTS):
        directory = tmp_path / str(attempt)
        directory.mkdir()
        records = run_variant(*VARIANTS[name], directory, toxiproxy=toxiproxy, environ=environ_of(mutant))
        seen = {state: "\n".join(records[state].problems) for state in cases}
        missed = {state: seen[state] or "passed" for state, problem in cases.items() if problem not in seen[state]}
        if not missed:
            break
    assert missed == {}


def test_the_audit_finds_wrong_files(tmp_path: Path) -> None:
    """A blob that is not what its name says, an empty one, a pointer to nothing, a file of unknown kind."""
    digest = "ab" + "0" * 62
    for key, content in {
        f"cache/blobs/sha256/ab/{digest}": b"other bytes",
        f"cache/manifests/up.test/app/sha256/{digest}": b"",
        "cache/manifests/up.test/app/tags/latest": b"nothing",
        "cache/strange": b"",
    }.items():
        path = tmp_path / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    assert len(audit_directory(tmp_path)) == 4


def test_a_record_can_be_parsed() -> None:
    """A record is equal to the one that is parsed from its line."""
    record = Record(Case("U01", "refused", State.BLOB_COLD), "Connection refused", "E503(2)", recovery_s=1.5)
    record.check(holds=False, problem="a problem")
    assert Record.parse(record.to_line()) == record
