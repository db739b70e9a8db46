"""A picture of a sweep: figures over one setting, a line for each value of the others, 90 % intervals as bands.

Only `report` imports matplotlib, and only inside the functions that draw.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from simulator.errors import UserError, unknown_name
from simulator.planning.points import FIGURES, OK
from simulator.planning.store import Row, typed
from simulator.planning.sweep import Sweep
from simulator.report.gantt import PALETTE, save_figure

DEFAULT_Y = {"strategy": "wall_s_p50", "traffic": "e2e_s_p50"}
PANEL_INCH, WIDTH_INCH = 3.6, 10.0
MOST_PANELS = 6
MOST_LINES = 24  # more cannot be told apart
MOST_TICKS = 16  # values of the x axis that are all named
MARGIN = 0.04  # of the x axis on both sides of its values
UNEVEN = 3.0  # largest over smallest gap between values of x: beyond, they are meant to multiply
WIDE = 30.0  # largest over smallest: beyond, the axis is logarithmic
STYLES, MARKERS = ("-", "--", ":", "-."), ("o", "s", "^", "D", "v", "P", "X", "*")
GRID, FAINT = "#DDDDDD", "#444444"
UNITS = {  # word of a figure's name -> (unit on the axis, factor)
    "s": ("s", 1.0), "j": ("J", 1.0), "w": ("W", 1.0), "usd": ("USD", 1.0), "byte": ("GB", 1e-9), "tok": ("tok", 1.0),
}  # fmt: skip


@dataclass(frozen=True)
class Axes:
    """What a figure shows: the setting on x, figures on y (a panel each), the setting that colours lines, the rest."""

    x: str
    y: tuple[str, ...]
    by: str | None
    others: tuple[str, ...]  # what varies besides: line styles


def choose_axes(sweep: Sweep, x: str | None = None, y: Sequence[str] = (), by: str | None = None) -> Axes:
    """The axes of a sweep's figure: as asked, or what varies. UserError, with the nearest names, for unknown ones."""
    varied = sweep.varied
    figures = tuple(dict.fromkeys(y)) or (DEFAULT_Y[sweep.kind],)
    for name in figures:
        if name not in FIGURES[sweep.kind]:
            raise unknown_name("figure", name, FIGURES[sweep.kind], "figures are columns of the table", "--y")
    if len(figures) > MOST_PANELS:
        raise UserError(f"--y: found {len(figures)} figures, expected at most {MOST_PANELS}")
    for flag, name in (("--x", x), ("--by", by)):
        if name is not None and name not in varied:
            raise unknown_name("setting", name, varied, f"what varies is {', '.join(varied)}", flag)
    if x is not None and x == by:
        raise UserError(f"--x and --by both show '{x}'; expected two settings")
    left = [name for name in varied if name != by]
    x = x or next((name for name in left if _numeric(sweep, name)), left[0] if left else varied[0])
    rest = [name for name in varied if name not in (x, by)]
    by = by or (rest.pop(0) if rest else None)
    return Axes(x, figures, by, tuple(rest))


def _numeric(sweep: Sweep, name: str) -> bool:
    """Whether a setting is a number at all points."""
    return _are_numbers([sweep.cells(point)[name] for point in sweep.points])


def _are_numbers(cells: Sequence[str]) -> bool:
    return all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in typed(cells))


def save_sweep_figure(rows: Sequence[Row], sweep: Sweep, axes: Axes, path: str | Path) -> Path:
    """Draw the rows of `sweep` into `path` (.png, .svg or .pdf). The same rows give the same bytes."""
    size = (WIDTH_INCH, PANEL_INCH * len(axes.y) + 1.2)
    return save_figure(path, size, lambda figure: draw_sweep(rows, sweep, axes, figure))


def draw_sweep(rows: Sequence[Row], sweep: Sweep, axes: Axes, figure: Any) -> None:
    """Draw onto a matplotlib Figure: one panel per figure of `axes.y`, one under the other."""
    lines = _lines(rows, axes)
    if len(lines) > MOST_LINES:
        raise UserError(f"--plot: {len(lines)} lines cannot be told apart; expected at most {MOST_LINES}: vary less")
    places = _places(rows, axes.x)
    panels = figure.subplots(len(axes.y), 1, sharex=True, squeeze=False)[:, 0]
    for panel, name in zip(panels, axes.y):
        _draw_panel(panel, lines, name, axes, places)
    _x_axis(panels[-1], places, axes.x)
    handles, labels = panels[0].get_legend_handles_labels()
    if axes.by is not None:
        figure.legend(
            handles,
            labels,
            loc="outside right upper",
            title=", ".join((axes.by, *axes.others)),
            fontsize=9,
            frameon=False,
        )
    figure.suptitle(_title(sweep), fontsize=11, wrap=True)
    figure.supxlabel(_caption(rows), fontsize=8, color=FAINT)


def _lines(rows: Sequence[Row], axes: Axes) -> dict[tuple[str, ...], list[Row]]:
    """Rows by the line that they are on."""
    found: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        names = ((axes.by,) if axes.by is not None else ()) + axes.others
        found.setdefault(tuple(row[name] or "default" for name in names), []).append(row)
    return found


