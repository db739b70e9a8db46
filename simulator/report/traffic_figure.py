"""A picture of a run of traffic: what the server did over time on the left, what its users waited for on the right.

Only `report` imports matplotlib, and only inside the functions that draw.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from simulator.report import units
from simulator.report.gantt import PALETTE, save_figure, time_scale
from simulator.report.traffic_table import where
from simulator.traffic.metrics import Goodput, latencies
from simulator.traffic.result import TrafficResult
from simulator.traffic.series import TimeSeries, time_series

SIZE_INCH = (14.0, 9.0)
BINS = 400
MOST_POINTS = 2000  # of a distribution's line
LONG_TAIL = 30.0  # slowest over median: beyond, the axis is logarithmic
FAR_LIMIT = 2.0  # a limit beyond so many times the slowest, or below the fastest, is an arrow at the edge
GRID, LIMIT_COLOUR, FAINT = "#DDDDDD", "#D55E00", "#444444"
MARKS = (("p50", 0.50, "o"), ("p90", 0.90, "s"), ("p99", 0.99, "D"))


def save_traffic_figure(result: TrafficResult, path: str | Path) -> Path:
    """Draw `result` into `path` (.png, .svg or .pdf). The same result gives the same bytes."""
    return save_figure(path, SIZE_INCH, lambda figure: draw_traffic(result, figure))


def draw_traffic(result: TrafficResult, figure: Any) -> None:
    """Draw onto a matplotlib Figure."""
    left, right = figure.subfigures(1, 2, width_ratios=(1.45, 1.0))
    _draw_time(left, result)
    _draw_distributions(right, result)
    figure.suptitle(f"{result.traffic}\n{where(result)}", fontsize=13)
    figure.supxlabel(_caption(result), fontsize=9, color=FAINT)


def _draw_time(figure: Any, result: TrafficResult) -> None:
    """Running batch, queue, KV cache and power, one under the other on one time axis."""
    series = time_series(result.served, BINS)
    scale, unit = time_scale(float(series.edges_s[-1]))
    batch, queue, kv, power = figure.subplots(4, 1, sharex=True)
    _steps(batch, series, series.running, scale, PALETTE[0], "running\nsequences")
    _steps(queue, series, series.waiting, scale, PALETTE[1], "waiting\nrequests")
    _steps(kv, series, 100.0 * series.kv_share, scale, PALETTE[2], "KV cache\nin use [%]")
    _steps(power, series, series.power_w, scale, "#333333", "power [W]")
    _levels(batch, result, series)
    _power_levels(power, result, series)
    if float(series.waiting.max()) == 0.0:
        queue.set_ylim(0.0, 1.0)
        queue.text(0.5, 0.5, "nobody waited", transform=queue.transAxes, ha="center", va="center", color=FAINT)
    power.set_xlabel(f"time since the start [{unit}]")
    power.set_xlim(0.0, float(series.edges_s[-1]) * scale)
    of_all = f", all {result.replicas} replicas" if result.replicas > 1 else ""
    width = units.seconds(float(series.edges_s[1]))
    batch.set_title(f"Server over time{of_all} (averages over {width})", fontsize=11, loc="left")
    figure.align_ylabels()


def _steps(axes: Any, series: TimeSeries, values: np.ndarray, scale: float, colour: str, name: str) -> None:
    edges = series.edges_s * scale
    axes.stairs(values, edges, color=colour, fill=True, alpha=0.25)
    axes.stairs(values, edges, color=colour, linewidth=1.2)
    highest = float(values.max(initial=0.0))
    axes.set_ylim(0.0, 1.15 * highest if highest > 0.0 else 1.0)
    axes.set_ylabel(name)
    axes.grid(color=GRID, linewidth=0.6)
    axes.set_axisbelow(True)


def _levels(axes: Any, result: TrafficResult, series: TimeSeries) -> None:
    """The most sequences that the replicas may run, when the batch came near it."""
    seats = result.settings.get("max_num_seqs")
    if seats is not None and float(series.running.max()) > 0.5 * seats * result.replicas:
        _level(axes, float(seats * result.replicas), "max_num_seqs", LIMIT_COLOUR, "--")


def _power_levels(axes: Any, result: TrafficResult, series: TimeSeries) -> None:
    highest = float(series.power_w.max())
    for key, name, colour, style in (("limit_w", "limit", LIMIT_COLOUR, "--"), ("idle_w", "idle", PALETTE[0], ":")):
        level = result.power.get(key)
        if level is not None and level < 4.0 * highest:
            _level(axes, float(level), f"{name} {units.watts(level)}", colour, style)


def _level(axes: Any, level: float, name: str, colour: str, style: str) -> None:
    axes.axhline(level, color=colour, linestyle=style, linewidth=1.2)
    axes.set_ylim(0.0, max(axes.get_ylim()[1], 1.25 * level))
    axes.annotate(
        name,
        (1.0, level),
        xycoords=("axes fraction", "data"),
        xytext=(-4, 2),
        textcoords="offset points",
        ha="right",
        va="bottom",
        fontsize=8,
        color=colour,
    )


def _draw_distributions(figure: Any, result: TrafficResult) -> None:
    """The share of requests that are at least so fast, for TTFT, TPOT and end to end."""
    found = latencies(result.served.requests)
    goodput = result.goodput or Goodput()
    panels = figure.subplots(3, 1)
    for axes, name, title, colour in zip(
        panels,
        ("ttft_s", "tpot_s", "e2e_s"),
        ("time to first token (TTFT)", "time per output token (TPOT)", "end to end (E2E)"),
        (PALETTE[0], PALETTE[3], PALETTE[2]),
    ):
        values = np.sort(found[name][~np.isnan(found[name])])
        _distribution(axes, values, title, colour, getattr(goodput, name))
    panels[0].set_title("Share of requests that took at most so long", fontsize=11, loc="left", pad=24)


def _distribution(axes: Any, values: np.ndarray, title: str, colour: str, limit_s: float | None) -> None:
    axes.set_ylim(0.0, 105.0)
    axes.set_ylabel("requests [%]")
    axes.grid(color=GRID, linewidth=0.6)
    axes.set_axisbelow(True)
    if not len(values):
        axes.set_xticks([])
        axes.set_xlabel(title)
        axes.text(0.5, 0.5, "no request has one", transform=axes.transAxes, ha="center", va="center", color=FAINT)
        return
    near = limit_s is not None and limit_s <= FAR_LIMIT * float(values[-1])
    largest = max(float(values[-1]), limit_s) if near else float(values[-1])
    scale, unit = time_scale(largest)
    axes.set_xlabel(f"{title} [{unit}]")
    times, shares = _curve(values)
    axes.step(
        np.append(times, max(largest, times[-1])) * scale, 100.0 * np.append(shares, 1.0), where="post", color=colour
    )
    for name, q, marker in MARKS:
        value = float(np.quantile(values, q))
        label = f"{name} {units.seconds(value)}"
        axes.plot(
            [value * scale], [100.0 * q], marker, color=colour, markeredgecolor="black", markersize=6, label=label
        )
    _time_axis(axes, values, largest, scale)
    if limit_s is not None:
        label = f"limit {units.seconds(limit_s)}: {units.percent(float((values <= limit_s).mean()))} meet it"
        _limit(axes, limit_s * scale, label)
    # Above the panel: inside, there is no corner that no curve passes.
    place = {"loc": "lower left", "bbox_to_anchor": (-0.01, 0.98), "ncols": 4}
    axes.legend(**place, fontsize=8, frameon=False, columnspacing=0.8, handletextpad=0.4, handlelength=1.3)


def _limit(axes: Any, limit: float, label: str) -> None:
    """A line at `limit`, in units of the axis; an arrow at the edge behind which it lies."""
    low, high = axes.get_xlim()
    inside = low <= limit <= high
    axes.plot(
        [limit] * 2 if inside else [], [0.0, 105.0] if inside else [], color=LIMIT_COLOUR, linestyle="--",
        linewidth=1.4, label=label,
    )  # fmt: skip
    if not inside:
        edge, inner = (1.0, 0.95) if limit > high else (0.0, 0.05)
        arrow = {"arrowstyle": "-|>", "color": LIMIT_COLOUR, "linewidth": 1.4, "shrinkA": 0.0, "shrinkB": 0.0}
        axes.annotate("", (edge, 0.5), (inner, 0.5), xycoords="axes fraction", arrowprops=arrow)


def _curve(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sorted `values` and the share of them that is at most that, thinned out evenly in rank."""
    count = len(values)
    ranks = np.unique(np.linspace(0, count - 1, min(count, MOST_POINTS)).astype(int))
    return np.concatenate((values[:1], values[ranks])), np.concatenate(([0.0], (ranks + 1) / count))


