"""Pictures of a plan: what the finalists cost and how much more they bear, and how near limits come as load grows.

Only `report` imports matplotlib, and only inside the functions that draw.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from simulator.planning.capacity.curves import Curve
from simulator.planning.capacity.flights import FlightPlan
from simulator.planning.capacity.plan import Option, Plan
from simulator.report.gantt import PALETTE, save_figure

SIZE_INCH = (12.0, 5.2)


def save_plan_plot(plan: Plan, curves: Sequence[Curve], path: str | Path) -> Path:
    """Draw the finalists of `plan` into `path` (.png, .svg or .pdf)."""
    return save_figure(path, SIZE_INCH, lambda figure: _draw(plan, curves, figure))


def _draw(plan: Plan, curves: Sequence[Curve], figure: Any) -> None:
    left, right = figure.subplots(1, 2)
    for number, (option, curve) in enumerate(zip(plan.options, curves)):
        colour = PALETTE[number % len(PALETTE)]
        left.scatter([option.margin.head_room], [option.usd_per_h], s=70, color=colour, label=_name(option), zorder=3)
        worst = np.max([*curve.ratios.values()], axis=0) if curve.ratios else np.zeros(len(curve.loads))
        right.plot(curve.loads, np.minimum(worst, 3.0), marker="o", ms=3.5, color=colour)
    left.axvline(1.0, color="0.5", lw=1.0, ls="--")
    left.set(xlabel="load that it bears, as a multiple of the one asked for", ylabel="USD per hour")
    left.set_ylim(bottom=0.0, top=1.45 * max(option.usd_per_h for option in plan.options))
    left.margins(x=0.12)
    left.legend(fontsize=8, loc="upper left")
    left.set_title("Cost and head-room")
    right.axhline(1.0, color="0.5", lw=1.0, ls="--")
    right.axvline(1.0, color="0.5", lw=1.0, ls="--")
    right.set(xlabel="load, as a multiple of the one asked for", ylabel="tightest figure / its limit", ylim=(0.0, 2.0))
    right.set_title(", ".join(limit.text() for limit in plan.limits) or "no limits", fontsize=10)
    figure.suptitle(f"{plan.model}: {plan.workload}")


def _name(option: Option) -> str:
    return f"{option.all_replicas} x ({option.variant.hardware.phrase()})"


def save_flight_plot(plan: FlightPlan, path: str | Path) -> Path:
    """Wall time against energy of every option within the limits and of the nearest outside."""
    return save_figure(path, (7.5, 5.2), lambda figure: _draw_flights(plan, figure))


def _draw_flights(plan: FlightPlan, figure: Any) -> None:
    axes = figure.subplots()
    for options, colour, label in ((plan.options, PALETTE[2], "within"), (plan.missed, PALETTE[7], "outside")):
        if options:
            x = [option.figures["wall_s_p90"] for option in options]
            y = [option.figures["energy_j_mean"] for option in options]
            axes.scatter(x, y, s=40, color=colour, label=f"{label} the limits ({len(options)} shown)", zorder=3)
    if plan.best is not None:
        best = plan.best.figures
        axes.scatter(
            [best["wall_s_p90"]], [best["energy_j_mean"]], s=150, facecolors="none", edgecolors=PALETTE[5], label="best"
        )
    for limit in plan.limits:
        if limit.name == "wall_p90":
            axes.axvline(limit.value, color="0.5", lw=1.0, ls="--")
        elif limit.name == "energy_per_answer":
            axes.axhline(limit.value, color="0.5", lw=1.0, ls="--")
    axes.set(xlabel="wall time p90 [s]", ylabel="energy per answer [J]")
    axes.set_xlim(left=0.0)
    axes.set_ylim(bottom=0.0)
    axes.legend(fontsize=8)
    axes.set_title(f"{plan.strategy}: {', '.join(limit.text() for limit in plan.limits) or 'no limits'}", fontsize=10)
