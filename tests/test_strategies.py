"""The library of strategies and their flights: token accounts by hand, laws over seeds, the registry, bad input."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from fake_physics import FakeStepModel
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.engine import EngineSettings
from simulator.errors import UserError
from simulator.flight import collect_assumptions, fly
from simulator.strategies import get_strategy, list_strategies
from simulator.strategies.registry import KINDS
from simulator.workload.lengths import Fixed, LogNormal

PHYSICS = FakeStepModel()
NAMES = ("best_of_n", "pdr", "self_consistency", "single", "sr")
FIXED = {"problem_tok": 160, "thinking_tok": 90, "answer_tok": 10}


def flight(name, parameters=None, kv_tok=100_000, repetitions=1, seed=0, **engine):
    return fly(PHYSICS, kv_tok, EngineSettings(**engine), name, parameters, repetitions, seed)[0]


# -- schedules by hand ---------------------------------------------------------------------------------------


def test_single():
    f = flight("single", FIXED)
    assert (f.read_tok, f.computed_tok, f.written_tok) == (160, 160, 100)
    assert (f.b_seq_tok, f.b_total_tok, f.critical_path_tok) == (260, 260, 100)
    decode = sum(PHYSICS.decode_s([160 + j]) for j in range(99))
    assert f.wall_s == pytest.approx(PHYSICS.prefill_s(160) + decode)
    assert f.peak_kv_tok == 272  # 160 + 99 tokens in whole blocks of 16


def test_self_consistency_of_equal_lengths():
    f = flight("self_consistency", {**FIXED, "samples": 4})
    # the last of ten prompt blocks is computed by every sample, because one token must be
    assert (f.read_tok, f.computed_tok, f.written_tok) == (640, 160 + 3 * 16, 400)
    assert (f.b_seq_tok, f.b_total_tok, f.critical_path_tok) == (260, 1040, 100)
    decode = sum(PHYSICS.decode_s([160 + j] * 4) for j in range(99))
    assert f.wall_s == pytest.approx(PHYSICS.prefill_s(208) + decode)
    assert f.peak_kv_tok == 16 * (9 + 4 * 8)
    assert f.peak_running == 4


def test_best_of_n():
    f = flight("best_of_n", {**FIXED, "samples": 3, "judge_tok": 5, "instruction_tok": 32})
    assert [c.label for c in f.calls] == ["sample"] * 3 + ["judge"] * 3
    assert f.read_tok == 3 * 160 + 3 * (160 + 100 + 32)
    # each judge finds the 259 tokens of its own sample with KV: 16 whole blocks
    assert [c.cached_tok for c in f.calls[3:]] == [256] * 3
    assert f.written_tok == 315
    assert f.critical_path_tok == 105
    assert f.b_seq_tok == (160 + 100) + (292 + 5)
    assert f.b_total_tok == f.read_tok + f.written_tok


def test_best_of_n_accepts_the_sample_that_its_winning_judge_has_read():
    parameters = {"samples": 5, "thinking_tok": "uniform:1:900", "judge_tok": 4}
    seen = set()
    for f in fly(PHYSICS, 100_000, EngineSettings(), "best_of_n", parameters, 60):
        paths = [256 + sample.output_tok + judge.prompt_tok + 4 for sample, judge in zip(f.calls[:5], f.calls[5:])]
        assert f.b_seq_tok in paths
        seen.add(paths.index(f.b_seq_tok))
    assert seen == {0, 1, 2, 3, 4}


def test_pdr_of_two_rounds():
    parameters = {**FIXED, "width": 3, "workspace_tok": 80, "instruction_tok": 20}
    f = flight("pdr", parameters)
    assert [c.label for c in f.calls] == ["draft"] * 3 + ["distill", "answer"]
    assert [c.prompt_tok for c in f.calls] == [160, 160, 160, 160 + 300 + 20, 160 + 80]
    assert [c.cached_tok for c in f.calls] == [0, 144, 144, 256, 160]
    assert f.critical_path_tok == 100 + 80 + 100
    assert f.b_seq_tok == 260 + (480 + 80) + (240 + 100)
    assert f.b_total_tok == 3 * 260 + 560 + 340
    assert f.computed_tok == 160 + 2 * 16 + (480 - 256) + 80


def test_pdr_rounds_share_problem_and_workspace_inside_a_round():
    f = flight("pdr", {**FIXED, "rounds": 3, "width": 2, "workspace_tok": 80, "instruction_tok": 20})
    assert [c.label for c in f.calls] == ["draft", "draft", "distill"] * 2 + ["answer"]
    assert [c.cached_tok for c in f.calls[3:5]] == [160, 224]
    assert f.critical_path_tok == 2 * (100 + 80) + 100


def test_pdr_of_one_round_is_a_single_chain():
    assert flight("pdr", {"rounds": 1}, seed=3).wall_s == flight("single", seed=3).wall_s


def test_sr_reads_the_last_draft_and_its_workspace():
    f = flight("sr", {**FIXED, "rounds": 2, "workspace_tok": 80, "instruction_tok": 20})
    assert [c.label for c in f.calls] == ["draft", "distill", "draft"]
    assert [c.prompt_tok for c in f.calls] == [160, 280, 160 + 100 + 80 + 20]
    assert [c.cached_tok for c in f.calls] == [0, 256, 256]
    # one call at a time: everything is on the accepted path
    assert f.critical_path_tok == f.written_tok == 280
    assert f.b_seq_tok == f.b_total_tok == 260 + 360 + 460


def test_budget_and_kappa_cut_what_is_written():
    f = flight("pdr", {"thinking_tok": 9000, "budget_tok": 700, "workspace_tok": 900, "kappa_tok": 333, "width": 2})
    assert {c.label: c.output_tok for c in f.calls} == {"draft": 700, "distill": 333, "answer": 700}


# -- laws ----------------------------------------------------------------------------------------------------


@given(st.sampled_from(NAMES), st.integers(0, 10**6), st.sampled_from([9_000, 40_000, 400_000]), st.booleans())
@settings(deadline=None, max_examples=40)
def test_laws_of_every_flight(name, seed, kv_tok, caching):
    small = {"problem_tok": "uniform:20:300", "thinking_tok": "lognormal:250:0.6", "answer_tok": 40}
    f = flight(name, small, kv_tok, seed=seed, enable_prefix_caching=caching)
    assert f.read_tok == sum(c.prompt_tok for c in f.calls)
    assert f.written_tok == sum(c.output_tok for c in f.calls)
    assert f.b_total_tok == f.read_tok + f.written_tok
    assert 0 < f.b_seq_tok <= f.b_total_tok
    assert 0 < f.critical_path_tok <= f.written_tok
    assert f.computed_tok == f.read_tok - sum(c.cached_tok for c in f.calls)
    assert caching or f.computed_tok == f.read_tok
    assert f.peak_kv_tok <= kv_tok
    assert f.wall_s >= PHYSICS.base_s * f.critical_path_tok
    assert f.wall_s == pytest.approx(max(c.finished_s for c in f.calls))
    assert f.energy_j >= PHYSICS.idle_power_w * f.wall_s
    assert sum(f.shares_s.values()) == pytest.approx(f.wall_s)  # the device never idles in these strategies
    assert f.power_times_s[-1] == pytest.approx(f.wall_s)
    for call in f.calls:  # nobody starts before what it waited for
        assert all(f.calls[parent].finished_s <= call.submitted_s for parent in call.parents)


@given(st.integers(0, 10**6), st.integers(1, 12))
@settings(deadline=None, max_examples=25)
def test_another_sample_never_makes_self_consistency_faster(seed, samples):
    fewer = flight("self_consistency", {"samples": samples}, seed=seed)
    more = flight("self_consistency", {"samples": samples + 1}, seed=seed)
    assert more.wall_s > fewer.wall_s
    assert more.energy_j > fewer.energy_j
    assert more.b_total_tok > fewer.b_total_tok


@pytest.mark.parametrize("name", NAMES)
def test_seeds(name):
    first = fly(PHYSICS, 100_000, EngineSettings(), name, None, 3, seed=4)
    again = fly(PHYSICS, 100_000, EngineSettings(), name, None, 3, seed=4)
    other = fly(PHYSICS, 100_000, EngineSettings(), name, None, 3, seed=5)
    assert [f.calls for f in first] == [f.calls for f in again]
    assert [f.seed for f in first] == [0, 1, 2]
    assert len({f.wall_s for f in (*first, *other)}) == 6
    # a repetition does not depend on how many there are
    assert fly(PHYSICS, 100_000, EngineSettings(), name, None, 1, seed=4)[0].calls == first[0].calls


@pytest.mark.parametrize("name", NAMES)
def test_step_by_step_gives_the_same_flight(name):
    small = {"thinking_tok": "lognormal:300:0.5", "answer_tok": 20}
    for kv_tok in (100_000, 4_800):
        fast = fly(PHYSICS, kv_tok, EngineSettings(), name, small, 2)
        slow = fly(PHYSICS, kv_tok, EngineSettings(), name, small, 2, step_by_step=True)
        for a, b in zip(fast, slow):
            assert a.wall_s == pytest.approx(b.wall_s, rel=1e-9)
            assert a.energy_j == pytest.approx(b.energy_j, rel=1e-9)
            assert a.peak_kv_tok == b.peak_kv_tok
            for x, y in zip(a.calls, b.calls):
                assert x.finished_s == pytest.approx(y.finished_s, rel=1e-9)


def test_short_of_blocks_a_fork_runs_in_waves():
    roomy = flight("self_consistency", {"samples": 16}, 400_000)
    tight = flight("self_consistency", {"samples": 16}, 9_000)
    assert tight.wall_s > 1.5 * roomy.wall_s
    assert tight.written_tok == roomy.written_tok
    assert sum(c.preemptions for c in tight.calls) > 0 == sum(c.preemptions for c in roomy.calls)


def test_progress_counts_every_repetition():
    seen = []
    fly(PHYSICS, 100_000, EngineSettings(), "single", None, 3, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 3), (2, 3), (3, 3)]


def test_memory_may_be_a_plan_or_tokens():
    plan = SimpleNamespace(kv_blocks=2000)
    by_plan = fly(PHYSICS, plan, EngineSettings(), "pdr", None, 1)[0]
    assert by_plan.calls == flight("pdr", kv_tok=32_000).calls


# -- registry ------------------------------------------------------------------------------------------------


def test_the_library():
    library = list_strategies()
    assert set(NAMES) <= {s.name for s in library}
    for strategy in library:
        assert strategy.source.startswith("arXiv:")
        assert strategy.source in strategy.description
        assert strategy.title
        for parameter in strategy.parameters:
            assert parameter.help
            assert parameter.origin
            assert parameter.kind in KINDS
    assert get_strategy("pdr").resolve()["thinking_tok"] == LogNormal(2048, 0.5)


@pytest.mark.parametrize(
    ("alias", "name"),
    [
        ("cot", "single"),
        ("sc", "self_consistency"),
        ("bon", "best_of_n"),
        ("self-consistency", "self_consistency"),
        ("Best-of-N", "best_of_n"),
        ("parallel-distill-refine", "pdr"),
        ("sequential_refinement", "sr"),
    ],
)
def test_aliases_and_hyphens(alias, name):
    assert get_strategy(alias).name == name


def test_parameters_are_converted_from_text():
    values = get_strategy("pdr").resolve({"width": "4", "thinking-tok": "300", "rounds": np.int64(3)})
    assert (values["width"], values["thinking_tok"], values["rounds"]) == (4, Fixed(300), 3)
    plain = get_strategy("pdr").plain({"thinking_tok": "uniform:5:9"})
    assert plain["thinking_tok"] == "uniform:5:9"
    assert plain["problem_tok"] == 256


@pytest.mark.parametrize(
    ("given_parameters", "expected"),
    [
        ({"widht": 4}, "unknown parameter 'widht' of strategy 'pdr'; nearest: width; it takes problem_tok, rounds"),
        ({"width": 0}, "parameter 'width': found '0', expected a whole number >= 1"),
        ({"width": "2.5"}, "found '2.5'"),
        ({"width": 2.5}, "found '2.5'"),
        ({"width": True}, "found 'True'"),
        ({"width": float("inf")}, "found 'inf'"),
        ({"width": "wide"}, "found 'wide'"),
        ({"thinking_tok": "long"}, "strategy 'pdr', parameter 'thinking_tok': length 'long' is neither"),
        ({"problem_tok": 0}, "parameter 'problem_tok'.* from 1 to .*, got 0"),
        ({"kappa-tok": 5, "kappa_tok": 6}, "'kappa_tok' is given twice"),
    ],
)
def test_bad_parameters_are_one_sentence(given_parameters, expected):
    with pytest.raises(UserError, match=expected) as caught:
        flight("pdr", given_parameters)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "near"), [("pdrr", "pdr"), ("self_consistancy", "self_consistency"), ("best", "best_of_n")]
)
def test_unknown_strategy_names_the_nearest(name, near):
    with pytest.raises(UserError, match=f"unknown strategy '{name}'; nearest: .*{near}"):
        get_strategy(name)


@pytest.mark.parametrize(
    ("bad", "expected"), [({"repetitions": 0}, "repetitions must be"), ({"seed": -1}, "seed must be")]
)
def test_bad_repetitions_and_seed(bad, expected):
    with pytest.raises(UserError, match=expected):
        flight("single", **bad)


def test_a_call_that_does_not_fit_reaches_the_user_as_one_sentence():
    with pytest.raises(UserError, match=r"call 'distill' needs \d+ tokens .* but the KV cache holds 8000"):
        flight("pdr", {"width": 16}, 8_000)


def test_assumptions_name_every_default_in_use_and_only_those():
    told = collect_assumptions("self_consistency", {"thinking_tok": 100})
    assert any(s.startswith("samples = 8 is published: ") and "arXiv:2512.00466" in s for s in told)
    assert any(s.startswith("budget_tok = 4096 is an assumption: ") for s in told)
    assert any(s.startswith("problem_tok = 256 is an assumption: ") for s in told)
    assert not any(s.startswith("thinking_tok") for s in told)
    assert "the majority vote takes no time on the GPU" in told
