"""Figures of left-out residuals: where in the range of batch, context, model size and time the simulator errs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from calibration.judged import FAMILIES, Judged, family_of, split_apart

MAIN = tuple(FAMILIES)[:7]  # the families that get a panel: no p99, no counts
# Okabe and Ito's palette, which colour-blind readers can tell apart, and two more.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#8C6D31", "#555555", "#B5A800")
UNITS = {"throughput": ("tokens/s", 1.0), "power": ("W", 1.0), "energy per token": ("J", 1.0)}
MILLISECONDS = ("ms", 1e3)
SHOWN = 400  # points per source and panel; of more, every k-th is drawn
CLIPPED = 3.0  # residuals beyond this factor are drawn at the edge, as triangles
TICKS = (1 / 3, 0.5, 0.7, 0.85, 1.0, 1.15, 1.4, 2.0, 3.0)
BINS = 10  # of the running median
DODGE = 1.05  # factor between the places of two sources with equal x


def unit_of(row: Judged) -> tuple[str, float]:
    """(unit on the axis, factor from the schema's unit)."""
    return UNITS.get(family_of(row), MILLISECONDS)


# Figures by name: label of the x axis (None: predicted value, in its unit) and its value.
REGIMES: dict[str, tuple[str | None, Callable[[Judged], float]]] = {
    "batch": ("sequences at a time", lambda row: row.batch),
    "context": ("tokens per request, read and written", lambda row: row.context_tok),
    "size": ("parameters, billions", lambda row: row.parameters / 1e9),
    "predicted": (None, lambda row: row.left_out * unit_of(row)[1]),
}


def save_residuals(judged: Iterable[Judged], path_dir: str | Path) -> list[Path]:
    """Write residuals_{batch,context,size,predicted}.png and predicted_measured.png; returns the paths.

    One panel per metric family, one colour per source; only clean rows with a left-out prediction. Power over whole
    runs, which holds idle samples, is left out. Without rows nothing is written.
    """
    rows = [row for row in split_apart(judged)[0] if row.left_out is not None]
    panels: dict[str, list[Judged]] = {}
    for row in rows:
        panels.setdefault(family_of(row), []).append(row)
    panels = {name: panels[name] for name in MAIN if name in panels}
    if not panels:
        return []
    folder = Path(path_dir)
    folder.mkdir(parents=True, exist_ok=True)
    sources = sorted({row.source for found in panels.values() for row in found})
    colours = {source: COLOURS[i % len(COLOURS)] for i, source in enumerate(sources)}
    draws = {f"residuals_{name}": partial(_residuals, colours=colours, regime=name) for name in REGIMES}
    draws["predicted_measured"] = partial(_scatter, colours=colours)
    return [_figure(panels, colours, draw, folder / f"{name}.png") for name, draw in draws.items()]


def _figure(
    panels: Mapping[str, Sequence[Judged]], colours: Mapping[str, str], draw: Callable[..., None], path: Path
) -> Path:
    """One figure with a panel for each family and one legend."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    columns = min(4, len(panels))
    lines = -(-len(panels) // columns)
    figure = Figure(figsize=(max(6.0, 4.2 * columns), 3.6 * lines + 0.6), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(lines, columns, squeeze=False).ravel()
    for axis, (family, found) in zip(axes, panels.items()):
        axis.set_title(f"{family}  (n = {len(found):,})", fontsize=10)
        axis.tick_params(labelsize=8)
        axis.grid(True, which="major", color="#e6e6e6", linewidth=0.6)
        axis.set_axisbelow(True)
        axis.spines[["top", "right"]].set_visible(False)
        draw(axis, found)
    for axis in axes[len(panels) :]:
        axis.set_visible(False)
    dots = [Line2D([], [], color=c, marker="o", linestyle="", markersize=5, label=s) for s, c in colours.items()]
    figure.legend(
        handles=dots, loc="outside lower center", ncols=min(len(dots), 3 * columns), frameon=False, fontsize=9
    )
    # Without the version in its metadata the same rows give the same bytes.
    figure.savefig(path, metadata={"Software": None})
    return path


def _thinned(rows: Sequence[Judged]) -> dict[str, list[Judged]]:
    """Rows by source, at most SHOWN of each, evenly taken; the largest source first, so that it lies below."""
    groups: dict[str, list[Judged]] = {}
    for row in rows:
        groups.setdefault(row.source, []).append(row)
    ordered = sorted(groups.items(), key=lambda item: (-len(item[1]), item[0]))
    return {source: found[:: -(-len(found) // SHOWN)] for source, found in ordered}


def _residuals(axis: Any, rows: Sequence[Judged], colours: Mapping[str, str], regime: str) -> None:
    """log(predicted / measured) over a regime, with the median of all sources in bins."""
    label, value = REGIMES[regime]
    edge = np.log(CLIPPED)
    thinned = _thinned(rows)
    for place, (source, found) in enumerate(thinned.items()):
        x = np.array([value(row) for row in found])
        if regime != "predicted":  # sources with the same settings stand side by side
            x = x * DODGE ** (place - (len(thinned) - 1) / 2)
        y = np.array([np.log(row.ratio) for row in found])
        far = np.abs(y) > edge
        style = {"color": colours[source], "linewidths": 0, "alpha": 0.6}
        axis.scatter(x[~far], y[~far], s=12, **style)
        for mark, beyond in (("^", y > edge), ("v", y < -edge)):
            axis.scatter(x[beyond], np.clip(y[beyond], -edge, edge), s=22, marker=mark, clip_on=False, **style)
    x, y = (np.array(column) for column in zip(*((value(row), np.log(row.ratio)) for row in rows)))
    axis.axhline(0.0, color="black", linewidth=0.8)
    centres, medians = _running_median(x, y)
    style = {"color": "black", "linewidth": 1.6, "marker": "D", "markersize": 3.5, "alpha": 0.85}
    axis.plot(centres, np.clip(medians, -edge, edge), **style)
    _log_axis(axis.xaxis, x)
    axis.set_ylim(-edge, edge)
    axis.set_yticks(np.log(TICKS), [f"{100 * (tick - 1):+.0f} %" if tick != 1.0 else "0" for tick in TICKS])
    axis.set_xlabel(label or f"predicted, {unit_of(rows[0])[0]}", fontsize=9)
    axis.set_ylabel("predicted / measured - 1", fontsize=9)


def _running_median(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Medians of x and y in bins of equal width in log x; nan where fewer than five points lie: a gap in the line."""
    place = np.log(x)
    width = (place.max() - place.min()) / BINS or 1.0
    bins = np.minimum(((place - place.min()) / width).astype(int), BINS - 1)
    centres, medians = np.full((2, BINS), np.nan)
    for i in range(BINS):
        if (bins == i).sum() >= 5:
            centres[i], medians[i] = np.exp(np.median(place[bins == i])), np.median(y[bins == i])
    return centres, medians


def _scatter(axis: Any, rows: Sequence[Judged], colours: Mapping[str, str]) -> None:
    """Predicted with its 90 % interval over measured."""
    unit, factor = unit_of(rows[0])
    low, high = np.inf, 0.0
    for source, found in _thinned(rows).items():
        x = factor * np.array([row.measured for row in found])
        y = factor * np.array([row.left_out for row in found])
        bottom, top = factor * np.array([row.interval for row in found]).T
        axis.vlines(x, bottom, top, color=colours[source], linewidth=0.7, alpha=0.18)
        axis.scatter(x, y, s=10, color=colours[source], linewidths=0, alpha=0.7)
        low, high = min(low, x.min(), y.min()), max(high, x.max(), y.max())
    span = np.array([low / 1.5, high * 1.5])
    axis.plot(span, span, color="black", linewidth=0.8)
    for one in (axis.xaxis, axis.yaxis):
        _log_axis(one, span)
    axis.set_xlim(span)
    axis.set_ylim(span)
    axis.set_xlabel(f"measured, {unit}", fontsize=9)
    axis.set_ylabel(f"predicted, {unit}", fontsize=9)


def _log_axis(axis: Any, values: np.ndarray) -> None:
    """A logarithmic axis with plain numbers in place of powers of ten; more of them where the range is short."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    (axis.axes.set_xscale if axis.axis_name == "x" else axis.axes.set_yscale)("log")
    decades = np.log10(max(values) / min(values))
    subs = (1.0, 2.0, 5.0) if decades < 2.2 else (1.0, 3.0) if decades < 3.2 else (1.0,)
    axis.set_major_locator(LogLocator(subs=subs, numticks=20))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}" if value >= 1.0 else f"{value:g}"))
