"""Measured serving runs as traffic: what users would have seen, by the engine that runs in real time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from calibration.records import read_records
from calibration.setup import calibration_for, resolve, step_model
from calibration.trajectory import room, servable
from calibration.workloads import workload_of
from simulator.step_table import StepTable
from simulator.traffic.cluster import Deployment, serve
from simulator.traffic.metrics import traffic_metrics
from simulator.workload.traffic import Traffic

RUNS = Path(__file__).parent.parent / "calibration" / "data" / "runs" / "inferencex.csv"
EVERY = 3  # all of them take 20 s


def served_as_measured(setup, costs: StepTable):
    """Metrics of a closed loop with the lengths, clients and settings of a measured run."""
    workload, kv_blocks = servable(
        workload_of(setup.record, room(setup.model, setup.settings), setup.parallel.dp), setup.settings, setup.kv_blocks
    )
    requests, engine = workload.requests, costs.physics.calibration.parameters.engine
    return traffic_metrics(
        serve(
            Traffic(requests.prompt_tok, requests.output_tok, clients=requests.in_flight),
            Deployment(
                costs, setup.settings, kv_blocks, async_scheduling=setup.async_scheduling, request_s=engine.request_s,
                prompt_tok_s=engine.prompt_tok_s,
            ),
        )
    )  # fmt: skip


@pytest.mark.slow
def test_inferencex_runs_as_traffic():
    clean = [
        record
        for record in read_records(RUNS)
        if record.source == "inferencex" and not any(f.startswith(("suspect", "ambiguous")) for f in record.flag_list)
    ]
    tables, errors = {}, []
    for record in clean[::EVERY]:
        setup = resolve(record)
        if setup.deployment not in tables:
            tables[setup.deployment] = StepTable(step_model(setup, calibration_for(setup)), 20_000)
        found = served_as_measured(setup, tables[setup.deployment])
        errors.append([found[name] / getattr(record, name) - 1.0 for name in ("ttft_s_mean", "tpot_s_mean")])
    assert len(errors) >= 50
    ttft, tpot = np.median(np.abs(errors), axis=0)
    for name, column in zip(("TTFT", "TPOT"), np.array(errors).T):  # pytest -s shows it
        bias, (median, p90) = column.mean(), np.quantile(np.abs(column), (0.5, 0.9))
        print(f"{name}: n {len(column)}, bias {bias:+.1%}, median {median:.1%}, p90 {p90:.1%}")
    assert ttft <= 0.15 and tpot <= 0.06
    assert np.abs(np.mean(errors, axis=0)).max() < 0.08
