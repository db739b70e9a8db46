"""The ledger of fidelity: judged predictions become error statistics, targets met or missed, and docs/fidelity.md.

Errors are predicted / measured - 1, as fractions (0.05 = 5 %).
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass

from calibration.error_statistics import NO_INTERVAL, Errors, coverage_of, errors_of
from calibration.judged import Judged, family_of, family_order, split_apart
from calibration.targets import Outcome, outcomes

NOTHING = "–"

INTRO = """\
How far predictions are from measurements, for every source, GPU and model. This file is written by `{command}`; do not
edit it.

**How to read it.** An error is predicted / measured - 1. *bias* is its mean: above zero, the simulator says too much.
The other statistics are of its size: *MAPE* its mean, *median*, *p90* its 90th percentile. *n* counts measurements;
where some have no left-out prediction it reads "all/left out".

* **In-sample**: the calibration was fitted with these very runs. It says how well the model can describe them.
* **Left out**: every run of the model's architecture is kept out of the fit, on all GPUs and from all sources at once;
  models with the same layers and vocabulary are left out together, whatever their names. It says what to expect of a
  model that nobody measured. Targets are judged on it unless they say otherwise.
* **Roofline**: the median error of the plain data-sheet calculation: each step lasts max(bytes / bandwidth,
  FLOPs / peak) of one device, with the simulator's bytes, FLOPs and schedule of steps, without overheads and
  communication. It says nothing of power.
* **Inside**: the share of measurements inside the 90 % interval that the left-out prediction states.

