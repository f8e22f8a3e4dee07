"""A figure of one or several fleets: when nodes have the image, what links carry, and what it costs."""

from collections.abc import Mapping
from pathlib import Path

import matplotlib as mpl
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from bench.fleet.model import GIB
from bench.fleet.prices import price
from bench.fleet.result import Result

COLOURS = ("#0b6e99", "#d9730d", "#6940a5", "#0f7b6c", "#8a8f98")
LINKS = (  # name in the figure; beginning and end of the names of its links
    ("from the registry", "upstream", ""),
    ("from the bucket", "bucket", "out"),
    ("region: one replica", "region", "replica out"),
    ("region: one balancer", "region", "balancer out"),
    ("zone: one replica", "zone", "replica out"),
    ("zone: one balancer", "zone", "balancer out"),
    ("a node", "node", "in"),
)


def draw(results: Mapping[str, Result], file: Path) -> None:
    """Draw the results of fleets, by their names."""
    mpl.use("Agg")
    plt.rcParams.update({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False})
    figure, (times, links, costs) = plt.subplots(1, 3, figsize=(13, 4), width_ratios=(4, 4, 3))
    _draw_times(times, results)
    _draw_links(links, results)
    _draw_costs(costs, results)
    figure.legend(*times.get_legend_handles_labels(), loc="lower center", ncols=2, frameon=False)
    figure.tight_layout(rect=(0, 0.06 + 0.03 * len(results), 1, 1))
    figure.savefig(file, dpi=110)
    plt.close(figure)


def _draw_times(axis: Axes, results: Mapping[str, Result]) -> None:
    for (name, result), colour in zip(results.items(), COLOURS, strict=False):
        ends = sorted((each.ended_at, each.count) for each in result.completions)
        total = sum(number for _, number in ends)
        seconds, percents, done = [0.0], [0.0], 0.0
        for time, number in ends:
            done += number
            seconds.append(time)
            percents.append(100 * done / total)
        axis.step(seconds, percents, where="post", label=name, color=colour)
    axis.set_title("nodes that have the image, %", fontsize=9, loc="left")
    axis.set_xlabel("seconds after the first node begins")


def _draw_links(axis: Axes, results: Mapping[str, Result]) -> None:
    height = 0.8 / len(results)
    for index, ((_, result), colour) in enumerate(zip(results.items(), COLOURS, strict=False)):
        busiest = [
            max((load.carried for load in result.loads if _is_named(load.name, start, end)), default=0.0)
            for _, start, end in LINKS
        ]
        places = [number + index * height for number in range(len(LINKS))]
        bars = axis.barh(places, [each / GIB for each in busiest], height, color=colour)
        axis.bar_label(bars, [_label(each / GIB) for each in busiest], padding=2, fontsize=7)
    axis.set_yticks([number + 0.4 - height / 2 for number in range(len(LINKS))], [name for name, _, _ in LINKS])
    axis.set_xscale("log")
    axis.margins(x=0.2)
    axis.invert_yaxis()
    axis.set_title("GiB on the busiest link of a kind", fontsize=9, loc="left")


def _draw_costs(axis: Axes, results: Mapping[str, Result]) -> None:
    bills = [price(result) for result in results.values()]
    totals = [bill.total for bill in bills]
    axis.barh(range(len(bills)), totals, color=COLOURS[: len(bills)])
    for place, total in enumerate(totals):
        axis.text(total, place, f" ${total:,.2f}", va="center")
    axis.set_yticks([])
    axis.margins(x=0.25)
    axis.invert_yaxis()
    axis.set_title("dollars for one image", fontsize=9, loc="left")


def _is_named(name: str, start: str, end: str) -> bool:
    return name.startswith(start) and name.endswith(end)


def _label(number: float) -> str:
    if not number:
        return ""
    return f"{number:,.0f}" if number >= 10 else f"{number:.1f}"
