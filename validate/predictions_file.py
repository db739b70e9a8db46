"""The predictions file: one row per run, whatever its status."""

from __future__ import annotations

import csv
from pathlib import Path

from calibration.records import METRICS
from simulator.errors import UserError
from validate.suite import Verdict


def write_predictions(path: str | Path, verdict: Verdict) -> None:
    """run_id, status, then NAME, NAME_lo, NAME_hi for every metric that any run measured.

    A prediction is written wherever one can be computed, also where a check refuses to judge the measurement by it.
    """
    cases = verdict.evidence.cases
    measured = [name for name in METRICS if any(name in case.measured for case in cases)]
    columns = [f"{name}{suffix}" for name in measured for suffix in ("", "_lo", "_hi")]
    try:
        with open(path, "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(["run_id", "status", *columns])
            for case in cases:
                values, cells = case.prediction.values, []
                for name in measured:
                    cells += [f"{v:.9g}" for v in values[name]] if name in values else ["", "", ""]
                writer.writerow([case.id, verdict.status(case), *cells])
    except OSError as error:
        raise UserError(f"predictions file '{path}' cannot be written: {error.strerror}") from None
