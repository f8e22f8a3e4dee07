"""The command `python -m bench.fleet`: simulates a fleet, makes the tables of a page, or measures real fleets."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs
import click

from bench.fleet import figures, measure, tables
from bench.fleet.model import GBIT, GIB, MIB, PUBLISHED, Arrival, Client, Failure, Fleet, Image, Tier
from bench.fleet.prices import price
from bench.fleet.result import Result
from bench.fleet.simulation import simulate

IN_BITS = frozenset({"card", "balancer_card", "uplink"})  # fields of tiers that are given in Gbit/s


@click.command()
@click.option("--nodes", type=click.IntRange(min=1), default=1000, show_default=True, help="Nodes of the fleet.")
@click.option(
    "--tier",
    "tiers",
    multiple=True,
    metavar="NAME:FIELD=VALUE,...",
    help="A tier, the one that nodes ask first: fields of Tier in bench/fleet/model.py, cards in Gbit/s. "
    "Default: region:replicas=3,card=25,balancers=1.",
)
@click.option("--node-card", type=float, default=10.0, show_default=True, help="Gbit/s of a node.")
@click.option("--layers", default=",".join(f"{each / MIB:g}" for each in tables.TWELVE), show_default=True, help="MiB.")
@click.option("--seed", type=int, default=0, help="Other digests, which balancers send to other replicas.")
@click.option("--warm", type=int, default=0, help="Tiers, counted from the registry, that have the image.")
@click.option("--parallel", type=click.IntRange(min=1), default=3, show_default=True, help="Downloads of a node.")
@click.option("--unpack", type=float, default=None, help="MiB of compressed layers that a node unpacks per second.")
@click.option("--arrival", type=float, default=0.0, help="Seconds within which nodes begin, or between two waves.")
@click.option("--waves", type=click.IntRange(min=1), default=None, help="Number of waves.")
@click.option(
    "--fail",
    "failures",
    multiple=True,
    metavar="KIND:FIELD=VALUE,...",
    help="What is killed: replica, balancer or zone, with fields of Failure, such as replica:at_s=10,number=1.",
)
@click.option("--draw", type=click.Path(path_type=Path), default=None, help="File for a figure.")
@click.option("--write", type=click.Path(path_type=Path, exists=True), default=None, help="Make the tables of a page.")
@click.option(
    "--measure", "is_measuring", is_flag=True, help="Compare with real fleets in network namespaces; as root."
)
@click.option("--cases", default="", help="With --measure: numbers of cases, separated by commas. Default: all.")
@click.option("--record", type=click.Path(path_type=Path), default=None, help="With --measure: file for the tables.")
def main(
    nodes: int,
    tiers: tuple[str, ...],
    node_card: float,
    layers: str,
    seed: int,
    warm: int,
    parallel: int,
    unpack: float | None,
    arrival: float,
    waves: int | None,
    failures: tuple[str, ...],
    draw: Path | None,
    write: Path | None,
    is_measuring: bool,  # noqa: FBT001 - click passes by name
    cases: str,
    record: Path | None,
) -> None:
    """Simulate how the nodes of a fleet pull an image through Dockyards.

    Exit status with --measure: 1 if the model and a measurement differ by more than 15 %.
    """
    if write is not None:
        write.write_text(tables.update(write.read_text()))
        tables.draw(PUBLISHED / "fleet.png")
        return
    if is_measuring:
        _measure(cases, record)
        return
    try:
        fleet = Fleet(
            nodes,
            [parse_tier(text) for text in tiers or ("region",)],
            node_card=node_card * GBIT,
            client=Client(parallel=parallel, unpack_rate=unpack * MIB if unpack else None),
            arrival=Arrival(arrival, waves),
            failures=[parse_failure(text) for text in failures],
            warm=warm,
        )
        image = Image([float(each) * MIB for each in layers.split(",")], seed)
        result = simulate(fleet, image)
    except (ValueError, TypeError, KeyError, IndexError) as exc:
        raise click.UsageError(str(exc)) from exc
    print("\n".join(as_lines(result)))
    if draw is not None:
        figures.draw({f"{nodes:,} nodes": result}, draw)


def parse_tier(text: str) -> Tier:
    """A tier, as `zone:zones=20,replicas=2,card=25`. Raises ValueError."""
    name, fields = _parse_fields(text, Tier)
    return Tier(name, **{field: value * GBIT if field in IN_BITS else value for field, value in fields.items()})


def parse_failure(text: str) -> Failure:
    """A failure, as `replica:at_s=10,number=1`. Raises ValueError."""
    kind, fields = _parse_fields(text, Failure)
    if kind not in {"replica", "balancer", "zone"}:
        raise ValueError(f"{kind}: neither replica, balancer nor zone")
    return Failure(kind=kind, **fields)  # type: ignore[arg-type]


def as_lines(result: Result) -> list[str]:
    """What happened, for a terminal."""
    bill = price(result)
    lines = [
        f"{name}: {result.quantile(part):,.1f} s" for name, part in (("median", 0.5), ("95 %", 0.95), ("slowest", 1))
    ]
    lines += [f"last node: {result.last_s:,.1f} s after the beginning", ""]
    for load in sorted(result.loads, key=lambda load: -load.carried / load.rate):
        if load.carried and load.name != "node in":
            amount = f"{load.carried:,.1f} CPU s" if load.name.endswith("cpu") else f"{load.carried / GIB:,.2f} GiB"
            of_each = f" each of {load.count:,.0f}" if load.count > 1 else ""
            lines.append(f"{load.name}{of_each}: {amount}, at most {load.peak:.0%} of its rate")
    lines += ["", *(f"{kind}: {number:,}" for kind, number in sorted(result.requests.items()))]
    lines.append(
        f"cost: ${bill.nat:,.2f} NAT, ${bill.between_zones:,.2f} between zones, ${bill.requests:,.4f} S3 requests"
    )
    return lines


def _parse_fields(text: str, kind: type) -> tuple[str, Mapping[str, Any]]:
    name, _, rest = text.partition(":")
    types = {field.name: field.type for field in attrs.fields(kind)}
    values: dict[str, Any] = {}
    for part in filter(None, rest.split(",")):
        field, _, value = part.partition("=")
        if field not in types or field in {"name", "kind"}:
            raise ValueError(
                f"{text}: no field {field!r}; there are {', '.join(sorted(types.keys() - {'name', 'kind'}))}"
            )
        convert = int if types[field] is int else (lambda word: word == "true") if types[field] is bool else float
        values[field] = convert(value)
    return name, values


def _measure(cases: str, record: Path | None) -> None:
    chosen = [measure.CASES[int(number)] for number in cases.split(",")] if cases else measure.CASES
    comparisons = measure.measure(chosen)
    text = "\n".join([*measure.as_summary(comparisons), "", *measure.as_lines(comparisons)])
    print(text)
    if record is not None:
        record.write_text(f"{text}\n")
    wrong = [each for each in comparisons if not each.is_right]
    if wrong:
        raise click.ClickException(f"{len(wrong)} of {len(comparisons)} numbers differ by more than 15 %")
