"""The figures of the page: predicted against measured, error by regime, load curves, residuals."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from calibration.judged import APART
from validate.cases import Case
from validate.statistics import margin_of
from validate.suite import Verdict

# Metric family -> (columns, unit on the axis, factor from the schema's unit).
FAMILIES: dict[str, tuple[tuple[str, ...], str, float]] = {
    "TTFT": (("ttft_s_mean", "ttft_s_median"), "ms", 1e3),
    "TPOT, ITL": (("tpot_s_mean", "tpot_s_median", "itl_s_median", "itl_s_mean"), "ms", 1e3),
    "E2E": (("e2e_s_mean", "e2e_s_median"), "s", 1.0),
    "throughput": (("output_tok_per_s",), "tokens/s", 1.0),
    "power": (("power_w",), "W", 1.0),
    "energy": (("energy_j_per_output_tok",), "J/token", 1.0),
}
# Okabe and Ito's palette, which colour-blind readers can tell apart.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00")
GREY = "#a9b0b7"
SHOWN = 600  # points per panel; of more, every k-th is drawn
CLIPPED = 4.0  # residuals beyond this factor are drawn at the edge
CURVES = 6  # sweeps with the most points


@dataclass(frozen=True)
class Point:
    """One figure of one run, in the schema's units."""

    case: Case
    metric: str
    measured: float
    predicted: float
    low: float
    high: float
    judged: bool
    apart: bool


def draw_figures(verdict: Verdict, report: dict[str, Any], folder: Path) -> dict[str, Path]:
    """Draw what there are data for; paths by name."""
    points = {family: _points(verdict, family) for family in FAMILIES}
    points = {family: found for family, found in points.items() if found}
    found: dict[str, Path] = {}
    if points:
        found["predicted_measured"] = _scatter(points, folder / "predicted_measured.png")
    if report["groups"]:
        found["regimes"] = _regimes(report["groups"], folder / "regimes.png")
    curves = _load_curves(verdict)
    if curves:
        found["curves"] = _curves(curves, folder / "curves.png")
    judged = {family: [p for p in some if p.judged] for family, some in points.items()}
    judged = {family: some for family, some in judged.items() if some}
    if judged:
        found["residuals"] = _residuals(judged, folder / "residuals.png")
    return found


def _points(verdict: Verdict, family: str) -> list[Point]:
    """One point per run and family: the first of the family's columns that was measured and predicted."""
    out = []
    for case in verdict.evidence.cases:
        metric = next((name for name in FAMILIES[family][0] if name in case.ratios), None)
        if metric is None or (family == "E2E" and case.record.output_tok == 1 and "ttft_s_mean" in case.measured):
            continue  # a request of one token ends with its first: one measurement, drawn once
        value = case.measured[metric] * case.ratios[metric]
        _, low, high = case.prediction.values.get(metric, (value, value, value))
        apart = any(case.record.flagged(flag) for flag in APART)
        judged = not apart and verdict.refused(case.id, metric) is None
        if not verdict.evidence.own:
            low = high = value  # intervals are our calibration's, not the other simulator's
        out.append(Point(case, metric, case.measured[metric], value, low, high, judged, apart))
    return out


