"""The plan of a measurement: points that identify parameters, within the time and what the engine can take."""

from dataclasses import replace

import numpy as np
import pytest
from simulated_backend import facts_of

from calibration.collect.grid import BETWEEN, FITTED, Grid, Limits, expected_facts, limits_of, points_of_grid, possible
from calibration.collect.planner import (
    LEAST_GAIN,
    LONGEST_SHARE,
    choose,
    gain,
    plan_grid,
    plan_sweep,
    point_seconds,
    prior_information,
)
from calibration.collect.point import Point
from calibration.collect.sensitivity import Expected, expect
from calibration.joint_fit import FREE_WITHOUT_TABLE
from simulator.errors import UserError
from simulator.instance import InstanceChoice
from simulator.model import load_model

MODEL, GPU = "Qwen/Qwen3-0.6B", "l4"
HOW = {"seconds_per_point": 1.0, "seed": 0}


def candidates(grid, held_out=False, **settings):
    facts = facts_of(MODEL, **settings)
    kept, _ = possible(points_of_grid(grid, "static_batch", held_out=held_out), limits_of(facts, load_model(MODEL)))
    return expect(kept, facts, GPU, None)


@pytest.fixture(scope="module")
def fitted():
    return candidates(FITTED)


@pytest.fixture(scope="module")
def between():
    return candidates(BETWEEN, held_out=True)


@pytest.fixture(scope="module")
def plan(fitted, between):
    return plan_sweep(fitted, between, budget_s=120.0, **HOW)


def test_a_plan_is_deterministic_and_its_order_comes_from_the_seed(fitted, between, plan):
    assert plan_sweep(fitted, between, budget_s=120.0, **HOW) == plan
    other = plan_sweep(fitted, between, budget_s=120.0, seconds_per_point=1.0, seed=1)
    assert set(other.points) == set(plan.points) and other.points != plan.points


def test_the_plan_fits_into_its_budget_and_no_point_takes_it_all(fitted, between):
    for budget_s in (20.0, 60.0, 300.0):
        plan = plan_sweep(fitted, between, budget_s=budget_s, **HOW)
        assert plan.total_s <= budget_s and max(plan.seconds) <= LONGEST_SHARE * budget_s
        assert all(seconds > 0 for seconds in plan.seconds)


def test_more_time_tells_more(fitted, between):
    spreads = [plan_sweep(fitted, between, budget_s=s, **HOW).identified for s in (15.0, 60.0, 400.0)]
    for name in spreads[0]:
        before, *after = spreads[0][name][0], *(found[name][1] for found in spreads)
        assert before >= after[0] - 1e-9 and after[0] >= after[1] - 1e-9 and after[1] >= after[2] - 1e-9, name
    assert spreads[2][f"{GPU}/gemm16.memory_fraction"][1] < 0.6 * spreads[2][f"{GPU}/gemm16.memory_fraction"][0]


def test_chosen_points_tell_more_than_as_much_time_spent_at_random(fitted):
    cost = np.array([point_seconds(float(s), 1.0) for s in fitted.seconds])
    _, information = choose(fitted, cost, 40.0, 20.0)
    best = np.linalg.slogdet(information)[1]
    rng = np.random.default_rng(3)
    for _ in range(50):
        order = rng.permutation(len(cost))
        some = list(order[np.cumsum(cost[order]) <= 40.0])
        blind = prior_information(fitted) + sum(fitted.rows[i].T @ fitted.rows[i] for i in some)
        assert np.linalg.slogdet(blind)[1] < best


def test_choosing_stops_when_nothing_is_learnt_any_more(fitted):
    cost = np.ones(len(fitted.points))
    chosen, information = choose(fitted, cost, 1e9, 1e9)
    left = [i for i in range(len(cost)) if i not in chosen]
    covariance = np.linalg.inv(information)
    assert len(chosen) == 40 or all(gain(fitted.rows[i], covariance) < LEAST_GAIN for i in left)


def test_the_gain_of_a_point_is_that_of_the_determinant():
    rng = np.random.default_rng(0)
    rows, information = rng.normal(size=(2, 5)), np.diag(rng.uniform(1.0, 9.0, 5))
    direct = np.linalg.slogdet(information + rows.T @ rows)[1] - np.linalg.slogdet(information)[1]
    assert gain(rows, np.linalg.inv(information)) == pytest.approx(direct)


