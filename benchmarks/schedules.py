"""How fast schedules are expanded and flown: python benchmarks/schedules.py

Expanding is everything that the language does: a strategy's own code, lengths and outcomes drawn, calls numbered, tied
to what they depend on and handed over, barriers and branches waited for, token accounts left out. To measure it alone,
an engine stands in that answers every call in the same instant and computes nothing. Beside it stands what the same
machine needs for the smallest event of SimPy. Then whole flights, physics and engine included.
"""

from __future__ import annotations

import json
import tempfile
import time
from pathlib import Path

import numpy as np
import simpy

from simulator.collector import collector_paused
from simulator.engine.fleet import Fleet
from simulator.result import CallRecord
from simulator.scenario import Scenario, prepare, simulate_scenario
from simulator.schedule import Run
from simulator.schedule.files.schedule import load_schedule
from simulator.strategies import get_strategy

# Strategies at a size of about a thousand calls, and what bounds them: forks, rounds of forks, or chains.
EXPANDED = {
    "self_consistency": {"samples": 1000},
    "pdr": {"width": 333, "rounds": 4},
    "deepprune": {"traces": 512},
    "sr": {"rounds": 500},
    "qalign": {"steps": 500},
}
REPEATS = 7


class _Answer:
    """What the engine's double hands out: the same for all calls of an instant."""

    def __init__(self, env: simpy.Environment, call_id: int, label: str, output_tok: int) -> None:
        self.call_id, self.output_tok, self.record = call_id, output_tok, None
        self.done = simpy.Event(env)
        self.done.callbacks.append(self.end)
        self.done.succeed(CallRecord(call_id, label, 0.0, 0.0, 0.0, 0.0, 1, 0, output_tok))

    def end(self, event: simpy.Event) -> None:
        self.record = event.value


class InstantEngine:
    """Answers every call in the instant in which it is submitted."""

    gpu, outstanding = None, 0

    def __init__(self, env: simpy.Environment) -> None:
        self.env, self._answer = env, None

    def submit_all(self, prompt, output_tok, call_ids, label, parents, **_):
        if self._answer is None or self._answer.done.processed:
            self._answer = _Answer(self.env, call_ids[0], label, output_tok[0])
        return [self._answer] * len(output_tok)

    def mark(self, sequence, written_tok):
        return self.env.event().succeed()

    def stop(self, sequence):
        pass

    def release(self, sequence):
        pass


def expand_s(function, values, **options) -> tuple[float, int]:
    """(best seconds of several, calls and waits) of expanding a strategy's generator."""
    best, made = float("inf"), 0
    for _ in range(REPEATS):
        env = simpy.Environment()
        run = Run(Fleet([InstantEngine(env)]), np.random.default_rng(0), 256, flop=lambda *_: 1.0)
        start = time.perf_counter()
        with collector_paused():
            env.run(until=env.process(run.drive(function(run, values))))
        best, made = min(best, time.perf_counter() - start), len(run.submitted)
    return best, made


def timeout_s(n: int = 100_000) -> float:
    """Seconds of SimPy's smallest event on this machine now."""

    def process(env):
        for _ in range(n):
            yield env.timeout(1.0)

    env = simpy.Environment()
    env.process(process(env))
    start = time.perf_counter()
    env.run()
    return (time.perf_counter() - start) / n


def file_of_calls(n: int) -> dict:
    """A schedule of n calls in layers of ten, each reading one call of the layer before."""
    nodes = [
        {"id": f"c{i}", "prompt": ["problem", *([{"output": f"c{i - 10}"}] if i >= 10 else [])], "output_tok": 50}
        for i in range(n)
    ]
    return {"tokenflight_schedule": 1, "texts": {"problem": 256}, "nodes": nodes, "answer": [f"c{n - 1}"]}


def load_s(n: int = 1000) -> tuple[float, float]:
    """(seconds to read and check, to expand) a schedule file of n calls."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "schedule.json"
        path.write_text(json.dumps(file_of_calls(n)))
        start = time.perf_counter()
        for _ in range(REPEATS):
            schedule = load_schedule(path)
        loaded = (time.perf_counter() - start) / REPEATS
        return loaded, expand_s(lambda run, _: schedule.replay(run), {})[0]


def flight_s(**options) -> tuple[float, int, float]:
    """(seconds, calls, simulated seconds) of one repetition on an H100 with an 8B model, preparation left out."""
    scenario = Scenario(gpu="h100-sxm", model="Qwen/Qwen3-8B", repetitions=1, **options)
    prepare(scenario)
    simulate_scenario(scenario)
    start = time.perf_counter()
    result = simulate_scenario(scenario)
    return time.perf_counter() - start, len(result.flights[0].calls), result.flights[0].wall_s


def main() -> None:
    event = timeout_s()
    print(f"SimPy timeout: {1e6 * event:.2f} us\n")
    print(f"{'expanding':24} {'calls':>7} {'ms':>8} {'ms per 1,000':>13} {'timeouts per call':>18}")
    rows = []
    for name, parameters in EXPANDED.items():
        strategy = get_strategy(name)
        rows.append((name, *expand_s(strategy.start, strategy.resolve(parameters))))
    loaded, expanded = load_s()
    rows += [("a file: read, checked", loaded, 1000), ("the file, expanded", expanded, 1000)]
    for name, seconds, calls in rows:
        each = seconds / calls
        print(f"{name:24} {calls:7,} {1e3 * seconds:8.2f} {1e6 * each:13.2f} {each / event:18.1f}")
    print(f"\n{'whole flights, H100, 8B':36} {'calls':>7} {'seconds':>8} {'simulated':>10}")
    for title, options in {
        "deepprune, 512 traces": {"strategy": "deepprune", "roles": ("judge=Qwen/Qwen3-4B",)},
        "self_consistency, 512 samples": {"strategy": "self_consistency", "strategy_parameters": {"samples": 512}},
        "pdr, 100 questions": {"strategy": "pdr", "questions": 100},
        "qalign, 1,024 steps": {"strategy": "qalign", "strategy_parameters": {"steps": 1024}},
    }.items():
        seconds, calls, simulated = flight_s(**options)
        print(f"{title:36} {calls:7,} {seconds:8.2f} {simulated:9.0f}s")


if __name__ == "__main__":
    main()
