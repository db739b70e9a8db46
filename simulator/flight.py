"""Fly a strategy: every repetition on fresh engines, with its own seed."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import simpy

from simulator.collector import collector_paused
from simulator.engine.fleet import Fleet
from simulator.engine.gpu import Gpu, total_power
from simulator.engine.server import Server
from simulator.engine.settings import EngineSettings
from simulator.errors import UserError
from simulator.questions import Questions
from simulator.result import EngineUse, Flight, QuestionRecord, WaitRecord
from simulator.schedule.run import Run
from simulator.strategies.registry import Strategy, get_strategy

NOTHING_LEFT = "No scheduled events left"  # SimPy's words for a simulation in which nothing can happen any more


@dataclass(frozen=True)
class Crew:
    """An engine that plays a role of the strategy. `shares_gpu`: on the GPU of the (first) main engine."""

    step_model: Any
    kv_blocks: int
    settings: EngineSettings
    shares_gpu: bool = False


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
    replicas: int = 1,
    roles: Mapping[str, Crew] | None = None,
    questions: Questions | None = None,
    on_first: Callable[[Run], None] | None = None,
) -> tuple[Flight, ...]:
    """Run a strategy `repetitions` times, each alone on idle engines with empty caches.

    step_model: what `simulator.step.StepModel` offers. memory: a `MemoryPlan`, or the KV capacity in tokens.
    parameters: those that differ from the strategy's defaults, as text or values. Repetition i draws its lengths from
    `numpy.random.default_rng([seed, i])` (of several questions, question q from [seed, i, q]), and `Flight.seed` is i.
    `progress(done, repetitions)` is called after each. replicas: engines with the main model, each on a GPU of its
    own. roles: engines of other models, by the role that they play. questions: a set of them instead of one.
    on_first: gets the first repetition's run (of its first question) when it has ended.
    Raises `UserError` for bad parameters and for a call that can never fit.
    """
    if isinstance(repetitions, bool) or not isinstance(repetitions, int) or repetitions < 1:
        raise UserError(f"repetitions must be a whole number >= 1, got {repetitions}")
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise UserError(f"seed must be a whole number >= 0, got {seed}")
    found = get_strategy(strategy) if isinstance(strategy, str) else strategy
    check_roles(found, roles or {})
    values = found.resolve(parameters)
    if questions is None and found.questions is not None:
        questions = Questions(found.questions)
    airport = _Airport(step_model, _kv_blocks(memory, settings), settings, replicas, roles or {}, step_by_step)
    flights = []
    for index in range(repetitions):
        fleet = airport.fleet()
        runs = _fly_once(fleet, found, values, [seed, index], questions, getattr(step_model, "flop", None))
        if index == 0 and on_first is not None:
            on_first(runs[0])
        flights.append(collect(runs, fleet, index))
        if progress is not None:
            progress(index + 1, repetitions)
    return tuple(flights)


def check_roles(strategy: Strategy, roles: Mapping[str, Any]) -> None:
    """UserError when an engine is there for a role that the strategy does not have."""
    for role in roles:
        if role not in strategy.roles:
            known = ", ".join(strategy.roles) or "none"
            raise UserError(f"strategy '{strategy.name}' has no role '{role}'; its roles: {known}")


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


@dataclass(frozen=True)
class _Airport:
    """From which every repetition gets fresh engines."""

    step_model: Any
    kv_blocks: int
    settings: EngineSettings
    replicas: int
    roles: Mapping[str, Crew]
    step_by_step: bool

    def fleet(self) -> Fleet:
        env = simpy.Environment()
        alone = self.replicas == 1 and not self.roles
        names = ["" if alone else "main" if i == 0 else f"main {i + 1}" for i in range(self.replicas)]
        main = [
            Server(env, self.step_model, self.settings, self.kv_blocks, self.step_by_step, name=name) for name in names
        ]
        others = {
            role: Server(
                env, crew.step_model, crew.settings, crew.kv_blocks, self.step_by_step,
                main[0].gpu if crew.shares_gpu else Gpu(env, crew.step_model.idle_power_w), role,
            )
            for role, crew in self.roles.items()
        }  # fmt: skip
        return Fleet(main, others)


def _fly_once(
    fleet: Fleet,
    strategy: Strategy,
    values: Mapping[str, Any],
    seed: list[int],
    questions: Questions | None,
    flop: Callable[[int, int, int], float] | None,
) -> list[Run]:
    """The runs of one repetition, ended: one per question, or one for all that a strategy takes as a set."""
    env = fleet.env
    if questions is None:
        rng = np.random.default_rng(seed)
        runs = [Run(fleet, rng, values["problem_tok"].draw(rng), flop=flop, roles=strategy.roles)]
        ended = env.process(runs[0].drive(strategy.start(runs[0], values)))
    elif strategy.questions is not None:
        rng = np.random.default_rng(seed)
        tokens = questions.tokens or values["problem_tok"].sample(rng, questions.number).tolist()
        runs = [Run(fleet, rng, tokens, flop=flop, roles=strategy.roles)]
        ended = env.process(runs[0].drive(strategy.start(runs[0], values)))
    else:
        runs = [_question(fleet, strategy, values, seed, questions, i, flop) for i in range(questions.number)]
        waiting = iter(runs)
        seats = min(questions.concurrency or questions.number, questions.number)
        ended = env.all_of([env.process(_work_off(waiting, strategy, values)) for _ in range(seats)])
    try:
        with collector_paused():
            env.run(until=ended)
    except RuntimeError as error:
        if str(error).startswith(NOTHING_LEFT):  # but not everybody has got what it waits for
            fleet.check_stuck()
        raise
    for gpu in fleet.gpus:
        gpu.account_idle(env.now)
    return runs


def _question(
    fleet: Fleet,
    strategy: Strategy,
    values: Mapping[str, Any],
    seed: list[int],
    questions: Questions,
    i: int,
    flop: Callable[[int, int, int], float] | None,
) -> Run:
    rng = np.random.default_rng([*seed, i])
    tokens = questions.tokens[i] if questions.tokens else values["problem_tok"].draw(rng)
    return Run(fleet, rng, tokens, f"problem {i + 1}", flop, strategy.roles)


def _work_off(waiting: Any, strategy: Strategy, values: Mapping[str, Any]) -> Generator:
    """SimPy process: one seat, on which one question after the other is worked on."""
    for run in waiting:
        run.started_s = run.env.now
        yield from run.drive(strategy.start(run, values))
        run.ended_s = run.env.now


def collect(runs: Sequence[Run], fleet: Fleet, seed: int) -> Flight:
    """The flight of runs that have ended. Tokens are of all questions; the critical path is of the longest of them."""
    calls = sorted((call for run in runs for call in run.calls), key=lambda call: call.call_id)
    records = tuple(call.record for call in calls)
    read = sum(record.read_tok for record in records)
    written = sum(record.output_tok for record in records)
    power_times_s, power_w = total_power([gpu.power_trace() for gpu in fleet.gpus])
    each = tuple(_question_record(run) for run in runs)
    shares: dict[str, float] = {}
    for server in fleet.servers:
        for cause, seconds in server.shares_s.items():
            shares[cause] = shares.get(cause, 0.0) + seconds
    return Flight(
        seed=seed,
        wall_s=float(fleet.env.now),
        energy_j=sum(gpu.energy_j for gpu in fleet.gpus),
        critical_path_tok=max(question.critical_path_tok for question in each),
        read_tok=read,
        computed_tok=sum(record.prefilled_tok for record in records),
        written_tok=written,
        b_seq_tok=sum(question.b_seq_tok for question in each),
        b_total_tok=read + written,
        peak_kv_tok=max(server.cache.peak_held * server.cache.block_size for server in fleet.main),
        peak_running=max(server.peak_running for server in fleet.main),
        shares_s=shares,
        calls=records,
        power_times_s=power_times_s,
        power_w=power_w,
        reread_tok=sum(run.reread_tok() for run in runs),
        joins_kv=any(call.attend or call.group is not None for call in calls),
        waits=tuple(
            WaitRecord(w.call_id, w.label, w.started_s, w.finished_s, tuple(p.call_id for p in w.parents))
            for run in runs
            for w in run.waits
        ),
        questions=each if len(each) > 1 else (),
        engines=tuple(_use(server) for server in fleet.servers) if len(fleet.servers) > 1 else (),
    )


def _question_record(run: Run) -> QuestionRecord:
    calls = run.calls
    return QuestionRecord(
        problem_tok=sum(problem.tokens for problem in run.problems),
        started_s=run.started_s,
        finished_s=run.env.now if run.ended_s is None else run.ended_s,
        calls=len(calls),
        critical_path_tok=run.critical_path_tok(),
        written_tok=sum(call.output_tok for call in calls),
        b_seq_tok=sum(call.record.read_tok + call.output_tok for call in run.accepted_path()),
        b_total_tok=sum(call.record.read_tok + call.output_tok for call in calls),
    )


def _use(server: Server) -> EngineUse:
    records = server.records.values()
    return EngineUse(
        engine=server.name,
        calls=len(records),
        read_tok=sum(record.read_tok for record in records),
        computed_tok=sum(record.prefilled_tok for record in records),
        written_tok=sum(record.output_tok for record in records),
        busy_s=sum(server.shares_s.values()),
        peak_kv_tok=server.cache.peak_held * server.cache.block_size,
        peak_running=server.peak_running,
    )