def test_a_point_that_alone_tells_of_a_parameter_is_chosen_first():
    points = tuple(Point("static_batch", n, 10, 10, n) for n in (1, 2, 3))
    rows = (np.array([[0.1, 0.0]]), np.array([[5.0, 0.0]]), np.array([[0.0, 5.0]]))
    made = Expected(points, np.ones(3), rows, ("a", "b"), np.ones(2))
    chosen, _ = choose(made, np.array([1.0, 1.0, 3.0]), 100.0, 100.0)
    assert chosen == [1, 2]  # the first for its price, the second for its parameter, the weak one not at all


def test_repeats_are_spread_over_the_sweep(plan):
    (configuration,) = {point.configuration for point in plan.points if point.repeat}
    places = [i for i, point in enumerate(plan.points) if point.configuration == configuration]
    assert [plan.points[i].repeat for i in places] == [0, 1, 2]
    assert places[0] == 0 and places[2] == len(plan.points) - 1
    assert abs(places[1] - len(plan.points) / 2) <= 1.5
    assert not any(plan.points[i].held_out for i in places)


def test_held_out_points_have_sizes_of_their_own_within_those_that_are_fitted(plan):
    held = [point for point in plan.points if point.held_out]
    fit = [point for point in plan.points if not point.held_out]
    assert len(held) >= 2 and not {p.configuration for p in held} & {p.configuration for p in fit}
    for name in ("concurrency", "input_tok", "output_tok"):
        sizes, others = {getattr(p, name) for p in fit}, {getattr(p, name) for p in held}
        assert not sizes & others and min(sizes) <= min(others) and max(others) <= max(sizes)


def test_no_held_out_points_and_no_repeats_where_none_are_wanted(fitted, between):
    plan = plan_sweep(fitted, between, budget_s=60.0, repeats=1, held_out=0, **HOW)
    assert not any(point.held_out or point.repeat for point in plan.points)


def test_points_that_the_engine_cannot_run_are_no_candidates():
    limits = Limits(longest_tok=1000, kv_tok=5000.0, seats=8, whole_tok=2000)
    point = Point("static_batch", 4, 400, 100, 4)
    assert limits.why_not(point) is None
    assert "max_model_len is 1000" in limits.why_not(replace(point, output_tok=700))
    assert "KV cache holds 5000" in limits.why_not(replace(point, concurrency=8, input_tok=600))
    assert "max_num_seqs is 8" in limits.why_not(replace(point, concurrency=9, input_tok=10))
    assert "prompt tokens in one step" in limits.why_not(replace(point, concurrency=6))
    for tight in (candidates(FITTED, num_gpu_blocks=200), candidates(FITTED, max_model_len=600)):
        assert 0 < len(tight.points) < len(candidates(FITTED).points)


def test_limits_come_from_the_engine_else_from_the_memory_plan():
    model = load_model(MODEL)
    facts = facts_of(MODEL, max_model_len=None, num_gpu_blocks=None)
    assert limits_of(facts, model).longest_tok == model.max_position_embeddings
    assert limits_of(facts, model).kv_tok is None and limits_of(facts, model, 77.0).kv_tok == 77.0
    whole = facts_of(MODEL, chunked_prefill=False, max_num_batched_tokens=4096)
    assert limits_of(whole, model).whole_tok == 4096


def test_expectations_are_the_simulators_own(fitted):
    place = {point.key: i for i, point in enumerate(fitted.points)}
    small, large = place["static_batch c1 i32 o32 r0"], place["static_batch c256 i512 o32 r0"]
    assert fitted.seconds[large] > fitted.seconds[small] > 0
    request = fitted.names.index("engine.request_s")
    alone, many = fitted.rows[place["static_batch c1 i32 o1 r0"]], fitted.rows[large]
    assert alone[0, request] > many[0, request] > 0  # first tokens of short prompts tell of the front end
    memory = fitted.names.index(f"{GPU}/gemm16.memory_fraction")
    assert fitted.rows[small][1, memory] < -1.0  # decoding gets faster as more of the bandwidth is reached


