"""How fast the simulator is: `make bench`. Ratios against something in the same run; timings never decide a test.

cold start             one process, `simulate --gpu orin --strategy pdr`, against `python -c "import numpy"`
macro-steps            20 flights of pdr against the same flights step by step
decode run             2,000 decode steps in one vector operation against one by one
"""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from simulator.batch import Batch
from simulator.scenario import Scenario, prepare, simulate_scenario

FLIGHT = Scenario("orin", "pdr")
COLD = {
    "import numpy": [sys.executable, "-c", "import numpy"],
    "simulate": [sys.executable, "-m", "simulator.cli.main", "--gpu", "orin", "--strategy", "pdr"],
}


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
