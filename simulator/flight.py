"""Fly a strategy: every repetition on a fresh server, with its own seed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import simpy

from simulator.engine.server import Server
from simulator.engine.settings import EngineSettings
from simulator.errors import UserError
from simulator.result import Flight
from simulator.schedule.run import Run
from simulator.strategies.registry import Strategy, get_strategy


def fly(
    step_model: Any,
    memory: Any,
    settings: EngineSettings,
    strategy: Strategy | str,
    parameters: Mapping[str, Any] | None = None,
    repetitions: int = 20,
    seed: int = 0,
    *,
    step_by_step: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Flight, ...]:
    """Run a strategy `repetitions` times, each alone on an idle server with an empty cache.

    step_model: what `simulator.step.StepModel` offers. memory: a `MemoryPlan`, or the KV capacity in tokens.
    parameters: those that differ from the strategy's defaults, as text or values. Repetition i draws its lengths from
    `numpy.random.default_rng([seed, i])`, and `Flight.seed` is i. `progress(done, repetitions)` is called after each.
    Raises `UserError` for bad parameters and for a call
    that can never fit.
    """
    if isinstance(repetitions, bool) or not isinstance(repetitions, int) or repetitions < 1:
        raise UserError(f"repetitions must be a whole number >= 1, got {repetitions}")
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise UserError(f"seed must be a whole number >= 0, got {seed}")
    found = get_strategy(strategy) if isinstance(strategy, str) else strategy
    values = found.resolve(parameters)
    kv_blocks = _kv_blocks(memory, settings)
    flights = []
    for index in range(repetitions):
        flights.append(_fly_once(step_model, kv_blocks, settings, found, values, index, seed, step_by_step))
        if progress is not None:
            progress(index + 1, repetitions)
    return tuple(flights)


def collect_assumptions(strategy: Strategy | str, parameters: Mapping[str, Any] | None = None) -> tuple[str, ...]:
    """What the answer rests on besides hardware and model: one sentence per default in use and per simplification."""
    found = get_strategy(strategy) if isinstance(strategy, str) else strategy
    values = found.plain(parameters)
    sentences = [
        f"{p.name} = {p.default} is {'published' if p.published else 'an assumption'}: {p.origin}"
        for p in found.parameters
        if values[p.name] == p.default or str(values[p.name]) == str(p.default)
    ]
    return (*sentences, *found.assumptions)


def _kv_blocks(memory: Any, settings: EngineSettings) -> int:
    if hasattr(memory, "kv_blocks"):
        return int(memory.kv_blocks)
    return int(memory) // settings.block_size


def _fly_once(
    step_model: Any,
    kv_blocks: int,
    settings: EngineSettings,
    strategy: Strategy,
    values: Mapping[str, Any],
    index: int,
    seed: int,
    step_by_step: bool,
) -> Flight:
    env = simpy.Environment()
    server = Server(env, step_model, settings, kv_blocks, step_by_step)
    rng = np.random.default_rng([seed, index])
    run = Run(server, rng, values["problem_tok"].draw(rng))
    env.run(until=env.process(run.drive(strategy.start(run, values))))
    server.close()
    return collect(run, server, index)


def collect(run: Run, server: Server, seed: int) -> Flight:
    """The flight of a run that has ended."""
    records = tuple(server.records[call.call_id] for call in run.calls)
    read = sum(record.prompt_tok for record in records)
    written = sum(record.output_tok for record in records)
    power_times_s, power_w = server.power_trace()
    return Flight(
        seed=seed,
        wall_s=float(server.env.now),
        energy_j=server.energy_j,
        critical_path_tok=run.critical_path_tok(),
        read_tok=read,
        computed_tok=read - sum(record.cached_tok for record in records),
        written_tok=written,
        b_seq_tok=sum(call.record.prompt_tok + call.output_tok for call in run.accepted_path()),
        b_total_tok=read + written,
        peak_kv_tok=server.cache.peak_held * server.cache.block_size,
        peak_running=server.peak_running,
        shares_s=dict(server.shares_s),
        calls=records,
        power_times_s=power_times_s,
        power_w=power_w,
        reread_tok=run.reread_tok(),
    )
