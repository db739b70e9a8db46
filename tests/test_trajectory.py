"""Trajectories: the step-time scheduler against the serving engine, conservation laws, closed forms, condensed rows."""

from __future__ import annotations

import time
from dataclasses import dataclass, fields

import msgspec
import numpy as np
import pytest
import simpy
from fake_physics import FakeCost, FakeStepModel
from hypothesis import given, settings
from hypothesis import strategies as st

from calibration.condensed import condensed, linear_weights
from calibration.open_loop import simulate_open_loop
from calibration.records import RunRecord
from calibration.trajectory import run_requests, trajectory_of
from calibration.trajectory_metrics import metrics, repeated_quantile
from simulator.batch import Batch, PrefillChunk
from simulator.engine import EngineSettings, Server
from simulator.engine.schedule_steps import prefill_keys, steps_of
from simulator.engine.token_clock import Requests, schedule
from simulator.errors import UserError
from simulator.keys import KeyRule
from simulator.model import load_model
from simulator.step_table import StepTable
from simulator.steps import Steps
from simulator.traffic.cluster import Deployment, serve
from simulator.workload.traffic import Traffic

FULL = (KeyRule(),)
RULES = (KeyRule(), KeyRule(20), KeyRule(16, chunked=True))
MANY = 10**7  # KV blocks


@dataclass(frozen=True)
class Price:
    seconds: np.ndarray
    joules: np.ndarray


@dataclass(frozen=True)
class Fake(FakeStepModel):
    """The fake physics for many steps at once: affine in new tokens and in attended context."""

    rules = FULL

    def price(self, steps: Steps) -> Price:
        context = steps.decode_keys[:, 0] - steps.decode_sequences
        seconds = self.base_s + self.token_s * steps.new_tok + self.context_s * context
        return Price(seconds, self.busy_w * seconds)


class Roofline:
    """A bent cost: the slower of computing and reading, a surcharge for prefill, quadratic attention."""

    def price(self, steps: Steps) -> Price:
        reading = 6e-3 + 2e-9 * (steps.decode_keys.sum(axis=1) + steps.prefill_keys.sum(axis=1))
        computing = 1.5e-3 + 3e-5 * steps.new_tok + 2e-11 * steps.prefill_pairs.sum(axis=1)
        seconds = np.hypot(reading, computing) + 3e-5 * steps.sampled + 2e-3 * (steps.prefill_tok > 0)
        return Price(seconds, 250.0 * seconds + 0.02 * steps.new_tok)


class UnitPhysics:
    """Every step takes one second; remembers what it was made of."""

    idle_power_w = 0.0

    def __init__(self):
        self.batches = []

    def step(self, batch):
        self.batches.append(batch)
        return FakeCost(1.0, 1.0, {})


def requests(prompt, output, in_flight=None, shared=None) -> Requests:
    prompt, output = np.array(prompt), np.array(output)
    shared = np.zeros_like(prompt) if shared is None else np.array(shared)
    return Requests(prompt, output, shared, len(prompt) if in_flight is None else in_flight)


def served(work: Requests, engine: EngineSettings, kv_blocks: int, physics, arrival_s=None):
    """The calls of `work` in the serving engine, in order of submission."""
    env = simpy.Environment()
    server = Server(env, physics, engine, kv_blocks, step_by_step=True)
    order, coming = {}, iter(range(len(work)))

    def parts(j):
        shared, prompt = int(work.shared_prefix_tok[j]), int(work.prompt_tok[j])
        return tuple(part for part in ((("shared",), shared), (("own", j), prompt - shared)) if part[1])

    def client(numbers):
        for j in numbers:
            if arrival_s is not None:
                yield env.timeout(arrival_s[j])
            sequence = server.submit(parts(j), int(work.output_tok[j]), "request")
            order[j] = sequence.call_id
            yield sequence.done

    clients = [coming] * min(work.in_flight, len(work)) if arrival_s is None else [(j,) for j in range(len(work))]
    for numbers in clients:
        env.process(client(numbers))
    env.run()
    return [server.records[order[j]] for j in range(len(work))]


