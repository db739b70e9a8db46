"""A picture of one flight: every call as a bar over time, and the power drawn underneath.

Only `report` imports matplotlib, and only inside the functions that draw.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from simulator.errors import UserError
from simulator.report import units
from simulator.report.paths import check_writable
from simulator.result import CallRecord, Flight, SimulationResult, WaitRecord

SUFFIXES = (".png", ".svg", ".pdf")
SIZE_INCH = (12.0, 8.0)
DOTS_PER_INCH = 100
# Okabe and Ito's palette: distinguishable with the common colour vision deficiencies. Black outlines the critical path.
PALETTE = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#999999")
WAIT_COLOUR = "#BBBBBB"
FEWEST_ROWS = 5  # fewer calls than this leave the rest of the picture empty rather than grow fat
MOST_FRAMED_ROWS = 200  # more calls than this, and the critical path is not outlined
MOST_NAMED_ROWS = 40  # more calls than this, and only the groups of equal label are named


def check_plot_path(path: str) -> Path:
    """`path` as a Path when a picture can be written there; UserError says why not."""
    target = check_writable("--plot", path)
    if target.suffix.lower() not in SUFFIXES:
        found = f"'{target.suffix}'" if target.suffix else "no suffix"
        raise UserError(f"--plot {path}: found {found}, expected a file name ending in {', '.join(SUFFIXES)}")
    return target


def save_gantt(result: SimulationResult, path: str | Path) -> Path:
    """Draw the first repetition of `result` into `path` (.png, .svg or .pdf). The same result gives the same bytes."""
    return save_figure(path, SIZE_INCH, lambda figure: draw_gantt(result, figure))


def save_figure(path: str | Path, size_inch: tuple[float, float], draw: Callable[[Any], None]) -> Path:
    """Write a matplotlib Figure that `draw` has drawn on into `path` (.png, .svg or .pdf)."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    target = check_plot_path(str(path))
    kind = target.suffix.lower().lstrip(".")
    with matplotlib.rc_context({"svg.hashsalt": "tokenflight", "font.size": 10, "hatch.linewidth": 0.6}):
        figure = Figure(figsize=size_inch, dpi=DOTS_PER_INCH, layout="constrained")
        FigureCanvasAgg(figure)
        draw(figure)
        # Dates in the file would make every file different.
        stamp = {"png": {}, "svg": {"Date": None}, "pdf": {"CreationDate": None}}[kind]
        try:
            figure.savefig(target, format=kind, metadata=stamp)
        except OSError as error:
            raise UserError(f"--plot {path}: cannot be written: {error.strerror or error}") from None
    return target


def draw_gantt(result: SimulationResult, figure: Any) -> None:
    """Draw onto a matplotlib Figure: calls above, power below, one time axis."""
    flight = result.flights[0]
    scale, unit = time_scale(flight.wall_s)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3.2, 1.0))
    rows = sorted((*flight.calls, *map(_as_call, flight.waits)), key=lambda call: (call.submitted_s, call.call_id))
    colours = _colours(rows)
    critical = frozenset(node.call_id for node in flight.critical_path())
    _draw_calls(upper, rows, critical, colours, scale)
    _draw_power(lower, result, flight, scale)
    lower.set_xlabel(f"time since the start of the flight [{unit}]")
    upper.set_xlim(0.0, flight.wall_s * scale * 1.01 if flight.wall_s > 0 else 1.0)
    _legend(upper, colours, rows, len(rows) <= MOST_FRAMED_ROWS)
    weights = result.precision["weights"]
    title = f"{result.strategy} with {result.model} ({weights} weights) on {result.hardware()}"
    figure.suptitle(title, fontsize=13)
    figure.supxlabel(_caption(result, flight), fontsize=9, color="#444444")


def time_scale(wall_s: float) -> tuple[float, str]:
    """(factor, unit) in which a time axis up to `wall_s` is read best."""
    for limit, scale, unit in ((1.0, 1e3, "ms"), (600.0, 1.0, "s"), (7200.0, 1 / 60, "min")):
        if wall_s < limit:
            return scale, unit
    return 1 / 3600, "h"


