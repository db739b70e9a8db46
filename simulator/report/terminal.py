"""The report on a terminal, with colour, by rich. Imported only when somebody looks: rich takes its time to load."""

from __future__ import annotations

import sys

from rich import box
from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from simulator.report import units
from simulator.report.listing import Listing
from simulator.report.plain import bar, columns
from simulator.report.table import Report, Section


def print_report(report: Report) -> None:
    """Write the report to the terminal on stdout."""
    _console().print(_report(report))


def print_listing(listing: Listing) -> None:
    """Write a `--list` table to the terminal on stdout.

    Where the terminal is too narrow for whole rows, the last column gets lines of its own under each row.
    """
    console = _console()
    whole = columns([listing.columns, *listing.rows], right=listing.right)
    if max(map(len, whole)) <= console.width:
        head, *lines, remarks = *whole, [""] * len(listing.rows)
    else:
        short = [row[:-1] for row in (listing.columns, *listing.rows)]
        head, *lines = columns(short, right=listing.right)
        remarks = [row[-1] for row in listing.rows]
    console.print(Text(head, style="bold"))
    for line, remark in zip(lines, remarks):
        console.print(Text(line))
        if remark:
            console.print(Padding(Text(remark, style="dim"), (0, 0, 0, 4)))
    console.print(Text(f"\n{listing.footer}", style="dim"))


def _console() -> Console:
    return Console(file=sys.stdout, highlight=False)


def _report(report: Report) -> Group:
    parts: list[RenderableType] = [Text(report.headline, style="bold")]
    for alarm in report.alarms:
        parts.append(Panel(Text(alarm), title="Warning", title_align="left", border_style="red"))
    if report.warnings:
        lines = Text("\n".join(f"- {warning}" for warning in report.warnings))
        body = Group(Text(f"{report.warning}:"), lines)
        parts.append(Panel(body, title="Warning", title_align="left", border_style="yellow"))
    for section in report.sections:
        parts += [_title(section.title), _facts(report, section)]
    parts += [_title("Where the time goes", report.shares_note), _shares(report)]
    if report.calls:
        parts += [_title(report.calls_title, report.calls_note), _calls(report)]
    parts += [_title("Assumptions"), _bullets(report.assumptions)]
    parts += [_title("Calibration"), _bullets(report.calibration)]
    return Group(*parts)


def _facts(report: Report, section: Section) -> Table:
    """Name, value, remark; values stand in one column over all sections."""
    rows = [row for each in report.sections for row in each.rows]
    name_width, value_width = (max(len(row[i]) for row in rows) for i in (0, 1))
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True, min_width=name_width + 2)
    table.add_column(no_wrap=True, min_width=value_width, style="bold")
    table.add_column(style="dim")
    for name, value, remark in section.rows:
        table.add_row(Text(f"  {name}"), Text(value), Text(remark))
    return table


def _title(title: str, note: str = "") -> Text:
    return Text.assemble((f"\n{title}", "bold cyan"), (f"  {note}" if note else "", "dim"))


def _shares(report: Report) -> Table:
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column()
    table.add_column(justify="right")
    table.add_column(no_wrap=True, overflow="crop")
    for cause, fraction in report.shares:
        blocks = bar(fraction).replace("#", "\N{FULL BLOCK}")
        table.add_row(f"  {cause}", units.percent(fraction), Text(blocks, style="blue"))
    return table


def _calls(report: Report) -> Padding:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for i, name in enumerate(report.call_columns):
        table.add_column(name, justify="right" if i else "left", no_wrap=i == 0)
    for row in report.calls:
        table.add_row(*map(Text, row))
    return Padding(table, (0, 0, 0, 2))


def _bullets(lines: tuple[str, ...]) -> Table:
    """Wrapped lines hang behind their dash."""
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 1, 0, 0))
    for line in lines:
        table.add_row("  -", Text(line))
    return table