@st.composite
def workloads(draw):
    """(requests, engine settings, KV blocks), small and often short of KV blocks."""
    n = draw(st.integers(1, 10))
    prompt = np.array(draw(st.lists(st.integers(1, 60), min_size=n, max_size=n)))
    output = np.array(draw(st.lists(st.integers(1, 50), min_size=n, max_size=n)))
    size, seats = draw(st.sampled_from([1, 2, 4, 16])), draw(st.integers(1, 6))
    sharing = draw(st.sampled_from(["nothing", "prompt", "prefix"]))
    shared = np.zeros_like(prompt)
    if sharing == "prompt":
        prompt[:] = prompt[0]
        shared = prompt.copy()
    elif sharing == "prefix":
        shared = np.full(n, draw(st.integers(1, 40)))
        prompt = prompt + shared
    engine = EngineSettings(
        max_num_seqs=seats,
        max_num_batched_tokens=draw(st.integers(seats, 80)),
        block_size=size,
        enable_prefix_caching=draw(st.booleans()),
    )
    least = int((-(-(prompt + output) // size)).max()) + int(shared.max()) // size
    kv_blocks = draw(st.one_of(st.integers(least, 3 * least), st.just(MANY)))
    return Requests(prompt, output, shared, draw(st.integers(1, n))), engine, kv_blocks


# -- agreement with the serving engine -------------------------------------------------------------------------


@settings(max_examples=150, deadline=None)
@given(workloads())
def test_same_steps_and_same_lives_as_the_serving_engine(drawn):
    work, engine, kv_blocks = drawn
    physics = UnitPhysics()
    calls = served(work, engine, kv_blocks, physics)
    plan = schedule(work, engine, kv_blocks)
    at = np.concatenate(([0], np.cumsum(plan.repeat)))
    assert at[plan.submitted].tolist() == [call.submitted_s for call in calls]
    assert at[plan.scheduled].tolist() == [call.scheduled_s for call in calls]
    assert at[plan.first_token].tolist() == [call.first_token_s for call in calls]
    assert at[plan.finished].tolist() == [call.finished_s for call in calls]
    assert plan.cached_tok.tolist() == [call.cached_tok for call in calls]
    assert plan.recomputed_tok.tolist() == [call.recomputed_tok for call in calls]
    assert plan.preemptions.tolist() == [call.preemptions for call in calls]
    steps, repeat, _ = steps_of(plan, RULES)
    single = Steps.from_batches(physics.batches, RULES)
    begins = np.concatenate(([0], np.cumsum(repeat)))[:-1]
    for field in fields(Steps):
        sums = np.add.reduceat(getattr(single, field.name), begins, axis=0)
        rows = getattr(steps, field.name)
        np.testing.assert_allclose(rows * (repeat[:, None] if rows.ndim == 2 else repeat), sums, rtol=1e-12, atol=1e-9)


@settings(max_examples=40, deadline=None)
@given(workloads(), st.integers(0, 1000))
def test_open_loops_run_as_in_the_serving_engine(drawn, seed):
    work, engine, kv_blocks = drawn
    physics = Fake()
    arrival_s = np.cumsum(np.random.default_rng(seed).exponential(0.2, len(work)))
    calls = served(work, engine, kv_blocks, physics, arrival_s)
    prefixes = tuple((("shared", int(tok)),) if tok else () for tok in work.shared_prefix_tok)
    traffic = Traffic(work.prompt_tok, work.output_tok, arrival_s, shared_prefix=prefixes)
    found = serve(traffic, Deployment(StepTable(physics, 1000), engine, kv_blocks)).requests
    np.testing.assert_allclose(found.first_token_s, [call.first_token_s for call in calls], rtol=1e-9)
    np.testing.assert_allclose(found.finished_s, [call.finished_s for call in calls], rtol=1e-9)
    assert found.cached_tok.tolist() == [call.cached_tok for call in calls]


@given(st.lists(st.tuples(st.integers(1, 90), st.integers(0, 90)), min_size=1, max_size=20))
def test_keys_of_many_chunks_are_those_of_each(chunks):
    new, cached = np.array(chunks).T
    for rule in (*RULES, KeyRule(causal=False)):
        pairs, keys = prefill_keys(rule, new, cached)
        expected = [rule.keys_read(PrefillChunk(n, c)) for n, c in chunks]
        np.testing.assert_allclose(np.stack((pairs, keys), axis=1), expected)


def test_long_decodes_are_cut_where_keys_have_grown_by_a_tenth():
    plan = schedule(requests([100] * 4, [2000] * 4), EngineSettings(), MANY)
    steps, repeat, _ = steps_of(plan, RULES)
    assert len(plan.repeat) == 2 and repeat.sum() == 2000 and len(repeat) < 40
    assert (steps.decode_keys[2:, 0] / steps.decode_keys[1:-1, 0]).max() < 1.11
    contexts = np.concatenate([np.full((1, 4), 100) + j for j in range(1999)])
    expected = [[rule.decode_keys(context, 1)[0] for context in contexts] for rule in RULES]
    np.testing.assert_allclose((steps.decode_keys * repeat[:, None])[1:].sum(axis=0), np.sum(expected, axis=1))


# -- conservation ----------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(workloads(), st.booleans())
def test_conservation_of_tokens_and_time(drawn, ahead):
    work, engine, kv_blocks = drawn
    plan = schedule(work, engine, kv_blocks, async_scheduling=ahead)
    trajectory = run_requests(work, engine, kv_blocks, RULES, async_scheduling=ahead)
    assert trajectory.output_rows.sum() == work.output_tok.sum()
    computed = (trajectory.steps.new_tok * trajectory.repeat).sum()
    lost = plan.recomputed_tok.sum() - plan.cached_tok.sum()
    assert computed == (work.prompt_tok + work.output_tok - 1).sum() + lost
    assert trajectory.running.max() <= engine.max_num_seqs
    assert trajectory.steps.new_tok.max() <= engine.max_num_batched_tokens
    for before, after in (("submitted", "scheduled"), ("scheduled", "first_token"), ("first_token", "finished")):
        assert (getattr(trajectory, before) <= getattr(trajectory, after)).all()
    seconds = Roofline().price(trajectory.steps).seconds
    edges = trajectory.edges_s(seconds)
    found = metrics(trajectory, seconds)
    if not plan.preemptions.any():  # Little's law
        lives = edges[trajectory.finished] - edges[trajectory.scheduled]
        assert found["batch_mean"] * found["duration_s"] == pytest.approx(lives.sum())
    writing = edges[trajectory.finished] - edges[trajectory.first_token]
    gaps = (work.output_tok - 1).sum()
    assert trajectory.gaps.sum() + len(trajectory.resumed) == gaps
    if gaps:
        assert found["itl_s_mean"] * gaps == pytest.approx(writing.sum())


def test_quantiles_of_repeated_values():
    rng = np.random.default_rng(1)
    values, counts = rng.normal(size=50), rng.integers(0, 9, 50)
    for q in (0.0, 0.3, 0.5, 0.99, 1.0):
        assert repeated_quantile(values, counts, q) == pytest.approx(np.quantile(np.repeat(values, counts), q))


# -- closed forms and monotonicity -----------------------------------------------------------------------------


def test_a_static_batch_prefills_then_decodes():
    n, prompt, output, physics = 8, 500, 100, Fake()
    trajectory = run_requests(requests([prompt] * n, [output] * n), EngineSettings(), MANY, FULL)
    price = physics.price(trajectory.steps)
    found = metrics(trajectory, price.seconds, price.joules)
    ttft = physics.base_s + physics.token_s * n * prompt
    step = physics.base_s + physics.token_s * n + physics.context_s * n * (prompt + (output - 2) / 2)
    assert [found["ttft_s_mean"], found["ttft_s_p99"]] == pytest.approx([ttft] * 2)
    assert [found["tpot_s_mean"], found["itl_s_mean"]] == pytest.approx([step] * 2)
    assert [found["duration_s"], found["e2e_s_median"]] == pytest.approx([ttft + (output - 1) * step] * 2)
    assert found["output_tok_per_s"] == pytest.approx(n * output / found["duration_s"])
    assert found["total_tok_per_s"] == pytest.approx(n * (output + prompt) / found["duration_s"])
    assert found["batch_mean"] == pytest.approx(n)
    assert found["power_w"] == pytest.approx(physics.busy_w)
    assert found["energy_j_per_output_tok"] == pytest.approx(physics.busy_w / found["output_tok_per_s"])
    assert found["prefill_share"] == pytest.approx(ttft / found["duration_s"])


def test_parallel_samples_prefill_their_prompt_once():
    work = requests([1000] * 16, [10] * 16, shared=[1000] * 16)
    trajectory = run_requests(work, EngineSettings(), MANY, FULL)
    assert trajectory.steps.prefill_tok.sum() == 1000 + 15 * (1000 - 62 * 16)
    assert trajectory.cached_tok.tolist() == [0] + [62 * 16] * 15


def test_a_long_prompt_is_computed_in_chunks_beside_decoding():
    work = requests([10, 250], [20, 2])
    trajectory = run_requests(work, EngineSettings(max_num_batched_tokens=100, max_num_seqs=4), MANY, FULL)
    assert trajectory.steps.prefill_tok[:3].tolist() == [100, 99, 61]  # a token of each later step goes to the first
    assert trajectory.steps.prefill_cached_tok[:3].tolist() == [0, 90, 189]
    assert trajectory.first_token.tolist() == [1, 3]


def test_more_clients_more_throughput_and_longer_gaps():
    rng = np.random.default_rng(2)
    prompt, output = rng.integers(200, 800, 200), rng.integers(50, 300, 200)
    found = []
    for clients in (1, 2, 4, 8, 16, 32):
        trajectory = run_requests(requests(prompt, output, clients), EngineSettings(), MANY, FULL)
        found.append(metrics(trajectory, Roofline().price(trajectory.steps).seconds))
        twice = metrics(trajectory, 2.0 * Roofline().price(trajectory.steps).seconds)
        assert twice["itl_s_p99"] == pytest.approx(2.0 * found[-1]["itl_s_p99"])
        assert twice["output_tok_per_s"] == pytest.approx(found[-1]["output_tok_per_s"] / 2.0)
    for name, sign in (("output_tok_per_s", 1), ("tpot_s_mean", 1), ("batch_mean", 1), ("duration_s", -1)):
        assert (sign * np.diff([values[name] for values in found]) > 0).all(), name


def test_less_kv_cache_is_never_faster():
    work = requests([300] * 40, [300] * 40)
    times = []
    for blocks in (40, 80, 160, 400, MANY):
        trajectory = run_requests(work, EngineSettings(), blocks, FULL)
        times.append(metrics(trajectory, Roofline().price(trajectory.steps).seconds)["duration_s"])
    assert (np.diff(times) <= 0).all() and times[0] > 3 * times[-1]


def test_with_async_scheduling_a_successor_joins_one_step_later():
    work, engine = requests([10] * 3, [5, 9, 5], in_flight=2), EngineSettings(max_num_seqs=8)
    found = []
    for ahead in (False, True):
        plan = schedule(work, engine, MANY, async_scheduling=ahead)
        at = np.concatenate(([0], np.cumsum(plan.repeat)))
        found.append((at[plan.submitted[2]], at[plan.scheduled[2]], at[plan.first_token[2]]))
    assert found == [(5, 5, 6), (5, 6, 7)]


# -- windows and records ---------------------------------------------------------------------------------------


def record(**columns) -> RunRecord:
    found = {"load": "closed_loop", "concurrency": 16, "num_requests": 160, "input_tok": 900.0, "output_tok": 300.0}
    return RunRecord(run_id="r", source="s", gpu="h100-sxm", model="Qwen/Qwen3-8B", **(found | columns))


@pytest.fixture(scope="module")
def model():
    return load_model("Qwen/Qwen3-8B")


def test_the_steady_window_is_where_the_server_is_full(model):
    flags = "steady_window;derived:tpot_s_mean"
    run = record(load="burst", num_requests=300, length_spread="dataset:gpqa", output_tok=200.0, flags=flags)
    trajectory = trajectory_of(run, model, EngineSettings(max_num_seqs=32), MANY)
    price = Roofline().price(trajectory.steps)
    found = metrics(trajectory, price.seconds, price.joules)
    first, last = trajectory.rate_window
    assert 0 < first < last < len(trajectory.repeat)
    assert trajectory.running[first - 1] < 32 and trajectory.running[last:].max() <= 32
    assert found["batch_mean"] == pytest.approx(32, rel=1e-3)
    assert found["tpot_s_mean"] == pytest.approx(found["batch_mean"] / found["output_tok_per_s"])
    unflagged = msgspec.structs.replace(run, flags=None)
    whole = metrics(trajectory_of(unflagged, model, EngineSettings(max_num_seqs=32), MANY), price.seconds, price.joules)
    assert whole["output_tok_per_s"] < found["output_tok_per_s"]  # filling and draining are slow
    assert whole["itl_s_median"] == found["itl_s_median"]


def test_power_of_a_steady_window_without_a_queue_is_that_of_decoding(model):
    run = record(load="static_batch", flags="steady_window_power", output_tok=50.0)
    trajectory = trajectory_of(run, model, EngineSettings(), MANY)
    assert trajectory.power_window == (int(trajectory.first_token.max()), len(trajectory.repeat))
    assert trajectory.rate_window == (0, len(trajectory.repeat))


def test_replicas_add_up(model):
    one = trajectory_of(record(concurrency=8, num_requests=80), model, EngineSettings(), MANY)
    two = trajectory_of(record(), model, EngineSettings(), MANY, dp=2)
    price = Roofline().price(one.steps)
    alone = metrics(one, price.seconds, price.joules)
    both = metrics(two, price.seconds, 2 * price.joules)  # a step spends the joules of all devices
    for name in ("output_tok_per_s", "power_w", "batch_mean"):
        assert both[name] == pytest.approx(2 * alone[name])
    for name in ("ttft_s_mean", "duration_s", "energy_j_per_output_tok"):
        assert both[name] == alone[name]


def test_a_run_that_was_served_fits_whatever_the_estimate_says(model):
    run = record(length_spread="dataset:gpqa", output_tok=2000.0)
    roomy, tight = (trajectory_of(run, model, EngineSettings(), blocks) for blocks in (MANY, 3))
    assert not any("but the run was served" in said for said in roomy.assumptions)
    assert any("but the run was served" in said for said in tight.assumptions)
    assert tight.output_tok.sum() == roomy.output_tok.sum() and tight.running.max() < roomy.running.max()
    opened = msgspec.structs.replace(run, load="open_loop", request_rate_rps=1.0)
    late = simulate_open_loop(opened, model, EngineSettings(), 3, Fake())
    assert any("but the run was served" in said for said in late.assumptions)


def test_an_open_loop_record(model):
    run = record(load="open_loop", request_rate_rps=4.0, num_requests=60)
    opened = simulate_open_loop(run, model, EngineSettings(), MANY, Fake(), seed=3)
    found = opened.metrics()
    assert found["duration_s"] == pytest.approx(60 / 4.0, rel=0.4)
    assert 0 < found["power_w"] <= Fake().busy_w * (1 + 1e-9)
    assert set(found) >= {f"{span}_{q}" for span in ("ttft_s", "tpot_s", "e2e_s") for q in ("mean", "median", "p99")}
    again = simulate_open_loop(run, model, EngineSettings(), MANY, Fake(), seed=3)
    assert again.metrics() == found
    halves = simulate_open_loop(run, model, EngineSettings(), MANY, Fake(), seed=3, dp=2)
    assert len(halves.served.requests) == 30 and halves.metrics()["power_w"] <= Fake().busy_w * (1 + 1e-9)
    with pytest.raises(UserError, match="use simulate_open_loop"):
        trajectory_of(run, model, EngineSettings(), MANY)
    with pytest.raises(UserError, match="request_rate_rps not stated"):
        simulate_open_loop(record(load="open_loop"), model, EngineSettings(), MANY, Fake())


# -- linear weights and condensed rows -------------------------------------------------------------------------

LINEAR = ("ttft_s_mean", "tpot_s_mean", "e2e_s_mean", "itl_s_mean", "duration_s")
RUNS = {
    "closed": record(length_spread="uniform:0.8"),
    "burst": record(load="burst", num_requests=400, length_spread="dataset:lm-arena-chat", flags="steady_window"),
    "batch": record(load="static_batch", concurrency=64, output_tok=900.0),
}


def run_of(name, model, kv_blocks=MANY):
    engine = EngineSettings(max_num_seqs=64, max_num_batched_tokens=2048)
    return trajectory_of(RUNS[name], model, engine, kv_blocks)


@settings(max_examples=30, deadline=None)
@given(workloads())
def test_means_are_linear_in_the_seconds(drawn):
    work, engine, kv_blocks = drawn
    trajectory = run_requests(work, engine, kv_blocks, FULL)
    seconds = np.random.default_rng(0).uniform(0.5, 2.0, len(trajectory.repeat))
    found = metrics(trajectory, seconds)
    for name in LINEAR:
        if name in found:
            assert linear_weights(trajectory, name) @ seconds == pytest.approx(found[name], rel=1e-9), name


@pytest.mark.parametrize("name", sorted(RUNS))
def test_condensed_rows_are_exact_for_affine_costs(name, model):
    trajectory = run_of(name, model)
    names = (*LINEAR, "output_tok_per_s", "power_w", "energy_j_per_output_tok")
    small = condensed(trajectory, names, max_rows=40)
    assert len(small.steps) <= 40
    full, few = Fake().price(trajectory.steps), Fake().price(small.steps)
    expected, found = metrics(trajectory, full.seconds, full.joules), small.metrics(few.seconds, few.joules)
    assert set(found) == set(names)
    for metric in names:
        assert found[metric] == pytest.approx(expected[metric], rel=1e-9), metric
    for metric in LINEAR:
        assert small.weights[metric] @ few.seconds == found[metric]


@pytest.mark.parametrize("kv_blocks", [MANY, 2000])
@pytest.mark.parametrize("name", sorted(RUNS))
def test_sixty_condensed_rows_are_close_for_bent_costs(name, kv_blocks, model):
    trajectory = run_of(name, model, kv_blocks)
    full = Roofline().price(trajectory.steps)
    names = ("ttft_s_mean", "tpot_s_mean", "itl_s_median", "output_tok_per_s", "power_w")
    small = condensed(trajectory, names, max_rows=60)
    few = Roofline().price(small.steps)
    expected, found = metrics(trajectory, full.seconds, full.joules), small.metrics(few.seconds, few.joules)
    for metric in names:
        assert found[metric] == pytest.approx(expected[metric], rel=0.01 if metric == "itl_s_median" else 1e-3), metric
    medians = ("ttft_s_median", "tpot_s_median", "e2e_s_median")
    found = condensed(trajectory, medians).metrics(Roofline().price(condensed(trajectory, medians).steps).seconds)
    for metric in medians:
        assert found[metric] == pytest.approx(expected[metric], rel=0.03), metric


def test_the_mean_batch_of_condensed_rows(model):
    trajectory = run_of("closed", model)
    small = condensed(trajectory, ("batch_mean",), max_rows=20)
    found = small.metrics(Roofline().price(small.steps).seconds)["batch_mean"]
    assert found == pytest.approx(
        metrics(trajectory, Roofline().price(trajectory.steps).seconds)["batch_mean"], rel=0.01
    )


# -- speed and bad input ---------------------------------------------------------------------------------------


def test_five_thousand_requests_in_well_under_a_second():
    rng = np.random.default_rng(4)
    work = requests(rng.integers(800, 1000, 5000), rng.integers(800, 1000, 5000), in_flight=512)
    began = time.perf_counter()
    run_requests(work, EngineSettings(max_num_seqs=512), MANY, FULL)
    assert time.perf_counter() - began < 1.0


def test_requests_that_can_never_run():
    with pytest.raises(UserError, match="max_model_len holds 200"):
        schedule(requests([200], [100]), EngineSettings(max_model_len=200), MANY)
    with pytest.raises(UserError, match="the KV cache holds 160"):
        schedule(requests([200], [100]), EngineSettings(), 10)


def test_a_shared_prefix_makes_room_for_a_request_without_it():
    plan = schedule(requests([200, 150], [10, 10], shared=[192, 0]), EngineSettings(), 14)
    assert (plan.finished > 0).all()
    assert plan.scheduled[1] >= plan.finished[0]


@pytest.mark.parametrize(
    "bad",
    [([], [], []), ([1, 2], [1], [0, 0]), ([0], [1], [0]), ([1], [0], [0]), ([5], [1], [6]), ([5], [1], [-1])],
)
def test_malformed_requests(bad):
    prompt, output, shared = (np.array(values, dtype=np.int64) for values in bad)
    with pytest.raises(ValueError, match=r"must|need"):
        Requests(prompt, output, shared, 1)


def test_what_is_not_linear_is_refused(model):
    trajectory = run_of("batch", model)
    with pytest.raises(ValueError, match="not linear"):
        linear_weights(trajectory, "output_tok_per_s")
    with pytest.raises(ValueError, match="need at least"):
        condensed(trajectory, ("ttft_s_mean", "tpot_s_mean"), max_rows=3)


def test_the_fakes_agree():
    batch = Batch((PrefillChunk(30, 10),), np.array([5, 9]))
    one = Fake().price(Steps.from_batches([batch], FULL))
    assert one.seconds[0] == pytest.approx(Fake().step(batch).seconds)


def test_requests_of_one_token_have_no_gaps():
    trajectory = run_requests(requests([100] * 3, [1] * 3), EngineSettings(), MANY, FULL)
    names = ("ttft_s_mean", "tpot_s_mean", "itl_s_median", "output_tok_per_s")
    small = condensed(trajectory, names)
    price = Fake().price(small.steps)
    found = metrics(trajectory, Fake().price(trajectory.steps).seconds)
    assert set(small.metrics(price.seconds)) == {"ttft_s_mean", "output_tok_per_s"} == set(names) & set(found)