def _figure(panels: int, columns: int, width: float = 4.4, height: float = 3.7) -> tuple[Any, list[Any]]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = min(columns, panels)
    lines = -(-panels // columns)
    figure = Figure(figsize=(max(5.0, width * columns), height * lines), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    axes = list(figure.subplots(lines, columns, squeeze=False).ravel())
    for axis in axes[panels:]:
        axis.set_visible(False)
    for axis in axes[:panels]:
        axis.tick_params(labelsize=8)
        axis.grid(True, color="#e6e6e6", linewidth=0.6)
        axis.set_axisbelow(True)
        axis.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _logarithmic(axis: Any, which: str = "xy") -> None:
    """Logarithmic axes with plain numbers at 1, 2 and 5."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

    for name in which:
        axis.set(**{f"{name}scale": "log"})
        of = axis.xaxis if name == "x" else axis.yaxis
        of.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0), numticks=8))
        of.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        of.set_minor_locator(NullLocator())
        of.set_minor_formatter(NullFormatter())


def _saved(figure: Any, path: Path) -> Path:
    figure.savefig(path)
    return path


def _thinned(points: list[Point]) -> list[Point]:
    return points[:: -(-len(points) // SHOWN)]


def _scatter(points: dict[str, list[Point]], path: Path) -> Path:
    figure, axes = _figure(len(points), 3)
    for axis, (family, found) in zip(axes, points.items()):
        _, unit, factor = FAMILIES[family]
        groups = (
            ("judged", [p for p in found if p.judged], {"markerfacecolor": COLOURS[0], "color": COLOURS[0]}),
            ("refused", [p for p in found if not p.judged and not p.apart],
             {"markerfacecolor": "none", "color": COLOURS[5]}),
            ("doubted by its source", [p for p in found if p.apart], {"markerfacecolor": "none", "color": GREY}),
        )  # fmt: skip
        for label, some, look in groups:
            if some:
                _draw_points(axis, _thinned(some), factor, label, look)
        ends = [factor * v for p in found for v in (p.measured, p.predicted)]
        line = np.array([min(ends) / 1.2, max(ends) * 1.2])
        margin = margin_of(found[0].metric)
        axis.plot(line, line, color="#333333", linewidth=0.9)
        axis.fill_between(line, line / (1 + margin), line * (1 + margin), color="#333333", alpha=0.08, linewidth=0)
        _logarithmic(axis)
        axis.set_title(f"{family}  (n = {len(found):,})", fontsize=10)
        axis.set_xlabel(f"measured [{unit}]", fontsize=9)
        axis.set_ylabel(f"predicted [{unit}]", fontsize=9)
        axis.legend(fontsize=7, frameon=False, loc="upper left")
    return _saved(figure, path)


def _draw_points(axis: Any, some: list[Point], factor: float, label: str, look: dict[str, Any]) -> None:
    x = factor * np.array([p.measured for p in some])
    y = factor * np.array([p.predicted for p in some])
    spread = factor * np.abs([[p.predicted - p.low for p in some], [p.high - p.predicted for p in some]])
    axis.errorbar(
        x, y, yerr=spread, fmt="o", markersize=3.2, markeredgewidth=0.7, elinewidth=0.4, alpha=0.75,
        label=f"{label} ({len(some):,})", **look,
    )  # fmt: skip


def _regimes(groups: list[dict[str, Any]], path: Path) -> Path:
    """A bar per group; at most forty, those with the most figures, in the order of the table."""
    most = sorted(groups, key=lambda g: -g["errors"]["n"])[:40]
    shown = [g for g in groups if g in most]
    figure, (axis, *_) = _figure(1, 1, 9.0, 1.2 + 0.27 * len(shown))
    places = np.arange(len(shown))[::-1]
    for place, g in zip(places, shown):
        colour = {"consistent": COLOURS[2], "inconclusive": COLOURS[1]}.get(g["verdict"], COLOURS[5])
        median = g["errors"]["median"]
        axis.barh(place, 100 * median["value"], color=colour, height=0.62)
        if np.isfinite(median["low"]):
            axis.plot([100 * median["low"], 100 * median["high"]], [place, place], color="#222222", linewidth=1.1)
        axis.plot([100 * g["noise"]] * 2, [place - 0.38, place + 0.38], color="#222222", linestyle=":", linewidth=1.2)
    names = [f"{g['gpu']} · {g['load']} · {g['regime']} · {g['metric']} (n={g['errors']['n']})" for g in shown]
    axis.set_yticks(places, names)
    axis.set_xlabel("median error [%]   green: consistent, red: mismatch, yellow: inconclusive", fontsize=9)
    return _saved(figure, path)


def _load_curves(verdict: Verdict) -> list[tuple[str, list[tuple[float, float, float, float, float]]]]:
    """(title, rows of (load, measured rate, measured latency, simulated rate, simulated latency)) of sweeps."""
    out = []
    by_id = verdict.evidence.by_id
    for sweep in verdict.evidence.sweeps:
        if sweep.axis != "batch":
            continue
        rows = [row for x, run in zip(sweep.x, sweep.runs) if (row := _load_row(by_id[run.run_id], x)) is not None]
        if len({row[0] for row in rows}) >= 3:
            r = sweep.runs[0]
            out.append(
                (f"{r.gpu} · {r.model.split('/')[-1]}\n{r.input_tok:.0f} + {r.output_tok:.0f} tokens, {r.load}", rows)
            )
    return sorted(out, key=lambda curve: -len(curve[1]))[:CURVES]


def _load_row(case: Case, x: float) -> tuple[float, float, float, float, float] | None:
    """Throughput against time per token, else end-to-end time; where no rate was measured, the rate that follows."""
    metric = next((m for m in ("tpot_s_mean", "itl_s_median", "e2e_s_mean") if m in case.ratios), None)
    if metric is None:
        return None
    per_s = case.record.output_tok if metric == "e2e_s_mean" else 1.0
    measured, simulated = case.measured[metric], case.measured[metric] * case.ratios[metric]
    rates = [
        case.measured["output_tok_per_s"] * f if "output_tok_per_s" in case.ratios else x * (per_s or 1.0) / t
        for f, t in ((1.0, measured), (case.ratios.get("output_tok_per_s", 1.0), simulated))
    ]
    return x, rates[0], measured, rates[1], simulated


def _curves(curves: list, path: Path) -> Path:
    figure, axes = _figure(len(curves), 3)
    for axis, (title, rows) in zip(axes, curves):
        table = np.array(rows)
        axis.plot(table[:, 1], 1e3 * table[:, 2], "o-", color=COLOURS[0], markersize=4, label="measured")
        axis.plot(
            table[:, 3], 1e3 * table[:, 4], "o--", color=COLOURS[5], markersize=4, markerfacecolor="none",
            label="simulated",
        )  # fmt: skip
        _logarithmic(axis)
        axis.set_title(title, fontsize=9)
        axis.set_xlabel("output tokens/s", fontsize=9)
        axis.set_ylabel("latency [ms]", fontsize=9)
        axis.legend(fontsize=7, frameon=False)
    return _saved(figure, path)


REGIMES: dict[str, Callable[[Case], float]] = {
    "sequences at a time": lambda case: (
        case.record.batch_mean or case.record.concurrency or case.record.num_requests or 1
    ),
    "tokens per request, read and written": lambda case: (case.record.input_tok or 0) + (case.record.output_tok or 0),
    "parameters, billions": lambda case: case.setup.model.parameters() / 1e9 if case.setup else np.nan,
}


def _residuals(points: dict[str, list[Point]], path: Path) -> Path:
    figure, axes = _figure(len(REGIMES), 3, 4.8, 4.0)
    ratios = [p.predicted / p.measured for found in points.values() for p in found]
    edge = min(CLIPPED, max(1.5, *ratios, *(1 / ratio for ratio in ratios)))
    ticks = [tick for tick in (1 / 4, 1 / 2, 1 / 1.5, 1 / 1.2, 1.0, 1.2, 1.5, 2.0, 4.0) if 1 / edge <= tick <= edge]
    for axis, (label, of_case) in zip(axes, REGIMES.items()):
        for colour, (family, found) in zip(COLOURS, points.items()):
            some = _thinned(found)
            x = np.array([of_case(p.case) for p in some], dtype=float)
            y = np.clip([p.predicted / p.measured for p in some], 1 / edge, edge)
            axis.plot(x, y, "o", color=colour, markersize=3, alpha=0.6, label=family)
        axis.axhline(1.0, color="#333333", linewidth=0.9)
        _logarithmic(axis)
        axis.set(ylim=(1 / edge / 1.05, edge * 1.05))
        axis.set_yticks(ticks, [f"{tick:g}" if tick >= 1 else f"1/{1 / tick:g}" for tick in ticks])
        axis.set_xlabel(label, fontsize=9)
    axes[0].set_ylabel("predicted / measured", fontsize=9)
    axes[0].legend(fontsize=7, frameon=False)
    return _saved(figure, path)
