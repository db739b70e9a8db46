"""Hogwild! Inference: tokens per second of lock-step workers, tried in three ways."""

from __future__ import annotations

from functools import cache

import numpy as np

from simulator.batch import Batch
from simulator.scenario import Scenario, prepare, simulate_scenario
from validate.published.comparison import Comparison
from validate.published.numbers import Number, number

TITLE = "Hogwild! Inference (arXiv:2504.06261)"
ABOUT = (
    "QwQ-32B in 4 bits on an L40S, 1 to 4 workers on one cache. The figures come from a third party's note, so "
    "nothing is judged; how many lie within the target of 12 % is shown. The host's time per step is not published "
    "and is more than half of it all."
)
WORKERS, CACHED_TOK = (1, 2, 4), (1024, 8192, 16384)
STEPS = 64
TARGET = 0.12
GPU, MODEL, WEIGHTS = "l40s", "Qwen/QwQ-32B", "int4"
MARKER_TOK, INSTRUCTION_TOK = 8, 256  # the strategy's defaults
ASSUMED = (
    "4-bit matrix products reach the share of bandwidth that other GPUs show with vLLM; AutoAWQ's kernels are slower",
    "the further rotations of queries, one per block and worker, cost nothing: the step model has no price for them",
)
ROTATION = "the rotation of queries, one per block and worker, is not priced"
ENGINES = {
    "transformers": "launches set the pace, each as long as on another host; so neither workers nor tokens in the "
    "cache make a step longer, which they do in the figures",
    "vllm": "CUDA graphs leave the GPU's own time, twice as fast as eager PyTorch: the ceiling",
}


def compare() -> list[Comparison]:
    """Nine speeds by three ways: eager PyTorch, the GPU alone, and the GPU behind the host's time of one figure."""
    cells = [(workers, cached) for workers in WORKERS for cached in CACHED_TOK]
    flown = [_flown(engine, *cell) for engine in ENGINES for cell in cells]
    return flown + [_with_host_time(*cell) for cell in cells[1:]]


def _published(workers: int, cached_tok: int) -> Number:
    config = f"{workers} workers, {cached_tok} tokens in cache"
    return number(strategy="Hogwild! inference", config=config, metric="aggregate generation speed")


def _flown(engine: str, workers: int, cached_tok: int) -> Comparison:
    """The strategy's own flight, with the stated number of tokens in the cache halfway."""
    asked = Scenario(
        gpu=GPU, model=MODEL, weights=WEIGHTS, engine=engine, strategy="hogwild", repetitions=1,
        strategy_parameters={
            "workers": workers,
            "steps": STEPS,
            "problem_tok": cached_tok - INSTRUCTION_TOK - workers * (MARKER_TOK + STEPS // 2),
            "answer_tok": 1,
        },
    )  # fmt: skip
    worker = simulate_scenario(asked).flights[0].calls[0]
    setup = f"--gpu {GPU} --model {MODEL} --weights {WEIGHTS} --engine {engine} --strategy hogwild workers={workers}"
    return _row(f"engine {engine}", workers, cached_tok, workers / worker.tpot_s, setup, ENGINES[engine], ROTATION)


def _with_host_time(workers: int, cached_tok: int) -> Comparison:
    """One worker with 1,024 tokens gives the time that is not the GPU's; workers and tokens add what physics says."""
    host_s = 1.0 / _published(WORKERS[0], CACHED_TOK[0]).value - _gpu_s(WORKERS[0], CACHED_TOK[0])
    step_s = host_s + _gpu_s(workers, cached_tok)
    setup = (
        f"step of {workers} queries on one cache that is read once (`StepModel.verifying`), {GPU}, {MODEL}, {WEIGHTS}; "
        f"plus {1e3 * host_s:.1f} ms (input: 1 worker, 1,024 tokens)"
    )
    return _row("host time from one figure", workers, cached_tok, workers / step_s, setup)


@cache
def _gpu_s(workers: int, cached_tok: int) -> float:
    """One step on the GPU, launches hidden by a graph."""
    model = prepare(Scenario(gpu=GPU, model=MODEL, weights=WEIGHTS, strategy="hogwild")).step_model.verifying(workers)
    return model.step(Batch((), np.array([cached_tok]))).seconds


def _row(
    way: str, workers: int, cached_tok: int, speed: float, setup: str, reason: str = "", *assumed: str
) -> Comparison:
    published = _published(workers, cached_tok)
    return Comparison(
        "hogwild",
        f"tokens per second, {workers} worker{'s' if workers > 1 else ''}, {cached_tok:,} tokens in cache, {way}",
        "tok/s",
        published.value,
        speed,
        TARGET,
        status=published.status,
        source=published.source,
        setup=setup,
        assumed=(*ASSUMED, *assumed),
        reason=reason,
    )
