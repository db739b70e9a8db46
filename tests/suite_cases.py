"""For tests of the suite: a run whose figures fit each other, and evidence with or without physics."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from calibration.records import RunRecord
from calibration.replay import Replay
from calibration.setup import Unsupported, resolve
from validate.cases import Case, Evidence
from validate.finding import Finding
from validate.predict import Prediction
from validate.simulated import simulated_record
from validate.suite import check_of, evidence_of

# A closed loop of 16 clients on one H100, made up, every figure consistent with the others: e2e = ttft + 499 * tpot;
# 160 requests in ten waves of e2e; J/token = W / (tokens/s). A step of 10 ms is twice the data sheet's floor.
CLEAN = RunRecord(
    run_id="r0", source="made-up", gpu="h100-sxm", n_gpus=1, tp=1, pp=1, ep=1, dp=1, model="Qwen/Qwen3-8B",
    weight_dtype="bf16", activation_dtype="bf16", kv_dtype="bf16", engine="vllm", engine_version="0.11.0",
    max_num_seqs=64, max_num_batched_tokens=8192, max_model_len=8192, gpu_memory_utilization=0.9,
    prefix_caching=False, chunked_prefill=True, cuda_graphs=True, load="closed_loop", concurrency=16,
    num_requests=160, input_tok=512, output_tok=500, length_spread="fixed",
    ttft_s_mean=0.30, ttft_s_median=0.29, ttft_s_p99=0.4, tpot_s_mean=0.010, tpot_s_median=0.010, tpot_s_p99=0.0105,
    itl_s_mean=0.010, itl_s_median=0.0099, itl_s_p99=0.012, e2e_s_mean=5.29, e2e_s_median=5.28, e2e_s_p99=5.5,
    output_tok_per_s=160 * 500 / 52.9, total_tok_per_s=160 * 1012 / 52.9, duration_s=52.9, batch_mean=16.0,
    power_w=500.0, power_scope="board", energy_j_per_output_tok=500.0 * 52.9 / (160 * 500), flags="warm_up",
)  # fmt: skip


def run(**changes: Any) -> RunRecord:
    """The clean run with some fields changed; None empties one."""
    return msgspec.structs.replace(CLEAN, **changes)


def numbered(records: Iterable[RunRecord]) -> list[RunRecord]:
    """The same runs as r0, r1, …: ids are unique in a file."""
    return [msgspec.structs.replace(record, run_id=f"r{i}") for i, record in enumerate(records)]


def case(
    record: RunRecord, *, simulated: Mapping[str, float] | None = None, floor: Mapping[str, float] | None = None
) -> Case:
    """A case by hand: nothing is simulated. `simulated`: our figures (intervals of 10 %; None: no simulated side).

    The configuration is resolved as always; a run that cannot be simulated has none and is `unsupported`.
    """
    try:
        setup = resolve(record)
    except Unsupported as reason:
        return Case(record, Prediction(record, f"unsupported: {reason}"))
    values = {name: (v, v / 1.1, v * 1.1) for name, v in (simulated or {}).items() if name in record.measured()}
    outcome = Replay(dict(simulated or {}), dict(floor or {}))
    prediction = Prediction(record, "ok", values, power_scope="board", setup=setup, profile="hand", outcome=outcome)
    return Case(record, prediction, None if simulated is None else simulated_record(prediction))


def by_hand(cases: Iterable[Case | RunRecord]) -> Evidence:
    """Evidence from cases, or from records with nothing simulated; no profile, nothing fitted."""
    made = [c if isinstance(c, Case) else case(c) for c in cases]
    return Evidence("runs.csv", made, {}, frozenset())


def predicted(records: Iterable[RunRecord]) -> Evidence:
    """Evidence with the real predictor: some hundredths of a second per new configuration."""
    return evidence_of(list(records), "runs.csv")


def found(name: str, evidence: Evidence) -> list[Finding]:
    """What one check says."""
    return list(check_of(name)(evidence))


def whats(findings: Iterable[Finding]) -> set[str]:
    """The checks that spoke, alarms and notes alike."""
    return {finding.check for finding in findings}