def _places(rows: Sequence[Row], x: str) -> dict[str, float]:
    """Where on the x axis each value of a setting lies: at its number, or one behind the other."""
    cells = list(dict.fromkeys(row[x] for row in rows))
    if _are_numbers(cells):
        return dict(sorted(zip(cells, map(float, cells)), key=lambda item: item[1]))
    return {cell: float(i) for i, cell in enumerate(cells)}


def _draw_panel(panel: Any, lines: Mapping[tuple, list[Row]], name: str, axes: Axes, places: dict[str, float]) -> None:
    colours = {value: PALETTE[i % len(PALETTE)] for i, value in enumerate(dict.fromkeys(key[:1] for key in lines))}
    styles = {value: i for i, value in enumerate(dict.fromkeys(key[1:] for key in lines))}
    unit, factor = _unit(name)
    words = not _are_numbers(list(places))
    for i, (key, rows) in enumerate(lines.items()):
        colour, style = colours[key[:1]], styles[key[1:]]
        rows = sorted(rows, key=lambda row: places[row[axes.x]])
        x = np.array([places[row[axes.x]] for row in rows])
        value, low, high = (
            factor * np.array([_number(row, f"{name}{end}") for row in rows]) for end in ("", "_lo", "_hi")
        )
        look = {"color": colour, "linestyle": STYLES[style % len(STYLES)], "marker": MARKERS[style % len(MARKERS)]}
        if words:  # between which there is nothing: bars beside each other instead of bands
            x = x + 0.5 * ((i + 0.5) / len(lines) - 0.5)
            panel.vlines(x, low, high, color=colour, linestyle=look.pop("linestyle"), linewidth=1.5)
            look["linestyle"] = "none"
        else:
            panel.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
        panel.plot(x, value, **look, markersize=4.5, linewidth=1.5, label=", ".join(key))
        lost = [places[row[axes.x]] for row in rows if row["status"] != OK]
        height = 0.03 + 0.04 * (i % 20)  # of the panel, above its lower edge
        crosses = panel.get_xaxis_transform()
        panel.plot(lost, [height] * len(lost), "x", color=colour, transform=crosses, markersize=5, gid="lost")
    _y_axis(panel, name, unit)


def _number(row: Row, name: str) -> float:
    return float(row.get(name) or "nan")


def _unit(name: str) -> tuple[str, float]:
    """Unit of a figure by the words of its name ('output_tok_per_s': tok/s), and what to multiply it with."""
    words = name.removeprefix("cost_").split("_")
    top = [UNITS[word] for word in words[: words.index("per")] if word in UNITS] if "per" in words else []
    if "per" in words:
        below = "_".join(words[words.index("per") + 1 :]).removeprefix("million_output_").removeprefix("output_")
        counted = top[-1][0] if top else words[0]
        return f"{counted}/{'Mtok' if 'million' in words else below}", top[-1][1] if top else 1.0
    found = [UNITS[word] for word in words if word in UNITS]
    return found[-1] if found else ("", 1.0)


def _y_axis(panel: Any, name: str, unit: str) -> None:
    """From zero, or logarithmic where the values lie far apart."""
    panel.set_ylabel(f"{name} [{unit}]" if unit else name)
    panel.grid(color=GRID, linewidth=0.6)
    panel.set_axisbelow(True)
    values = np.concatenate([line.get_ydata() for line in panel.get_lines() if line.get_gid() != "lost"])
    values = values[np.isfinite(values)]
    if len(values) and values.min() > 0.0 and values.max() > WIDE * values.min():
        panel.set_yscale("log")
    else:
        panel.set_ylim(bottom=0.0)


def _x_axis(panel: Any, places: Mapping[str, float], name: str) -> None:
    from matplotlib.ticker import NullLocator

    panel.set_xlabel(name)
    at = np.array(list(places.values()))
    numbers = _are_numbers(list(places))
    gaps = np.diff(at)
    if numbers and at[0] > 0.0 and at[-1] > WIDE / 2 * at[0] and gaps.max() > UNEVEN * gaps.min():
        panel.set_xscale("log")
        panel.set_xlim(at[0] / (at[-1] / at[0]) ** MARGIN, at[-1] * (at[-1] / at[0]) ** MARGIN)
    else:
        margin = (MARGIN * (at[-1] - at[0]) or 0.5) if numbers else 0.5
        panel.set_xlim(at[0] - margin, at[-1] + margin)
    if len(at) <= MOST_TICKS or not numbers:
        panel.set_xticks(at, [cell or "default" for cell in places])
        panel.xaxis.set_minor_locator(NullLocator())


def _title(sweep: Sweep) -> str:
    """What is the same at every point."""
    start = "traffic: " if sweep.kind == "traffic" else ""
    return start + ", ".join(f"{name} {value}" for name, value in sweep.fixed.items())


def _caption(rows: Sequence[Row]) -> str:
    used = ", ".join(dict.fromkeys(row["calibration"] for row in rows if row["calibration"]))
    version = rows[0]["version"]
    lost = " Crosses: points that could not be simulated." if any(row["status"] != OK for row in rows) else ""
    return f"Bands and bars: 90 % intervals.{lost} Calibrations: {used or 'none'}. Tokenflight {version}."
