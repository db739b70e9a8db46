"""Pictures of a comparison: two figures against each other in every panel, the Pareto front of the two as a line.

Only `report` imports matplotlib, and only inside the functions that draw.
"""

from __future__ import annotations

import math
import textwrap
from pathlib import Path
from typing import Any

import numpy as np

from simulator.planning.compare import Comparison, Entry
from simulator.planning.pareto import front
from simulator.report.compare_table import headline
from simulator.report.gantt import PALETTE, save_figure, time_scale

GRID, LIMIT_COLOUR, FRONT_COLOUR, FAINT = "#DDDDDD", "#D55E00", "#777777", "#444444"
MARKERS = "osD^vP*X"
WIDE = 12.0  # largest over smallest: beyond, an axis is logarithmic
PAIRS = (
    ("wall_s_p50", "accuracy"),
    ("energy_j_p50", "accuracy"),
    ("wall_s_p50", "energy_j_p50"),
    ("wall_s_p50", "cost_usd_p50"),
    ("wall_s_p50", "peak_memory_byte"),
)
LABELS = {
    "wall_s_p50": "latency p50",
    "energy_j_p50": "energy p50",
    "cost_usd_p50": "cost p50",
    "peak_memory_byte": "peak memory",
    "accuracy": "accuracy",
}


def save_comparison(comparison: Comparison, path: str | Path) -> Path:
    """Draw `comparison` into `path` (.png, .svg or .pdf). The same comparison gives the same bytes."""
    panels = _panels(comparison)
    size = (14.0, 9.0) if len(panels) > 3 else (12.0, 9.0)
    return save_figure(path, size, lambda figure: draw_comparison(comparison, figure))


def draw_comparison(comparison: Comparison, figure: Any) -> None:
    """Draw onto a matplotlib Figure: a panel per pair of figures that are known, and the legend in the last place."""
    panels = _panels(comparison)
    across = 3 if len(panels) > 3 else 2
    down = math.ceil((len(panels) + 1) / across)
    places = np.atleast_1d(figure.subplots(down, across)).ravel()
    for axes, (x, y) in zip(places, panels):
        _draw_panel(axes, comparison, x, y)
    for axes in places[len(panels) :]:
        axes.set_axis_off()
    _legend(places[len(panels)], comparison)
    figure.suptitle("\n".join(textwrap.wrap(headline(comparison), 110)), fontsize=12)
    text = "bars: 90 % intervals; grey: Pareto front of the two figures"
    if comparison.study.within:
        text += "; dashed: limits"
    figure.supxlabel(text, fontsize=9, color=FAINT)


def _panels(comparison: Comparison) -> list[tuple[str, str]]:
    return [pair for pair in PAIRS if len(_known(comparison, *pair)) > 1] or [("wall_s_p50", "energy_j_p50")]


def _known(comparison: Comparison, *figures: str) -> list[Entry]:
    return [e for e in comparison.flown if all(math.isfinite(e.figures().get(f, math.nan)) for f in figures)]


def _draw_panel(axes: Any, comparison: Comparison, x: str, y: str) -> None:
    entries = _known(comparison, x, y)
    scales = [_scale(entries, figure) for figure in (x, y)]
    style = _styles(comparison)
    points = []
    for entry in entries:
        (at_x, bar_x), (at_y, bar_y) = (_point(entry, figure, scale) for figure, (scale, _) in zip((x, y), scales))
        colour, marker = style[entry.name]
        axes.errorbar(
            at_x, at_y, xerr=bar_x, yerr=bar_y, fmt=marker, color=colour, markersize=9, markeredgecolor="black",
            ecolor=colour, elinewidth=1.2, capsize=2.5, zorder=3,
        )  # fmt: skip
        points.append((at_x, at_y))
    _draw_front(axes, np.array(points), rising=y == "accuracy")
    for figure, (scale, unit), name in zip((x, y), scales, ("x", "y")):
        _axis(axes, name, entries, figure, scale, unit)
    for limit in comparison.study.within:
        for figure, (scale, _), draw in zip((x, y), scales, (axes.axvline, axes.axhline)):
            if figure == limit.figure:
                draw(limit.value * scale, color=LIMIT_COLOUR, linestyle="--", linewidth=1.4)
    axes.grid(color=GRID, linewidth=0.6)
    axes.set_axisbelow(True)


