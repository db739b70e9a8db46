"""The verdict as plain text: what was found, what was compared, how far predictions are from measurements."""

from __future__ import annotations

import math
import textwrap
from typing import Any

WIDTH = 118
SHOWN_RUNS = 3  # ids that a finding lists
SHOWN_STATUSES = 12
_COLUMNS = ("bias", "median", "mean", "p90", "covered")


def text(report: dict[str, Any]) -> str:
    """The report as plain text. `report`: see `validate.summary.summary`."""
    lines = [f"{report['runs']} runs of {report['source']}", ""]
    lines += _wrapped(f"{report['verdict']['word']}: {report['verdict']['says']}", "")
    lines += ["", *_statuses(report["status"])]
    if report["refused_figures"]:
        lines += ["", f"{report['refused_figures']} measured figures are refused: no error is given for them"]
    lines += _findings(report["findings"])
    for profile in report["profiles"]:
        lines += ["", f"calibration: {profile['name']}: {profile['title']}"]
    lines += [
        "",
        f"{report['fitted_rows']} of the clean rows were used in the fit, {report['new_rows']} were not",
        _noise(report["noise_floor"]),
    ]
    lines += _groups(report["groups"])
    lines += [
        "",
        "error = predicted / measured - 1; bias is its mean, the rest are of its size; covered = in the 90 % interval",
    ]
    for title, key in (
        ("by model", "errors"),
        ("overall", "errors_overall"),
        ("rows that their source doubts (suspect:, ambiguous:), in no statistic above", "errors_of_suspect_rows"),
    ):
        lines += _errors(title, report[key])
    if report["extrapolated"]:
        lines += ["", "outside the fitted range (intervals widened):"]
        lines += [f"  {note}" for note in report["extrapolated"]]
    return "\n".join(lines)


def _wrapped(sentence: str, indent: str) -> list[str]:
    return textwrap.wrap(sentence, WIDTH, initial_indent=indent, subsequent_indent=indent, break_long_words=False)


def _statuses(counts: dict[str, int]) -> list[str]:
    shown = list(counts.items())[:SHOWN_STATUSES]
    lines = [f"  {count:5d}  {status}" for status, count in shown]
    rest = sum(counts.values()) - sum(count for _, count in shown)
    return [*lines, f"  {rest:5d}  of {len(counts) - len(shown)} other statuses"] if rest else lines


def _findings(findings: list[dict[str, Any]]) -> list[str]:
    alarms = [f for f in findings if f["severity"] != "note"]
    notes = [f for f in findings if f["severity"] == "note"]
    lines: list[str] = []
    for finding in alarms:
        also = "".join(f", {fault}" for fault in finding["also"])
        lines += ["", f"{finding['fault']}{also} {finding['fault_name']} · {finding['severity']} · "
                  f"{finding['confidence']} · {finding['check']} · {_runs(finding['runs'])}"]  # fmt: skip
        lines += _wrapped(finding["says"], "    ")
        lines += _wrapped(f"next: {finding['next']}", "    ")
    if notes:
        lines += ["", "notes, no alarms:"]
        for note in notes:
            lines += _wrapped(f"- {note['fault']} {note['says']}", "  ")
    return lines


def _runs(runs: list[str] | tuple[str, ...]) -> str:
    if not runs:
        return "the file as a whole"
    shown = ", ".join(runs[:SHOWN_RUNS])
    more = f" and {len(runs) - SHOWN_RUNS} more" if len(runs) > SHOWN_RUNS else ""
    return f"{len(runs)} run{'s' * (len(runs) != 1)}: {shown}{more}"


def _noise(noise: dict[str, Any]) -> str:
    values = sorted(noise["spread"].values())
    middle = values[len(values) // 2] if values else 0.0
    origin = {
        "repeats": f"from {noise['repeats']} repeated runs",
        "rel_noise": f"the median of {noise['repeats']} stated values",
        "assumed": "assumed: the file holds no repeats",
    }[noise["origin"]]
    return f"noise floor {100 * middle:.1f} % ({origin})"


def _groups(groups: list[dict[str, Any]]) -> list[str]:
    """By regime, with bootstrap intervals over runs and the verdict of the equivalence test."""
    if not groups:
        return []
    names = [f"{g['gpu']} · {g['load']} · {g['regime']}" for g in groups]
    width = max(map(len, names))
    out = ["", "by regime; in brackets 90 % bootstrap intervals; margin: how far a mean ratio may be from one"]
    out.append(
        f"{'group':{width}}  {'metric':16} {'n':>5}  {'bias':>22}  {'median':>21}  {'p90':>7}  {'margin':>6}  verdict"
    )
    for name, g in zip(names, groups):
        errors = g["errors"]
        out.append(
            f"{name:{width}}  {g['metric']:16} {errors['n']:5d}  {_interval(errors['bias'], '+7.1f')}  "
            f"{_interval(errors['median'], '6.1f')}  {100 * errors['p90']['value']:6.1f}%  "
            f"{100 * g['margin']:5.0f}%  {g['verdict']}"
        )
    return out


def _interval(found: dict[str, Any], form: str) -> str:
    """Value and interval in percent; no interval where there is nothing to resample."""
    shown = f"{100 * found['value']:{form}}%"
    if found["low"] is None or not math.isfinite(found["low"]):
        return shown + " " * 14
    return shown + f" [{100 * found['low']:.1f}, {100 * found['high']:.1f}]".rjust(14)


def _errors(title: str, rows: list[dict[str, Any]]) -> list[str]:
    if not rows:
        return []
    width = max(len(row["group"]) for row in rows)
    out = ["", title]
    out.append(f"{'group':{width}}  {'metric':24} {'n':>5} " + " ".join(f"{name:>8}" for name in _COLUMNS))
    for row in rows:
        figures = " ".join(f"{100 * row[key]:7.1f}%" for key in _COLUMNS)
        out.append(f"{row['group']:{width}}  {row['metric']:24} {row['n']:5d} {figures}")
    return out
