"""Roles, replicas and question sets put together from names: memory, money, power, and what is refused."""

from __future__ import annotations

import json

import pytest

from simulator.crew import parse_role
from simulator.errors import UserError
from simulator.questions import Questions
from simulator.report.json_out import result_json
from simulator.report.plain import render_plain
from simulator.report.table import build_report
from simulator.scenario import Scenario, prepare, simulate_scenario

SMALL = {"thinking_tok": 40, "answer_tok": 10, "problem_tok": 50}


def scenario(strategy="best_of_n", model="qwen3-8b", gpu="h100-sxm", parameters=SMALL, **options):
    return Scenario(
        gpu=gpu, model=model, strategy=strategy, repetitions=2, strategy_parameters=dict(parameters or {}), **options
    )


@pytest.mark.parametrize(
    ("text", "role", "model", "gpu"),
    [
        ("judge=Qwen/Qwen3-4B", "judge", "Qwen/Qwen3-4B", None),
        ("judge=Qwen/Qwen3-4B@l4", "judge", "Qwen/Qwen3-4B", "l4"),
        ("reward-model = ./a@b/config.json@./gpu.toml", "reward_model", "./a@b/config.json", "./gpu.toml"),
    ],
)
def test_roles_are_parsed(text, role, model, gpu):
    found = parse_role(text)
    assert (found.role, found.model, found.gpu) == (role, model, gpu)


@pytest.mark.parametrize("text", ["", "judge", "judge=", "=x", "judge=x@", "judge=@l4"])
def test_what_is_no_role_is_refused(text):
    with pytest.raises(UserError, match="expected NAME=MODEL or NAME=MODEL@GPU"):
        parse_role(text)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"roles": ("judge=qwen3-4b",)}, "strategy 'best_of_n' has no role 'judge'; its roles: reward"),
        ({"roles": ("reward=qwen3-4b", "reward=qwen3-4b@l4")}, "role 'reward' is given twice"),
        ({"roles": ("reward=qwen3-99b",)}, "unknown model 'qwen3-99b'"),
        ({"roles": ("reward=qwen3-4b@h1000",)}, "unknown GPU 'h1000'"),
        ({"roles": ("reward=llama-3.1-70b",)}, "llama-3.1-70b|does not fit"),
        ({"roles": ("reward=qwen3-4b",), "tensor_parallel_size": 2}, "expected a GPU of its own: reward=MODEL@GPU"),
        ({"replicas": 0}, "replicas must be a whole number from 1 to 64, got 0"),
        ({"questions": 0}, "questions: found 0, expected a whole number from 1"),
        ({"concurrency": 2}, "it needs questions"),
        ({"questions": 3, "concurrency": 0}, "concurrency: found 0"),
        ({"schedule": "x.json"}, "expected a strategy or a schedule, and not both"),
    ],
)
def test_mistakes_are_told_in_a_sentence(options, words):
    with pytest.raises(UserError, match=words):
        prepare(scenario(**options))


def test_a_set_strategy_decides_itself_what_is_worked_on():
    with pytest.raises(UserError, match="'blend_asc' works on all questions at once; expected no concurrency"):
        prepare(scenario("blend_asc", parameters=None, questions=3, concurrency=2))


def test_two_models_on_one_gpu_divide_its_memory():
    alone, both = prepare(scenario()), prepare(scenario(roles=("reward=qwen3-4b",)))
    reward = both.cast.instances["reward"]
    used = sum(
        m.weights_byte + m.activation_byte + m.overhead_byte + m.kv_blocks * m.block_size * m.kv_byte_per_tok
        for m in (both.memory, reward.memory)
    )
    assert used <= both.memory.usable_byte
    assert used > 0.999 * both.memory.usable_byte  # nothing but rounding to blocks is lost
    assert reward.memory.kv_blocks > 0 and both.memory.kv_blocks < alone.memory.kv_blocks


def test_a_role_on_a_gpu_of_its_own_leaves_the_main_engine_alone_and_costs_its_rent():
    alone, both = prepare(scenario()), prepare(scenario(roles=("reward=qwen3-4b@l4",)))
    assert both.memory == alone.memory
    one, two = simulate_scenario(scenario()), simulate_scenario(scenario(roles=("reward=qwen3-4b@l4",)))
    rent = prepare(scenario(gpu="l4", model="qwen3-4b")).device.price.usd_per_hour
    assert two.price["usd_per_hour"] == pytest.approx(one.price["usd_per_hour"] + rent)
    assert two.power["limit_w"] == one.power["limit_w"] + 72.0
    assert two.hardware() == f"{one.gpu_name} + NVIDIA L4"
    text = render_plain(build_report(two))
    assert "on reward" in text and "Engines (medians)" in text
    assert json.loads(result_json(two))["flights"][0]["engines"][1]["engine"] == "reward"


def test_replicas_cost_and_draw_as_many_gpus():
    one, four = simulate_scenario(scenario()), simulate_scenario(scenario(replicas=4))
    assert four.price["usd_per_hour"] == pytest.approx(4 * one.price["usd_per_hour"])
    assert four.power["idle_w"] == pytest.approx(4 * one.power["idle_w"])
    assert four.gpu_name.startswith("4 x ")


def test_questions_are_reported(tmp_path):
    lengths = tmp_path / "questions.txt"
    lengths.write_text("50\n500\n1500\n")
    asked = {"thinking_tok": 40, "answer_tok": 10}
    result = simulate_scenario(scenario("single", parameters=asked, question_lengths=str(lengths), concurrency=2))
    flight = result.flights[0]
    assert [question.problem_tok for question in flight.questions] == [50, 500, 1500]
    figures = result.summary()
    assert figures["question_s_p50"] > 0.0
    assert figures["questions_per_s"] == pytest.approx(3 / flight.wall_s)
    assert "Question p50 / p90 / p99" in render_plain(build_report(result))
    with pytest.raises(UserError, match=r"questions: found 4, but .* has the lengths of 3"):
        prepare(scenario("single", parameters=asked, question_lengths=str(lengths), questions=4))


def test_as_many_lengths_as_questions():
    with pytest.raises(UserError, match="3 asked for, but the lengths of 2 are given"):
        Questions(3, tokens=(1, 2))


def test_diffusion_models_fly_only_strategies_made_for_them():
    with pytest.raises(UserError, match="writes by diffusion"):
        prepare(scenario("single", model="llada-8b"))
    with pytest.raises(UserError, match="writes token by token, but the strategy is one of diffusion models"):
        prepare(scenario("llada", parameters=None))
    found = prepare(scenario("llada", model=None, parameters=None))
    assert found.model.diffusion


def test_parallel_streams_share_the_memory_and_widen_the_interval():
    one = prepare(scenario("parscale", parameters={"streams": 1}))
    eight = prepare(scenario("parscale", parameters={"streams": 8}))
    assert eight.memory.kv_byte_per_tok == 8 * one.memory.kv_byte_per_tok
    assert eight.memory.kv_blocks < one.memory.kv_blocks / 8
    assert eight.memory.weights_byte > one.memory.weights_byte
    result = simulate_scenario(scenario("parscale", parameters={**SMALL, "streams": 8}))
    assert any("parallel streams" in line for line in result.calibration["extrapolated"])


def test_idealized_runtime_is_reported_where_it_is_asked_for():
    result = simulate_scenario(scenario("pdr", idealized=True))
    found = result.idealized
    assert 0.0 < found["critical_path_s_p50"] < found["all_calls_s_p50"] == found["accelerator_s_p50"]
    assert "Idealized runtime" in render_plain(build_report(result))
    assert simulate_scenario(scenario("pdr")).idealized == {}
