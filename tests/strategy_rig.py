"""Fly a strategy on physics that can be computed by hand."""

from __future__ import annotations

from fake_physics import FakeStepModel

from simulator.engine import EngineSettings
from simulator.flight import Crew, fly
from simulator.questions import Questions
from simulator.result import Flight
from simulator.schedule import Run
from simulator.strategies import Strategy

PHYSICS = FakeStepModel()


def fly_fake(
    strategy: str | Strategy,
    *,
    seed: int = 0,
    kv_tok: int = 10_000_000,
    replicas: int = 1,
    roles: tuple[str, ...] = (),
    shares_gpu: bool = False,
    questions: int | None = None,
    concurrency: int | None = None,
    step_by_step: bool = False,
    run: bool = False,
    engine: dict | None = None,
    **parameters,
) -> Flight | Run:
    """One repetition. `roles`: played by engines of their own; `run`: the Run instead of the Flight."""
    runs: list[Run] = []
    settings = EngineSettings(**{"max_num_seqs": 1024, **(engine or {})})
    crew = Crew(PHYSICS, kv_tok // settings.block_size, settings, shares_gpu)
    flight = fly(
        PHYSICS, kv_tok, settings, strategy, parameters, 1, seed, replicas=replicas,
        roles=dict.fromkeys(roles, crew), step_by_step=step_by_step, on_first=runs.append,
        questions=None if questions is None else Questions(questions, concurrency),
    )[0]  # fmt: skip
    return runs[0] if run else flight


def carry_out(strategy, problem_tok: int = 100, seed: int = 0, **options) -> Run:
    """The Run of a generator function of `run` that is no registered strategy."""
    wrapped = Strategy("own", "own", "", "", (), (), (), strategy)
    return fly_fake(_with_problem(wrapped, problem_tok), seed=seed, run=True, **options)


def _with_problem(strategy: Strategy, problem_tok: int) -> Strategy:
    from dataclasses import replace

    from simulator.strategies.registry import COMMON

    return replace(strategy, parameters=(replace(COMMON[0], default=problem_tok),))


__all__ = ["PHYSICS", "carry_out", "fly_fake"]
