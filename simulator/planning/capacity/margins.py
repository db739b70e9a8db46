"""How far a confirmed deployment is from its limits: in load, and in the error that the calibration may have.

Head-room is the largest factor on the load under which a simulation of the same requests, only closer together, still
meets every limit; what it misses just above is the binding constraint.

Probability: the calibration states the standard deviation sd of log(measured / predicted) of step times. If all times
are f times as long, the timeline is that of f times the load, stretched by f. So the largest f* at which the limits are
still met is found by bisection, like head-room, and P(f <= f*) = Phi(ln f* / sd). Limits on energy and power hold with
Phi(ln(limit / value) / sd of energy or power); errors of time and energy are taken as independent.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from scipy.special import ndtr

from simulator.planning.capacity.lab import OVERLOAD, Lab, Trial
from simulator.planning.capacity.limits import Limit

MOST_LOAD = 64.0  # head-room is not followed beyond
PRECISION = 0.015  # of head-room and f*, relative
SURE_SD = 4.0  # an f* so many standard deviations away is not followed further


@dataclass(frozen=True)
class Margin:
    """head_room: factor on the load; binding: what is missed just above it (None: nothing up to MOST_LOAD)."""

    head_room: float
    binding: str | None


def margin(lab: Lab, trial: Trial, most: float = MOST_LOAD) -> Margin:
    """Head-room of a deployment that met every limit in `trial`; `most`: a load that it cannot bear, if known."""
    factor, missed = _largest(lambda load: lab.trial(trial.variant, trial.replicas, load), min(most, MOST_LOAD))
    return Margin(factor, worst(missed) if missed else None)


def worst(trial: Trial) -> str:
    """The name of what a trial misses most; OVERLOAD only where nothing else is missed."""
    missed = [name for name in trial.missed if name != OVERLOAD]
    return max(missed, key=lambda name: trial.ratios[name]) if missed else OVERLOAD


def _largest(attempt: Callable[[float], Trial], most: float) -> tuple[float, Trial | None]:
    """(the largest factor from 1 to `most` that is met, the trial that misses just above; None where none does)."""
    low, high, missed = 1.0, None, None
    step = 1.1
    while high is None:
        factor = min(low * step, most)
        trial = attempt(factor)
        if trial.met:
            low = factor
            if factor >= most:
                return low, None
        else:
            high, missed = factor, trial
        step **= 1.6
    while high / low > 1.0 + PRECISION:
        middle = math.sqrt(low * high)
        trial = attempt(middle)
        if trial.met:
            low = middle
        else:
            high, missed = middle, trial
    return low, missed


@dataclass(frozen=True)
class Chance:
    """Probability of meeting every limit, the factor on all times that is still met, and the spread behind both."""

    probability: float
    slowest_factor: float
    log_sd: float


def chance(lab: Lab, trial: Trial, spreads: dict[str, float]) -> Chance:
    """How probable it is that a deployment that met every limit in `trial` meets them under the calibration's error.

    spreads: `TrafficResult.interval_log_sd`.
    """
    sd, asked = spreads["time"], 1.0 / lab.workload.reserve  # the load without its reserve
    factor, _ = _largest(
        lambda slower: lab.trial(trial.variant, trial.replicas, asked, slower), math.exp(min(SURE_SD * sd, 4.0))
    )
    probability = float(ndtr(math.log(factor) / sd)) if sd > 0.0 else 1.0
    for limit in lab.limits:
        probability *= energy_chance(limit, trial.figures[limit.figure], spreads)
    return Chance(probability, factor, sd)


def energy_chance(limit: Limit, value: float, spreads: dict[str, float]) -> float:
    """Probability that a figure of energy or power stays within its limit; 1 for limits on time."""
    if limit.kind == "time" or not value > 0.0:
        return 1.0
    return float(ndtr(math.log(limit.value / value) / spreads[limit.kind]))
