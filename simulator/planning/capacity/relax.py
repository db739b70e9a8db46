"""What would make an infeasible request feasible: limits that the best candidates do reach, or more replicas.

The candidates that miss by least, as far as bounds tell, are simulated with as many replicas as allowed. Three kinds of
advice follow from what they reach: all limits a little wider, one limit wider, or more replicas than were allowed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from simulator.planning.capacity.candidates import MAX_REPLICAS, Variant
from simulator.planning.capacity.lab import OVERLOAD, Bound, Lab, Trial
from simulator.planning.capacity.limits import Limit
from simulator.planning.capacity.search import Found, run_all, trial_of

TRIED = 10  # variants that are simulated for advice
NEARLY = 1.05  # times what was reached with the most replicas
ROUNDED = 1.02  # advice is a limit that is a little wider than what was reached


@dataclass(frozen=True)
class Relaxation:
    """Limits (by name, as values) that `variant` with `replicas` would meet; none: only the replicas are too many."""

    limits: dict[str, float]
    variant: Variant
    replicas: int
    usd_per_h: float
    factor: float  # by which the widest of them grows; 1 where only replicas do

    def sentence(self, limits: Sequence[Limit]) -> str:
        """'ttft_p99 = 2.4 s instead of 2 s would do with 8 x h100-sxm ($24 per hour)'."""
        by_name = {limit.name: limit for limit in limits}
        wider = [
            f"{by_name[name].text(value)} instead of {by_name[name].text().partition(' = ')[2]}"
            for name, value in self.limits.items()
        ]
        what = " and ".join(wider) or f"{self.replicas} replicas"
        n = self.variant.replicas(self.replicas)
        times = f"{n} replicas of " if n > 1 and wider else ""
        with_what = f"{times}{self.variant.hardware.phrase()} ({self.variant.engine.phrase()})"
        return f"{what} would do with {with_what}, at ${self.usd_per_h:.4g} per hour"


def relaxations(lab: Lab, found: Found, jobs: int = 1) -> tuple[Relaxation, ...]:
    """Advice for a search that confirmed nothing, the least change first; empty where nothing fits in memory."""
    tried = _most_promising(lab, found)
    if not tried:
        return ()
    most = [(variant, lab.space.allowed(variant)[-1]) for variant in tried]
    trials = run_all(lab, jobs, trial_of, most)
    advice: dict[tuple, Relaxation] = {}
    for trial in [*trials, *found.misses]:
        key = tuple(sorted(trial.missed))
        good_enough = key in advice and max(trial.ratios.values()) >= advice[key].factor
        if trial.missed and OVERLOAD not in trial.missed and not good_enough:
            each = _wider(lab, _fewest(lab, trial))
            advice[key] = each
    advised = sorted(advice.values(), key=lambda each: (each.factor, each.usd_per_h))[:3]
    return (*advised, *_more_replicas(lab, trials))


def _most_promising(lab: Lab, found: Found) -> list[Variant]:
    """Variants that miss by least: by their bounds, and those that simulations ruled out."""
    scores: dict[Variant, float] = {}
    for variant, bound in found.bounds.items():
        engine = variant.engine if variant.engine in lab.space.engines else lab.space.engines[-1]
        variant = Variant(variant.hardware, engine)
        if lab.space.allowed(variant):
            scores[variant] = min(scores.get(variant, math.inf), _score(lab, variant, bound))
    for trial in found.misses:
        worst = max(trial.ratios.values(), default=1.0)
        scores[trial.variant] = min(scores.get(trial.variant, math.inf), max(1.0, min(worst, 2.0)))
    best: dict[object, Variant] = {}
    for variant in sorted(scores, key=lambda each: (scores[each], lab.space.usd_per_h(each, 1))):
        best.setdefault(variant.hardware, variant)
    return list(best.values())[:TRIED]


def _score(lab: Lab, variant: Variant, bound: Bound) -> float:
    """By which factor a variant misses at least."""
    slow = max((bound.alone[limit.name] / limit.value for limit in lab.limits), default=0.0)
    rate, most = lab.workload.rate_per_s, lab.space.allowed(variant)[-1]
    short = 0.0 if math.isnan(rate) else rate / (most * bound.rate_per_s) if bound.rate_per_s > 0.0 else 1.0
    return max(slow, short)


def _fewest(lab: Lab, trial: Trial) -> Trial:
    """With as few replicas as reach nearly the same, as limits that are missed alone do not ask for more."""
    allowed = lab.space.allowed(trial.variant)
    low, high = -1, allowed.index(trial.replicas)
    while high - low > 1:
        middle = (low + high) // 2
        attempt = lab.trial(trial.variant, allowed[middle])
        worse = any(attempt.ratios[name] > NEARLY * max(1.0, ratio) for name, ratio in trial.ratios.items())
        if worse or OVERLOAD in attempt.missed or not set(attempt.missed) <= set(trial.missed):
            low = middle
        else:
            high, trial = middle, attempt
    return trial


def _wider(lab: Lab, trial: Trial) -> Relaxation:
    """The limits that a trial misses, as wide as it needs them."""
    by_name = {limit.name: limit for limit in lab.limits}
    wanted = {name: ROUNDED * trial.ratios[name] * by_name[name].value for name in trial.missed}
    price = lab.space.usd_per_h(trial.variant, trial.replicas, trial.figures["mean_power_w"])
    return Relaxation(wanted, trial.variant, trial.replicas, price, max(trial.ratios[name] for name in trial.missed))


def _sustained(lab: Lab, variant: Variant) -> float:
    """Replicas that it takes in the long run, by bound: a short run may end before its queue has grown."""
    rate = lab.workload.planned_rate_per_s
    bound = lab.bound(lab.instance(*variant), variant.engine.prefill_replicas)
    return 1 if math.isnan(rate) else math.ceil(rate / bound.rate_per_s) if bound.rate_per_s > 0.0 else math.inf


def _more_replicas(lab: Lab, trials: Sequence[Trial]) -> tuple[Relaxation, ...]:
    """The cheapest variant that would do with more replicas than allowed."""
    found = []
    for trial in trials:
        n = trial.replicas
        if any(ratio > 1.0 for name, ratio in trial.ratios.items() if name in ("power",)):
            continue  # more replicas draw more
        low = n
        while n < MAX_REPLICAS and not trial.met:
            low, n = n, min(MAX_REPLICAS, 2 * n)
            if n > 16 * trial.replicas and n > 64:
                break
            trial = lab.trial(trial.variant, n)
        least = _sustained(lab, trial.variant)
        if not trial.met or least > MAX_REPLICAS:
            continue
        low = max(low, least - 1)
        n = max(n, least)
        while n - low > 1:
            middle = (low + n) // 2
            attempt = lab.trial(trial.variant, middle)
            if attempt.met:
                n, trial = middle, attempt
            else:
                low = middle
        price = lab.space.usd_per_h(trial.variant, n, trial.figures["mean_power_w"])
        found.append(Relaxation({}, trial.variant, n, price, 1.0))
    return tuple(sorted(found, key=lambda each: each.usd_per_h)[:1])
