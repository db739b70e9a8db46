"""The measured runs that ship with Tokenflight, so that anyone can repeat a fit."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import msgspec

from calibration.records import RunRecord, read_records
from simulator.profile import Calibration

DIRECTORY = Path(__file__).parent / "data"


def fitted_run_ids(records: Iterable[RunRecord], profiles: Iterable[Calibration]) -> set[str]:
    """Ids of the records that are, cell for cell, rows that one of the profiles was fitted on.

    Compared by content, not by name: a renamed copy of a calibration file is still not an independent test.
    """
    from calibration.fit import usable

    known: set[bytes] = set()
    for profile in profiles:
        files = profile.fitted_on.files if profile.fitted_on else ()
        for path in (DIRECTORY / name for name in files if (DIRECTORY / name).exists()):
            known |= {_content(setup.record) for setup in usable(read_records(path), profile.gpu)}
    return {record.run_id for record in records if _content(record) in known}


def _content(record: RunRecord) -> bytes:
    return msgspec.json.encode(msgspec.structs.replace(record, run_id=""))
