"""Runs whose requests arrive in real time: replayed by the engine that serves traffic.

Their batches depend on how long steps take, so they have no trajectory that could be priced again and again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from calibration.records import RunRecord
from calibration.trajectory import room, servable
from calibration.workloads import workload_of
from simulator.engine.settings import EngineSettings
from simulator.errors import UserError
from simulator.model import Model
from simulator.step_table import StepTable
from simulator.traffic.cluster import Deployment, serve
from simulator.traffic.metrics import traffic_metrics
from simulator.traffic.served import Served
from simulator.workload.arrivals import poisson
from simulator.workload.traffic import Traffic

ARRIVAL_SEED = 20240301  # of Poisson arrivals where the caller gives none
SAME = ("duration_s", "output_tok_per_s", "total_tok_per_s", "batch_mean")
OF_ONE_REPLICA = frozenset(("output_tok_per_s", "total_tok_per_s", "batch_mean"))


@dataclass(frozen=True)
class OpenLoop:
    """An open-loop run as one of its `replicas` equal replicas served it, and what had to be assumed about it."""

    served: Served
    replicas: int
    assumptions: tuple[str, ...]

    def metrics(self) -> dict[str, float]:
        """Every metric of the schema, by column name, and `prefill_share`."""
        found = traffic_metrics(self.served)
        values = {name: found[name] * (self.replicas if name in OF_ONE_REPLICA else 1) for name in SAME}
        for span in ("ttft_s", "tpot_s", "itl_s", "e2e_s"):
            of_schema = {"mean": "mean", "median": "p50", "p99": "p99"}
            values |= {f"{span}_{which}": found[f"{span}_{ours}"] for which, ours in of_schema.items()}
        values["power_w"] = found["mean_power_w"]  # steps spend the joules of all replicas
        values["energy_j_per_output_tok"] = found["energy_j_per_output_tok"] / self.replicas
        values["prefill_share"] = found["busy_share"] * found["prefill_share_of_busy"]
        return {name: value for name, value in values.items() if np.isfinite(value)}


def simulate_open_loop(
    record: RunRecord,
    model: Model,
    settings: EngineSettings,
    kv_blocks: int,
    physics: Any,
    seed: int = ARRIVAL_SEED,
    dp: int = 1,
    async_scheduling: bool | None = None,
) -> OpenLoop:
    """A run with Poisson arrivals at the record's request_rate_rps, on one of `dp` replicas that share them evenly.

    `settings` and `kv_blocks` are those of one replica; physics: see `StepTable`. async_scheduling None: as the
    record's flags say.
    """
    if not record.request_rate_rps:
        raise UserError(f"run '{record.run_id}': request_rate_rps not stated")
    workload, kv_blocks = servable(workload_of(record, room(model, settings), dp), settings, kv_blocks)
    requests = workload.requests
    arrival_s = poisson(record.request_rate_rps / dp, len(requests), np.random.default_rng(seed))
    prefixes = tuple((("shared", int(tok)),) if tok else () for tok in requests.shared_prefix_tok)
    traffic = Traffic(requests.prompt_tok, requests.output_tok, arrival_s, shared_prefix=prefixes)
    ahead = record.flagged("async_scheduling") if async_scheduling is None else async_scheduling
    costs = StepTable(physics, int((requests.prompt_tok + requests.output_tok).max()))
    served = serve(traffic, Deployment(costs, settings, kv_blocks, async_scheduling=ahead))
    return OpenLoop(served, dp, workload.assumptions)