Of TTFT, TPOT and E2E latency the mean is judged, of ITL (gaps between tokens) the median, or what a source has instead;
its other statistics have rows of their own ("TTFT median", "ITL p99"). *Whole run* power holds start-up and idle
samples that no simulator knows of. Rows whose flags say `suspect:` or `ambiguous:` are in no statistic; they stand at
the end with their reasons.
"""


# -- statistics ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LedgerRow:
    """One group of clean measurements. `model` is "dense" or "MoE" in a summary row.

    coverage: share inside the 90 % interval of those that have a left-out prediction; None where none has.
    """

    source: str
    gpu: str
    model: str
    metric: str  # family
    n: int
    in_sample: Errors
    left_out: Errors | None
    roofline: Errors | None
    coverage: float | None


def ledger_rows(judged: Iterable[Judged]) -> list[LedgerRow]:
    """One row per source, GPU, model and metric family of the clean measurements, in that order."""
    return _rows(split_apart(judged)[0], lambda row: row.model)


def summary_rows(judged: Iterable[Judged]) -> list[LedgerRow]:
    """One row per source, GPU, kind of model (dense or MoE) and metric family of the clean measurements."""
    return _rows(split_apart(judged)[0], lambda row: "MoE" if row.moe else "dense")


def suspect_rows(judged: Iterable[Judged]) -> list[tuple[LedgerRow, str]]:
    """The same statistics of the rows shown apart, each with its reason; judged nowhere else."""
    groups: dict[str, list[Judged]] = {}
    for row in split_apart(judged)[1]:
        groups.setdefault("; ".join(sorted(row.reasons)), []).append(row)
    found = [(line, reason) for reason, rows in groups.items() for line in _rows(rows, lambda row: row.model)]
    return sorted(found, key=lambda pair: (pair[1], _order(pair[0])))


def _rows(clean: Sequence[Judged], model_of: Callable[[Judged], str]) -> list[LedgerRow]:
    groups: dict[tuple[str, str, str, str], list[Judged]] = {}
    for row in clean:
        groups.setdefault((row.source, row.gpu, model_of(row), family_of(row)), []).append(row)
    return sorted((_row(key, found) for key, found in groups.items()), key=_order)


def _row(key: tuple[str, str, str, str], found: Sequence[Judged]) -> LedgerRow:
    return LedgerRow(
        *key,
        n=len(found),
        in_sample=errors_of((row.in_sample, row.measured) for row in found),
        left_out=errors_of((row.left_out, row.measured) for row in found),
        roofline=errors_of((row.roofline, row.measured) for row in found),
        coverage=coverage_of(found),
    )


def _order(row: LedgerRow) -> tuple:
    return (row.source, row.gpu, row.model.lower(), family_order(row.metric))


# -- coverage by regime ----------------------------------------------------------------------------------------

REGIMES: tuple[tuple[str, Callable[[Judged], bool]], ...] = (
    ("batch ≤ 8", lambda row: row.batch < 8.5),
    ("9 to 64", lambda row: 8.5 <= row.batch < 64.5),
    ("> 64", lambda row: row.batch >= 64.5),
    ("prompt < 1/4", lambda row: row.prompt_share < 0.25),
    ("1/4 to 3/4", lambda row: 0.25 <= row.prompt_share <= 0.75),
    ("> 3/4", lambda row: row.prompt_share > 0.75),
)


def coverage_by_regime(judged: Iterable[Judged]) -> dict[str, dict[str, tuple[int, float]]]:
    """By metric family ("all" last) and regime: (n, share inside the 90 % interval); those without data are absent."""
    clean = [row for row in split_apart(judged)[0] if row.inside is not None and family_of(row) not in NO_INTERVAL]
    families = sorted({family_of(row) for row in clean}, key=family_order)
    table: dict[str, dict[str, tuple[int, float]]] = {}
    for name in [*families, "all"] if clean else []:
        own = [row for row in clean if name == "all" or family_of(row) == name]
        parts = {regime: [row for row in own if holds(row)] for regime, holds in REGIMES}
        parts["everywhere"] = own
        table[name] = {regime: (len(rows), coverage_of(rows)) for regime, rows in parts.items() if rows}
    return table


# -- text ------------------------------------------------------------------------------------------------------

_STATISTICS_HEAD = ("in-sample: bias", "MAPE", "median", "p90", "left out: bias", "MAPE", "median", "p90")
_HEAD = ("n", *_STATISTICS_HEAD, "roofline", "inside")


def markdown(judged: Iterable[Judged], operators_markdown: str, command: str, header: str) -> str:
    """The whole of docs/fidelity.md. `header`: what was judged with which version, one paragraph of markdown."""
    judged = list(judged)
    parts = ["# Fidelity", header.strip(), INTRO.format(command=command).strip()]
    parts += ["## Targets", _targets(outcomes(judged)), "## Summary", _summary(summary_rows(judged))]
    parts += ["## Intervals by regime", _regimes(coverage_by_regime(judged))]
    parts += ["## Every model", *_by_source(ledger_rows(judged))]
    parts += ["## Shown apart, not judged", _suspects(suspect_rows(judged)), _repeated(judged)]
    parts += ["## Single operators", operators_markdown.strip() or "None judged."]
    return "\n\n".join(part for part in parts if part) + "\n"


def to_json(judged: Iterable[Judged], command: str, header: str) -> str:
    """Everything that `markdown` shows of the runs, as one JSON object."""
    judged = list(judged)
    found = {
        "command": command,
        "header": header,
        "targets": [
            {"id": o.target.id, "judged_on": o.judged_on, "n": o.n, "value": o.value, "verdict": o.verdict,
             "sentence": o.target.sentence, "statistic": o.target.statistic, "at_most": o.target.at_most,
             "at_least": o.target.at_least}
            for o in outcomes(judged)
        ],
        "summary": [asdict(row) for row in summary_rows(judged)],
        "rows": [asdict(row) for row in ledger_rows(judged)],
        "coverage": {
            family: {regime: {"n": n, "inside": share} for regime, (n, share) in regimes.items()}
            for family, regimes in coverage_by_regime(judged).items()
        },
        "apart": [{"reason": reason, **asdict(row)} for row, reason in suspect_rows(judged)],
        "repeated": split_apart(judged)[2],
    }  # fmt: skip
    return json.dumps(found, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def _percent(value: float | None, sign: bool = False) -> str:
    if value is None:
        return NOTHING
    text = f"{100 * value:{'+' if sign else ''}.{0 if abs(value) >= 9.9995 else 1}f}"
    return f"{'0.0' if text in ('-0.0', '+0.0') else text} %"


def _errors(errors: Errors | None) -> tuple[str, str, str, str]:
    if errors is None:
        return (NOTHING,) * 4
    return (_percent(errors.bias, sign=True), *(_percent(v) for v in (errors.mape, errors.median, errors.p90)))


def _cells(row: LedgerRow) -> tuple[str, ...]:
    left_out = row.left_out.n if row.left_out else 0
    n = f"{row.n}" if left_out in (0, row.n) else f"{row.n}/{left_out}"
    roofline = _percent(row.roofline.median if row.roofline else None)
    inside = NOTHING if row.coverage is None else f"{100 * row.coverage:.0f} %"
    return (n, *_errors(row.in_sample), *_errors(row.left_out), roofline, inside)


def _table(head: Sequence[str], lines: Iterable[Sequence[str]], text_columns: int) -> str:
    """A markdown table; the first `text_columns` are text, the rest numbers, aligned to the right."""
    rule = ["---"] * text_columns + ["--:"] * (len(head) - text_columns)
    return "\n".join("| " + " | ".join(line) + " |" for line in (head, rule, *lines))


def _targets(found: Sequence[Outcome]) -> str:
    counts = Counter(outcome.verdict for outcome in found)
    first = ", ".join(f"{counts[verdict]} {verdict}" for verdict in ("met", "missed", "no data") if counts[verdict])
    lines = [
        (
            o.target.sentence, o.judged_on.replace("_", "-" if o.judged_on == "in_sample" else " "), str(o.n),
            o.target.limit(), _percent(o.value), "met" if o.verdict == "met" else f"**{o.verdict}**",
        )
        for o in found
    ]  # fmt: skip
    return f"{first}.\n\n" + _table(("target", "judged on", "n", "limit", "found", "verdict"), lines, 2)


def _summary(rows: Sequence[LedgerRow]) -> str:
    if not rows:
        return "No measurements."
    return _table(
        ("source", "GPU", "models", "metric", *_HEAD),
        ((row.source, row.gpu, row.model, row.metric, *_cells(row)) for row in rows), 4,
    )  # fmt: skip


def _by_source(rows: Sequence[LedgerRow]) -> list[str]:
    parts = []
    for source in dict.fromkeys(row.source for row in rows):
        own = [row for row in rows if row.source == source]
        lines = ((row.gpu, _short(row.model), row.metric, *_cells(row)) for row in own)
        parts += [f"### {source}", _table(("GPU", "model", "metric", *_HEAD), lines, 3)]
    return parts or ["No measurements."]


def _short(model: str) -> str:
    """A model id without its organisation."""
    return model.rpartition("/")[2] or model


def _suspects(rows: Sequence[tuple[LedgerRow, str]]) -> str:
    if not rows:
        return "None."
    lines = ((f"`{reason}`", row.source, row.gpu, _short(row.model), row.metric, *_cells(row)) for row, reason in rows)
    return _table(("reason", "source", "GPU", "model", "metric", *_HEAD), lines, 5)


def _repeated(judged: Sequence[Judged]) -> str:
    count = split_apart(judged)[2]
    return count and (
        f"{count} columns repeat another measurement of the same run under a second name (total beside output tokens "
        "per second, the duration of a single batch, end-to-end time of one token) and are counted once."
    )


def _regimes(table: dict[str, dict[str, tuple[int, float]]]) -> str:
    if not table:
        return "No left-out predictions."
    names = [*(name for name, _ in REGIMES), "everywhere"]
    lines = [
        (family, *(f"{100 * found[n][1]:.0f} % ({found[n][0]})" if n in found else NOTHING for n in names))
        for family, found in table.items()
    ]
    text = (
        "Share of left-out measurements inside their 90 % interval (number of measurements), by sequences at a time "
        "and by the share of a request's tokens that are prompt."
    )
    return f"{text}\n\n{_table(('metric', *names), lines, 1)}"
