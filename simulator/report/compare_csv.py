"""A comparison as a tidy CSV file: one row per candidate."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from simulator.planning.compare import Comparison
from simulator.traffic.frames import write_csv


def write_comparison(comparison: Comparison, path: str | Path) -> Path:
    """Name, settings, status, figures with the ends of their 90 % intervals, accuracy, and who dominates it."""
    entries = comparison.entries
    figures = list(dict.fromkeys(name for entry in comparison.flown for name in entry.outcome.figures))
    settings = list(dict.fromkeys(name for entry in entries for name in entry.candidate.settings))
    columns: dict[str, list] = {"candidate": [entry.name for entry in entries]}
    columns |= {name: [str(e.candidate.settings.get(name, "")) for e in entries] for name in settings}
    columns |= {"status": [e.outcome.status for e in entries], "reason": [e.outcome.reason for e in entries]}
    for name in figures:
        columns[name] = [entry.outcome.figures.get(name, math.nan) for entry in entries]
        if any(name in entry.outcome.intervals for entry in entries):
            for end, place in (("lo", 0), ("hi", 1)):
                nothing = (math.nan, math.nan)
                columns[f"{name}_{end}"] = [e.outcome.intervals.get(name, nothing)[place] for e in entries]
    for name, attribute in (("accuracy", "value"), ("accuracy_lo", "low"), ("accuracy_hi", "high")):
        columns[name] = [math.nan if e.accuracy is None else getattr(e.accuracy, attribute) for e in entries]
    columns["accuracy_basis"] = [entry.basis for entry in entries]
    columns["dominated_by"] = ["; ".join(comparison.dominated_by.get(entry.name, ())) for entry in entries]
    columns["calibration"] = [entry.outcome.calibration for entry in entries]
    for name in ("seed", "version"):
        columns[name] = [str(entry.outcome.facts.get(name, "")) for entry in entries]
    return write_csv({name: np.array(values) for name, values in columns.items()}, path)
