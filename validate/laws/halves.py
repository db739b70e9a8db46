"""Family 7: two identical replicas with twice the load are the same server twice."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from calibration.records import RunRecord
from calibration.setup import resolve, step_model
from simulator.steps import Steps
from simulator.traffic.metrics import traffic_metrics
from simulator.workload.traffic import Traffic
from validate.laws.law import Family, Law, Result
from validate.laws.runs import BELOW_SATURATION, Runs, percent
from validate.laws.subjects import Subject

PER_TOKEN = "energy_j_per_output_tok"
HALVES = "two halves that share nothing"
N = 50  # requests of one replica
CLIENTS, RECORDED, RATE_PER_S = 4, 12, 0.5  # of one replica, in run records: clients, requests, arrivals

LATENCY = Law(
    "7.1", "same latencies", "Every request and its twin on the other replica take as long as the request alone.",
    "TTFT, E2E (2 replicas, load 2 x) = TTFT, E2E (1 replica)", HALVES, "s",
)  # fmt: skip
THROUGHPUT = Law(
    "7.2", "twice the throughput", "Two replicas write twice the tokens per second.",
    "tok/s (2 replicas) = 2 tok/s (1 replica)", HALVES, "tok/s",
)  # fmt: skip
POWER = Law(
    "7.3", "twice the power", "Two replicas draw twice the power, neither more nor less, and spend the same per token.",
    "W (2 replicas) = 2 W (1 replica)", HALVES, "W",
)  # fmt: skip
STEP_TIME = Law(
    "7.4", "one step, dp = 2", "A step of a data-parallel instance takes as long as a step of one replica.",
    "step(dp = 2) = step(dp = 1)", HALVES, "s",
)  # fmt: skip
STEP_ENERGY = Law(
    "7.5", "joules of one step, dp = 2", "It spends the joules of two.", "J(dp = 2) = 2 J(dp = 1)", HALVES, "J"
)

RECORD = Law(
    "7.6", "replayed records, dp = 2", "A record of two replicas and twice the load, replayed, has twice the rate and "
    "power of one replica's record, and the same per token.",
    "tok/s, W (dp = 2, load 2 x) = 2 x (dp = 1); TPOT, J/token (dp = 2) = the same (dp = 1)", HALVES,
)  # fmt: skip

FAMILY = Family(
    "Two identical halves",
    f"{N} requests at {percent(BELOW_SATURATION)} of capacity on one replica; each of them twice, at the same time, on "
    f"two. Run records as `validate RUNS.csv` replays them, a closed loop of {CLIENTS} clients and arrivals at "
    f"{RATE_PER_S:g}/s per replica.",
    (LATENCY, THROUGHPUT, POWER, STEP_TIME, STEP_ENERGY, RECORD),
)
LOADS = ({"load": "closed_loop"}, {"load": "open_loop"})


def check(subject: Subject, runs: Runs) -> Iterator[Result]:
    """One result per law."""
    single = runs.arrivals(BELOW_SATURATION)
    prompts, outputs, times = single.prompt_tok[:N], single.output_tok[:N], single.arrival_s[:N]
    one = subject.run(Traffic(prompts, outputs, times), settings=runs.settings)
    twins = Traffic(*(np.repeat(column, 2) for column in (prompts, outputs, times)))
    two = subject.run(twins, settings=runs.settings, replicas=2)
    yield LATENCY.equal(_latencies(two), np.repeat(_latencies(one), 2))
    alone, both = traffic_metrics(one), traffic_metrics(two)
    yield THROUGHPUT.equal(both["output_tok_per_s"], 2.0 * alone["output_tok_per_s"])
    yield POWER.equal(both["mean_power_w"], 2.0 * alone["mean_power_w"])
    steps = Steps.concatenate([subject.decode_steps([1.0, 16.0, 64.0], 1000), subject.prefill_steps([1], [512])])
    doubled = subject.other_physics(parallel=replace(subject.parallel, dp=2)).price(steps)
    cost, where = subject.physics.price(steps), ["batch 1", "batch 16", "batch 64", "prompt 512"]
    yield STEP_TIME.equal(doubled.seconds, cost.seconds, where)
    yield STEP_ENERGY.equal(doubled.joules, 2.0 * cost.joules, where)
    yield _records(subject)


def _records(subject: Subject) -> Result:
    """First tokens are left out: a record's replicas share one front end, where prompts wait for each other."""
    (alone, both), found, where = (_replayed(subject, dp) for dp in (1, 2)), [], []
    for load, one, two in zip(LOADS, alone, both):
        for name, factor in (("output_tok_per_s", 2.0), ("power_w", 2.0), ("tpot_s_mean", 1.0), (PER_TOKEN, 1.0)):
            found.append((two[name], factor * one[name]))
            where.append(f"{name}, {load['load']}")
    return RECORD.equal(*np.array(found).T, where)


def _replayed(subject: Subject, dp: int) -> list[dict[str, float]]:
    """Metrics of records of `dp` replicas, one per load."""
    physics, out = None, []
    for load in LOADS:
        record = RunRecord(
            run_id="twice", source="laws", gpu=subject.device.id, model=subject.kind.model, tp=subject.parallel.tp,
            dp=dp, weight_dtype=subject.kind.weights, kv_dtype=subject.instance.precision.kv_cache,
            concurrency=CLIENTS * dp, num_requests=RECORDED * dp, request_rate_rps=RATE_PER_S * dp,
            input_tok=256, output_tok=64, **load,
        )  # fmt: skip
        setup = resolve(record)
        if physics is None:
            physics = subject.simulator.physics(step_model(setup, subject.instance.calibration))
        out.append(dict(subject.simulator.replay(setup, physics).values))
    return out


def _latencies(served) -> np.ndarray:
    """(2 N,) TTFT and E2E [s], those of one request beside each other only by kind."""
    requests = served.requests
    return np.concatenate((requests.first_token_s, requests.finished_s)) - np.tile(requests.arrival_s, 2)
