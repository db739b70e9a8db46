"""Time per output token that holds the first one: (last token - start) / n in place of (last - first) / (n - 1).

vLLM's `tpot` is the latter and GuideLLM's `time_per_output_token` the former: 20 ms and 29.8 ms for 100 tokens 20 ms
apart after a first one that took 1 s.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from validate.cases import Case, Evidence
from validate.finding import Finding
from validate.wording import counted

FITS = 0.01  # relative: a figure fits a definition
APART = 0.03  # relative: two definitions can be told apart
COPY = 1e-4  # relative: a quotient of two columns
DRAWN_APART = 4.0  # times, of drawn lengths: TPOT weighs requests alike, gaps weigh tokens; that leaves up to 2.5
DRAWN_FITS = 1.67  # the same of the definition that fits
CAMPAIGN_RUNS = 8  # of one campaign, to hold two definitions against the spread around the simulation
CAMPAIGN_SHARE = 0.15  # of TPOT that TTFT / n must be in the median, to tell them apart
CAMPAIGN_GAIN = 0.5  # of the spread that remains when the share of the first token is taken out
CAMPAIGN_BIAS = 1.15  # then the level fits, too
METRICS = ("tpot_s_mean", "tpot_s_median", "tpot_s_p99")


@dataclass(frozen=True)
class Fit:
    """A TPOT that fits the other definition: as stated and by the schema's definition, in seconds."""

    stated_s: float
    between_s: float
    formula: str
    certain: bool = True

    @property
    def ratio(self) -> float:
        """Stated over defined."""
        return self.stated_s / self.between_s


def holds_first_token(evidence: Evidence) -> Iterator[Finding]:
    """Runs whose own figures tell; then campaigns in which only the simulation can tell."""
    found = [(case, fit) for case in evidence.cases if (fit := fits(case))]
    for certain in (True, False):
        rows = [row for row in found if row[1].certain is certain]
        if rows:
            yield _of_runs(rows)
    known = {case.id for case, _ in found}
    for cases in evidence.campaigns().values():
        yield from _of_campaign([case for case in cases if case.id not in known])


def fits(case: Case) -> Fit | None:
    """The fit, where the figures fit the other definition and not the schema's; None also where nothing tells."""
    r, n, tpot_s = case.record, case.record.output_tok or 0.0, case.record.tpot_s_mean
    if n < 2 or not _usable(tpot_s):
        return None
    ttft_s, e2e_s, gap_s, floor_s = r.ttft_s_mean, r.e2e_s_mean, r.itl_s_mean, case.floor.get("ttft_s_mean")
    views = []
    if _usable(ttft_s, e2e_s) and e2e_s > ttft_s:
        views.append(((e2e_s - ttft_s) / (n - 1), "(e2e - ttft) / (n - 1)"))
    if _usable(ttft_s, gap_s):
        views.append((gap_s, "the mean gap between tokens"))
    for between_s, how in views:
        first_s = (ttft_s + between_s * (n - 1)) / n  # by the other definition
        if abs(tpot_s / first_s - 1) < FITS and first_s > (1 + APART) * between_s:
            return Fit(tpot_s, between_s, f"tpot = (ttft + tokens between) / n, not {how}")
        drawn = r.length_spread != "fixed"
        if drawn and first_s > DRAWN_APART * between_s and 1 / DRAWN_FITS < tpot_s / first_s < DRAWN_FITS:
            return Fit(tpot_s, between_s, f"tpot is nearer to (ttft + tokens between) / n than to {how}", certain=False)
    if not views and _usable(e2e_s, floor_s) and r.load in ("static_batch", "parallel_sampling"):
        between_s = (e2e_s - floor_s) / (n - 1)
        if abs(tpot_s * n / e2e_s - 1) < COPY and 0 < (1 + APART) * between_s < tpot_s:
            return Fit(tpot_s, between_s, "tpot = e2e / n, which leaves less for the prompt than its floor")
    return None


def _usable(*values: float | None) -> bool:
    return all(value is not None and value > 0 and math.isfinite(value) for value in values)


def _of_runs(rows: Sequence[tuple[Case, Fit]]) -> Finding:
    worst, fit = max(rows, key=lambda row: row[1].ratio)
    return Finding(
        check="definitions.tpot_first_token", layer="definitions", fault="F5",
        severity="fail" if fit.certain else "warn", confidence="certain" if fit.certain else "likely",
        runs=tuple(case.id for case, _ in rows), metrics=METRICS,
        says=f"TPOT of {counted(len(rows), 'run')} is the whole time over all tokens, the first included:"
        f" {1e3 * fit.stated_s:.3g} ms, where tokens are {1e3 * fit.between_s:.3g} ms apart",
        evidence={
            "tpot_s_mean": fit.stated_s, "tpot_s_of_definition": fit.between_s, "ratio": fit.ratio,
            "formula": fit.formula, "worst_run": worst.id, "runs": len(rows),
        },
        next="(last - first) / (n - 1) is vLLM's, (last - start) / n GuideLLM's: recompute (n t - ttft) / (n - 1)",
    )  # fmt: skip


def _of_campaign(cases: Sequence[Case]) -> Iterator[Finding]:
    """Without a third view: TPOT that fits the simulated one much better once TTFT / n is taken out."""
    rows = []
    for case in cases:
        r, ours_s = case.record, case.prediction.outcome.values.get("tpot_s_mean")
        if r.e2e_s_mean is None and _usable(r.ttft_s_mean, r.tpot_s_mean, ours_s) and (r.output_tok or 0) >= 2:
            n = r.output_tok
            rows.append((case.id, r.tpot_s_mean, (r.tpot_s_mean - r.ttft_s_mean / n) * n / (n - 1), ours_s))
    if len(rows) < CAMPAIGN_RUNS:
        return
    stated, without, ours = np.array([row[1:] for row in rows]).T
    if (without <= 0).any() or np.median(1 - without / stated) < CAMPAIGN_SHARE:
        return
    logs = np.log(stated / ours), np.log(without / ours)
    before, after = (float(np.median(np.abs(x - np.median(x)))) for x in logs)
    level = math.exp(abs(float(np.median(logs[1]))))
    if after >= CAMPAIGN_GAIN * before or level >= CAMPAIGN_BIAS:
        return
    yield Finding(
        check="definitions.tpot_first_token", layer="definitions", fault="F5", severity="warn", confidence="possible",
        runs=tuple(row[0] for row in rows), metrics=METRICS,
        says=f"TPOT of {len(rows)} runs is within {math.expm1(after):.0%} of the simulated one once TTFT / n is taken"
        f" out, within {math.expm1(before):.0%} as it stands: it may hold the first token",
        evidence={
            "spread_as_stated": before, "spread_without_first": after, "ratio_without_first": level, "runs": len(rows),
            "formula": "median |log(tpot / simulated) - median|",
        },
        next="read how the tool divides: (last - first) / (n - 1), or (last - start) / n",
    )  # fmt: skip
