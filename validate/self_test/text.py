"""The outcome of a self-test for people: plain text, and the Markdown of docs/self-test.md."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Sequence

from simulator.report.plain import columns
from validate.commands.markdown import bullets, paragraphs, prose, table
from validate.finding import fault_classes
from validate.self_test.outcome import Cell, Outcome, by_class, shown_share

WIDTH = 118
RULES = (
    "An injection is a fault put into clean runs: into the measured side, or into the file of another simulator. "
    "It counts as detected when a check raises an alarm (fail or warn) that names one of the changed runs and did not "
    "before. F10, F11 and F13 are no faults of a run, and overload is a state of it: there the suite labels the right "
    "runs with a note by design, and that note counts.",
    "The class is right when the strongest new finding (by severity, confidence, runs, layer) names it among its "
    "classes, or a class that the labelled cases give this kind of fault.",
    "The size is how far the figure of a run that moved most has moved, in noise floors: repeats of one configuration "
    "where the measured figures betray the fault by themselves; repeats and the spread that the calibration claims, as "
    "the root of their squares, where only the comparison with a simulation or with neighbours can. Power holds 5% of "
    "sensor gain. Without a size: no figure changed. Below 2 floors a fault is not to be told from clean runs, and "
    "misses are expected.",
    "Real material is part of the shipped files without their doubted rows; simulated material is our own prediction "
    "with 1.5% from run to run and 2% from machine to machine, for columns, repeats and loads that no file holds. "
    "Alarms that stand in a material while it is clean never count as detections.",
)
HEAD = ("fault", "magnitude", "case", "floors", "injected", "detected", "right", "missed", "found by")


def self_test_text(outcome: Outcome) -> str:
    """Plain text: targets on top, then the detection matrix, then the shipped runs."""
    lines = ["The suite tested by itself" + f" (seed {outcome.seed})", ""]
    rows = [("pass" if t.passed else "FAIL", t.says, "") for t in outcome.targets]
    for (mark, says, _), target in zip(rows, outcome.targets):
        lines += textwrap.wrap(f"{mark}  {says}: {target.value}", WIDTH, subsequent_indent="      ")
    lines += ["", *(f"      {says}: {share}" for says, share in outcome.beside), ""]
    for rule in RULES:
        lines += [*textwrap.wrap(rule, WIDTH), ""]
    matrix = [HEAD]
    for fault, cells in by_class(outcome.cells).items():
        matrix.append((f"{fault} {fault_classes()[fault].name}", "", "", "", *_sums(cells), ""))
        matrix += [_cell(cell) for cell in cells]
    lines += columns(matrix, right=(3, 4, 5, 6, 7))
    lines += ["", "Clean runs in an alarm, and runs that are known to be doubtful, which the suite was not told", ""]
    lines += columns(_file_rows(outcome), right=(1, 2))
    lines += ["", "Simulated campaigns while they are clean", ""]
    lines += columns([("campaign", "runs", "in an alarm"), *_campaigns(outcome)], right=(1, 2))
    return "\n".join(line.rstrip() for line in lines)


def self_test_markdown(outcome: Outcome) -> str:
    """The page docs/self-test.md."""
    targets = [("yes" if t.passed else "**no**", prose(t.says), prose(t.value)) for t in outcome.targets]
    parts = [
        "# The suite tested by itself",
        f"Written by `python -m validate.self_test` (seed {outcome.seed}); `validate --self-test` prints the same.",
        table(("met", "target", "found (95% Clopper-Pearson)"), targets),
        bullets(f"{prose(says)}: {share}" for says, share in outcome.beside),
        "## How to read the matrix",
        *RULES,
        "## Detection matrix",
    ]
    for fault, cells in by_class(outcome.cells).items():
        injected, detected, right, missed = _sums(cells)
        parts.append(f"### {fault} {fault_classes()[fault].name}")
        parts.append(f"{injected} injected, {detected} detected, {right} with the right class, {missed} missed.")
        rows = [[prose(value) for value in _cell(cell)] for cell in cells]
        parts.append(table(HEAD, rows, right=(3, 4, 5, 6, 7)))
    head, *rows = _file_rows(outcome)
    parts += [
        "## Shipped runs",
        "Clean runs in an alarm, and runs flagged `suspect:`, whose flags the suite was not given.",
        table(head, rows, right=(1, 2)),
        "## Simulated campaigns while they are clean",
        table(("campaign", "runs", "in an alarm"), _campaigns(outcome), right=(1, 2)),
    ]
    return paragraphs(parts) + "\n"


def _sums(cells: Sequence[Cell]) -> tuple[str, str, str, str]:
    n, detected, right = (sum(getattr(c, name) for c in cells) for name in ("n", "detected", "right"))
    return str(n), str(detected), str(right), str(n - detected)


def _cell(cell: Cell) -> tuple[str, ...]:
    units = cell.units("in_floor")
    by = Counter(trial.check for trial in cell.trials if trial.check)
    kind = cell.injector.kind + (" (simulated side)" if cell.injector.side == "simulated" else "")
    return (
        f"  {kind}", cell.size.text, cell.size.case, "-" if units is None else f"{units:.3g}", str(cell.n),
        str(cell.detected), str(cell.right), str(cell.n - cell.detected),
        ", ".join(name for name, _ in by.most_common(2)),
    )  # fmt: skip


def _file_rows(outcome: Outcome) -> list[tuple[str, ...]]:
    rows = [("file", "clean", "in an alarm", "share (95% interval)", "alarms", "flagged suspect: caught of all")]
    for f in outcome.files:
        caught = ", ".join(f"{reason} {f.caught.get(reason, 0)} of {n}" for reason, n in f.suspects.items())
        alarms = ", ".join(f"{check} {n}" for check, n in f.by_check.items())
        rows.append((f.name, str(f.clean), str(len(f.alarmed)), shown_share(len(f.alarmed), f.clean), alarms, caught))
    alarmed, clean = outcome.false_alarms
    caught, suspect = outcome.suspects
    rows.append(("all", str(clean), str(alarmed), shown_share(alarmed, clean), "", f"{caught} of {suspect}"))
    return rows


def _campaigns(outcome: Outcome) -> list[tuple[str, str, str]]:
    return [(name, str(n), str(alarmed)) for name, (n, alarmed) in outcome.synthetic_clean.items()]
