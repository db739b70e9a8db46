"""Whether a metric is what its name says: the definitions of docs/records.md against what the figures fit."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np

from validate.cases import Case, Evidence
from validate.checks.first_token import FITS, fits, holds_first_token
from validate.checks.other_side import alarms_of_simulated
from validate.factors import factor_name
from validate.finding import Finding
from validate.wording import counted

TIMES = ("ttft_s", "tpot_s", "itl_s", "e2e_s")
ORDER = 0.01  # relative: rounding of percentiles
CHUNK_LOW = 0.2  # median over mean gap: prefills between the steps leave 0.21 and more, chunks of tokens 0 to 0.01
CHUNK_CERTAIN = 0.02  # no mix of steps gives this
BELOW_FLOOR = 0.5  # of the floor of the gap: then a median gap is not one between tokens
GAP_APART = 0.10  # mean gap over mean time per token of requests that are alike
GAP_DRAWN = (0.33, 1.5)  # the same for drawn lengths; gaps weigh tokens alike, TPOT requests: shipped runs have 0.45 up
DEAD_RUNS = 5  # in which two columns stand in one ratio
DEAD_CV = 0.001  # coefficient of variation of the ratio: below what rounding to four digits leaves
DEAD_RANGE = 1.5  # largest over smallest value in those runs, and of the tokens that must move the ratio


def check(evidence: Evidence) -> Iterator[Finding]:
    """TPOT with the first token, gaps between chunks, orders of statistics and of parts, copied columns; scopes.

    Of the measured figures, and of those of another simulator.
    """
    yield from _of_records(evidence)
    yield from alarms_of_simulated(evidence, _of_records)
    yield from _scopes(evidence.cases)


def _of_records(evidence: Evidence) -> Iterator[Finding]:
    yield from holds_first_token(evidence)
    yield from _chunks(evidence.cases)
    yield from _gaps_against_tokens(evidence.cases)
    yield from _order(evidence.cases)
    yield from _nesting(evidence.cases)
    yield from _copied(evidence)


def _finding(what: str, severity: str, cases: Sequence[Case], says: str, metrics: Sequence[str], **more) -> Finding:
    more = {"confidence": "likely", **more}
    return Finding(
        check=f"definitions.{what}", layer="definitions", fault="F5", severity=severity, says=says,
        runs=tuple(dict.fromkeys(case.id for case in cases)), metrics=tuple(metrics), **more,
    )  # fmt: skip


def _usable(*values: float | None) -> bool:
    return all(value is not None and value > 0 and math.isfinite(value) for value in values)


# --- gaps between tokens ----------------------------------------------------------------------------------------------


def _chunks(cases: Sequence[Case]) -> Iterator[Finding]:
    """Median gaps so small that they are gaps within a chunk of tokens."""
    found = []
    for case in cases:
        r = case.record
        mean_s = r.itl_s_mean or r.tpot_s_mean
        if not _usable(r.itl_s_median, mean_s):
            continue
        share, floor_s = r.itl_s_median / mean_s, case.floor.get("itl_s_median")
        below = floor_s is not None and r.itl_s_median < BELOW_FLOOR * floor_s
        if share < CHUNK_CERTAIN or (share < CHUNK_LOW and below):
            found.append((case, share, mean_s))
    if found:
        worst, share, mean_s = min(found, key=lambda row: row[1])
        yield _finding(
            "chunked", "fail", [case for case, *_ in found],
            f"the median gap of {counted(len(found), 'run')} is one within a chunk: "
            f"{1e3 * worst.record.itl_s_median:.3g} ms"
            f" with a mean of {1e3 * mean_s:.3g} ms; tokens arrive several at a time",
            ("itl_s_median",), confidence="certain" if share < CHUNK_CERTAIN else "likely",
            evidence={
                "itl_s_median": worst.record.itl_s_median, "mean_s": mean_s, "share": share, "share_low": CHUNK_LOW,
                "floor_s": worst.floor.get("itl_s_median", "unknown"), "worst_run": worst.id, "runs": len(found),
            },
            next="count the tokens of each chunk, and use the mean time per token",
        )  # fmt: skip


def _gaps_against_tokens(cases: Sequence[Case]) -> Iterator[Finding]:
    """Mean gap against mean time per token: equal for requests that are alike, a number of tokens per chunk else."""
    found = []
    for case in cases:
        r = case.record
        if _usable(r.itl_s_mean, r.tpot_s_mean) and (r.output_tok or 0) >= 2 and not fits(case):
            low, high = (1 / (1 + GAP_APART), 1 + GAP_APART) if r.length_spread == "fixed" else GAP_DRAWN
            ratio = r.itl_s_mean / r.tpot_s_mean
            if not low <= ratio <= high:
                found.append((case, ratio))
    if found:
        worst, ratio = max(found, key=lambda row: abs(math.log(row[1])))
        yield _finding(
            "gap_of_token", "warn", [case for case, _ in found],
            f"the mean gap of {counted(len(found), 'run')} is not the time per token: {ratio:.3g} times it,"
            f" {_why(worst, ratio)}",
            ("itl_s_mean", "itl_s_median", "itl_s_p99"),
            evidence={
                "ratio": ratio, "itl_s_mean": worst.record.itl_s_mean, "tpot_s_mean": worst.record.tpot_s_mean,
                "output_tok": worst.record.output_tok, "worst_run": worst.id, "runs": len(found),
                "formula": "itl_s_mean / tpot_s_mean",
            },
            next="count gaps and tokens: chunks of several tokens make gaps long and few, a last empty chunk makes one"
            " more",
        )  # fmt: skip


def _why(case: Case, ratio: float) -> str:
    n = case.record.output_tok
    if abs(ratio * n / (n - 1) - 1) < FITS:
        return f"which is (n - 1) / n for n = {n:g}: one gap too many was counted"
    if ratio > 1:
        return f"as with {ratio:.3g} tokens to a chunk"
    return "as when slow requests are short"


# --- order ------------------------------------------------------------------------------------------------------------


def _order(cases: Sequence[Case]) -> Iterator[Finding]:
    """A 99th percentile is not below the median, and below the mean only if one in a hundred outweighs all others.

    Gaps may be like that: prompts of others make few of them long.
    """
    for other, severity, confidence in (("median", "fail", "certain"), ("mean", "warn", "likely")):
        found = []
        for case in cases:
            for name in TIMES:
                if (name, other) == ("itl_s", "mean"):
                    continue
                p99, value = (getattr(case.record, f"{name}_{which}") for which in ("p99", other))
                if _usable(p99, value) and p99 < (1 - ORDER) * value:
                    found.append((case, name, p99, value))
        if found:
            worst, name, p99, value = min(found, key=lambda row: row[2] / row[3])
            yield _finding(
                f"p99_below_{other}", severity, [case for case, *_ in found],
                f"the 99th percentile of {counted(len(found), 'figure')} is below the {other}: "
                f"{name.removesuffix('_s').upper()}"
                f" {1e3 * p99:.4g} ms against {1e3 * value:.4g} ms",
                sorted({f"{row[1]}_{which}" for row in found for which in ("p99", other)}), confidence=confidence,
                evidence={
                    "p99_s": p99, f"{other}_s": value, "ratio": p99 / value, "worst_run": worst.id, "runs": len(found),
                },
                next="see whether both are of the same metric, the same requests and in the same unit",
            )  # fmt: skip


def _nesting(cases: Sequence[Case]) -> Iterator[Finding]:
    """A part is not longer than the whole: first token within the request, tokens within the request."""
    found = []
    for case in cases:
        r = case.record
        for which in ("mean", "median", "p99"):
            whole = getattr(r, f"e2e_s_{which}")
            first, token = getattr(r, f"ttft_s_{which}"), getattr(r, f"tpot_s_{which}")
            parts = [(f"ttft_s_{which}", first)]
            if r.length_spread == "fixed" and which == "mean" and (r.output_tok or 0) >= 2 and token is not None:
                parts.append((f"tpot_s_{which}", token * (r.output_tok - 1)))
            found += [
                (case, name, part, whole, f"e2e_s_{which}")
                for name, part in parts
                if _usable(part, whole) and part > (1 + ORDER) * whole
            ]
    if found:
        worst, name, part, whole, _ = max(found, key=lambda row: row[2] / row[3])
        yield _finding(
            "part_above_whole", "fail", [case for case, *_ in found],
            f"a part lasts longer than the whole in {counted(len(found), 'figure')}: {name} makes {part:.4g} s of a "
            "request of"
            f" {whole:.4g} s",
            sorted({name for row in found for name in (row[1], row[4])}), confidence="certain",
            also=("F6", "F8") if factor_name(part / whole) is None else ("F6", "F2", "F8"),
            evidence={
                "part_s": part, "whole_s": whole, "ratio": part / whole, "worst_run": worst.id, "runs": len(found),
            },
            next="look at units, at the clock of each time stamp, and at which requests each figure is over",
        )  # fmt: skip


# --- columns that are copies ------------------------------------------------------------------------------------------

_STATISTICS = (("p99", "median"), ("p99", "mean"), ("median", "mean"))
_PAIRS = (
    ("ttft_s_mean", "e2e_s_mean"), ("ttft_s_median", "e2e_s_median"), ("ttft_s_mean", "tpot_s_mean"),
    *((f"{name}_{which}", f"{name}_{of}") for name in TIMES for which, of in _STATISTICS),
)  # fmt: skip


def _copied(evidence: Evidence) -> Iterator[Finding]:
    """Two columns in one ratio over runs of different lengths: one of them was computed from the other."""
    for cases in evidence.campaigns().values():
        for name, of in _PAIRS:
            rows = [
                (c, getattr(c.record, name), getattr(c.record, of)) for c in cases if (c.record.output_tok or 0) >= 2
            ]
            rows = [row for row in rows if _usable(row[1], row[2])]
            if len(rows) < DEAD_RUNS:
                continue
            ratios, values = np.array([a / b for _, a, b in rows]), np.array([b for *_, b in rows])
            ratio = float(ratios.mean())
            if ratios.std() / ratio < DEAD_CV and abs(ratio - 1) > FITS and _moves(rows, values):
                yield _finding(
                    "copied_column", "fail", [case for case, *_ in rows],
                    f"{name} is {ratio:.4g} times {of} in all {len(rows)} runs, which differ in size: not measured",
                    (name,), confidence="certain" if len(rows) > DEAD_RUNS else "likely",
                    evidence={
                        "ratio": ratio, "ratio_cv": float(ratios.std() / ratio), "ratio_cv_high": DEAD_CV,
                        "formula": f"{name} / {of}", "range": float(values.max() / values.min()), "runs": len(rows),
                    },
                    next="look for a constant in the script that wrote the file, and leave the column empty",
                )  # fmt: skip


def _moves(rows: Sequence[tuple[Case, float, float]], values: np.ndarray) -> bool:
    """Whether the runs differ in something that must move the ratio: the figure itself, and lengths or batch."""
    sizes = {(c.record.input_tok, c.record.output_tok, c.record.concurrency) for c, *_ in rows}
    return values.max() > DEAD_RANGE * values.min() and len(sizes) >= 3


# --- scope ------------------------------------------------------------------------------------------------------------


def _scopes(cases: Sequence[Case]) -> Iterator[Finding]:
    """Power of another scope than the simulated; one that is not stated is a matter of its bounds."""
    powered = [c for c in cases if c.record.power_w is not None or c.record.energy_j_per_output_tok is not None]
    other = [c for c in powered if c.record.power_scope and _scope(c) not in ("", c.record.power_scope)]
    if other:
        pairs = sorted({(case.record.power_scope, _scope(case)) for case in other})
        yield _finding(
            "other_scope", "note", other,
            f"power of {counted(len(other), 'run')} covers {pairs[0][0]}, the simulated one {pairs[0][1]}",
            ("power_w", "energy_j_per_output_tok"), confidence="certain", also=("F1",),
            evidence={"measured_scope": pairs[0][0], "simulated_scope": pairs[0][1], "runs": len(other)},
            next="compare power of one scope only, or calibrate on this one",
        )  # fmt: skip


def _scope(case: Case) -> str:
    return (case.simulated.power_scope if case.simulated else None) or case.prediction.power_scope
