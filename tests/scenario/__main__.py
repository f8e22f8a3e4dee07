"""Run a fleet in network namespaces of this machine, disturb it, and print what its clients saw.

    ops/scenario                                  two zones and a region with three replicas each: minutes
    ops/scenario --quick                          fewer replicas and nodes, a smaller image
    ops/scenario --zones 0 --nodes 20             one tier
    ops/scenario --acts herd,zone --rate node=50  only some acts, with another rate of the nodes' links
    ops/scenario --json results.json

Needs root (network namespaces, links with limited rates), iproute2, HAProxy, and MinIO and a registry, which are built
if they are not on PATH. Everything runs in namespaces of its own and is gone at the end.

Exit status: 1 if a promise is broken (a pull failed after retries, wrong bytes, more requests to the registry for a
layer than one, or than one for each time that it was cut), 2 if the fleet cannot be started, 130 after Ctrl-C.
"""

import argparse
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import attrs

from tests.scenario import report
from tests.scenario.acts import ACTS, Act, Stage
from tests.scenario.layout import MAX_ZONES, Layout, Rates, Shape, require_program
from tests.support.processes import SetupError
from tests.support.programs import find_program

MIB = 2**20
MBIT = 1e6
USUAL = Shape(
    nodes=24,
    zones=2,
    rates=Rates(
        registry=100 * MBIT,
        bucket=400 * MBIT,
        replica=400 * MBIT,
        balancer=600 * MBIT,
        zone=200 * MBIT,
        zone_replica=400 * MBIT,
        zone_balancer=600 * MBIT,
        node=100 * MBIT,
    ),
)
USUAL_LAYERS_MIB = (16.0, 8.0, 4.0, 2.0, 1.0, 0.5)
DOWN_S = 4.0
QUICK_DOWN_S = 1.0
QUICK = attrs.evolve(USUAL, nodes=6, replicas=2, zone_replicas=1)
QUICK_LAYERS_MIB = (3.0, 2.0, 0.5)
QUICK_ACTS = ("herd", "again", "crane", "zone", "outage")
CLIENTS = ("crane", "containerd", "ctr")
RATES = [field.name for field in attrs.fields(Rates)]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    parser = _make_parser()
    options = parser.parse_args(argv)
    shape, layers, names = _read(parser, options)
    if os.geteuid() != 0:
        print("ops/scenario: this needs root, for network namespaces and links with limited rates", file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell starts jobs in the background without it
    try:
        acts, broken = _run(shape, layers, names, QUICK_DOWN_S if options.quick else DOWN_S, options.directory)
    except SetupError as exc:
        print(f"ops/scenario: {exc}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("ops/scenario: interrupted", file=sys.stderr)
        return 130
    print(report.as_text(shape, acts))
    if options.json is not None:
        options.json.write_text(json.dumps(report.as_json(shape, layers, acts), indent=1) + "\n")
    for each in broken:
        print(f"broken: {each}")
    print(f"{len(broken)} promises are broken" if broken else "All promises are kept.")
    return 1 if broken else 0


def _run(
    shape: Shape, layers: Sequence[int], names: Sequence[str], down_s: float, directory: Path | None
) -> tuple[list[Act], list[str]]:
    """Run the acts; return what was seen, and what is broken."""
    began_at = time.monotonic()

    def say(text: str) -> None:
        print(f"{time.monotonic() - began_at:5.0f} s  {text}", file=sys.stderr, flush=True)

    clients = {}
    for name in CLIENTS:
        found = find_program(name)
        if "path" in found:
            clients[name] = Path(found["path"])
        else:
            say(f"without this real client: {found['missing']}")
    zones = f"{shape.zones} zones with {shape.zone_replicas} replicas each, " if shape.zones else ""
    say(f"starting: {zones}a region with {shape.replicas} replicas, {shape.nodes} nodes")
    acts: list[Act] = []
    with tempfile.TemporaryDirectory(prefix="dockyard-scenario-", dir=directory, ignore_cleanup_errors=True) as files:
        layout = Layout(shape, Path(files), require_program)
        try:
            layout.start()
            stage = Stage(layout, layers, down_s, clients)
            for name in names:
                say(f"act {name}: {(ACTS[name].__doc__ or '').strip()}")
                acts += ACTS[name](stage)
            say("reading all objects of the bucket")
            problems = layout.audit_bucket()
        finally:
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, signal.SIG_IGN)  # the end is not interrupted
            layout.close()
            say("all processes are ended")
    broken = [f"{act.name}: {each}" for act in acts for each in act.broken]
    return acts, broken + [f"the bucket: {each}" for each in problems]


def _read(parser: argparse.ArgumentParser, options: argparse.Namespace) -> tuple[Shape, list[int], list[str]]:
    """The fleet, the sizes of the layers in bytes, and the acts. Exits with status 2 for a wrong value."""
    shape, layers_mib = (QUICK, QUICK_LAYERS_MIB) if options.quick else (USUAL, USUAL_LAYERS_MIB)
    numbers = ("nodes", "replicas", "balancers", "zones", "zone_replicas", "zone_balancers", "workers")
    given = {name: getattr(options, name) for name in numbers if getattr(options, name) is not None}
    rates = {}
    for text in options.rate:
        name, _, value = text.partition("=")
        if name not in RATES or not value.replace(".", "", 1).isdigit():
            parser.error(f"--rate {text}: must be NAME=MBIT, with a name of {', '.join(RATES)}")
        rates[name] = float(value) * MBIT
    shape = attrs.evolve(shape, **given, rates=attrs.evolve(shape.rates, **rates), delay_s=options.delay / 1000)
    if shape.zones > MAX_ZONES or shape.nodes < max(shape.zones, 1):
        parser.error(f"there may be {MAX_ZONES} zones, and each needs a node")
    if options.layers:
        layers_mib = [float(text) for text in options.layers.split(",")]
    usual = [name for name in (QUICK_ACTS if options.quick else ACTS) if shape.zones or name != "zone"]
    names = options.acts.split(",") if options.acts else usual
    if unknown := [name for name in names if name not in ACTS]:
        parser.error(f"unknown act {unknown[0]}: the acts are {', '.join(ACTS)}")
    if "zone" in names and not shape.zones:
        parser.error("the act zone needs zones")
    return shape, [int(size * MIB) for size in layers_mib], names


def _make_parser() -> argparse.ArgumentParser:
    about, _, rest = (__doc__ or "").partition("\n")
    parser = argparse.ArgumentParser(
        prog="ops/scenario", description=about, epilog=rest, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="a small fleet and image, and only some acts")
    parser.add_argument("--acts", default="", help=f"separated by commas; default: all, {','.join(ACTS)}")
    parser.add_argument("--layers", default="", metavar="MIB,...", help="sizes of the layers of an image in MiB")
    for name, kind, text in (
        ("nodes", _positive, "of all zones together"),
        ("zones", _natural, "0: one tier, in which the nodes ask the replicas of the region"),
        ("replicas", _positive, "of the region"),
        ("zone-replicas", _positive, "of each zone"),
        ("balancers", _positive, "of the region"),
        ("zone-balancers", _positive, "of each zone"),
        ("workers", _positive, "of each replica"),
    ):
        parser.add_argument(f"--{name}", type=kind, metavar="N", help=text)
    parser.add_argument(
        "--rate",
        action="append",
        default=[],
        metavar="NAME=MBIT",
        help=f"of links, in Mbit/s in each direction, 0: no limit; may be repeated; names: {', '.join(RATES)}",
    )
    parser.add_argument(
        "--delay", type=float, default=0.0, metavar="MS", help="of each packet, needs netem; default: 0"
    )
    parser.add_argument("--directory", type=Path, help="where the temporary directory is made")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything that was measured to a file")
    return parser


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return value


def _natural(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError("must be at least 0")
    return value


if __name__ == "__main__":
    sys.exit(main())
