"""A back-end for tests whose times come from the simulator with known parameters; its clock is made up.

`calibrate collect --backend simulated` finds it after `register()`. How it misbehaves comes from the environment, so
that a collector in a process of its own can be told, too: SIMULATED_DELAY_S (real seconds per run), SIMULATED_DIE_AT
(number of the run from which on every run fails).
"""

from __future__ import annotations

import os
import time

import numpy as np

from calibration.collect.backends import BACKENDS, BackendOptions
from calibration.collect.grid import LOADS
from calibration.collect.point import BackendError, EngineFacts, Observation, Point, RequestTimes
from calibration.collect.to_records import configuration
from calibration.front_end import front_end_s
from calibration.joint_fit import with_fitted
from calibration.records import RunRecord
from calibration.regressor import prior_calibrations
from calibration.setup import resolve, step_model
from calibration.trajectory import trajectory_of

GPU = "l4"
TRUTH = {
    "engine.step_host_s": 2.5e-3,
    "engine.request_s": 1.2e-2,
    "l4/gemm16.memory_fraction": 0.62,
    "l4/gemm16.compute_fraction": 0.62,
}
NOISE = 0.004  # of a run: all its times are off by this much together


def register() -> None:
    """Make the back-end known by the name "simulated"."""
    BACKENDS["simulated"] = ("simulated_backend", "")
    LOADS["simulated"] = ("static_batch", "closed_loop", "open_loop")


def facts_of(model: str, **settings) -> EngineFacts:
    """The facts of an engine like vLLM 0.11 on an L4."""
    known = {
        "max_num_seqs": 256, "max_num_batched_tokens": 8192, "max_model_len": 8192, "gpu_memory_utilization": 0.9,
        "prefix_caching": False, "chunked_prefill": True, "cuda_graphs": True, "num_gpu_blocks": 11_000,
        "block_size": 16, **settings,
    }  # fmt: skip
    return EngineFacts("vllm", "0.11.0", model, {}, "bf16", "bf16", "bf16", known, versions={"torch": "2.8.0"})


def open_backend(options: BackendOptions) -> SimulatedBackend:
    """What `calibrate collect` calls."""
    delay_s = float(os.environ.get("SIMULATED_DELAY_S", 0.0))
    die_at = os.environ.get("SIMULATED_DIE_AT")
    return SimulatedBackend(facts_of(options.model), delay_s=delay_s, die_at=int(die_at) if die_at else None)


class SimulatedBackend:
    """Serves by the simulator under `truth`. `runs` counts measured runs, `closed` says whether it was closed."""

    def __init__(
        self, facts: EngineFacts, truth: dict[str, float] = TRUTH, noise: float = NOISE, delay_s: float = 0.0,
        die_at: int | None = None,
    ) -> None:  # fmt: skip
        self._facts, self.truth, self.noise, self.delay_s, self.die_at = facts, truth, noise, delay_s, die_at
        self.now_s, self.runs, self.warmed, self.closed = 1000.0, 0, [], False

    def facts(self) -> EngineFacts:
        return self._facts

    def warm_up(self, point: Point) -> None:
        self.warmed.append(point.configuration)

    def close(self) -> None:
        self.closed = True

    def run(self, point: Point, seed: int) -> Observation:
        self.runs += 1
        if self.die_at is not None and self.runs >= self.die_at:
            raise BackendError("the server has died")
        time.sleep(self.delay_s)
        record = RunRecord(run_id="x", source="collect-simulated", gpu=GPU, **configuration(point, self._facts))
        setup = resolve(record)
        calibration = with_fitted(prior_calibrations([setup], fitted=True)[GPU], GPU, self.truth)
        trajectory = trajectory_of(record, setup.model, setup.settings, setup.kv_blocks)
        seconds = step_model(setup, calibration).price(trajectory.steps).seconds
        off = float(np.exp(np.random.default_rng(seed).normal(0.0, self.noise)))
        alone, _, _ = front_end_s(setup, calibration.parameters.engine)
        return self._observed(trajectory, off * seconds, off * alone)

    def _observed(self, trajectory, seconds, alone_s) -> Observation:
        repeat = trajectory.repeat.astype(int)
        ends = self.now_s + alone_s + np.cumsum(np.repeat(seconds, repeat))  # of every step
        step = np.concatenate(([0], np.cumsum(repeat)))  # steps before each edge
        edges = np.concatenate(([self.now_s + alone_s], ends))[step]
        requests = []
        for n, output in enumerate(trajectory.output_tok):
            first, last = step[trajectory.first_token[n]] - 1, step[trajectory.finished[n]]
            times = ends[first:last]
            assert len(times) == output, "the simulated back-end does not preempt"
            send_s = edges[trajectory.submitted[n]] - alone_s
            requests.append(
                RequestTimes(float(send_s), tuple(times.tolist()), int(trajectory.prompt_tok[n]), int(output))
            )
        start_s, self.now_s = self.now_s, float(ends[-1]) + 0.01
        return Observation(tuple(requests), start_s, float(ends[-1]), tuple(np.repeat(seconds, repeat).tolist()))
