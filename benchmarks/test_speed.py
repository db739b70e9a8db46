"""How fast the simulator is: `make bench`. Ratios against something in the same run; timings never decide a test.

cold start             one process, `simulate --gpu orin --strategy pdr`, against `python -c "import numpy"`
macro-steps            20 flights of pdr against the same flights step by step
decode run             2,000 decode steps in one vector operation against one by one
one step               one step of a prepared deployment, contexts drawn at random, against summing them in numpy
many steps             10,000 steps priced in one call against sorting as many numbers, and against 100 one by one
preparing              a step model from names to its first step, against reading the same data sheet
"""

from __future__ import annotations

import subprocess
import sys
from itertools import cycle

import numpy as np
import pytest

from simulator.batch import Batch, PrefillChunk
from simulator.device import load_device
from simulator.model import load_model
from simulator.precision import choose_precision
from simulator.profile_choice import load_calibration
from simulator.scenario import Scenario, prepare, simulate_scenario
from simulator.step import StepModel
from simulator.steps import Steps

FLIGHT = Scenario("orin", "pdr")
COLD = {
    "import numpy": [sys.executable, "-c", "import numpy"],
    "simulate": [sys.executable, "-m", "simulator.cli.main", "--gpu", "orin", "--strategy", "pdr"],
}
MODELS = {
    "dense": "deepseek-ai/DeepSeek-R1-Distill-Llama-8B",
    "experts": "Qwen/Qwen3-30B-A3B",
    "windows": "google/gemma-3-4b-it",
    "hybrid": "nvidia/NVIDIA-Nemotron-Nano-9B-v2",
}
STEPS = 10_000


def deployment(model: str = MODELS["dense"]) -> StepModel:
    """The model on one H100."""
    device, loaded = load_device("h100"), load_model(model)
    return StepModel(loaded, device, choose_precision(loaded, device)[0], load_calibration(device))


def changing(prefill: tuple[PrefillChunk, ...]) -> list[Batch]:
    """Batches of 1 to 64 sequences with contexts drawn at random: nothing that a cache could look up."""
    draw = np.random.default_rng(0)
    return [Batch(prefill, draw.integers(100, 8000, n)) for n in draw.integers(1, 65, 512)]


@pytest.mark.benchmark(group="cold start")
@pytest.mark.parametrize("what", COLD)
def test_cold_start(benchmark, what):
    done = benchmark.pedantic(subprocess.run, (COLD[what],), {"capture_output": True}, rounds=5)
    assert done.returncode == 0


@pytest.mark.benchmark(group="20 flights of pdr")
@pytest.mark.parametrize("step_by_step", [False, True], ids=["macro-steps", "step by step"])
def test_flights(benchmark, step_by_step):
    scenario = Scenario("orin", "pdr", step_by_step=step_by_step)
    result = benchmark.pedantic(simulate_scenario, (scenario,), rounds=2, iterations=1)
    assert len(result.flights) == 20


@pytest.mark.benchmark(group="2,000 decode steps of 8 sequences")
@pytest.mark.parametrize("vector", [True, False], ids=["one vector operation", "one by one"])
def test_decode_steps(benchmark, vector):
    physics, start = prepare(FLIGHT).step_model, np.full(8, 1000)

    def run() -> float:
        if vector:
            return float(physics.decode_run(start, 2000).seconds.sum())
        return sum(physics.step(Batch((), start + j)).seconds for j in range(2000))

    assert benchmark(run) > 0


@pytest.mark.benchmark(group="one step")
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("kind", ["decode", "mixed"])
def test_one_step(benchmark, model, kind):
    physics, batches = deployment(MODELS[model]), changing((PrefillChunk(300, 64),) if kind == "mixed" else ())
    for batch in batches:  # costs by tokens are computed on first use
        physics.step(batch)
    following = cycle(batches)
    assert benchmark(lambda: physics.step(next(following)).seconds) > 0


@pytest.mark.benchmark(group="one step")
def test_one_step_against_a_numpy_sum(benchmark):
    following = cycle(changing(()))
    assert benchmark(lambda: float(next(following).decode_context_tok.sum())) > 0


@pytest.mark.benchmark(group="10,000 steps")
@pytest.mark.parametrize("what", ["price", "sort as many numbers", "100 steps one by one"])
def test_many_steps(benchmark, what):
    physics = deployment()
    batches = (changing(()) + changing((PrefillChunk(300, 64),))) * (STEPS // 1024 + 1)
    steps = Steps.from_batches(batches[:STEPS], physics.rules)
    numbers = np.random.default_rng(0).random(STEPS)
    run = {
        "price": lambda: physics.price(steps).seconds,
        "sort as many numbers": lambda: np.sort(numbers),
        "100 steps one by one": lambda: np.array([physics.step(batch).seconds for batch in batches[:100]]),
    }[what]
    run()
    assert (benchmark(run) > 0).all()


@pytest.mark.benchmark(group="preparing")
@pytest.mark.parametrize("what", ["deployment and first step", "data sheet"])
def test_preparing(benchmark, what):
    batch = Batch((), np.full(8, 1000))
    run = {
        "deployment and first step": lambda: deployment().step(batch),
        "data sheet": lambda: load_device("h100"),
    }[what]
    assert benchmark(run) is not None
