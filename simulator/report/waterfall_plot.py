"""A picture of an explanation: from the data sheet's roofline to the predicted time on the left, what would change it
on the right.

Only `report` imports matplotlib, and only inside the functions that draw.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from simulator.errors import UserError
from simulator.planning.explain.explanation import Explanation, Part
from simulator.report import units
from simulator.report.explain_text import COLUMN_TITLES, NOTHING
from simulator.report.gantt import PALETTE, SUFFIXES, save_figure, time_scale
from simulator.report.paths import check_writable

SIZE_INCH = (15.0, 7.0)
IDEAL, LOST, GAINED, TOTAL, FAINT = PALETTE[2], PALETTE[1], PALETTE[4], PALETTE[0], "#444444"
HEADROOM = 1.12  # over the tallest bar, for its figure
LABEL_ROOM = 0.25  # of the span of the bars, beside them for their figures


def check_waterfall_path(option: str, path: str) -> None:
    """UserError, in the name of `option`, when no picture can be written to `path`."""
    suffix = check_writable(option, path).suffix
    if suffix.lower() not in SUFFIXES:
        found = f"'{suffix}'" if suffix else "no suffix"
        raise UserError(f"{option} {path}: found {found}, expected a file name ending in {', '.join(SUFFIXES)}")


def save_waterfall(explanation: Explanation, path: str | Path) -> Path:
    """Draw `explanation` into `path` (.png, .svg or .pdf). The same explanation gives the same bytes."""
    return save_figure(path, SIZE_INCH, lambda figure: draw_waterfall(explanation, figure))


def draw_waterfall(explanation: Explanation, figure: Any) -> None:
    """Draw onto a matplotlib Figure."""
    left, right = figure.subplots(1, 2, width_ratios=(1.25, 1.0))
    _draw_ladder(left, explanation)
    _draw_changes(right, explanation)
    facts = explanation.facts
    figure.suptitle(f"{facts['model']} ({facts['precision']['weights']} weights) on {facts['gpu_name']}", fontsize=13)
    figure.supxlabel(_wrapped(explanation.sentence), fontsize=9, color=FAINT)


def shown_parts(explanation: Explanation) -> tuple[Part, ...]:
    """Parts of the ladder that are not nothing."""
    ladder = explanation.ladder
    return tuple(part for part in ladder.parts if abs(part.value) > NOTHING * abs(ladder.total))


def _draw_ladder(axes: Any, explanation: Explanation) -> None:
    """Each bar begins where the one before it ends; the last one is the total."""
    ladder, parts = explanation.ladder, shown_parts(explanation)
    scale, unit = time_scale(ladder.total)
    level, highest = 0.0, ladder.total
    for i, part in enumerate(parts):
        colour = IDEAL if i == 0 else LOST if part.value >= 0.0 else GAINED
        low, top = sorted((level, level + part.value))
        axes.bar(i, (top - low) * scale, bottom=low * scale, color=colour, edgecolor="black", linewidth=0.6)
        sign = "" if i == 0 else "+" if part.value >= 0.0 else ""
        _label(axes, i, top * scale, f"{sign}{units.significant(part.value * scale)}")
        level, highest = level + part.value, max(highest, top)
        axes.plot([i + 0.4, i + 0.6], [level * scale] * 2, color=FAINT, linewidth=0.8)
    axes.bar(len(parts), level * scale, color=TOTAL, edgecolor="black", linewidth=0.6)
    _label(axes, len(parts), level * scale, units.significant(ladder.total * scale))
    names = [*(part.title for part in parts), "predicted"]
    axes.set_xticks(range(len(names)), names, rotation=30, ha="right", fontsize=9)
    axes.set_ylim(0.0, HEADROOM * highest * scale if highest > 0.0 else 1.0)
    axes.set_ylabel(f"time [{unit}]")
    axes.set_title(ladder.title[:1].upper() + ladder.title[1:], fontsize=11, loc="left")
    axes.grid(axis="y", color="#DDDDDD", linewidth=0.6)
    axes.set_axisbelow(True)


def _label(axes: Any, x: float, y: float, text: str) -> None:
    place = {"xytext": (0, 3), "textcoords": "offset points", "ha": "center", "va": "bottom", "fontsize": 8.5}
    axes.annotate(text, (x, y), **place)


def _draw_changes(axes: Any, explanation: Explanation) -> None:
    """Change of the time under each change, the largest gain on top."""
    name = explanation.figures[0]
    found = [each for each in explanation.sensitivities if not each.reason and each.changes[name] == each.changes[name]]
    values = [100.0 * each.changes[name] for each in found]
    places = range(len(found))
    axes.barh(places, values, color=[GAINED if value <= 0.0 else LOST for value in values], edgecolor="black",
              linewidth=0.6)  # fmt: skip
    axes.set_yticks(places, [each.title.partition(" (")[0] for each in found], fontsize=9)
    axes.invert_yaxis()
    low, high = min([0.0, *values]), max([0.0, *values])
    room = LABEL_ROOM * ((high - low) or 1.0)
    axes.set_xlim(low - room, high + room)
    for place, value in zip(places, values):
        side = -1 if value < 0.0 else 1
        text = "no effect" if value == 0.0 else f"{value:+.2g} %" if abs(value) < 0.1 else f"{value:+.1f} %"
        axes.annotate(
            text, (value, place), xytext=(4 * side, 0), textcoords="offset points", va="center",
            ha="left" if side > 0 else "right", fontsize=8.5,
        )  # fmt: skip
    axes.axvline(0.0, color="black", linewidth=0.8)
    axes.set_xlabel(f"change of the {COLUMN_TITLES[name]} [%]")
    axes.set_title("What would change it (same seeds)", fontsize=11, loc="left")
    axes.grid(axis="x", color="#DDDDDD", linewidth=0.6)
    axes.set_axisbelow(True)


def _wrapped(text: str, width: int = 170) -> str:
    import textwrap

    return "\n".join(textwrap.wrap(text, width))
