"""What `validate` writes: the predictions file, the table, the JSON object."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from calibration.records import METRICS
from simulator.errors import UserError
from simulator.profile import Calibration
from validate.errors import ErrorLine, error_lines
from validate.predict import Prediction


def write_predictions(path: str | Path, predictions: list[Prediction]) -> None:
    """One row per run: run_id, status, then NAME, NAME_lo, NAME_hi for every metric that any run measured."""
    measured = [name for name in METRICS if any(name in p.record.measured() for p in predictions)]
    columns = [f"{name}{suffix}" for name in measured for suffix in ("", "_lo", "_hi")]
    try:
        with open(path, "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(["run_id", "status", *columns])
            for p in predictions:
                cells: list[str] = []
                for name in measured:
                    cells += [f"{v:.9g}" for v in p.values[name]] if name in p.values else ["", "", ""]
                writer.writerow([p.record.run_id, p.status, *cells])
    except OSError as error:
        raise UserError(f"predictions file '{path}' cannot be written: {error.strerror}") from None


def group_name(prediction: Prediction, metric: str) -> str:
    """GPU, model, load and what sets a group apart: rows with a warning never mix with clean ones."""
    record = prediction.record
    parts = [prediction.device or record.gpu, record.model.split("/")[-1], record.load, record.campaign]
    if record.weight_dtype not in (None, "bf16", "fp16"):
        parts.append(record.weight_dtype)
    if record.flagged("suspect:"):
        parts.append("suspect")
    parts.append(_power_caveat(prediction, metric))
    return " · ".join(part for part in parts if part)


def _power_caveat(prediction: Prediction, metric: str) -> str:
    """Why a power or energy figure is not what the profile predicts: another rail, or more than the run."""
    record = prediction.record
    if not metric.startswith(("power", "energy")):
        return ""
    if record.power_scope and prediction.power_scope and record.power_scope != prediction.power_scope:
        return f"{record.power_scope} power against {prediction.power_scope}"
    # Start-up and idle samples are in it, so it measures the sampling too.
    return "whole-run power" if record.flagged("whole_run_power") else ""


def summary(predictions: list[Prediction], profiles: dict[str, Calibration], fitted: set[str]) -> dict[str, Any]:
    """Everything the table shows, as plain types."""
    clean = [p for p in predictions if not p.record.flagged("suspect:")]
    suspect = [p for p in predictions if p.record.flagged("suspect:")]
    inside = [p for p in clean if p.record.run_id in fitted]
    outside = [p for p in clean if p.record.run_id not in fitted]
    return {
        "runs": len(predictions),
        "status": dict(Counter(p.status for p in predictions).most_common()),
        "profiles": [
            {
                "name": profile.id,
                "title": profile.title,
                "data_hash": profile.data_hash,
                "log_sd": profile.log_sd,
            }
            for profile in profiles.values()
        ],
        "fitted_rows": len(inside),
        "new_rows": len(outside),
        "errors": [line.to_dict() for line in error_lines(clean, group_name)],
        "errors_overall": [line.to_dict() for line in _overall(inside, outside)],
        "errors_of_suspect_rows": [line.to_dict() for line in error_lines(suspect, group_name)],
        "extrapolated": sorted({note for p in predictions for note in p.notes}),
    }


def _overall(inside: list[Prediction], outside: list[Prediction]) -> list[ErrorLine]:
    def group_of(rows: str) -> Callable[[Prediction, str], str]:
        return lambda p, metric: ", ".join(part for part in (rows, _power_caveat(p, metric)) if part)

    labels = ((inside, "clean rows that the profile was fitted on"), (outside, "clean rows new to the profile"))
    return [line for rows, label in labels for line in error_lines(rows, group_of(label))]


def text(report: dict[str, Any], source: str) -> str:
    """The report as plain text, one aligned table."""
    lines = [f"{report['runs']} runs of {source}", ""]
    lines += [f"  {count:5d}  {status}" for status, count in report["status"].items()]
    for profile in report["profiles"]:
        lines += ["", f"calibration: {profile['name']}: {profile['title']}"]
    lines += [
        f"{report['fitted_rows']} of the clean rows were used in the fit, {report['new_rows']} were not",
        "",
        "error = predicted / measured - 1; bias is its mean, the rest are of its size; covered = in the 90 % interval",
    ]
    for title, key in (
        ("", "errors"),
        ("overall", "errors_overall"),
        ("suspect rows, not judged", "errors_of_suspect_rows"),
    ):
        lines += _table(title, report[key])
    if report["extrapolated"]:
        lines += ["", "outside the fitted range (intervals widened):"]
        lines += [f"  {note}" for note in report["extrapolated"]]
    return "\n".join(lines)


def _table(title: str, rows: list[dict[str, Any]]) -> list[str]:
    if not rows:
        return []
    width = max(len(row["group"]) for row in rows)
    out = ["", *([title] if title else [])]
    out.append(
        f"{'group':{width}}  {'metric':24} {'n':>5} {'bias':>8} {'median':>8} {'mean':>8} {'p90':>8} {'covered':>8}"
    )
    for row in rows:
        figures = " ".join(f"{100 * row[key]:7.1f}%" for key in ("bias", "median", "mean", "p90", "covered"))
        out.append(f"{row['group']:{width}}  {row['metric']:24} {row['n']:5d} {figures}")
    return out
