"""The report as plain text: no escape codes, no box characters, the same bytes at every terminal width."""

from __future__ import annotations

from collections.abc import Sequence

from simulator.report import units
from simulator.report.table import Report

BAR_WIDTH = 40


def columns(rows: Sequence[Sequence[str]], right: Sequence[int] = (), gap: str = "  ") -> list[str]:
    """Rows as aligned lines; the column numbers in `right` are aligned to the right. Trailing blanks are cut."""
    if not rows:
        return []
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for row in rows:
        padded = [cell.rjust(widths[i]) if i in right else cell.ljust(widths[i]) for i, cell in enumerate(row)]
        lines.append(gap.join(padded).rstrip())
    return lines


def bar(fraction: float, width: int = BAR_WIDTH) -> str:
    """`fraction` of a bar of `width` signs; anything above zero shows at least one."""
    return "#" * (max(1, round(fraction * width)) if fraction > 0 else 0)


def render_plain(report: Report) -> str:
    """The whole report, ending in a newline."""
    lines = [report.headline, ""]
    for alarm in report.alarms:
        lines += [f"WARNING: {alarm}", ""]
    if report.warnings:
        lines += [f"WARNING: {report.warning}:"]
        lines += [f"  - {warning}" for warning in report.warnings] + [""]
    # One grid for all sections, so that values stand in one column down the page.
    grid = columns([row for section in report.sections for row in section.rows])
    for section in report.sections:
        own, grid = grid[: len(section.rows)], grid[len(section.rows) :]
        lines += [section.title, *(f"  {line}" for line in own), ""]
    shares = [(cause, units.percent(fraction), bar(fraction)) for cause, fraction in report.shares]
    lines += [f"Where the time goes ({report.shares_note})", *_indent(columns(shares, right=(1,))), ""]
    if report.calls:
        calls = columns([report.call_columns, *report.calls], right=range(1, len(report.call_columns)))
        lines += [f"{report.calls_title} ({report.calls_note})", *_indent(calls), ""]
    lines += ["Assumptions", *(f"  - {line}" for line in report.assumptions), ""]
    lines += ["Calibration", *_indent(report.calibration)]
    return "\n".join(lines) + "\n"


def _indent(lines: Sequence[str]) -> list[str]:
    return [f"  {line}" for line in lines]
