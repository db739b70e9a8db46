"""Power and energy of a record: the meter's window over all runs of a point, where it is about what the record is of.

Both views of the energy, counter and samples, are in the journal; where they disagree the record says so.
"""

from __future__ import annotations

from typing import Any

from calibration.collect.journal import Entry
from calibration.collect.power.judge import NOT_STEADY, views_differ
from calibration.collect.statistics import tokens, window_s
from calibration.collect.validity import runs_that_count

RUNNING = 0.9  # of the meter's window must be runs that count: the mean of a window with more else is not theirs


def power_of_record(entry: Entry, dummy: bool) -> dict[str, Any]:
    """power_w, power_scope and energy_j_per_output_tok over all devices; nothing where they are not to be trusted.

    Not with dummy weights, as the power of arithmetic depends on its operands; not where the meter gives no number, as
    not supported is not 0 J; and not where less than `RUNNING` of its window were runs.
    """
    if not _metered(entry, dummy) or not _mostly_running(entry):
        return {}
    joules, seconds = entry.power["energy_j"], entry.power["seconds"]
    written, _ = tokens(entry.observations)
    out: dict[str, Any] = {"power_w": joules / seconds, "power_scope": entry.power["scope"]}
    return out | ({"energy_j_per_output_tok": joules / written} if written else {})


def power_flags(entry: Entry, dummy: bool) -> list[str]:
    """What a reader must know about the power of a record, or why there is none though it was measured."""
    if not _metered(entry, dummy):
        return []
    if not _mostly_running(entry):
        return ["power:gaps"]
    counter_j, sampled_j = entry.power.get("counter_j"), entry.power.get("sampled_j")
    found = ["power:views_differ"] if counter_j and sampled_j and views_differ(counter_j, sampled_j) else []
    if any(note.startswith(NOT_STEADY) for note in entry.power.get("notes", ())):
        found.append("power:not_steady")
    return found


def _metered(entry: Entry, dummy: bool) -> bool:
    return not dummy and bool(entry.power.get("energy_j"))


def _mostly_running(entry: Entry) -> bool:
    """Gaps are, for instance, starts of the load generator; runs that were held up are none that count either."""
    return window_s(runs_that_count(entry.observations)) >= RUNNING * entry.power["seconds"]
