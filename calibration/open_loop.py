"""Runs whose requests arrive in real time: the scheduler and the physics take turns, step after step.

trajectory, seconds, joules = simulate_open_loop(record, model, settings, kv_blocks, physics)
values = metrics(trajectory, seconds, joules)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from calibration.records import RunRecord
from calibration.trajectory import Trajectory, as_recorded, from_schedule, room, servable
from calibration.workloads import workload_of
from simulator.engine.schedule_steps import prefill_keys
from simulator.engine.settings import EngineSettings
from simulator.engine.token_clock import Requests, TokenClock
from simulator.errors import UserError
from simulator.keys import KeyRule, key_rules
from simulator.model import Model
from simulator.steps import Steps

ARRIVAL_SEED = 20240301  # of Poisson arrivals where the caller gives none


def simulate_open_loop(
    record: RunRecord,
    model: Model,
    settings: EngineSettings,
    kv_blocks: int,
    physics: Any,
    seed: int = ARRIVAL_SEED,
    dp: int = 1,
    async_scheduling: bool | None = None,
) -> tuple[Trajectory, np.ndarray, np.ndarray]:
    """(trajectory, seconds (S,), joules (S,)) of a run with Poisson arrivals at the record's request_rate_rps.

    The scheduler runs in the real time of `physics`. Rows without sequences are gaps in which the server waits; they
    draw `physics.idle_power_w` where physics has one. The three fit `metrics`.
    """
    if not record.request_rate_rps:
        raise UserError(f"run '{record.run_id}': request_rate_rps not stated")
    workload, kv_blocks = servable(workload_of(record, room(model, settings), dp), settings, kv_blocks)
    rng = np.random.default_rng(seed)
    arrivals = np.cumsum(rng.exponential(dp / record.request_rate_rps, len(workload.requests)))
    ahead = record.flagged("async_scheduling") if async_scheduling is None else async_scheduling
    found, seconds, joules = run_arrivals(
        workload.requests, arrivals, settings, kv_blocks, key_rules(model), physics, ahead
    )
    return as_recorded(found, record, workload, dp), seconds, joules


def run_arrivals(
    requests: Requests,
    arrival_s: np.ndarray,
    settings: EngineSettings,
    kv_blocks: int,
    rules: Sequence[KeyRule],
    physics: Any,
    async_scheduling: bool = False,
) -> tuple[Trajectory, np.ndarray, np.ndarray]:
    """As `simulate_open_loop`, for requests that arrive at `arrival_s` (N,), ascending."""
    if len(arrival_s) != len(requests) or (np.diff(arrival_s) < 0).any():
        raise ValueError("arrival_s needs one ascending time per request")
    clock = TokenClock(replace(requests, in_flight=0), settings, kv_blocks, async_scheduling)
    times, now, rows = [*arrival_s.tolist(), np.inf], 0.0, []
    idle_w = float(getattr(physics, "idle_power_w", 0.0))
    coming = 0
    while True:
        while times[coming] <= now:
            clock.arrive()
            coming += 1
        if clock.done:
            if coming == len(requests):
                break
            rows.append((times[coming] - now, idle_w * (times[coming] - now)))
            now = times[coming]
            clock.idle()
            continue
        steps = clock.plan()
        if steps == 0:
            continue
        steps, seconds, joules = _priced(clock, steps, times[coming] - now, rules, physics)
        clock.advance(steps)
        rows.append((seconds, joules))
        now += seconds * steps
    found = from_schedule(requests, clock.schedule(), rules, cut=False)
    seconds, joules = np.array(rows).T
    return replace(found, submitted_s=np.asarray(arrival_s, dtype=float)), seconds, joules


def _priced(
    clock: TokenClock, steps: int, until_s: float, rules: Sequence[KeyRule], physics: Any
) -> tuple[int, float, float]:
    """(steps to take, mean seconds, mean joules) of the planned batch.

    At most as many steps as leave the keys about the same, and none that starts after an arrival in `until_s` that
    could join. Costs are linear between the first and the last step.
    """
    contexts = clock.contexts()
    steps = min(steps, max(1, int(0.1 * contexts.mean()))) if len(contexts) else steps
    cost = physics.price(_rows(clock.planned_chunks(), contexts, clock.planned_joins(), steps, rules))
    seconds, joules = (np.asarray(values, dtype=float) for values in (cost.seconds, cost.joules))
    if steps > 1 and clock.open_to_arrivals and until_s < np.inf:
        slope = (seconds[1] - seconds[0]) / (steps - 1)
        ends = np.cumsum(seconds[0] + slope * np.arange(steps))
        taken = min(steps, int(np.searchsorted(ends, until_s)) + 1)
        share = (taken - 1) / (steps - 1)
        seconds, joules = ([x[0], x[0] + share * (x[1] - x[0])] for x in (seconds, joules))
        steps = taken
    return steps, float(np.mean(seconds)), float(np.mean(joules))


def _rows(
    chunks: list[tuple[int, int, bool]],
    contexts: np.ndarray,
    joins: list[int],
    steps: int,
    rules: Sequence[KeyRule],
) -> Steps:
    """The first and the last of `steps` equal batches, or the only one."""
    contexts = np.concatenate((contexts, np.array(joins, dtype=np.int64)))
    new, cached, completes = (np.array([chunk[j] for chunk in chunks], dtype=np.int64) for j in range(3))
    read = [prefill_keys(rule, new, cached) for rule in rules]
    offsets = (0,) if steps == 1 else (0, steps - 1)
    keys = [[float(rule.decode_keys(contexts + j, 1)[0]) if len(contexts) else 0.0 for rule in rules] for j in offsets]
    once = np.ones(len(offsets))
    return Steps(
        decode_sequences=len(contexts) * once,
        decode_keys=np.array(keys).reshape(len(offsets), len(rules)),
        prefill_sequences=len(chunks) * once,
        prefill_tok=new.sum() * once,
        prefill_cached_tok=cached.sum() * once,
        prefill_pairs=np.outer(once, [pairs.sum() for pairs, _ in read]),
        prefill_keys=np.outer(once, [keys.sum() for _, keys in read]),
        sampled=(len(contexts) + completes.sum()) * once,
    )
