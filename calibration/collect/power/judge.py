"""From the two ends of a window and the samples between them to the numbers that may be used, or the reason why not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from calibration.collect.power.energy import (
    Mark,
    PowerWindow,
    Sample,
    clock_ranges,
    counted_energy_j,
    longest_gap_s,
    time_weighted_mean,
)
from calibration.collect.power.sensors import Sensor

# Counters move about every 100 ms and boards' sensors see part of the time: below 5 s both scatter and are biased
# (arXiv 2312.02741).
MIN_WINDOW_S = 5.0
MAX_GAP = 0.2  # share of a window without a reading beyond which its samples are no view of it
UNSTEADY = 0.05  # difference between the halves of a window: a steady load scatters less
DISAGREEMENT = 0.10  # between counter and samples: twice the sensors' gain error of 5 %
NOT_STEADY = "not steady: "
IMPOSSIBLE = 2.0  # a factor between counter and samples that no sensor error explains: the counter is wrong


@dataclass(frozen=True)
class Sampled:
    """What the samples say: the mean, or the reason why there is none, and labels."""

    mean_w: float | None
    reason: str | None
    notes: tuple[str, ...] = ()


def judge_window(
    start: Mark, end: Mark, samples: Sequence[Sample], sensor: Sensor, *,
    of: str = "", why_no_power: str | None = None, idle_power_w: float | None = None, notes: Sequence[str] = (),
    min_window_s: float = MIN_WINDOW_S,
) -> PowerWindow:  # fmt: skip
    """The window between two marks. The counter is preferred: it misses nothing; samples check it and stand in for it.

    `of`: which rails the samples are the sum of; `why_no_power`: the instrument's reason for samples without power.
    """
    seconds = end.at_s - start.at_s
    inside = [s for s in samples if start.at_s <= s.at_s <= end.at_s] or list(samples)
    sampled = _sampled(samples, start.at_s, end.at_s, sensor, why_no_power)
    parts_w = _part_means(samples, start.at_s, end.at_s, sensor)
    counter_j, no_counter = counted_energy_j(start, end, parts_w)
    sampled_j = sampled.mean_w * seconds if sampled.mean_w is not None else None
    method, energy_j, reason, labels = _choose(counter_j, no_counter, sampled, sampled_j, sensor, of)
    if seconds < min_window_s:
        short = f"the window of {seconds:.3g} s is shorter than the {min_window_s:g} s that a sensor needs"
        method, energy_j, reason, labels = "none", None, short if reason is None else f"{short}; {reason}", []
    mean_w = energy_j / seconds if energy_j is not None else None
    if mean_w is not None and idle_power_w is not None and mean_w < (1 - UNSTEADY) * idle_power_w:
        labels.append(f"mean power of {mean_w:.4g} W is below the idle baseline of {idle_power_w:.4g} W")
    return PowerWindow(
        seconds=seconds, energy_j=energy_j, mean_power_w=mean_w, method=method, reason=reason, samples=tuple(samples),
        idle_power_w=idle_power_w, throttle_reasons=_throttled(start, end, inside), clocks_hz=clock_ranges(inside),
        temperature_c=max((s.temperature_c for s in inside if s.temperature_c is not None), default=None),
        notes=(*notes, *labels), counter_j=counter_j, sampled_j=sampled_j, parts_w=parts_w,
        start_s=start.at_s, end_s=end.at_s,
    )  # fmt: skip


def views_differ(counter_j: float, sampled_j: float) -> bool:
    """Whether counter and samples disagree about the energy of a window by more than `DISAGREEMENT`."""
    return abs(counter_j / sampled_j - 1) > DISAGREEMENT


def _choose(
    counter_j: float | None, no_counter: str | None, sampled: Sampled, sampled_j: float | None, sensor: Sensor, of: str
) -> tuple[str, float | None, str | None, list[str]]:
    """Method, joules, the reason without them, and labels."""
    if counter_j is not None and sampled_j is not None:
        ratio = counter_j / sampled_j
        text = f"energy counter {counter_j:.4g} J, samples {sampled_j:.4g} J"
        if 1 / IMPOSSIBLE <= ratio <= IMPOSSIBLE:
            differ = [f"{text}: they differ by {abs(ratio - 1):.0%}"] if views_differ(counter_j, sampled_j) else []
            return "energy counter", counter_j, None, [*differ, *sampled.notes]
        no_counter = f"{text}: the counter cannot be right"
    elif counter_j is not None:
        return "energy counter", counter_j, None, [f"no samples to check it with: {sampled.reason}"]
    if sampled_j is None:
        return "none", None, _joined(no_counter, sampled.reason), []
    labels = [no_counter] if no_counter else []
    if sensor.observed is not None and sensor.observed < 1:
        labels.append(f"the sensor sees {sensor.observed:.0%} of the time: the mean holds for a steady load")
    return f"mean of samples{' of ' + of if of else ''}", sampled_j, None, [*labels, *sampled.notes]


def _sampled(
    samples: Sequence[Sample], start_s: float, end_s: float, sensor: Sensor, why_no_power: str | None
) -> Sampled:
    good = [(s.at_s, s.power_w) for s in samples if s.power_w is not None]
    failures = [s.failure for s in samples if s.power_w is None and s.failure]
    if not good or not end_s > start_s:
        return Sampled(None, why_no_power or (failures[0] if failures else "no reading of power"))
    times, watts = zip(*good)
    gap_s = longest_gap_s(times, start_s, end_s)
    if len(good) < 2 or gap_s > max(MAX_GAP * (end_s - start_s), 2 * sensor.period_s):
        why = f": {failures[0]}" if failures else ""
        return Sampled(None, f"no reading of power for {gap_s:.3g} of {end_s - start_s:.3g} s{why}")
    notes = [f"{len(failures)} of {len(samples)} readings failed: {failures[0]}"] if failures else []
    begin_s = _settled(start_s, end_s, sensor)
    mean_w = time_weighted_mean(times, watts, begin_s, end_s)
    if mean_w <= 0:
        return Sampled(None, f"the readings say {mean_w:.4g} W, which nothing that runs draws")
    first_w = time_weighted_mean(times, watts, begin_s, (begin_s + end_s) / 2)
    second_w = 2 * mean_w - first_w
    if abs(first_w - second_w) > UNSTEADY * mean_w:
        notes.append(f"{NOT_STEADY}{first_w:.4g} W in the first half, {second_w:.4g} W in the second")
    return Sampled(mean_w, None, tuple(notes))


def _settled(start_s: float, end_s: float, sensor: Sensor) -> float:
    """From when on a reading covers nothing from before the window; the start itself in a window too short for that."""
    return start_s + sensor.averaging_s if end_s - start_s > 2 * sensor.averaging_s else start_s


def _part_means(samples: Sequence[Sample], start_s: float, end_s: float, sensor: Sensor) -> dict[str, float]:
    """Mean watts by part, for the parts that answered every time that the whole did."""
    good = [s for s in samples if s.power_w is not None]
    if not good or not end_s > start_s:
        return {}
    begin_s, times = _settled(start_s, end_s, sensor), [s.at_s for s in good]
    parts = [part for part in good[0].parts_w if all(part in s.parts_w for s in good)]
    return {part: time_weighted_mean(times, [s.parts_w[part] for s in good], begin_s, end_s) for part in parts}


def _throttled(start: Mark, end: Mark, samples: Sequence[Sample]) -> tuple[str, ...]:
    """All reasons seen in the window, by samples or by counts that went up; each once, in order of appearance."""
    counted = [reason for reason, count in end.events.items() if count > start.events.get(reason, count)]
    return tuple(dict.fromkeys([*(reason for sample in samples for reason in sample.throttle), *counted]))


def _joined(*reasons: str | None) -> str:
    return "; ".join(dict.fromkeys(reason for reason in reasons if reason))
