"""Traffic against what cannot be argued with: queueing theory, closed forms, the physics behind the tables."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from functools import lru_cache

import numpy as np
import pytest
from traffic_physics import Plain, deployment, token_by_token

from simulator.batch import Batch, PrefillChunk
from simulator.engine import EngineSettings
from simulator.scenario import Scenario, prepare, simulate_scenario
from simulator.step_table import StepTable
from simulator.traffic.cluster import Deployment, serve
from simulator.traffic.scenario import SpeculativeSettings, TrafficScenario, prepare_traffic, simulate_traffic
from simulator.workload.arrivals import poisson
from simulator.workload.traffic import Traffic

ONE_AT_A_TIME = EngineSettings(max_num_seqs=1, max_num_batched_tokens=100_000)


def waits_s(served) -> np.ndarray:
    """From arrival to the first step, per request."""
    return served.requests.scheduled_s - served.requests.arrival_s


def queue(prompt_tok: np.ndarray, rate_per_s: float, seed: int = 1):
    """(traffic, served) of a server that takes one request at a time, each one step of 0.01 s + 0.1 ms per token."""
    n = len(prompt_tok)
    traffic = Traffic(prompt_tok, np.ones(n, dtype=np.int64), poisson(rate_per_s, n, np.random.default_rng(seed)))
    return traffic, serve(traffic, deployment(ONE_AT_A_TIME, physics=Plain()))


# -- queueing theory -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("load", [0.3, 0.7, 0.9])
def test_one_seat_and_equal_prompts_are_an_m_d_1_queue(load):
    service_s = 0.01 + 1e-4 * 900
    _, served = queue(np.full(40_000, 900), load / service_s)
    expected = load * service_s / (2.0 * (1.0 - load))  # Pollaczek-Khinchine with constant service
    assert waits_s(served).mean() == pytest.approx(expected, rel=0.02 + 0.1 * load**6)


def test_one_seat_and_lognormal_prompts_are_an_m_g_1_queue():
    prompts = np.random.default_rng(3).lognormal(6.0, 0.8, 60_000).astype(np.int64) + 1
    service = 0.01 + 1e-4 * prompts
    rate = 0.6 / service.mean()
    _, served = queue(prompts, rate)
    expected = rate * (service**2).mean() / (2.0 * (1.0 - 0.6))
    assert waits_s(served).mean() == pytest.approx(expected, rel=0.05)


def test_every_single_wait_follows_lindleys_recursion():
    prompts = np.random.default_rng(5).integers(1, 2000, 3000)
    traffic, served = queue(prompts, 8.0)
    service, expected = 0.01 + 1e-4 * prompts, [0.0]
    for last_s, gap_s in zip(service, np.diff(traffic.arrival_s)):
        expected.append(max(0.0, expected[-1] + last_s - gap_s))
    np.testing.assert_allclose(waits_s(served), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("asynchronous", [False, True])
def test_littles_law(asynchronous):
    """Time-mean number in service = arrivals per second x mean time in service; steps and requests count it apart."""
    rng = np.random.default_rng(7)
    n = 2000
    traffic = Traffic(rng.integers(1, 300, n), rng.integers(1, 200, n), poisson(3.0, n, rng))
    served = serve(traffic, deployment(EngineSettings(max_num_seqs=64), async_scheduling=asynchronous))
    steps, requests = served.steps, served.requests
    in_service = ((steps.decode_sequences + steps.prefill_sequences) * steps.duration_s).sum()
    assert in_service == pytest.approx((requests.finished_s - requests.scheduled_s).sum(), rel=1e-9)


def test_heavier_load_never_lowers_mean_latency():
    rng = np.random.default_rng(11)
    n = 1500
    prompts, outputs, unit = rng.integers(1, 600, n), rng.integers(1, 200, n), rng.exponential(1.0, n)
    means = []
    for rate in (0.1, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 1e6):
        served = serve(Traffic(prompts, outputs, np.cumsum(unit / rate)), deployment(EngineSettings(max_num_seqs=32)))
        means.append((served.requests.finished_s - served.requests.arrival_s).mean())
    assert (np.diff(means) > 0.0).all()


def test_more_clients_get_more_done_and_wait_longer():
    rng = np.random.default_rng(13)
    prompts, outputs = rng.integers(1, 300, 600), rng.integers(1, 100, 600)
    runs = [serve(Traffic(prompts, outputs, clients=c), deployment(EngineSettings())) for c in (1, 2, 4, 8, 16, 32)]
    assert (np.diff([run.end_s for run in runs]) < 0.0).all()
    assert (np.diff([(r.requests.finished_s - r.requests.arrival_s).mean() for r in runs]) > 0.0).all()


# -- closed forms and the physics behind the tables ------------------------------------------------------------


@lru_cache(maxsize=4)
def llama(gpu: str = "h100", model: str = "llama-3.1-8b"):
    return prepare(Scenario(gpu, "single", model=model))


def test_a_single_request_is_the_sum_of_its_steps():
    """Of the table to 1e-9, of the physics within what the table rounds."""
    setup = llama()
    table = StepTable(setup.step_model, 4096)
    served = serve(Traffic(np.array([1000]), np.array([300]), np.zeros(1)), Deployment(table, setup.settings, 10_000))
    _, _, prefill, _ = table.mixed(0, [0], [(None, 1000, 0, True)])
    decode = sum(table.decode(1, [1001 + j])[0] for j in range(299))
    assert served.requests.first_token_s[0] == pytest.approx(prefill, rel=1e-9)
    assert served.end_s == pytest.approx(prefill + decode, rel=1e-9)
    physics = setup.step_model
    exact = physics.step(Batch((PrefillChunk(1000),))).seconds
    exact += sum(physics.step(Batch((), np.array([1000 + j]))).seconds for j in range(299))
    assert served.end_s == pytest.approx(exact, rel=2e-3)


@pytest.mark.parametrize("strategy", ["single", "self_consistency"])
def test_a_strategy_alone_takes_as_long_as_the_same_requests_in_traffic(strategy):
    """Two engines, one on SimPy with the physics itself, one event by event with tables."""
    width = 1 if strategy == "single" else 8
    parameters = {"problem_tok": 500, "thinking_tok": 400} | ({} if width == 1 else {"samples": width})
    flown = simulate_scenario(
        Scenario("h100", strategy, model="llama-3.1-8b", repetitions=1, strategy_parameters=parameters)
    )
    calls, setup = flown.flights[0].calls, llama()
    prefix = tuple((("problem", calls[0].prompt_tok),) for _ in calls)
    traffic = Traffic(
        np.array([call.prompt_tok for call in calls]), np.array([call.output_tok for call in calls]),
        np.zeros(len(calls)), shared_prefix=prefix,
    )  # fmt: skip
    served = serve(traffic, Deployment(StepTable(setup.step_model, 4096), setup.settings, setup.memory.kv_blocks))
    assert len(calls) == width
    assert served.end_s == pytest.approx(flown.flights[0].wall_s, rel=2e-3)
    assert served.energy_j() == pytest.approx(flown.flights[0].energy_j, rel=2e-3)


def test_async_scheduling_sees_an_arrival_one_step_later():
    """The second request comes in the third decode step of the first: it joins the next step, or the one after."""
    times, outputs = np.array([0.0, 0.055]), np.array([20, 1])
    chosen = deployment(EngineSettings(), physics=Plain(0.02, 0.0))
    for asynchronous, joins_s in ((False, 0.06), (True, 0.08)):
        served = serve(Traffic(np.array([10, 10]), outputs, times), replace(chosen, async_scheduling=asynchronous))
        assert served.requests.scheduled_s[1] == pytest.approx(joins_s, rel=1e-12)


def test_client_latency_is_added_before_the_engine_and_to_what_users_see():
    traffic = Traffic(np.array([100]), np.array([5]), np.array([1.0]))
    plain = serve(traffic, deployment(EngineSettings()))
    delayed = serve(traffic, deployment(EngineSettings(), request_s=0.02, prompt_tok_s=1e-5))
    assert delayed.requests.engine_s[0] == pytest.approx(1.021)
    for name in ("first_token_s", "finished_s"):
        difference = getattr(delayed.requests, name) - getattr(plain.requests, name)
        assert difference[0] == pytest.approx(0.021)


def test_disaggregated_request_is_prefill_transfer_and_decode():
    chosen = deployment(
        EngineSettings(), physics=Plain(0.01, 1e-4), prefill_replicas=1, transfer_start_s=0.003, transfer_tok_s=1e-5
    )
    served = serve(Traffic(np.array([200]), np.array([4]), np.zeros(1)), chosen)
    prefill, transfer, one = 0.01 + 200e-4, 0.003 + 200e-5, 0.01 + 1e-4
    assert served.requests.first_token_s[0] == pytest.approx(prefill + transfer + one)  # the last token again
    assert served.end_s == pytest.approx(prefill + transfer + 4 * one)


def test_prefilling_elsewhere_keeps_decode_steps_even():
    rng = np.random.default_rng(17)
    traffic = Traffic(rng.integers(500, 1500, 400), rng.integers(50, 150, 400), poisson(4.0, 400, rng))
    physics = Plain(0.01, 1e-4)  # a prompt takes 0.1 s, a decode step 0.01 s
    together = serve(traffic, deployment(EngineSettings(), physics=physics, replicas=2, routing="least_loaded"))
    apart = serve(traffic, deployment(EngineSettings(), physics=physics, prefill_replicas=1))
    gap = [np.diff([r.requests.first_token_s, r.requests.finished_s], axis=0)[0] / (traffic.output_tok - 1)
           for r in (together, apart)]  # fmt: skip
    assert np.percentile(gap[1], 99) < np.percentile(gap[0], 99)


def test_a_queue_of_prompts_fills_the_pipeline_and_a_single_one_does_not():
    def lasts_s(prompts: int, stages: int) -> float:
        traffic = Traffic(np.full(prompts, 8000), np.ones(prompts, dtype=np.int64), np.zeros(prompts))
        scenario = TrafficScenario(
            gpu="h100", model="llama-3.1-8b", traffic=traffic, pipeline_parallel_size=stages, offline=True,
            engine_settings={"max_num_batched_tokens": 8192},
        )  # fmt: skip
        return simulate_traffic(scenario).served.end_s

    assert 0.75 * 4 < lasts_s(64, 1) / lasts_s(64, 4) < 4.05
    assert lasts_s(1, 4) == pytest.approx(lasts_s(1, 1), rel=0.1)


# -- policies, caches, replicas --------------------------------------------------------------------------------


def test_priority_is_served_first():
    n = 200
    traffic = Traffic(np.full(n, 50), np.full(n, 20), np.zeros(n), priority=np.arange(n) % 2)
    served = serve(traffic, deployment(EngineSettings(max_num_seqs=8, scheduling_policy="priority")))
    waits = waits_s(served)
    assert waits[::2].max() <= waits[1::2].min()


def test_a_prefix_that_was_evicted_is_computed_again():
    """Two prefixes of 40 blocks and a pool of 60: alternating, each request evicts what the next one needs."""
    texts = tuple((("ab"[j % 2], 640),) for j in range(10))
    traffic = Traffic(np.full(10, 650), np.full(10, 2), np.arange(10) * 10.0, shared_prefix=texts)
    engine = EngineSettings(block_size=16)
    tight, roomy = (serve(traffic, deployment(engine, blocks)) for blocks in (60, 200))
    assert tight.requests.cached_tok.max() < 640
    assert roomy.requests.cached_tok.tolist() == [0, 0] + [640] * 8


def test_prefix_aware_routing_finds_the_cache():
    rng = np.random.default_rng(19)
    n, groups = 400, 16
    texts = tuple(((int(g), 320),) for g in rng.integers(0, groups, n))
    traffic = Traffic(np.full(n, 350), np.full(n, 5), poisson(2.0, n, rng), shared_prefix=texts)
    hits = {
        routing: serve(traffic, deployment(EngineSettings(), 110, replicas=4, routing=routing)).requests.cached_tok
        for routing in ("round_robin", "prefix_aware")
    }
    assert hits["prefix_aware"].mean() > 1.5 * hits["round_robin"].mean()


def test_least_loaded_routing_waits_less_than_taking_turns():
    rng = np.random.default_rng(23)
    n = 3000
    lengths = rng.lognormal(4.0, 1.2, n).astype(np.int64) + 1
    traffic = Traffic(np.full(n, 20), lengths, poisson(6.0, n, rng))
    wait = {
        routing: waits_s(serve(traffic, deployment(EngineSettings(max_num_seqs=8), replicas=4, routing=routing))).mean()
        for routing in ("round_robin", "least_loaded")
    }
    assert wait["least_loaded"] < wait["round_robin"]


def test_a_replica_more_never_makes_it_slower():
    rng = np.random.default_rng(29)
    traffic = Traffic(rng.integers(1, 500, 500), rng.integers(1, 200, 500), poisson(5.0, 500, rng))
    means = [
        (serve(traffic, deployment(EngineSettings(), replicas=r)).requests.finished_s - traffic.arrival_s).mean()
        for r in (1, 2, 4, 8)
    ]
    assert (np.diff(means) < 0.0).all()


# -- who does not fit ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("slow", [False, True])
def test_too_long_requests_are_refused_and_the_rest_is_served(slow):
    traffic = Traffic(np.array([90, 50, 99, 10]), np.array([11, 50, 1, 5]), np.arange(4.0))
    chosen = deployment(EngineSettings(max_model_len=100))
    served = serve(traffic, replace(chosen, batcher=token_by_token) if slow else chosen)
    assert served.requests.refused.tolist() == [True, False, False, False]
    assert np.isfinite(served.requests.finished_s).tolist() == [False, True, True, True]


def test_refused_requests_do_not_stop_a_client():
    traffic = Traffic(np.array([500, 10, 500, 10]), np.array([5, 5, 5, 5]), clients=1)
    served = serve(traffic, deployment(EngineSettings(max_model_len=100)))
    assert served.requests.refused.tolist() == [True, False, True, False]
    assert np.isfinite(served.requests.finished_s[[1, 3]]).all()


def test_nothing_fits_is_an_empty_run():
    served = serve(Traffic(np.array([500]), np.array([5]), np.zeros(1)), deployment(EngineSettings(max_model_len=100)))
    assert (served.end_s, len(served.steps)) == (0.0, 0)


def test_a_pool_for_one_request_serves_all_one_after_the_other():
    n = 30
    traffic = Traffic(np.full(n, 40), np.full(n, 24), np.zeros(n))
    served = serve(traffic, deployment(EngineSettings(block_size=16), 4))
    assert np.isfinite(served.requests.finished_s).all()
    assert served.steps.kv_blocks.max() <= 4


# -- speculative decoding --------------------------------------------------------------------------------------


def speculate(rate: float, tokens: int = 3, **more):
    rng = np.random.default_rng(31)
    traffic = Traffic(np.full(60, 100), np.full(60, 121), poisson(2.0, 60, rng))
    speculative = SpeculativeSettings(num_speculative_tokens=tokens, acceptance_rate=rate, **more)
    return simulate_traffic(
        TrafficScenario(gpu="h100", model="llama-3.1-8b", traffic=traffic, speculative=speculative)
    ).served


@pytest.mark.parametrize("rate", [0.0, 0.6, 1.0])
def test_accepted_tokens_per_step_follow_the_formula(rate):
    served = speculate(rate)
    steps = served.steps
    per_step = (120 * 60) / (steps.decode_sequences * steps.steps).sum()
    expected = SpeculativeSettings(num_speculative_tokens=3, acceptance_rate=rate).tokens_per_step
    assert per_step == pytest.approx(expected, rel=0.02)
    assert served.requests.finished_s.max() == served.end_s


def test_a_draft_costs_time_and_memory():
    free, head, model = (
        speculate(0.6),
        speculate(0.6, method="eagle"),
        speculate(0.6, method="draft", model="llama-3.2-1b"),
    )
    assert free.end_s < head.end_s < model.end_s
    assert free.kv_blocks > head.kv_blocks > model.kv_blocks


# -- determinism -----------------------------------------------------------------------------------------------


def test_results_do_not_depend_on_the_hash_seed():
    command = [
        sys.executable, "-m", "simulator.cli.main", "traffic", "--gpu", "l4", "--model", "llama-3.1-8b", "--weights",
        "fp8", "--rate", "5", "--requests", "150", "--input", "lognormal:300:0.7", "--output", "lognormal:200:0.7",
        "--shared-prefix-tok", "200", "--prefix-groups", "5", "--data-parallel-size", "2", "--routing", "prefix_aware",
        "--json", "--detail",
    ]  # fmt: skip
    found = {
        subprocess.run(
            command, env=os.environ | {"PYTHONHASHSEED": seed}, check=True, capture_output=True, text=True
        ).stdout
        for seed in ("0", "1", "77")
    }
    assert len(found) == 1


def test_prepared_deployments_say_what_they_assume():
    setup = prepare_traffic(
        TrafficScenario(
            gpu="h100", model="llama-3.1-8b", traffic=Traffic(np.array([1]), np.array([1]), np.zeros(1)),
            prefill_replicas=1, data_parallel_size=2, routing="least_loaded",
        )
    )  # fmt: skip
    text = "\n".join(setup.assumptions)
    for words in ("between client and engine", "1 replicas prefill, 2 decode", "KV caches travel at 450 GB/s"):
        assert words in text