def _time_axis(axes: Any, values: np.ndarray, largest: float, scale: float) -> None:
    """From zero, or logarithmic where the slowest took far longer than the median."""
    from matplotlib.ticker import FuncFormatter

    smallest, median = float(values[0]), float(np.median(values))
    if smallest > 0.0 and largest > LONG_TAIL * median:
        axes.set_xscale("log")
        axes.set_xlim(0.8 * smallest * scale, 1.3 * largest * scale)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,g}"))
        return
    axes.set_xlim(0.0, 1.08 * largest * scale if largest > 0.0 else 1.0)


def _caption(result: TrafficResult) -> str:
    figures = result.summary()
    rate = units.span(figures["output_tok_per_s_lo"], figures["output_tok_per_s_hi"], units.significant)
    lines = [
        f"Seed {result.seed}: {units.significant(figures['output_tok_per_s'])} output tok/s (90 % interval {rate}), "
        f"{units.joules(figures['energy_j_per_output_tok'])} per output token. "
        f"Calibration: {result.calibration['id']}."
    ]
    waiting = int(figures["overloaded_waiting"])
    if waiting:
        lines.append(f"Overloaded: the queue grew all along, {waiting:,} requests waiting when the last one arrived.")
    if result.calibration.get("extrapolated"):
        lines.append("Beware: " + " | ".join(result.calibration["extrapolated"]))
    return "\n".join(line if len(line) < 190 else line[:187] + "..." for line in lines)
