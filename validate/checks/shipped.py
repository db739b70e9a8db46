"""The measured runs that ship, by content: what calibrations that ship were fitted on can be looked up there."""

from __future__ import annotations

from functools import lru_cache

from calibration.records import RunRecord, read_records, row_hash
from calibration.vendored import DIRECTORY


@lru_cache(maxsize=1)
def shipped_rows() -> dict[str, RunRecord]:
    """Every row of calibration/data/runs by its hash, as profiles name the rows that they were fitted on."""
    return {row_hash(record): record for path in sorted(DIRECTORY.glob("*.csv")) for record in read_records(path)}
