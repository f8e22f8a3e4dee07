"""A herd: all nodes pull one image at the same time.

measure_herd(Shape(nodes=24, zones=2, rates=Rates(node=50e6, zone=200e6)), [8 * MIB, 4 * MIB])
"""

import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import attrs

from tests.scenario.layout import PREFIX, Layout, Shape, UpstreamRequests, open_layout, require_program
from tests.scenario.nodes import Node, Pull
from tests.support.images import PushedImage
from tests.support.networks import Traffic
from tests.support.processes import SetupError


@attrs.frozen
class Herd:
    """What a herd has measured. `traffic` is of each link: those of machines and of zones, by name."""

    image: PushedImage
    pulls: Sequence[Pull]  # one for each node
    traffic: Mapping[str, Traffic]
    upstream: UpstreamRequests
    took_s: float

    @property
    def times_s(self) -> list[float]:
        """From the start of the herd until each node has the image."""
        return [pull.took_s for pull in self.pulls]


def run_herd(layout: Layout, image: PushedImage, disturb: Callable[[], None] = lambda: None) -> Herd:
    """Let all nodes pull the image at once, and call `disturb` meanwhile. Failed pulls are in the result."""
    nodes = layout.nodes
    results: dict[str, Pull] = {}
    barrier = threading.Barrier(len(nodes) + 1)

    def pull(node: Node) -> None:
        barrier.wait()
        results[node.name] = node.pull(PREFIX, image)

    threads = [threading.Thread(target=pull, args=(node,), daemon=True) for node in nodes]
    layout.clear_requests()
    before = layout.traffic()
    for thread in threads:
        thread.start()
    barrier.wait()
    began_at = time.monotonic()
    disturb()
    for thread in threads:
        thread.join()
    took_s = time.monotonic() - began_at
    after = layout.traffic()
    traffic = {name: after[name] - before[name] for name in after}
    return Herd(image, [results[node.name] for node in nodes], traffic, layout.requests(), took_s)


def measure_herd(
    shape: Shape,
    layers: Sequence[int],
    *,
    is_warm: bool = False,
    directory: Path | None = None,
    find: Callable[[str], Path] = require_program,
) -> Herd:
    """Start a fleet, let it pull one image with layers of these sizes in bytes, and end it.

    With `is_warm` all nodes have pulled the image before: the replicas that they ask have it. `directory` is where a
    temporary directory is made, `find` finds programs. Raises SetupError, also when a pull fails.
    """
    with (
        tempfile.TemporaryDirectory(prefix="dockyard-herd-", dir=directory, ignore_cleanup_errors=True) as temporary,
        open_layout(shape, Path(temporary), find) as layout,
    ):
        image = layout.push("herd", layers)
        if is_warm:
            _check(run_herd(layout, image))
        return _check(run_herd(layout, image))


def _check(herd: Herd) -> Herd:
    if problems := [f"{pull.node}: {pull.problem}" for pull in herd.pulls if pull.problem]:
        raise SetupError(f"{len(problems)} of {len(herd.pulls)} pulls failed: {problems[0]}")
    return herd
