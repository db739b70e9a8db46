"""The measured runs that ship with Tokenflight, so that anyone can repeat a fit."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from calibration.records import RunRecord, row_hash
from simulator.profile import Calibration

DIRECTORY = Path(__file__).parent / "data" / "runs"


def fitted_run_ids(records: Iterable[RunRecord], profiles: Iterable[Calibration]) -> set[str]:
    """Ids of the records that one of the profiles was fitted on, found by content.

    A renamed copy of a calibration row is still not an independent test.
    """
    known = {found for profile in profiles if profile.fitted_on for found in profile.fitted_on.row_hashes}
    return {record.run_id for record in records if row_hash(record) in known}
