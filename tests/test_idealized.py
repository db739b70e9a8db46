"""Idealized runtime: the identities of its formula, and the longest chain of a flight's calls."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from itertools import pairwise

import numpy as np
import pytest

from simulator.batch import Batch, PrefillChunk
from simulator.device import load_device
from simulator.errors import UserError
from simulator.idealized import OUTPUT_SIZES, PROMPT_SIZES, IdealizedRuntime, idealized, idealized_flight
from simulator.model import load_model
from simulator.parallel import Parallelism
from simulator.precision import choose_precision
from simulator.profile_choice import load_calibration
from simulator.result import CallRecord, Flight, WaitRecord
from simulator.step import StepModel


@cache
def step_model(name: str = "Qwen/Qwen3-8B", tp: int = 1) -> StepModel:
    """Physics on an A100 under Megatron, the engine that the paper profiled."""
    device, model = load_device("a100-sxm-80gb"), load_model(name)
    precision, _ = choose_precision(model, device, None, None, "auto")
    profile = load_calibration(device, engine="megatron")
    return StepModel(model, device, precision, profile, sampler="greedy", cuda_graphs=False, parallel=Parallelism(tp))


@cache
def profiled() -> IdealizedRuntime:
    return idealized(step_model())


BY_HAND = IdealizedRuntime((10, 100, 1000), (1.0, 2.0, 5.0), 0.5, accelerators=8)


@pytest.mark.parametrize(
    ("prompt_tok", "seconds"),
    [(10, 1.0), (5, 0.5), (100, 2.0), (11, 0.22), (50, 1.0), (1000, 5.0), (500, 2.5), (2000, 10.0), (1500, 7.5)],
)
def test_prompts_scale_down_from_the_next_profiled_size(prompt_tok, seconds):
    assert BY_HAND.prompt_runtime(prompt_tok) == pytest.approx(seconds)


def test_runtime_is_prompt_plus_slope_times_further_tokens():
    assert BY_HAND.runtime(100, 1) == 2.0
    assert BY_HAND.runtime(100, 9) == pytest.approx(2.0 + 0.5 * 8)
    assert BY_HAND.runtime(100, 0) == BY_HAND.runtime(100, 1)


def test_cost_aware_variant_multiplies_by_accelerators():
    assert BY_HAND.accelerator_s(100, 9) == pytest.approx(8 * BY_HAND.runtime(100, 9))


def test_profiled_sizes_cost_what_their_prefill_costs():
    for size in (1, 428, 1920):
        assert profiled().prompt_runtime(size) == pytest.approx(
            step_model().step(Batch((PrefillChunk(size),))).seconds, rel=1e-12
        )


def test_first_token_does_not_fall_with_the_profiled_size():
    assert profiled().prompt_sizes == PROMPT_SIZES
    assert np.all(np.diff(profiled().prompt_s) >= 0.0)


def test_linear_above_the_largest_size():
    runtime = profiled()
    assert runtime.prompt_runtime(3840) == pytest.approx(2 * runtime.prompt_runtime(1920))
    assert runtime.prompt_runtime(19_200) == pytest.approx(10 * runtime.prompt_runtime(1920))


def test_slope_is_that_of_the_regression_over_all_pairs():
    runtime, model = profiled(), step_model()
    rows, times = [], []
    for size, first_s in zip(runtime.prompt_sizes, runtime.prompt_s):
        seconds = np.concatenate(([first_s], model.decode_run(np.array([size]), OUTPUT_SIZES[-1] - 1).seconds))
        for output_tok in OUTPUT_SIZES:
            rows.append([output_tok - 1.0])
            times.append(seconds[:output_tok].sum() - first_s)
    slope = np.linalg.lstsq(np.array(rows), np.array(times), rcond=None)[0][0]
    assert runtime.output_tok_s == pytest.approx(slope, rel=1e-9)


def test_slope_lies_between_the_shortest_and_the_longest_step():
    seconds = [step_model().decode_run(np.array([size]), 1).seconds[0] for size in (1, 1920 + 64)]
    assert seconds[0] * (1 - 1e-9) <= profiled().output_tok_s <= seconds[1] * (1 + 1e-9)


def test_accelerators_are_those_of_the_step_model():
    runtime = idealized(step_model(tp=4), prompt_sizes=(512,), output_sizes=(1, 8))
    assert runtime.accelerators == 4
    assert runtime.accelerator_s(512, 8) == pytest.approx(4 * runtime.runtime(512, 8))


def test_front_end_adds_what_the_calibration_says():
    engine, sizes = step_model().p.engine, (16, 512)
    inside = idealized(step_model(), sizes)
    outside = idealized(step_model(), sizes, front_end=True)
    for size, a, b in zip(sizes, inside.prompt_s, outside.prompt_s):
        assert b - a == pytest.approx(engine.request_s + engine.prompt_tok_s * size)
    assert outside.output_tok_s == inside.output_tok_s


def test_prompts_that_the_model_cannot_read_are_left_out():
    small = idealized(step_model("helm-megatron/openai_ada"), prompt_sizes=(512, 2048, 4096))
    assert small.prompt_sizes == (512, 2048)


@pytest.mark.parametrize(
    ("sizes", "told"),
    [
        ({"prompt_sizes": ()}, "prompt_sizes: found"),
        ({"prompt_sizes": (16, 16)}, "expected ascending whole numbers"),
        ({"prompt_sizes": (0, 16)}, "expected ascending whole numbers"),
        ({"prompt_sizes": (1.5,)}, "expected ascending whole numbers"),
        ({"output_sizes": (1,)}, "there is no slope"),
        ({"output_sizes": (8, 2)}, "output_sizes: found"),
        ({"prompt_sizes": (10**8,)}, "expected one"),
    ],
)
def test_bad_sizes_are_told_in_one_sentence(sizes, told):
    with pytest.raises(UserError, match=told):
        idealized(step_model(), **sizes)


def test_diffusion_models_have_no_idealized_runtime():
    with pytest.raises(UserError, match="writes by diffusion"):
        idealized(step_model("GSAI-ML/LLaDA-8B-Instruct"))


# -- a flight's calls ------------------------------------------------------------------------------------------


def call(number: int, prompt_tok: int, output_tok: int, parents: tuple[int, ...] = (), engine: str = "") -> CallRecord:
    return CallRecord(number, "call", 0.0, 0.0, 1.0, 2.0, prompt_tok, 0, output_tok, parents, engine=engine)


def flight(*calls: CallRecord, waits: tuple[WaitRecord, ...] = ()) -> Flight:
    times, power = np.array([0.0, 1.0]), np.array([0.0])
    return Flight(0, 1.0, 1.0, 1, 1, 1, 1, 1, 1, 1, 1, {}, calls, times, power, waits=waits)


def test_critical_path_is_the_chain_with_the_largest_sum():
    # Two drafts side by side, then a revision; the second draft is the longer one.
    calls = (call(0, 100, 3), call(1, 100, 11), call(2, 1000, 1, (0, 1)))
    found = idealized_flight(flight(*calls), BY_HAND)
    assert found.critical_calls == (1, 2)
    assert found.critical_path_s == pytest.approx((2.0 + 5.0) + 5.0)
    assert found.all_calls_s == pytest.approx(3.0 + 7.0 + 5.0)
    assert found.accelerator_s == pytest.approx(8 * 15.0)


def test_one_call_is_its_own_critical_path():
    found = idealized_flight(flight(call(7, 100, 3)), BY_HAND)
    assert found.critical_path_s == found.all_calls_s == BY_HAND.runtime(100, 3)


def test_critical_path_is_never_longer_than_all_calls():
    rng = np.random.default_rng(0)
    calls = [
        call(n, int(rng.integers(1, 3000)), int(rng.integers(0, 500)), tuple(range(max(0, n - 3), n, 2)))
        for n in range(20)
    ]
    found = idealized_flight(flight(*calls), BY_HAND)
    times = {c.call_id: BY_HAND.runtime(c.prompt_tok, c.output_tok) for c in calls}
    assert found.critical_path_s == pytest.approx(sum(times[n] for n in found.critical_calls))
    assert found.critical_path_s <= found.all_calls_s
    for first, then in pairwise(found.critical_calls):
        assert first in calls[then].parents


def test_external_waits_pass_dependence_on_and_take_no_time():
    # A search between two calls: the second call waited for the wait, and the wait for the first call.
    search = WaitRecord(1, "search", 1.0, 9.0, (0,))
    found = idealized_flight(flight(call(0, 100, 3), call(2, 100, 3, (1,)), waits=(search,)), BY_HAND)
    assert found.critical_calls == (0, 2)
    assert found.critical_path_s == found.all_calls_s == pytest.approx(2 * BY_HAND.runtime(100, 3))


def test_other_engines_have_tables_of_their_own():
    judge = replace(BY_HAND, output_tok_s=5.0, accelerators=1)
    calls = (call(0, 100, 3, engine="main"), call(1, 100, 3, (0,), engine="judge"))
    found = idealized_flight(flight(*calls), BY_HAND, {"judge": judge})
    assert found.critical_path_s == pytest.approx(BY_HAND.runtime(100, 3) + judge.runtime(100, 3))
    assert found.accelerator_s == pytest.approx(8 * BY_HAND.runtime(100, 3) + judge.runtime(100, 3))
