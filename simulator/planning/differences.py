"""What two candidates differ by, and whether that is more than what is uncertain.

A difference is a ratio, candidate over reference, with a 90 % interval of two parts, put together by drawing both:

* **Sampling**: lengths are drawn. Repetition i of both sides has the same seed, so repetitions are resampled in pairs
  (bootstrap): what both sides draw alike cancels.
* **Calibration**: log(measured / predicted) has a standard deviation s = b sqrt(1 + w): b the profile's, w the ways in
  which the point lies outside of what was fitted. Between different GPUs (or profiles) the errors are taken as
  independent. On one GPU under one profile a part is shared, and cancels as far as both sides have as much of it. What
  is left on each side is r^2 = (1 - c) min(b, B)^2 (1 + w shared) + b^2 (w that only this side has).

c, the share of the variance that runs of one profile have in common, is measured: the intraclass correlation (one-way
ANOVA) of log(measured / predicted) over the 6,397 figures of the runs that ship, grouped by source, profile, device,
metric, and where the model counts by model, weights and tensor parallelism. Times of one model: end to end 0.48, TPOT
0.26, TTFT 0.55, throughput 0.44; of different models 0.01 to 0.11. Power of one model 0.45, energy per token 0.58; of
different models 0.63 and 0.48. So errors of a fitted profile cancel by half, not wholly. The rest of what a wide guess
is unsure of is the GPU, which both sides share: more than B is not taken for scatter. B was chosen on the same runs,
so that the intervals of differences within a profile (pairs of runs of one source) hold the measured ones: those of
times in 91 to 100 % of the pairs of seven sources, in 67 (one model) and 84 % of one (gpustack, profiles without runs
of their own), those of power and energy in 85 to 100 %.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from simulator.planning.points import Outcome

DRAWS = 4000
ENDS = (0.05, 0.95)
SHARED = {("time", True): 0.5, ("time", False): 0.1, ("energy", True): 0.5, ("energy", False): 0.5}  # c; one model?
SCATTER = 0.25  # B
# Figure -> (array of the repetitions, quantile, kind of spread)
PAIRED = {
    "wall_s_p50": ("wall_s", 0.5, "time"),
    "wall_s_p90": ("wall_s", 0.9, "time"),
    "energy_j_p50": ("energy_j", 0.5, "energy"),
    "cost_usd_p50": ("cost_usd", 0.5, "time"),
}
EXACT = ("peak_memory_byte",)  # without an interval
FIGURES = (*PAIRED, *EXACT)


@dataclass(frozen=True)
class Difference:
    """Candidate over reference. sampling_sd, calibration_sd: of the log of the ratio; paired: by seeds."""

    figure: str
    candidate: str
    reference: str
    ratio: float
    low: float
    high: float
    sampling_sd: float
    calibration_sd: float
    paired: bool

    @property
    def verdict(self) -> str:
        """ "less", "more", or "none" when the interval holds 1: the difference is smaller than it."""
        if self.low <= 1.0 <= self.high:
            return "none"
        return "less" if self.high < 1.0 else "more"

    def to_dict(self) -> dict[str, Any]:
        """Plain types."""
        return {**asdict(self), "verdict": self.verdict}


def difference(
    candidate: tuple[str, Outcome], reference: tuple[str, Outcome], figure: str, rng: np.random.Generator
) -> Difference | None:
    """Of two named outcomes in one of FIGURES; None where one side has no such figure, or zero."""
    (name, ours), (other, theirs) = candidate, reference
    values = [each.figures.get(figure, math.nan) for each in (ours, theirs)]
    if not all(math.isfinite(value) and value > 0.0 for value in values):
        return None
    ratio = values[0] / values[1]
    if figure in EXACT:
        return Difference(figure, name, other, ratio, ratio, ratio, 0.0, 0.0, True)
    array, quantile, kind = PAIRED[figure]
    paired = _same_draws(ours, theirs)
    drawn = _resampled(ours.per_repetition[array], theirs.per_repetition[array], quantile, paired, rng)
    calibration = calibration_sd(ours, theirs, figure, kind)
    logs = drawn + calibration * rng.standard_normal(DRAWS)
    low, high = np.exp(np.quantile(logs, ENDS))
    return Difference(figure, name, other, ratio, float(low), float(high), float(drawn.std()), calibration, paired)


def _same_draws(a: Outcome, b: Outcome) -> bool:
    same_seed = a.facts.get("seed") == b.facts.get("seed")
    return same_seed and len(a.per_repetition["wall_s"]) == len(b.per_repetition["wall_s"])


def _resampled(a: np.ndarray, b: np.ndarray, q: float, paired: bool, rng: np.random.Generator) -> np.ndarray:
    """Log ratio of the quantile of `a` to that of `b`, in resampled repetitions; shape (DRAWS,)."""
    picks = rng.integers(len(a), size=(DRAWS, len(a)))
    others = picks if paired else rng.integers(len(b), size=(DRAWS, len(b)))
    return np.log(np.quantile(a[picks], q, axis=1) / np.quantile(b[others], q, axis=1))


def calibration_sd(a: Outcome, b: Outcome, figure: str, kind: str) -> float:
    """Standard deviation of the log of the ratio that the calibrations leave open; see the head of this file."""
    spreads = [log_sd(each, figure) for each in (a, b)]
    if not _one_calibration(a, b):
        return math.hypot(*spreads)
    ways = [set(_outside(each)) for each in (a, b)]
    common = ways[0] & ways[1]
    shared = SHARED[kind, a.facts["model"] == b.facts["model"] and a.facts["precision"] == b.facts["precision"]]
    rests = []
    for outcome, spread, own in zip((a, b), spreads, ways):
        base = spread / math.sqrt(1.0 + _counted(outcome, len(own)))
        scatter = min(base, SCATTER) * math.sqrt(1.0 - shared)
        alike = scatter**2 * (1.0 + _counted(outcome, len(common)))
        rests.append(min(spread, math.sqrt(alike + base**2 * len(own - common))))
    both = [math.sqrt(max(0.0, spread**2 - rest**2)) for spread, rest in zip(spreads, rests)]
    return math.hypot(both[0] - both[1], *rests)


def _one_calibration(a: Outcome, b: Outcome) -> bool:
    return a.calibration == b.calibration and a.facts.get("gpu") == b.facts.get("gpu")


def _outside(outcome: Outcome) -> list[str]:
    return list(outcome.facts["calibration"]["extrapolated"])


def _counted(outcome: Outcome, ways: int) -> int:
    """Ways out of the fitted range that widen the interval: of profiles that are wide already the first does not."""
    wide_already = outcome.facts["calibration"]["status"] != "fitted"
    return ways - bool(ways and wide_already)


def log_sd(outcome: Outcome, figure: str) -> float:
    """Standard deviation of log(measured / predicted) of a figure, from its 90 % interval; 0 where it has none."""
    from simulator.profile import Z90

    low, high = outcome.intervals.get(figure, (1.0, 1.0))
    return math.log(high / low) / (2.0 * Z90) if low > 0.0 else 0.0
