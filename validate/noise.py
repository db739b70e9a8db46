"""The noise floor: how far repeats of one configuration (A/A) lie apart. No error below it is claimed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from calibration.records import METRICS, RunRecord

# Where neither repeats nor `rel_noise` say anything: public runs of one configuration lie about this far apart.
ASSUMED = 0.03
_NAMES = ("run_id", "flags", "rel_noise", "kv_capacity_tok")


@dataclass(frozen=True)
class NoiseFloor:
    """Relative standard deviation of repeats by metric. origin: "repeats", "rel_noise" or "assumed"; n: repeats."""

    spread: dict[str, float]
    origin: str
    n: int

    def of(self, metric: str) -> float:
        """Relative standard deviation of a metric between repeats."""
        return self.spread.get(metric, max(self.spread.values(), default=ASSUMED))


def noise_floor(records: Sequence[RunRecord]) -> NoiseFloor:
    """From repeats if there are any, else from the column `rel_noise`, else an assumption that is named as such."""
    groups: dict[tuple, list[RunRecord]] = {}
    for record in records:
        groups.setdefault(configuration_key(record), []).append(record)
    repeated = [group for group in groups.values() if len(group) > 1]
    spread = {name: found for name in METRICS if (found := _pooled(repeated, name)) is not None}
    if spread:
        return NoiseFloor(spread, "repeats", sum(len(group) for group in repeated))
    stated = [record.rel_noise for record in records if record.rel_noise]
    if stated:
        median = float(np.median(stated))
        return NoiseFloor(dict.fromkeys(METRICS, median), "rel_noise", len(stated))
    return NoiseFloor(dict.fromkeys(METRICS, ASSUMED), "assumed", 0)


def configuration_key(record: RunRecord) -> tuple:
    """Everything but names and figures: equal for repeats of one configuration."""
    free = {*_NAMES, *METRICS}
    marks = tuple(f for f in record.flag_list if not f.startswith(("derived:", "suspect:", "ambiguous:", "repeat")))
    return (*(getattr(record, name) for name in RunRecord.__struct_fields__ if name not in free), *marks)


def _pooled(groups: Sequence[Sequence[RunRecord]], metric: str) -> float | None:
    """Pooled standard deviation of log(value) within groups; None without two values in any group."""
    squares, degrees = 0.0, 0
    for group in groups:
        values = [getattr(record, metric) for record in group]
        logs = np.log([value for value in values if value is not None and 0.0 < value < np.inf])
        if len(logs) > 1:
            squares += float(((logs - logs.mean()) ** 2).sum())
            degrees += len(logs) - 1
    return (squares / degrees) ** 0.5 if degrees else None
