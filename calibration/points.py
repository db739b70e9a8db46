"""The measured numbers that a fit is held against: which metrics of a run, how far each is to be trusted."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from calibration.records import RunRecord
from calibration.setup import Setup, Unsupported, resolve

# What no parameter explains: rows scatter by ROW_SD around the model, and rows of one set (a model on a GPU in one
# campaign) are off by SET_SD together: its kernels are tuned or not, its rig is warm or cold. So a set of 122 rows
# weighs about five times as much as one of 4, not thirty times.
ROW_SD, SET_SD = 0.10, 0.022
# Queueing multiplies every error of a step's time, and what a client does between requests is not recorded.
QUEUED_TTFT_SD = 0.25
TIME_METRICS = ("ttft_s_mean", "ttft_s_median", "tpot_s_mean", "itl_s_median", "e2e_s_mean")
POWER_METRIC = "power_w"


@dataclass(frozen=True)
class Point:
    """One fitted number: a metric of a run, its weight group and its standard deviation in log units."""

    setup: Setup
    metric: str
    measured: float
    group: tuple[str, ...]
    sd: float


def spread_kind(setup: Setup, metric: str) -> str:
    """Which of a profile's spreads applies to a metric of a run.

    First tokens that wait behind others' prompts are a kind of their own: queueing multiplies every error.
    """
    if metric.startswith("power"):
        return "power"
    if metric.startswith("energy"):
        return "energy"
    if metric.startswith("ttft"):
        served = setup.record.load not in ("static_batch", "parallel_sampling") and setup.batch > 1
        return "ttft_served" if served else "ttft"
    if metric == "batch_mean":
        return "batch"
    return "tpot" if metric.startswith(("tpot", "itl")) else "time"


def usable(records: Iterable[RunRecord], gpu: str | None = None) -> list[Setup]:
    """Rows that a fit may use: simulated as stated, not `suspect:`, `ambiguous:` or `held_out`; of one GPU if given."""
    out = []
    for record in records:
        if not any(record.flagged(flag) for flag in ("suspect:", "ambiguous:", "held_out")):
            try:
                setup = resolve(record)
            except Unsupported:
                continue
            if (gpu is None or setup.device.id == gpu) and record.load != "open_loop" and not setup.stand_ins:
                out.append(setup)
    return out


def points_of(setups: Sequence[Setup], power: bool = False) -> list[Point]:
    """The latencies (or the steady power) to fit, with weights that respect shared errors."""
    found = []
    for setup in setups:
        measured = setup.record.measured()
        names = [POWER_METRIC] if power else TIME_METRICS
        for metric in names:
            if metric in measured and _counts(setup, metric, measured):
                found.append((setup, metric, measured[metric], _group(setup.record, metric)))
    sizes = Counter(group for *_, group in found)
    return [
        Point(setup, metric, value, group, math.sqrt(_row_sd(setup, metric) ** 2 + sizes[group] * SET_SD**2))
        for setup, metric, value, group in found
    ]


def _counts(setup: Setup, metric: str, measured: dict[str, float]) -> bool:
    """Whether a metric is a number of its own: not copied from another, and of what the simulator predicts."""
    record = setup.record
    if metric == POWER_METRIC:
        # Such figures measure the sampling as much as the device.
        return not record.flagged("whole_run_power") and not record.flagged("power:")
    if setup.output_tok < 2 and metric.startswith(("tpot", "itl")):
        return False
    if metric == "e2e_s_mean":  # repeated under another name where there are more telling ones
        return not any(name in measured for name in TIME_METRICS if name != metric)
    if metric == "ttft_s_median":
        return "ttft_s_mean" not in measured
    return True


def _row_sd(setup: Setup, metric: str) -> float:
    noise = max(ROW_SD, setup.record.rel_noise or 0.0)
    queued = metric.startswith("ttft") and setup.record.load not in ("static_batch", "parallel_sampling")
    return math.hypot(noise, QUEUED_TTFT_SD) if queued and setup.batch > 1 else noise


def _group(record: RunRecord, metric: str) -> tuple[str, ...]:
    """Rows that share a systematic error: one model, GPU, metric, load and campaign of one source."""
    return (record.source, record.gpu, record.model, metric, record.load, record.campaign)


def architecture_key(setup: Setup) -> tuple:
    """What makes two models the same for a cost model: equal layers and vocabulary, whatever their names."""
    model = setup.model
    return (model.hidden_size, model.vocab_size, model.layers)
