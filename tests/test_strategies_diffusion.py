"""Diffusion LLMs and ParScale: passes counted by hand, what caches save, and the physics of a pass."""

from __future__ import annotations

from functools import cache
from itertools import pairwise

import numpy as np
import pytest
from strategy_rig import PHYSICS, fly_fake

from simulator.batch import Batch, PrefillChunk
from simulator.device import load_device
from simulator.errors import UserError
from simulator.model import load_model
from simulator.precision import choose_precision
from simulator.profile_choice import load_calibration
from simulator.schedule import Pass
from simulator.step import StepModel
from simulator.strategies import get_strategy
from simulator.strategies.diffusion import CACHES, certain_passes, fixed_passes, stages

PROMPT = 100
DIFFUSION = ("llada", "dparallel", "fast_dllm", "parallelbench")


def passes_of(name: str, seed: int = 0, **parameters) -> tuple[Pass, ...]:
    """The passes of the strategy's only call."""
    (call,) = fly_fake(name, seed=seed, run=True, problem_tok=PROMPT, **parameters).calls
    return call.asked.passes


def count(passes) -> int:
    return sum(stage.count for stage in passes)


def positions(passes) -> int:
    """Positions computed in all passes together."""
    return sum(stage.count * stage.new_tok for stage in passes)


# -- pass counts in closed form --------------------------------------------------------------------------------


def test_llada_takes_one_full_pass_per_token():
    assert passes_of("llada") == (Pass(256, PROMPT + 256),)


@pytest.mark.parametrize("steps", [8, 64, 128, 256])
def test_llada_takes_as_many_passes_as_steps(steps):
    assert count(passes_of("llada", steps=steps)) == steps


def test_llada_lasts_as_long_as_its_passes():
    flight = fly_fake("llada", problem_tok=PROMPT, gen_tok=64, steps=16)
    assert flight.wall_s == pytest.approx(16 * PHYSICS.prefill_s(PROMPT + 64), rel=1e-9)
    assert (flight.written_tok, flight.read_tok) == (64, PROMPT)


def test_an_early_end_saves_llada_nothing():
    flight, whole = (fly_fake("llada", problem_tok=PROMPT, answer_tok=n) for n in (40, 1000))
    assert flight.wall_s == pytest.approx(whole.wall_s)
    assert (flight.written_tok, whole.written_tok) == (40, 256)


@pytest.mark.parametrize(
    ("gen", "block", "k", "expected"),
    [(128, 128, 2, 64), (128, 32, 5, 4 * 7), (32, 32, 32, 1), (32, 1, 1, 32), (96, 32, 31, 6)],
)
def test_fixed_policies_round_up_per_block(gen, block, k, expected):
    assert sum(fixed_passes(gen, block, k)) == expected
    assert count(passes_of("parallelbench", gen_tok=gen, block_tok=block, tokens_per_pass=k)) == expected


@pytest.mark.parametrize("name", ["dparallel", "fast_dllm"])
def test_one_token_per_pass_is_the_baseline_in_number(name):
    assert count(passes_of(name, tokens_per_pass=1)) == 256


def test_a_pass_that_unmasks_a_block_makes_one_pass_per_block():
    assert count(passes_of("dparallel", tokens_per_pass=32)) == 8
    assert count(passes_of("fast_dllm", tokens_per_pass=32, cache="none")) == 8
    assert count(passes_of("fast_dllm", tokens_per_pass=32, cache="dual")) == 16  # the block is computed once more


@pytest.mark.parametrize(("rate", "least"), [(3.01, 2), (8.53, 1), (1.5, 1), (1.0, 2), (16.0, 2), (32.0, 1)])
def test_drawn_passes_have_the_stated_mean_and_stay_in_range(rate, least):
    rng = np.random.default_rng(1)
    drawn = np.array([certain_passes(rng, 256, 256, 32, rate, least) for _ in range(2000)])
    assert drawn.mean() == pytest.approx(32 / rate, rel=0.01)
    assert drawn.min() >= least and drawn.max() <= 32


def test_padding_takes_the_fewest_passes():
    rng = np.random.default_rng(2)
    drawn = np.array([certain_passes(rng, 80, 256, 32, 4.0) for _ in range(2000)])
    assert (drawn[:, 3:] == 1).all()
    assert drawn[:, :3].mean(axis=0) == pytest.approx([8.0, 8.0, 4.0], rel=0.05)
    assert certain_passes(rng, 1, 64, 32, 1.0, 2) == [2, 2]


def test_passes_are_drawn_from_the_seed():
    assert passes_of("dparallel", seed=5) == passes_of("dparallel", seed=5)
    assert len({count(passes_of("dparallel", seed=seed)) for seed in range(8)}) > 1


# -- caches ----------------------------------------------------------------------------------------------------


def test_stages_of_two_blocks_by_hand():
    assert stages(100, 64, 32, [32, 8]) == [Pass(40, 164)]
    assert stages(100, 64, 32, [32, 8], "prefix") == [
        Pass(1, 164), Pass(31, 64, 100), Pass(1, 164), Pass(7, 32, 132),
    ]  # fmt: skip
    assert stages(100, 64, 32, [32, 8], "dual") == [
        Pass(1, 164), Pass(31, 32, 132), Pass(1, 164), Pass(7, 32, 132),
    ]  # fmt: skip
    assert stages(100, 64, 64, [1], "dual") == [Pass(1, 164)]


def test_every_pass_attends_to_the_whole_sequence():
    for kind in CACHES:
        assert all(stage.new_tok + stage.cached_tok == PROMPT + 256 for stage in passes_of("fast_dllm", cache=kind))