def _as_call(wait: WaitRecord) -> CallRecord:
    """An external wait as a row of the picture, without prefill and tokens."""
    start, end = wait.started_s, wait.finished_s
    return CallRecord(wait.call_id, f"{wait.label} (external)", start, start, start, end, 0, 0, 0, wait.parents)


def _colours(rows: list[CallRecord]) -> dict[str, str]:
    labels = dict.fromkeys(call.label for call in rows)
    return {label: PALETTE[i % len(PALETTE)] for i, label in enumerate(labels)}


def _draw_calls(
    axes: Any, rows: list[CallRecord], critical: frozenset[int], colours: dict[str, str], scale: float
) -> None:
    """One row per call, the first at the top: waiting as a line, prefill dark and hatched, decode in full colour."""
    from matplotlib.colors import to_rgb

    count = len(rows)
    height = 0.8 if count <= MOST_NAMED_ROWS else 1.0
    outline = 1.8 if count <= MOST_NAMED_ROWS else 1.0
    y = np.arange(count)
    times = np.array([(c.submitted_s, c.scheduled_s, c.first_token_s, c.finished_s) for c in rows]) * scale
    axes.hlines(y, times[:, 0], times[:, 1], colors=WAIT_COLOUR, linewidth=min(3.0, 120 / max(count, 1)))
    full = [colours[call.label] for call in rows]
    dark = [tuple(0.55 * channel for channel in to_rgb(colour)) for colour in full]
    hatch = "///" if count <= MOST_NAMED_ROWS else None
    _draw_bars(axes, y, times[:, 1], times[:, 2], height, dark, hatch)
    _draw_bars(axes, y, times[:, 2], times[:, 3], height, full)
    if count <= MOST_FRAMED_ROWS:  # among thousands of rows frames would hide the bars
        held = np.array([call.call_id in critical for call in rows], dtype=bool)
        axes.barh(
            y[held],
            (times[:, 3] - times[:, 0])[held],
            left=times[held, 0],
            height=max(height, 0.012 * count),  # a frame of one thin row would be a black line
            facecolor="none",
            edgecolor="black",
            linewidth=outline,
            zorder=3,
        )
    if count <= MOST_NAMED_ROWS:
        cut = np.array([call.stopped for call in rows], dtype=bool)
        axes.scatter(times[cut, 3], y[cut], marker="x", s=28, color="black", linewidth=1.2, zorder=4)
    margin = 0.5 + 0.02 * count + max(0.0, (FEWEST_ROWS - count) / 2)
    axes.set_ylim(count - 1 + margin, -margin)
    axes.set_ylabel("calls and their output, in order of submission")
    _name_rows(axes, rows)
    axes.grid(axis="x", color="#DDDDDD", linewidth=0.6)
    axes.set_axisbelow(True)


def _draw_bars(
    axes: Any, y: np.ndarray, start: np.ndarray, end: np.ndarray, height: float, colours: list, hatch: str | None = None
) -> None:
    """Bars from start to end; thousands of them as one object, which is drawn many times faster."""
    if len(y) <= MOST_FRAMED_ROWS:
        kept = end > start
        axes.barh(
            y[kept],
            (end - start)[kept],
            left=start[kept],
            height=height,
            color=[colour for colour, keep in zip(colours, kept) if keep],
            hatch=hatch,
            edgecolor="white",
            linewidth=0,
        )
        return
    from matplotlib.collections import PolyCollection

    low, high = y - height / 2, y + height / 2
    corners = np.stack(
        [np.stack([start, low], 1), np.stack([end, low], 1), np.stack([end, high], 1), np.stack([start, high], 1)], 1
    )
    axes.add_collection(PolyCollection(corners, facecolors=colours, edgecolors=colours, linewidths=0.3))


