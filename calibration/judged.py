"""One measured number, what was predicted for it, and the names under which the ledger groups it."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

from calibration.records import RunRecord
from simulator.model import Model, load_model
from simulator.profile import Z90

# Families of metrics in the order of the ledger: for each the columns that stand for it, the first measured one first.
# The mean of TTFT, TPOT and E2E is the better defined statistic; of ITL it is the median (the mean is TPOT again).
FAMILIES: dict[str, tuple[str, ...]] = {
    "TTFT": ("ttft_s_mean", "ttft_s_median"),
    "TPOT": ("tpot_s_mean", "tpot_s_median"),
    "ITL": ("itl_s_median", "itl_s_mean"),
    "E2E": ("e2e_s_mean", "e2e_s_median"),
    "throughput": ("output_tok_per_s", "total_tok_per_s"),
    "power": ("power_w",),
    "energy per token": ("energy_j_per_output_tok",),
    "TTFT p99": ("ttft_s_p99",),
    "TPOT p99": ("tpot_s_p99",),
    "ITL p99": ("itl_s_p99",),
    "E2E p99": ("e2e_s_p99",),
    "duration": ("duration_s",),
    "mean batch": ("batch_mean",),
    "KV capacity": ("kv_capacity_tok",),
}
WHOLE_RUN = ", whole run"  # power figures that hold start-up and idle samples measure the sampling as well
APART = ("suspect:", "ambiguous:")  # flags of rows that are shown but not judged


@dataclass(frozen=True)
class Judged:
    """One metric of one run: measured and predicted, in the schema's units (s, tok/s, W, J).

    in_sample: by a fit that saw this run. left_out: by one that saw no run of this architecture on any GPU or source.
    log_sd: standard deviation of log(measured / left_out) that the left-out prediction claims.
    """

    record: RunRecord
    source: str
    gpu: str
    model: str
    engine_family: str
    metric: str
    measured: float
    in_sample: float
    left_out: float | None
    roofline: float | None
    log_sd: float
    flags: tuple[str, ...] = ()

    @property
    def ratio(self) -> float | None:
        """left_out / measured; None when nothing was left out."""
        return None if self.left_out is None else self.left_out / self.measured

    @property
    def interval(self) -> tuple[float, float] | None:
        """(low, high) of the stated 90 % interval around the left-out prediction; None when nothing was left out."""
        if self.left_out is None:
            return None
        factor = math.exp(Z90 * self.log_sd)
        return self.left_out / factor, self.left_out * factor

    @property
    def inside(self) -> bool | None:
        """Whether the measured value lies in the 90 % interval; None when nothing was left out."""
        if self.interval is None:
            return None
        low, high = self.interval
        return low <= self.measured <= high

    @property
    def reasons(self) -> tuple[str, ...]:
        """The flags that keep this row out of the statistics; empty for clean rows."""
        return tuple(flag for flag in self.flags if flag.startswith(APART))

    @property
    def moe(self) -> bool:
        """Whether the model is a mixture of experts."""
        return _model(self.record.model).sparse

    @property
    def parameters(self) -> float:
        """Parameters of the model."""
        return float(_model(self.record.model).parameters())

    @property
    def batch(self) -> float:
        """Sequences that ran at a time: as measured, else as asked for within the engine's limit."""
        r = self.record
        asked = r.concurrency or r.num_requests or 1
        limit = r.max_num_seqs * (r.dp or 1) if r.max_num_seqs else asked
        return r.batch_mean or min(asked, limit)

    @property
    def context_tok(self) -> float:
        """Mean tokens of a request, read and written."""
        return (self.record.input_tok or 0.0) + (self.record.output_tok or 0.0)

    @property
    def prompt_share(self) -> float:
        """Share of a request's tokens that it reads."""
        return (self.record.input_tok or 0.0) / max(1.0, self.context_tok)


@lru_cache(maxsize=256)
def _model(name: str) -> Model:
    return load_model(name)


def family_of(judged: Judged) -> str:
    """The metric family of a measurement.

    Where a run has two statistics of a family, the first column stands for it and the other gets a name of its own
    ("TTFT median"). Power and energy over more than the run say so.
    """
    family = next((name for name, columns in FAMILIES.items() if judged.metric in columns), judged.metric)
    columns = FAMILIES.get(family, (judged.metric,))
    present = [name for name in columns if getattr(judged.record, name) is not None]
    if present and present[0] != judged.metric:
        family = f"{family} {judged.metric.rpartition('_')[2]}"
    whole = family in ("power", "energy per token") and "whole_run_power" in judged.flags
    return family + WHOLE_RUN * whole


def family_order(family: str) -> tuple[int, str]:
    """Sort key: families in the order of FAMILIES, a variant right after its family."""
    names = list(FAMILIES)
    found = [i for i, name in enumerate(names) if family == name or family.startswith((f"{name},", f"{name} m"))]
    return (found[0] if found else len(names)), family


def repeats(judged: Judged) -> bool:
    """Whether this is another measurement of the same run under a second name, exactly proportional to it."""
    r = judged.record
    if judged.metric == "total_tok_per_s":
        return r.output_tok_per_s is not None
    if judged.metric == "duration_s":
        return r.load == "static_batch" and r.e2e_s_mean is not None
    if judged.metric.startswith("e2e"):  # a request of one token ends with its first token
        return r.output_tok == 1 and r.ttft_s_mean is not None
    return False


def split_apart(judged: Iterable[Judged]) -> tuple[list[Judged], list[Judged], int]:
    """(clean rows, rows shown apart, number of repeated measurements, which are in neither)."""
    rows = list(judged)
    once = [row for row in rows if not repeats(row)]
    clean = [row for row in once if not row.reasons]
    return clean, [row for row in once if row.reasons], len(rows) - len(once)
