"""The command `bench.lazy` measures what it says: once, in a small form."""

from pathlib import Path

from bench.lazy import measure_footers, measure_large
from bench.peers.workload import MIB


def test_footers_are_measured_everywhere(tmp_path: Path) -> None:
    """All responses are right, and no byte of the layer comes twice through Dockyard."""
    rows = measure_footers(tmp_path, rounds=1, layer_bytes=24 * MIB).rows()
    assert any(row.startswith("| footer: ms | dockyard, lazy |") for row in rows)


def test_large_blobs_are_measured(tmp_path: Path) -> None:
    """With one and with four connections."""
    assert len(measure_large(tmp_path, rounds=1, size=8 * MIB).rows()) == 4
