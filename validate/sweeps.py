"""Runs of one configuration that differ along one axis: batch, rate, prompt or output length."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from calibration.records import METRICS, RunRecord

MIN_POINTS = 3
# What may differ besides the axis itself: names, and fields that follow from a load.
_BATCH_FIELDS = ("concurrency", "num_requests", "max_num_seqs", "request_rate_rps")
_AXES = {
    "batch": _BATCH_FIELDS,
    "input_tok": ("input_tok", "max_model_len"),
    "output_tok": ("output_tok", "max_model_len"),
}
_NAMES = ("run_id", "flags", "rel_noise", "max_num_batched_tokens")
_LENGTHS = ("input_tok", "output_tok")


@dataclass(frozen=True)
class Sweep:
    """Runs in ascending order of `x`; several runs may share one x. axis: "batch", "input_tok" or "output_tok"."""

    axis: str
    runs: tuple[RunRecord, ...]
    x: tuple[float, ...]

    def values(self, metric: str) -> list[tuple[float, float, RunRecord]]:
        """(x, measured value, run) of the runs that measured a metric."""
        found = [(x, getattr(run, metric), run) for x, run in zip(self.x, self.runs)]
        return [row for row in found if row[1] is not None]


def load_of(record: RunRecord) -> float:
    """What a load asks for at a time: sequences, or requests per second of an open loop."""
    if record.load == "open_loop":
        return record.request_rate_rps or 0.0
    asked = record.concurrency or record.num_requests or 1
    return min(asked, record.max_num_seqs * (record.dp or 1)) if record.max_num_seqs else asked


def sweeps_of(records: Sequence[RunRecord]) -> tuple[Sweep, ...]:
    """All sweeps with at least three different x, in order of first appearance."""
    found: dict[tuple, list[RunRecord]] = {}
    for record in records:
        for axis in _AXES:
            found.setdefault((axis, *_key(record, axis)), []).append(record)
    out = []
    for (axis, *_), runs in found.items():
        x_of = load_of if axis == "batch" else (lambda run, axis=axis: getattr(run, axis) or 0.0)
        runs = sorted(runs, key=x_of)  # stable: the file's order among equals
        x = tuple(float(x_of(run)) for run in runs)
        if len(set(x)) >= MIN_POINTS:
            out.append(Sweep(axis, tuple(runs), x))
    return tuple(out)


def _key(record: RunRecord, axis: str) -> tuple:
    """Everything that runs of one sweep share."""
    free = {*_NAMES, *METRICS, *_AXES[axis]}
    lengths_drawn = (record.length_spread or "").startswith("dataset:")
    if lengths_drawn and axis == "batch":
        free |= set(_LENGTHS)  # means of what was drawn and written, not a setting
    fields = tuple(getattr(record, name) for name in RunRecord.__struct_fields__ if name not in free)
    marks = tuple(f for f in record.flag_list if not f.startswith(("derived:", "suspect:", "ambiguous:")))
    return (*fields, *marks)
