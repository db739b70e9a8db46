"""The sequence of engine steps that a measured run consists of, apart from how long each of them takes.

A run is scheduled once, in step-time; any physics then prices its steps in one call, and the metrics of the schema
follow from sums. Every time is that of an *edge*: edge e is the start of row e and the end of row e - 1, at
cumsum(seconds * repeat). So means are linear in the seconds of the rows, and a fit can use a few dozen weighted rows
in place of thousands (`calibration.condensed`).

    trajectory = trajectory_of(record, model, settings, kv_blocks)
    cost = physics.price(trajectory.steps)
    values = metrics(trajectory, cost.seconds, cost.joules)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from calibration.records import RunRecord
from calibration.sources import source_of
from calibration.workloads import Workload, workload_of
from simulator.engine.schedule_steps import steps_of
from simulator.engine.settings import EngineSettings
from simulator.engine.token_clock import Requests, Schedule, schedule
from simulator.errors import UserError
from simulator.keys import KeyRule, key_rules
from simulator.model import Model
from simulator.steps import Steps

# A client sees a finish when the next step runs already, and sends its next request while it runs: at its middle, on
# average. The scheduler in step-time takes it for submitted at the finish; joining one step later it waits half a step
# longer than that.
FOLLOW_LAG_STEPS = 0.5


@dataclass(frozen=True)
class Trajectory:
    """S rows of equal steps and what N requests did in them. Replicas are alike: rows are those of one replica.

    Edges count rows: 0 <= edge <= S. Windows are (first edge, last edge).
    """

    steps: Steps  # (S,) rows; a row is the mean of its steps
    repeat: np.ndarray  # (S,) steps in the row
    running: np.ndarray  # (S,) sequences in each step, decoding and prefilling
    gaps: np.ndarray  # (S,) gaps between tokens of one sequence that last one step of this row
    resumed: np.ndarray  # (G, 2) edges of gaps that a preemption tore open
    submitted: np.ndarray  # (N,) edges, all four
    scheduled: np.ndarray
    first_token: np.ndarray
    finished: np.ndarray
    prompt_tok: np.ndarray  # (N,)
    output_tok: np.ndarray  # (N,)
    cached_tok: np.ndarray  # (N,) prompt tokens that came from the prefix cache
    preemptions: np.ndarray  # (N,)
    window: tuple[int, int]  # while the server is full: requests wait for a seat or for KV blocks; (0, 0): never
    rate_window: tuple[int, int]  # what throughput and mean batch cover
    power_window: tuple[int, int]  # what power and energy cover
    tpot_of_window: bool = False  # tpot_s_mean is mean batch / throughput in rate_window
    follow_lag_steps: float = 0.0  # of requests that follow on another: steps from their arrival to their edge
    replicas: int = 1
    assumptions: tuple[str, ...] = ()

    @property
    def output_rows(self) -> np.ndarray:
        """Tokens written in each row, shape (S,)."""
        return self.steps.sampled * self.repeat

    def edges_s(self, seconds: np.ndarray) -> np.ndarray:
        """Time of each edge for `seconds` (S,) per step, shape (S + 1,)."""
        return np.concatenate(([0.0], np.cumsum(seconds * self.repeat)))


def trajectory_of(
    record: RunRecord,
    model: Model,
    settings: EngineSettings,
    kv_blocks: int,
    dp: int = 1,
    async_scheduling: bool | None = None,
) -> Trajectory:
    """The trajectory of a measured run. `settings` and `kv_blocks` are those of one of `dp` equal replicas.

    async_scheduling None: as the record's flags say. UserError if the run cannot be scheduled.
    """
    if record.load == "open_loop":
        raise UserError(f"run '{record.run_id}': an open loop depends on real time, use simulate_open_loop")
    workload, kv_blocks = servable(workload_of(record, room(model, settings), dp), settings, kv_blocks)
    ahead = record.flagged("async_scheduling") if async_scheduling is None else async_scheduling
    found = run_requests(workload.requests, settings, kv_blocks, key_rules(model), ahead)
    return as_recorded(found, record, workload, dp)


def run_requests(
    requests: Requests,
    settings: EngineSettings,
    kv_blocks: int,
    rules: Sequence[KeyRule],
    async_scheduling: bool = False,
) -> Trajectory:
    """The trajectory of any requests; throughput and power cover the whole run."""
    return from_schedule(requests, schedule(requests, settings, kv_blocks, async_scheduling), rules)


def servable(workload: Workload, settings: EngineSettings, kv_blocks: int) -> tuple[Workload, int]:
    """(workload, KV blocks), the blocks enough for the longest request: it was served, whatever our estimate says."""
    requests, size = workload.requests, settings.block_size
    longest = int((requests.prompt_tok + requests.output_tok).max())
    needed = -(-longest // size) + 1 + int(requests.shared_prefix_tok.max()) // size
    if needed <= kv_blocks:
        return workload, kv_blocks
    said = (
        f"KV cache of {needed * size} tokens, enough for the longest request: by our estimate it holds "
        f"{kv_blocks * size}, but the run was served"
    )
    return replace(workload, assumptions=(*workload.assumptions, said)), needed


def room(model: Model, settings: EngineSettings) -> int | None:
    """Most tokens of one sequence."""
    limits = [limit for limit in (settings.max_model_len, model.max_position_embeddings) if limit]
    return min(limits) if limits else None


def from_schedule(requests: Requests, plan: Schedule, rules: Sequence[KeyRule], cut: bool = True) -> Trajectory:
    """The trajectory of requests that were scheduled; `cut`: join steps whose keys are about the same into rows."""
    steps, repeat, row = steps_of(plan, rules) if cut else steps_of(plan, rules, np.inf)
    joined = np.bincount(row[plan.joined], minlength=len(repeat))
    full = np.flatnonzero(plan.full)
    whole = (0, len(repeat))
    return Trajectory(
        steps=steps,
        repeat=repeat,
        running=steps.decode_sequences + steps.prefill_sequences,
        gaps=steps.decode_sequences * repeat - joined,
        resumed=row[plan.resumed],
        submitted=row[plan.submitted],
        scheduled=row[plan.scheduled],
        first_token=row[plan.first_token],
        finished=row[plan.finished],
        prompt_tok=requests.prompt_tok,
        output_tok=requests.output_tok,
        cached_tok=plan.cached_tok,
        preemptions=plan.preemptions,
        window=(int(row[full[0]]), int(row[full[-1] + 1])) if len(full) else (0, 0),
        rate_window=whole,
        power_window=whole,
    )


def as_recorded(trajectory: Trajectory, record: RunRecord, workload: Workload, dp: int) -> Trajectory:
    """The trajectory with the windows that the source of `record` took its figures over."""
    window, rate, power = trajectory.window, trajectory.rate_window, trajectory.power_window
    if "steady_window" in record.flag_list and window[1] > window[0]:
        rate = power = window
    elif record.flagged("steady_window"):  # nobody ever waits: from the last first token on
        last = int(trajectory.first_token.max())
        power = (last, power[1]) if last < power[1] else power
    follows = record.load == "closed_loop" and source_of(record.source).client == "server"
    return replace(
        trajectory,
        rate_window=rate,
        power_window=power,
        tpot_of_window="derived:tpot_s_mean" in record.flag_list and "steady_window" in record.flag_list,
        follow_lag_steps=FOLLOW_LAG_STEPS if follows else 0.0,
        replicas=dp,
        assumptions=workload.assumptions,
    )