def _draw_front(axes: Any, points: np.ndarray, rising: bool) -> None:
    """The stairs of those that no other beats in both; `rising`: of y more is better."""
    best = points[front(points * (1.0, -1.0 if rising else 1.0))]
    best = np.unique(best, axis=0)
    axes.step(best[:, 0], best[:, 1], where="post", color=FRONT_COLOUR, linewidth=1.6, alpha=0.8, zorder=2)


def _point(entry: Entry, figure: str, scale: float) -> tuple[float, Any]:
    """(value, bars down and up) of a figure in the units of its axis; no bars where it has no interval."""
    value = entry.figures()[figure]
    ends = entry.outcome.intervals.get(figure)
    if figure == "accuracy" and entry.accuracy is not None and entry.accuracy.high > entry.accuracy.low:
        ends = entry.accuracy.low, entry.accuracy.high
    if ends is None:
        return value * scale, None
    return value * scale, [[(value - ends[0]) * scale], [(ends[1] - value) * scale]]


def _scale(entries: list[Entry], figure: str) -> tuple[float, str]:
    """(factor, unit) in which the axis of a figure is read best."""
    largest = max(entry.figures()[figure] for entry in entries)
    if figure.startswith("wall_s"):
        return time_scale(largest)
    if figure.startswith("energy_j"):
        return (1e-3, "kJ") if largest >= 1e3 else (1.0, "J")
    return {"accuracy": (100.0, "%"), "peak_memory_byte": (1e-9, "GB")}.get(figure, (1.0, "USD"))


def _axis(axes: Any, name: str, entries: list[Entry], figure: str, scale: float, unit: str) -> None:
    """Label; from zero, or logarithmic where values lie far apart; accuracies as they lie."""
    from matplotlib.ticker import FuncFormatter

    getattr(axes, f"set_{name}label")(f"{LABELS[figure]} [{unit}]")
    values = [entry.figures()[figure] for entry in entries]
    if figure == "accuracy":
        return
    if min(values) > 0.0 and max(values) > WIDE * min(values):
        getattr(axes, f"set_{name}scale")("log")
        for formatter in ("set_major_formatter", "set_minor_formatter"):
            plain = FuncFormatter(lambda x, _: f"{x:g}" if f"{x:e}"[0] in "125" else "")
            getattr(getattr(axes, f"{name}axis"), formatter)(plain)
        return
    highest = max(entry.outcome.intervals.get(figure, (0.0, value))[1] for entry, value in zip(entries, values))
    getattr(axes, f"set_{name}lim")(0.0, 1.08 * highest * scale)


def _styles(comparison: Comparison) -> dict[str, tuple[str, str]]:
    names = [entry.name for entry in comparison.flown]
    return {
        name: (PALETTE[i % len(PALETTE)], MARKERS[(i + i // len(PALETTE)) % len(MARKERS)])
        for i, name in enumerate(names)
    }


def _legend(axes: Any, comparison: Comparison) -> None:
    """Candidates, and who is on the front of everything."""
    from matplotlib.lines import Line2D

    handles = []
    for name, (colour, marker) in _styles(comparison).items():
        place = "  (on the front of all)" if name in comparison.front else ""
        label = "\n".join(textwrap.wrap(name + place, 44))
        handles.append(
            Line2D(
                [], [], color=colour, marker=marker, markeredgecolor="black", linestyle="", markersize=9, label=label
            )
        )
    axes.legend(handles=handles, loc="center left", frameon=False, fontsize=10, labelspacing=0.9)
