"""The metrics of the schema, from a trajectory and what each of its steps costs."""

from __future__ import annotations

import numpy as np

from calibration.trajectory import Trajectory
from simulator.statistics import repeated_quantile

SPANS = {  # latencies of a request: (edge at which one starts, edge at which it ends)
    "ttft_s": ("submitted", "first_token"),
    "tpot_s": ("first_token", "finished"),
    "e2e_s": ("submitted", "finished"),
}
QUANTILES = {"median": 0.5, "p99": 0.99}


def metrics(trajectory: Trajectory, seconds: np.ndarray, joules: np.ndarray | None = None) -> dict[str, float]:
    """Every metric of the schema that the trajectory defines, by column name, and `prefill_share`.

    `seconds` (S,): of one step of each row, on one replica; `joules` (S,): of it on the devices of all replicas, which
    are alike. Latencies cover the whole run, throughput and power the windows of the trajectory; total_tok_per_s counts
    prompts at the rate of outputs. `prefill_share` is the share of the time in steps with prefill.
    """
    spent = np.asarray(seconds, dtype=float) * trajectory.repeat
    edges = np.concatenate(([0.0], np.cumsum(spent)))
    values: dict[str, float] = {}
    for name in SPANS:
        found = request_times(trajectory, name, edges)
        if len(found):
            values[f"{name}_mean"] = float(found.mean())
            for which, q in QUANTILES.items():
                values[f"{name}_{which}"] = float(np.percentile(found, 100.0 * q))
    values |= _token_gaps(trajectory, np.asarray(seconds, dtype=float), edges)
    values["duration_s"] = float(edges[-1])
    values["prefill_share"] = float(spent[trajectory.steps.prefill_tok > 0].sum() / edges[-1])
    values |= _rates(trajectory, spent)
    if trajectory.tpot_of_window:
        values["tpot_s_mean"] = values["batch_mean"] / values["output_tok_per_s"]
    if joules is not None:
        within = slice(*trajectory.power_window)
        energy = float((joules * trajectory.repeat)[within].sum())
        values["power_w"] = energy / float(spent[within].sum())
        written = trajectory.replicas * float(trajectory.output_rows[within].sum())
        if written:
            values["energy_j_per_output_tok"] = energy / written
    return values


def request_times(trajectory: Trajectory, name: str, edges: np.ndarray) -> np.ndarray:
    """`ttft_s`, `tpot_s` or `e2e_s` of each request that has one."""
    start, end = SPANS[name]
    began = edges[getattr(trajectory, start)]
    times = edges[getattr(trajectory, end)] - began
    if start == "submitted" and trajectory.follow_lag_steps:
        times = times + trajectory.follow_lag_steps * _following_step_s(trajectory, edges)
    if name != "tpot_s":
        return times
    several = trajectory.output_tok > 1
    return times[several] / (trajectory.output_tok[several] - 1)


def _following_step_s(trajectory: Trajectory, edges: np.ndarray) -> np.ndarray:
    """Seconds (N,) of the step that runs when a request is sent, 0 for those that were there from the start."""
    row = np.minimum(trajectory.submitted, len(trajectory.repeat) - 1)
    return (trajectory.submitted > 0) * np.diff(edges)[row] / trajectory.repeat[row]


def _token_gaps(trajectory: Trajectory, seconds: np.ndarray, edges: np.ndarray) -> dict[str, float]:
    torn = edges[trajectory.resumed[:, 1]] - edges[trajectory.resumed[:, 0]]
    gaps = np.concatenate((seconds, torn))
    counts = np.concatenate((trajectory.gaps, np.ones(len(torn))))
    total = counts.sum()
    if not total:
        return {}
    found = {f"itl_s_{which}": repeated_quantile(gaps, counts, q) for which, q in QUANTILES.items()}
    return {"itl_s_mean": float(gaps @ counts / total)} | found


def _rates(trajectory: Trajectory, spent: np.ndarray) -> dict[str, float]:
    within = slice(*trajectory.rate_window)
    time_s = float(spent[within].sum())
    rate = trajectory.replicas * float(trajectory.output_rows[within].sum()) / time_s
    read, written = float(trajectory.prompt_tok.sum()), float(trajectory.output_tok.sum())
    return {
        "output_tok_per_s": rate,
        "total_tok_per_s": rate * (1.0 + read / written),
        "batch_mean": trajectory.replicas * float(trajectory.running[within] @ spent[within]) / time_s,
    }