def _name_rows(axes: Any, rows: list[CallRecord]) -> None:
    """A name per row while they fit; beyond that one name for each run of rows with the same label."""
    if len(rows) <= MOST_NAMED_ROWS:
        names = [f"{call.label}  {call.output_tok:,} tok" if call.prompt_tok else call.label for call in rows]
        axes.set_yticks(range(len(rows)), names, fontsize=9 if len(rows) <= 25 else 7)
        return
    runs: list[tuple[int, int]] = []  # (first row, rows)
    for i, call in enumerate(rows):
        if runs and rows[runs[-1][0]].label == call.label:
            runs[-1] = (runs[-1][0], runs[-1][1] + 1)
        else:
            runs.append((i, 1))
    named: list[tuple[int, int]] = []  # those that took longest first, while there is room beside them
    spent = [sum(call.finished_s - call.submitted_s for call in rows[first : first + n]) for first, n in runs]
    for _, (first, n) in sorted(zip(spent, runs), key=lambda entry: -entry[0]):
        middle = first + (n - 1) / 2
        if all(abs(middle - (other + (m - 1) / 2)) >= 0.03 * len(rows) for other, m in named):
            named.append((first, n))
    named.sort()
    axes.set_yticks(
        [first + (n - 1) / 2 for first, n in named], [f"{rows[i].label} x{n}" for i, n in named], fontsize=9
    )


def _draw_power(axes: Any, result: SimulationResult, flight: Flight, scale: float) -> None:
    axes.stairs(flight.power_w, np.asarray(flight.power_times_s) * scale, color="#333333", fill=True, alpha=0.25)
    axes.stairs(flight.power_w, np.asarray(flight.power_times_s) * scale, color="#333333", linewidth=1.0)
    highest = float(np.max(flight.power_w, initial=0.0))
    for key, name, style in (("limit_w", "limit", "--"), ("idle_w", "idle", ":")):
        if key in result.power:
            level = float(result.power[key])
            highest = max(highest, level)
            axes.axhline(
                level,
                color="#D55E00" if key == "limit_w" else "#0072B2",
                linestyle=style,
                linewidth=1.2,
                label=f"{name} {units.watts(level)}",
            )
    axes.set_ylim(0.0, 1.12 * highest if highest > 0 else 1.0)
    axes.set_ylabel("power [W]")
    axes.grid(color="#DDDDDD", linewidth=0.6)
    axes.set_axisbelow(True)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, fontsize=9)


def _legend(axes: Any, colours: dict[str, str], rows: list[CallRecord], framed: bool) -> None:
    """Colours by label, and signs for what the picture really shows."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    handles: list[Any] = [Patch(color=colour, label=label) for label, colour in colours.items()]
    if any(call.first_token_s > call.scheduled_s for call in rows):
        handles.append(Patch(facecolor="#555555", edgecolor="white", hatch="///", label="prefill (to first token)"))
    if any(call.scheduled_s > call.submitted_s for call in rows):
        handles.append(Line2D([], [], color=WAIT_COLOUR, linewidth=3, label="waiting"))
    if framed:
        handles.append(Patch(facecolor="none", edgecolor="black", linewidth=1.8, label="critical path (in time)"))
    if len(rows) <= MOST_NAMED_ROWS and any(call.stopped for call in rows):
        handles.append(Line2D([], [], color="black", marker="x", linestyle="", label="stopped"))
    axes.legend(handles=handles, loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False, fontsize=9)


def _caption(result: SimulationResult, flight: Flight) -> str:
    low, high = result.interval(flight.wall_s)
    calls = f"{len(flight.calls):,} call{'s' if len(flight.calls) != 1 else ''}"
    if flight.waits:
        calls += f" and {len(flight.waits):,} external wait{'s' if len(flight.waits) != 1 else ''}"
    if result.other_gpus or " x " in result.gpu_name:
        calls += "; power of all GPUs"
    lines = [
        f"First repetition with seed {result.seed}: {units.seconds(flight.wall_s)}, 90 % interval "
        f"{units.span(low, high, units.seconds)}; {units.joules(flight.energy_j)}; {calls}. "
        f"Calibration: {result.calibration['id']}."
    ]
    if result.calibration.get("extrapolated"):
        lines.append("Beware: " + " | ".join(result.calibration["extrapolated"]))
    return "\n".join(line if len(line) < 170 else line[:167] + "..." for line in lines)