def test_a_sheet_of_ones_own_is_planned_with_all_that_no_table_tells(tmp_path):
    from simulator.device import load_device

    sheet = tmp_path / "mine.toml"
    sheet.write_text(
        'id = "my-board"\nname = "My board"\nvendor = "x"\narchitecture = "any"\n[memory]\nkind = "DDR5"\n'
        "capacity_byte = 16000000000\nbandwidth_byte_per_s = 5.0e10\nunified = true\n[compute]\nsm_count = 8\n"
        "clock_hz = 3.0e9\nl2_byte = 32000000\n[compute.peak_flop_per_s]\nfp32 = 1.0e12\nfp16 = 1.0e12\nbf16 = 1.0e12\n"
        "[power]\nlimit_w = 65.0\nidle_w = 10.0\n"
    )
    asked = InstanceChoice(gpu=str(sheet), model=MODEL, weights="fp32", engine="transformers")
    facts = expected_facts(asked, server=False, engine="transformers", version=None)
    assert facts.settings["cuda_graphs"] is False and facts.weight_dtype == "fp32"
    points = points_of_grid(Grid((1, 2), (32, 128), (1, 8)), "static_batch")
    found = expect(points, facts, str(sheet), None)
    assert len(found.points) == 8 and load_device(str(sheet)).id == "my-board"
    assert {f"my-board/gemm16.{name}" for name in FREE_WITHOUT_TABLE["gemm16"]} <= set(found.names)


def test_a_grid_of_ones_own_is_measured_whole_with_repeats():
    grid = candidates(Grid((1, 2), (64,), (1, 8)))
    plan = plan_grid(grid, seconds_per_point=1.0, seed=0)
    assert {replace(p, repeat=0) for p in plan.points} == set(grid.points) and len(plan.points) == 4 + 2


def test_engines_with_and_without_graphs_are_measured_one_after_the_other():
    facts = facts_of(MODEL)
    points = points_of_grid(Grid((1, 4), (64, 256), (8,)), "static_batch", (True, False))
    plan = plan_grid(expect(points, facts, GPU, None), seconds_per_point=1.0, seed=0)
    graphs = [point.cuda_graphs for point in plan.points]
    assert graphs == sorted(graphs, reverse=True) and len(plan.points) == 10
    eager = [p for p in plan.points if not p.cuda_graphs]
    assert plan.identified["engine.eager_launch_s"][1] < 0.5 * plan.identified["engine.eager_launch_s"][0] and eager


def test_closed_loops_send_several_requests_per_client():
    (point,) = points_of_grid(Grid((3,), (64,), (8,)), "closed_loop")
    assert (point.concurrency, point.num_requests) == (3, 12)
    found = expect([point], facts_of(MODEL), GPU, None)
    single = expect([replace(point, load="static_batch", num_requests=3)], facts_of(MODEL), GPU, None)
    assert found.seconds[0] > 3.0 * single.seconds[0]


def test_a_budget_for_nothing_says_how_much_is_needed(fitted, between):
    with pytest.raises(UserError, match=r"--minutes 0\.01 is too short for any point, expected at least \d"):
        plan_sweep(fitted, between, budget_s=0.6, **HOW)
    with pytest.raises(UserError, match="can be planned"):
        expect([Point("open_loop", 1, 32, 1, 4, 1.0)], facts_of(MODEL), GPU, None)  # not by steps: `expect_open`


def test_an_engine_of_a_model_that_does_not_fit_is_refused():
    with pytest.raises(UserError, match=r"(?i)fit|memory"):
        expected_facts(InstanceChoice(gpu="l4", model="Qwen/Qwen3-32B"), server=False, engine="vllm", version="0.11.0")
    facts = expected_facts(InstanceChoice(gpu="l4", model=MODEL), server=True, engine="vllm", version="0.11.0")
    assert facts.settings["max_num_batched_tokens"] == 2048 and facts.settings["prefix_caching"] is True
    library = expected_facts(InstanceChoice(gpu="l4", model=MODEL), server=False, engine="vllm", version="0.11.0")
    assert library.settings["max_num_batched_tokens"] == 8192 and library.settings["prefix_caching"] is False