def test_dual_cache_computes_less_than_prefix_less_than_none():
    drawn = [passes_of("fast_dllm", cache=kind, tokens_per_pass=1) for kind in ("dual", "prefix", "none")]
    assert [count(passes) for passes in drawn] == [256, 256, 256]
    dual, prefix, none = map(positions, drawn)
    assert dual < prefix < none
    assert dual == 8 * (PROMPT + 256) + 248 * 32
    assert prefix == 8 * (PROMPT + 256) + 31 * sum(256 - 32 * block for block in range(8))
    walls = [fly_fake("fast_dllm", problem_tok=PROMPT, cache=kind, tokens_per_pass=1).wall_s for kind in CACHES]
    assert walls[2] < walls[1] < walls[0]


def test_only_caches_hold_kv():
    peaks = {kind: fly_fake("fast_dllm", problem_tok=PROMPT, cache=kind).peak_kv_tok for kind in CACHES}
    assert peaks["none"] == 0
    assert 0 < peaks["prefix"] <= peaks["dual"]


def test_parallelbench_has_the_caches_of_fast_dllm():
    same = {"gen_tok": 256, "block_tok": 32, "tokens_per_pass": 4.0, "answer_tok": 200}
    for kind in CACHES:
        found = passes_of("parallelbench", seed=3, policy="threshold", cache=kind, **same)
        assert found == passes_of("fast_dllm", seed=3, cache=kind, **same)


# -- mistakes --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", DIFFUSION)
def test_blocks_must_fill_the_length(name):
    with pytest.raises(UserError, match=f"strategy '{name}', parameter 'gen_tok': found 100, expected a multiple"):
        fly_fake(name, gen_tok=100, block_tok=32)


@pytest.mark.parametrize("name", DIFFUSION[1:])
def test_a_pass_cannot_unmask_more_than_a_block(name):
    with pytest.raises(UserError, match=f"strategy '{name}', parameter 'tokens_per_pass': found 33, expected at most"):
        fly_fake(name, gen_tok=64, block_tok=32, tokens_per_pass=33)


@pytest.mark.parametrize("steps", [12, 264])
def test_steps_must_be_shared_by_the_blocks(steps):
    with pytest.raises(UserError, match="expected a multiple of the 8 blocks, at most gen_tok 256"):
        fly_fake("llada", steps=steps)


@pytest.mark.parametrize(
    ("name", "parameters", "told"),
    [
        ("fast_dllm", {"cache": "triple"}, "none, prefix, dual"),
        ("dparallel", {"tokens_per_pass": 0.5}, ">= 1"),
        ("parallelbench", {"tokens_per_pass": 2.5}, "a whole number under policy fixed"),
        ("parallelbench", {"policy": "best"}, "fixed, threshold"),
        ("parscale", {"streams": 0}, ">= 1"),
        ("parscale", {"streams": 65}, "at most 64"),
    ],
)
def test_bad_parameters_are_told(name, parameters, told):
    with pytest.raises(UserError, match=told):
        fly_fake(name, **parameters)


def test_what_the_strategies_need_of_a_model():
    assert all(get_strategy(name).diffusion for name in DIFFUSION)
    assert get_strategy("parscale").streams == "streams" and not get_strategy("parscale").diffusion


# -- physics of a pass -----------------------------------------------------------------------------------------


@cache
def step_model(name: str) -> StepModel:
    device, model = load_device("a100-sxm-80gb"), load_model(name)
    precision, _ = choose_precision(model, device, None, None, "auto")
    return StepModel(model, device, precision, load_calibration(device, engine="transformers"), cuda_graphs=False)


def pass_s(new_tok: int, cached_tok: int = 0, name: str = "GSAI-ML/LLaDA-8B-Instruct") -> float:
    return step_model(name).step(Batch((PrefillChunk(new_tok, cached_tok, True, new_tok),))).seconds


@pytest.mark.parametrize("name", ["GSAI-ML/LLaDA-8B-Instruct", "Dream-org/Dream-v0-Instruct-7B"])
def test_a_pass_costs_more_the_longer_the_sequence(name):
    seconds = [pass_s(new_tok, name=name) for new_tok in (128, 256, 512, 1024, 2048)]
    assert all(b > a for a, b in pairwise(seconds))
    assert seconds[-1] > 3.5 * seconds[-3]  # compute-bound: proportional to the length, and attention on top


def test_a_cached_pass_is_cheaper_than_a_full_one():
    dual, prefix, full = pass_s(32, 992), pass_s(256, 768), pass_s(1024)
    assert dual < prefix < full


def test_attention_goes_both_ways():
    """Causal attention of the same shape has half the pairs."""
    (rule,) = step_model("GSAI-ML/LLaDA-8B-Instruct").rules
    assert rule.keys_read(PrefillChunk(1000)) == (1e6, 1000.0)


# -- ParScale --------------------------------------------------------------------------------------------------


def test_parscale_writes_one_chain():
    flight = fly_fake("parscale", thinking_tok="100", answer_tok="20")
    single = fly_fake("single", thinking_tok="100", answer_tok="20")
    assert (flight.written_tok, len(flight.calls)) == (single.written_tok, 1)


def test_steps_cost_more_with_every_stream_but_less_than_as_many_models():
    device, model = load_device("a100-sxm-80gb"), load_model("Qwen/Qwen2.5-1.5B-Instruct")
    precision, _ = choose_precision(model, device, None, None, "auto")
    profile = load_calibration(device)
    seconds = []
    for streams in (1, 2, 4, 8):
        physics = StepModel(model, device, precision, profile, streams=streams)
        seconds.append(float(physics.decode_run(np.array([512]), 16).seconds.sum()))
    assert all(b > a for a, b in pairwise(seconds))
    assert seconds[-1] < 2.0 * seconds[0]
