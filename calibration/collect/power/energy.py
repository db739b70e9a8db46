"""Samples, counters and windows of power, and the arithmetic on them. No instrument is touched here.

Watts, joules, hertz, degrees Celsius; times are seconds on one monotonic clock. None: not measured, never 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from calibration.collect.power.throttle import labelling, rejecting

COUNTER_BITS = (32, 64)  # widths at which energy counters wrap
WRAP_TOLERANCE = 0.2  # a wrap is believed if the energy it gives is this near to the samples'


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What an instrument says at one moment. `power_w` is the total of the scope, None where a part did not answer.

    `parts_w`: by GPU or by rail; `instant_w`: an instantaneous value beside an averaged one; `clocks_hz`: of the
    slowest GPU; `temperature_c`: of the hottest; `failure`: why `power_w` is None.
    """

    power_w: float | None
    parts_w: dict[str, float] = field(default_factory=dict)
    instant_w: float | None = None
    clocks_hz: dict[str, float] = field(default_factory=dict)
    temperature_c: float | None = None
    throttle: tuple[str, ...] = ()
    failure: str | None = None


@dataclass(frozen=True, kw_only=True)
class Sample(Reading):
    """A reading and when it was taken."""

    at_s: float


@dataclass(frozen=True)
class Counter:
    """An energy counter: whole ticks since some start, and what one tick is worth."""

    ticks: int
    joule_per_tick: float


@dataclass(frozen=True)
class Counters:
    """The energy counters of all parts at one moment. `reason`: why there are none."""

    by_part: dict[str, Counter]
    reason: str | None = None


@dataclass(frozen=True)
class Mark:
    """One end of a window: when the counters were read, the counters, and counts of throttling events by reason."""

    at_s: float
    counters: Counters
    events: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class PowerWindow:
    """Power and energy between a start and a stop.

    `energy_j` and `mean_power_w` are the numbers to use; without them `reason` says why. `method`: "energy counter",
    "mean of samples" (of which rails, on a Jetson) or "none". `notes` label a number that stands. `counter_j` and
    `sampled_j` are the two views of the same energy, whichever was chosen, also of a window that was too short.
    `clocks_hz`: least and median; `temperature_c`: the highest; `parts_w`: mean by GPU or by rail.
    """

    seconds: float
    energy_j: float | None
    mean_power_w: float | None
    method: str
    reason: str | None
    samples: tuple[Sample, ...] = ()
    idle_power_w: float | None = None
    throttle_reasons: tuple[str, ...] = ()
    clocks_hz: dict[str, tuple[float, float]] = field(default_factory=dict)
    temperature_c: float | None = None
    notes: tuple[str, ...] = ()
    counter_j: float | None = None
    sampled_j: float | None = None
    parts_w: dict[str, float] = field(default_factory=dict)
    start_s: float | None = None
    end_s: float | None = None

    @property
    def rejects(self) -> tuple[str, ...]:
        """Throttle reasons for which the point must not be used."""
        return rejecting(self.throttle_reasons)

    @property
    def labels(self) -> tuple[str, ...]:
        """Throttle reasons with which the point may be used under a label."""
        return labelling(self.throttle_reasons)


def time_weighted_mean(times_s: Sequence[float], values: Sequence[float], start_s: float, end_s: float) -> float:
    """Mean over [start_s, end_s] of the line through the samples; the outermost values hold beyond the samples.

    Samples count by the time between them, so a burst of readings weighs no more than the time it covers. ValueError
    without a sample or for an empty interval.
    """
    if not len(times_s) or not end_s > start_s:
        raise ValueError("a mean over time needs at least one sample and an interval longer than 0 s")
    times, watts = np.asarray(times_s, dtype=float), np.asarray(values, dtype=float)
    inside = times[(times > start_s) & (times < end_s)]
    grid = np.concatenate(([start_s], inside, [end_s]))
    heights = np.interp(grid, times, watts)
    return float(np.sum((heights[1:] + heights[:-1]) / 2 * np.diff(grid)) / (end_s - start_s))


def longest_gap_s(times_s: Sequence[float], start_s: float, end_s: float) -> float:
    """The longest part of [start_s, end_s] without a sample."""
    inside = sorted(min(max(time, start_s), end_s) for time in times_s)
    return float(np.max(np.diff([start_s, *inside, end_s])))


def counter_energy_j(start: Counter, end: Counter, expected_j: float | None) -> tuple[float | None, str | None]:
    """Joules between two readings of one counter, or the reason why it gives none.

    A counter that went back has wrapped or was reset. It is read as wrapped only if the energy is then near to
    `expected_j`, what the samples say. A counter that stands still counts nothing, it does not say 0 J.
    """
    ticks = end.ticks - start.ticks
    if ticks > 0:
        return ticks * end.joule_per_tick, None
    if ticks == 0:
        return None, "the energy counter stood still"
    for bits in COUNTER_BITS:
        joules = (ticks + (1 << bits)) * end.joule_per_tick
        fits = expected_j is not None and abs(joules - expected_j) <= WRAP_TOLERANCE * expected_j
        if start.ticks < 1 << bits and fits:
            return joules, None
    return None, "the energy counter went back (the driver was reloaded, or it wrapped)"


def counted_energy_j(start: Mark, end: Mark, parts_w: dict[str, float]) -> tuple[float | None, str | None]:
    """Joules of all parts by their counters, or why not; `parts_w` (mean by part) is what a wrap is checked against.

    One part without a counter leaves no total: part of the energy is not the energy.
    """
    seconds = end.at_s - start.at_s
    for mark in (start, end):
        if mark.counters.reason:
            return None, mark.counters.reason
    missing = sorted(start.counters.by_part.keys() ^ end.counters.by_part.keys())
    if missing or not start.counters.by_part:
        return None, f"no energy counter of {missing[0]} at one end" if missing else "no energy counter"
    total = 0.0
    for part, counter in start.counters.by_part.items():
        expected = parts_w[part] * seconds if part in parts_w else None
        joules, reason = counter_energy_j(counter, end.counters.by_part[part], expected)
        if joules is None:
            return None, f"{part}: {reason}"
        total += joules
    return total, None


def clock_ranges(samples: Sequence[Sample]) -> dict[str, tuple[float, float]]:
    """Least and median clock in hertz by domain, over the samples that know it."""
    domains = dict.fromkeys(name for sample in samples for name in sample.clocks_hz)
    values = {name: [s.clocks_hz[name] for s in samples if name in s.clocks_hz] for name in domains}
    return {name: (min(found), float(np.median(found))) for name, found in values.items()}
