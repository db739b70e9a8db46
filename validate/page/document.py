"""The verdict as Markdown: verdict on top, findings, figures, errors, what is not known."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from validate.commands.markdown import bullets, folded, paragraphs, prose, table

SHOWN_RUNS = 200  # ids in a folded list


def document(report: dict[str, Any], figures: Mapping[str, str]) -> str:
    """The whole page. `report`: see `validate.summary.summary`; `figures`: path of each figure by name."""
    parts = [
        f"# {report['runs']} runs of {code(report['source'])}",
        f"> **{report['verdict']['word']}**: {prose(report['verdict']['says'])}",
        _status(report),
        *_findings(report["findings"]),
        *_figures(figures),
        *_regimes(report["groups"]),
        *_errors(report),
        *_not_known(report),
    ]
    return paragraphs(parts) + "\n"


def code(text: str) -> str:
    """`text` in a code span, whatever it holds."""
    return f"`{' '.join(str(text).replace('`', chr(39)).split())}`"


def percent(value: float, sign: bool = False) -> str:
    """A fraction in percent with one digit."""
    return f"{100 * value:+.1f} %" if sign else f"{100 * value:.1f} %"


def _status(report: dict[str, Any]) -> str:
    rows = [[prose(status), str(count)] for status, count in report["status"].items()]
    refused = report["refused_figures"]
    said = f"{refused} measured figures are refused: no error is given for them." if refused else ""
    return paragraphs([table(("status", "runs"), rows, right=(1,)), said])


def _findings(findings: list[dict[str, Any]]) -> list[str]:
    alarms = [finding for finding in findings if finding["severity"] != "note"]
    notes = [finding for finding in findings if finding["severity"] == "note"]
    parts = ["## Findings"]
    if alarms:
        head = ("class", "what is suspected", "severity", "confidence", "layer", "runs")
        rows = [
            [", ".join((f["fault"], *f["also"])), f["fault_name"], f["severity"], f["confidence"], f["layer"],
             str(len(f["runs"])) if f["runs"] else "all"]
            for f in alarms
        ]  # fmt: skip
        parts += [table(head, rows, right=(5,)), *(_finding(number, f) for number, f in enumerate(alarms, 1))]
    else:
        parts.append("None: no check found a mismatch.")
    if notes:
        parts += ["### Notes, no alarms", bullets(f"{f['fault']} {prose(f['says'])}" for f in notes)]
    return parts


def _finding(number: int, finding: dict[str, Any]) -> str:
    evidence = [[code(name), prose(_number(value))] for name, value in finding["evidence"].items()]
    runs = finding["runs"]
    listed = ", ".join(code(run) for run in runs[:SHOWN_RUNS])
    more = f" and {len(runs) - SHOWN_RUNS} more" if len(runs) > SHOWN_RUNS else ""
    metrics = ", ".join(map(code, finding["metrics"])) or "the whole run"
    return paragraphs(
        [
            f"### {number}. {finding['fault']} {finding['fault_name']}: {code(finding['check'])}",
            prose(finding["says"]),
            f"**Next:** {prose(finding['next'])}",
            f"Concerns {metrics}.",
            folded("evidence", table(("", "value"), evidence)) if evidence else "",
            folded(f"{len(runs)} runs", listed + more) if runs else "",
        ]
    )


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


_CAPTIONS = {
    "predicted_measured": "Predicted against measured, with 90 % intervals. Hollow: refused, no error is given. "
    "Grey: rows that their source doubts. Band: the margin of the equivalence test.",
    "regimes": "Median error by regime, with 90 % bootstrap intervals over runs; the dotted line is the noise floor.",
    "curves": "Latency against throughput over the load: measured (filled) and simulated (hollow).",
    "residuals": "Predicted / measured against batch, context and size of the model.",
}


def _figures(figures: Mapping[str, str]) -> list[str]:
    parts = ["## Figures"] if figures else []
    for name, path in figures.items():
        parts += [f"![{name}]({path})", _CAPTIONS[name]]
    return parts


def _regimes(groups: list[dict[str, Any]]) -> list[str]:
    if not groups:
        return []
    head = ("GPU", "load", "regime", "metric", "n", "bias", "median", "MAPE", "p90", "noise", "margin", "verdict")
    rows = []
    for g in groups:
        e = g["errors"]
        figures = (_with(e["bias"], True), _with(e["median"]), percent(e["mape"]["value"]), percent(e["p90"]["value"]))
        of_group = (code(g["gpu"]), g["load"], g["regime"], g["metric"], str(e["n"]))
        rows.append([*of_group, *figures, percent(g["noise"]), percent(g["margin"]), g["verdict"]])
    said = (
        "error = predicted / measured - 1; bias is its mean, median, MAPE and p90 are of its size. In brackets 90 % "
        "bootstrap intervals over runs. Verdict: whether the mean ratio lies within the margin."
    )
    return ["## Error by regime", said, table(head, rows, right=(4, 5, 6, 7, 8, 9, 10))]


def _with(found: dict[str, Any], sign: bool = False) -> str:
    """Value and interval in percent; no interval where there is nothing to resample."""
    shown = percent(found["value"], sign)
    if found["low"] is None or not math.isfinite(found["low"]):
        return shown
    return f"{shown} [{100 * found['low']:.1f}, {100 * found['high']:.1f}]"


def _errors(report: dict[str, Any]) -> list[str]:
    parts = ["## Error by model"]
    for title, key in (
        ("", "errors"),
        ("Overall", "errors_overall"),
        ("Rows that their source doubts", "errors_of_suspect_rows"),
    ):
        if report[key]:
            rows = [
                [prose(r["group"]), r["metric"], str(r["n"]), percent(r["bias"], True), percent(r["median"]),
                 percent(r["mean"]), percent(r["p90"]), percent(r["covered"])]
                for r in report[key]
            ]  # fmt: skip
            head = ("group", "metric", "n", "bias", "median", "MAPE", "p90", "in the 90 % interval")
            parts += [f"### {title}" if title else "", table(head, rows, right=tuple(range(2, 8)))]
    return parts if len(parts) > 1 else []


def _not_known(report: dict[str, Any]) -> list[str]:
    noise = report["noise_floor"]
    middle = sorted(noise["spread"].values())[len(noise["spread"]) // 2] if noise["spread"] else 0.0
    lines = [f"noise floor {percent(middle)}, from {noise['origin']} ({noise['repeats']})"]
    lines.append(f"{report['fitted_rows']} of the clean rows were used in the fit, {report['new_rows']} were not")
    lines += [f"calibration {code(p['name'])}: {prose(p['title'])}, data {code((p['data_hash'] or 'none')[:12])}"
              for p in report["profiles"]]  # fmt: skip
    lines += [f"outside the fitted range, interval widened: {prose(note)}" for note in report["extrapolated"]]
    return ["## What it rests on", bullets(lines)]
