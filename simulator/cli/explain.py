"""`--explain` of both commands: options, checks, and how an explanation is shown."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from simulator.cli.options import OUTPUT, option
from simulator.cli.progress import ProgressBar

if TYPE_CHECKING:
    from simulator.planning.explain.explanation import Explanation

PLOT_OPTION = "--explain-plot"


def explain_options() -> list[Callable]:
    """What both commands offer."""
    return [
        option(
            OUTPUT,
            "--explain",
            is_flag=True,
            help="Say where time and energy go, and what 10 % more of everything, fewer tokens or lower precision "
            "would change: the run again for each of them, with the same seeds.",
        ),
        option(
            OUTPUT,
            PLOT_OPTION,
            metavar="FILE",
            help="With --explain, which it implies: a waterfall from the data sheet's roofline to the predicted time, "
            "as .png, .svg or .pdf.",
        ),
    ]


def explanation_of(values: Mapping[str, Any], kind: str, scenario: Any, result: Any) -> Explanation | None:
    """The explanation that was asked for; None if none was."""
    if not (values["explain"] or values["explain_plot"] is not None):
        return None
    if kind == "strategy":
        from simulator.planning.explain.flights import explain_flights as explain
    else:
        from simulator.planning.explain.traffic import explain_traffic as explain
    with ProgressBar("changes tried") as bar:
        return explain(scenario, result, progress=bar)


def check_explain_plot(path: str | None) -> None:
    """Before time is spent. UserError when no picture can be written there."""
    if path is not None:
        from simulator.report.waterfall_plot import check_waterfall_path

        check_waterfall_path(PLOT_OPTION, path)


def written_plot(explanation: Explanation | None, path: str | None) -> list[Path]:
    """Draw it where that was asked for; the files written."""
    if explanation is None or path is None:
        return []
    from simulator.report.waterfall_plot import save_waterfall

    return [save_waterfall(explanation, path)]


def with_explanation(facts: dict[str, Any], explanation: Explanation | None) -> dict[str, Any]:
    """The JSON object of a run, with what explains it in front of its rows."""
    if explanation is None:
        return facts
    return {"summary": facts["summary"], "explanation": explanation.to_dict(), **facts}


def show_explanation(explanation: Explanation | None) -> None:
    """Behind the report of the run."""
    if explanation is not None:
        from simulator.report.explain_text import render_explanation

        print(f"\n{render_explanation(explanation)}", end="")
