"""Strategies that fork and join: tokens in closed form, what is prefilled again, who stops when, bad input."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from strategy_rig import fly_fake

from simulator.errors import UserError
from simulator.strategies import get_strategy
from simulator.strategies.deepprune import Judge, answers, survivors
from simulator.strategies.scale import hard_probability
from simulator.strategies.threadweaver import split_tokens

FORKS = ("threadweaver", "parathinker", "hogwild", "deepprune", "scale")
EXACT = {"block_size": 1}  # the prefix cache then holds every token, not only whole blocks
SMALL = {
    "threadweaver": {"sequential_tok": "lognormal:400:0.5"},
    "parathinker": {"paths": 4, "thinking_tok": "lognormal:200:0.5", "path_tok": 300, "summary_tok": 20},
    "hogwild": {"workers": 3, "steps": "lognormal:150:0.5", "answer_tok": 20},
    "deepprune": {"traces": 12, "trace_tok": "lognormal:150:0.5", "cut_tok": 50, "finishing": 4},
    "scale": {"outlines": 2, "outline_tok": 40, "thinking_tok": "lognormal:80:0.5", "solution_tok": 30},
}


def labels(flight, label):
    return [call for call in flight.calls if call.label == label]


def computed(call):
    """Prompt tokens that were prefilled for it."""
    return call.prompt_tok - call.cached_tok


# -- all of them -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FORKS)
def test_same_seed_same_flight_and_step_by_step_too(name):
    flight, again = (fly_fake(name, seed=3, **SMALL[name]) for _ in range(2))
    slow = fly_fake(name, seed=3, step_by_step=True, **SMALL[name])
    other = fly_fake(name, seed=4, **SMALL[name])
    assert flight.calls == again.calls
    assert flight.wall_s != other.wall_s
    assert slow.wall_s == pytest.approx(flight.wall_s, rel=1e-9)
    assert slow.peak_kv_tok == flight.peak_kv_tok
    assert [c.output_tok for c in slow.calls] == [c.output_tok for c in flight.calls]


@pytest.mark.parametrize("name", FORKS)
def test_accounts_of_every_flight(name):
    for seed in range(5):
        f = fly_fake(name, seed=seed, **SMALL[name])
        assert f.written_tok == sum(c.output_tok for c in f.calls)
        assert 0 < f.critical_path_tok <= f.written_tok
        assert f.computed_tok == sum(computed(c) for c in f.calls)
        assert f.b_seq_tok <= f.b_total_tok == f.read_tok + f.written_tok


@pytest.mark.parametrize("name", FORKS)
def test_notes_of_every_parameter(name):
    found = get_strategy(name)
    assert found.source.startswith("arXiv:")
    assert found.source in found.description
    assert found.assumptions
    assert all(parameter.help and parameter.origin for parameter in found.parameters)


@pytest.mark.parametrize(
    ("name", "parameters", "expected"),
    [
        ("threadweaver", {"block_share": 1.5}, "'block_share': found '1.5', expected a number from 0 to 1"),
        ("threadweaver", {"threads": 0.5}, "'threads': found '0.5', expected a number >= 1"),
        ("threadweaver", {"thread_spread": 9}, "'thread_spread': found '9', expected a number"),
        ("threadweaver", {"blocks": 0}, "'blocks': found '0', expected a whole number >= 1"),
        ("parathinker", {"paths": 0}, "'paths': found '0'"),
        ("parathinker", {"path_tok": -1}, "'path_tok': found '-1'"),
        ("hogwild", {"workers": 2.5}, "'workers': found '2.5'"),
        ("hogwild", {"steps": "long"}, "'steps': length 'long' is neither"),
        ("deepprune", {"at_cut": "sleep"}, "'at_cut': found 'sleep', expected one of wait, run on"),
        ("deepprune", {"auroc": 0.4}, "'auroc': found '0.4'"),
        ("deepprune", {"tau": 1}, "'tau': found '1'"),
        ("deepprune", {"same_answer": 0}, "'same_answer': found '0'"),
        ("scale", {"hard_share": 2}, "'hard_share': found '2'"),
        ("scale", {"subproblems": 0}, "'subproblems': found '0'"),
        ("scale", {"score_tok": 65}, "'score_tok': found '65', expected .*at most 64"),
    ],
)
def test_bad_parameters_are_one_sentence(name, parameters, expected):
    with pytest.raises(UserError, match=expected) as caught:
        fly_fake(name, **parameters)
    assert "\n" not in str(caught.value)


# -- threadweaver ------------------------------------------------------------------------------------------------------

WOVEN = {"problem_tok": 100, "sequential_tok": 1000, "growth": 1.0, "block_users": 1.0, "marker_tok": 4}
EVEN = {**WOVEN, "thread_spread": 0.0, "threads": 3.0, "blocks": 2, "block_share": 0.6}


def test_threads_wait_for_the_slowest_and_join_as_text():
    f = fly_fake("threadweaver", engine=EXACT, **EVEN)
    assert [c.label for c in f.calls] == (["segment"] + ["thread"] * 3) * 2 + ["answer"]
    assert [c.output_tok for c in f.calls] == [133, 100, 100, 100, 134, 100, 100, 100, 133]
    assert f.written_tok == 1000
    assert f.critical_path_tok == 1000 - 2 * 200
    assert [c.prompt_tok for c in labels(f, "thread")] == [100 + 133 + 4] * 3 + [100 + 133 + 316 + 134 + 4] * 3
    segment = labels(f, "segment")[1]
    assert segment.submitted_s == max(c.finished_s for c in f.calls[1:4])


def test_threads_find_the_context_in_the_cache():
    f = fly_fake("threadweaver", engine=EXACT, **EVEN)
    # the last token of a segment has no KV when the threads begin; equal prompts of one step share it
    assert [computed(c) for c in labels(f, "thread")] == [1 + 4, 4, 4] * 2


@given(st.integers(2, 5), st.integers(1, 3), st.sampled_from([0.0, 0.8, 1.5]), st.integers(0, 10**6))
@settings(deadline=None, max_examples=25)
def test_text_join_prefills_all_threads_but_the_first(threads, blocks, spread, seed):
    parameters = {**WOVEN, "threads": threads, "blocks": blocks, "thread_spread": spread}
    f = fly_fake("threadweaver", seed=seed, engine=EXACT, **parameters)
    written = [c.output_tok for c in labels(f, "thread")]
    after = [*labels(f, "segment")[1:], *labels(f, "answer")]
    for block, call in enumerate(after):
        later = written[block * threads + 1 : (block + 1) * threads]
        # also prefilled: the last token of the first thread, the markers before the others, and the closing one
        assert computed(call) == sum(later) + 1 + 4 * threads


def test_an_answer_without_blocks_is_one_chain():
    f = fly_fake("threadweaver", **{**WOVEN, "block_users": 0.0, "growth": 2.0})
    assert [c.output_tok for c in f.calls] == [1000]
    assert f.wall_s == pytest.approx(fly_fake("single", problem_tok=100, thinking_tok=990, answer_tok=10).wall_s)


def test_share_of_answers_that_use_blocks():
    runs = [fly_fake("threadweaver", seed=seed, **{**WOVEN, "block_users": 0.5, "growth": 1.5}) for seed in range(60)]
    assert {f.written_tok for f in runs} == {1000, 1500}
    assert 15 < sum(f.written_tok == 1500 for f in runs) < 45


def test_threads_per_block_in_the_mean():
    flights = [fly_fake("threadweaver", seed=seed, **{**WOVEN, "threads": 2.5, "blocks": 6}) for seed in range(20)]
    threads = sum(len(labels(f, "thread")) for f in flights) / (20 * 6)
    assert 2.3 < threads < 2.7


def test_default_structure_is_that_of_the_table_it_comes_from():
    whole = {"sequential_tok": 10_377, "block_users": 1.0}
    flights = [fly_fake("threadweaver", seed=seed, **whole) for seed in range(250)]
    assert np.mean([f.written_tok for f in flights]) == pytest.approx(11_176, rel=1e-3)
    assert np.mean([f.critical_path_tok for f in flights]) == pytest.approx(9_153, rel=0.01)


@given(st.integers(0, 10**6))
@settings(deadline=None, max_examples=15)
def test_more_of_the_text_in_blocks_is_a_shorter_path(seed):
    paths = [
        fly_fake("threadweaver", seed=seed, **{**WOVEN, "block_share": share}).critical_path_tok
        for share in (0.2, 0.5, 0.8)
    ]
    assert 1000 > paths[0] > paths[1] > paths[2]


def test_threads_on_four_engines_rebuild_the_prefix():
    one, four = (fly_fake("threadweaver", replicas=n, engine=EXACT, **EVEN) for n in (1, 4))
    assert four.written_tok == one.written_tok
    assert four.critical_path_tok == one.critical_path_tok
    assert len({c.engine for c in labels(four, "thread")[:3]}) == 3
    # two of the three threads of the first block start on engines that have seen nothing
    assert sorted(computed(c) for c in labels(four, "thread")[:3]) == [5, 237, 237]


@given(st.integers(10, 10_000), st.lists(st.floats(0.1, 10.0), min_size=1, max_size=10))
def test_split_tokens_is_whole_and_complete(tokens, weights):
    parts = split_tokens(tokens, np.array(weights))
    assert len(parts) == len(weights)
    assert min(parts) >= 1
    assert sum(parts) == tokens
    for part, weight in zip(parts, weights):
        assert abs(part - tokens * weight / sum(weights)) <= len(parts)


# -- parathinker -------------------------------------------------------------------------------------------------------

PATHS = {"problem_tok": 160, "paths": 5, "summary_tok": 40, "marker_tok": 1}


@given(st.integers(0, 10**6), st.sampled_from([50, 200, 10_000]))
@settings(deadline=None, max_examples=25)
def test_all_paths_are_as_long_as_the_shortest_drawn(seed, limit):
    parameters = {**PATHS, "thinking_tok": "lognormal:300:0.8", "path_tok": limit}
    run = fly_fake("parathinker", seed=seed, run=True, **parameters)
    paths = [call for call in run.calls if call.label == "path"]
    shortest = min(call.drawn_tok for call in paths)
    assert shortest <= limit
    assert [call.output_tok for call in paths] == [shortest] * 5
    assert {call.record.finished_s for call in paths} == {paths[0].record.finished_s}
    assert all(call.stopped for call in paths if call.drawn_tok > shortest)


def test_the_summary_prefills_nothing_of_the_paths():
    f = fly_fake("parathinker", engine=EXACT, thinking_tok=300, **PATHS)
    summary = f.calls[-1]
    assert summary.label == "summary"
    assert (summary.prompt_tok, summary.cached_tok) == (161, 160)
    assert f.computed_tok == 160 + 5 + 1
    assert f.critical_path_tok == 300 + 40
    # the paths' KV is held until the end: the problem once, 300 tokens a path, and the summary
    assert f.peak_kv_tok == pytest.approx(160 + 5 * 300 + 40, abs=5)


def test_a_summary_token_reads_all_paths():
    few, many = (fly_fake("parathinker", **{**PATHS, "paths": n, "thinking_tok": 2000}) for n in (1, 8))
    gap = [f.calls[-1].tpot_s for f in (few, many)]
    assert gap[1] > gap[0]


@given(st.integers(1, 12))
@settings(deadline=None, max_examples=8)
def test_another_path_of_equal_length_costs_time(paths):
    fewer, more = (fly_fake("parathinker", **{**PATHS, "paths": n, "thinking_tok": 200}) for n in (paths, paths + 1))
    assert more.wall_s > fewer.wall_s
    assert more.critical_path_tok == fewer.critical_path_tok


# -- hogwild -----------------------------------------------------------------------------------------------------------

TEAM = {"problem_tok": 100, "instruction_tok": 20, "marker_tok": 8, "answer_tok": 30}


@given(st.integers(1, 5), st.integers(0, 10**6))
@settings(deadline=None, max_examples=20)
def test_workers_take_as_many_steps_as_one_length(workers, seed):
    f = fly_fake("hogwild", seed=seed, workers=workers, steps="lognormal:120:0.6", budget_tok=150, **TEAM)
    team = labels(f, "worker")
    assert len(team) == workers
    assert len({(c.output_tok, c.first_token_s, c.finished_s) for c in team}) == 1
    assert team[0].output_tok <= 150
    assert f.critical_path_tok == team[0].output_tok + 30


def test_the_workers_cache_is_read_and_not_prefilled_by_the_answer():
    f = fly_fake("hogwild", engine=EXACT, workers=3, steps=200, **TEAM)
    answer = f.calls[-1]
    assert (answer.prompt_tok, answer.cached_tok) == (128, 120)
    assert f.computed_tok == 120 + 3 * 8 + 8
    assert f.peak_kv_tok == pytest.approx(120 + 3 * 208 + 38, abs=4)


def test_final_answer_is_cut():
    f = fly_fake("hogwild", workers=2, steps=10, **{**TEAM, "answer_tok": 5000}, answer_max_tok=64)
    assert f.calls[-1].output_tok == 64


def test_more_workers_make_a_step_longer():
    walls = [fly_fake("hogwild", workers=n, steps=100, **TEAM).wall_s for n in (1, 2, 4)]
    assert walls[0] < walls[1] < walls[2] < 4 * walls[0]


# -- deepprune ---------------------------------------------------------------------------------------------------------

PRUNED = {"problem_tok": 100, "traces": 20, "trace_tok": 900, "cut_tok": 200, "finishing": 5}
SHARP = {"auroc": 0.999, "same_answer": 1.0}  # one answer, and a judge that sees it


def test_tokens_of_pruned_traces():
    f = fly_fake("deepprune", **PRUNED, **SHARP)
    assert [c.output_tok for c in labels(f, "trace")] == [200] * 20
    assert [c.output_tok for c in labels(f, "finish")] == [700] * 5
    assert f.written_tok - len(labels(f, "judge")) == 20 * 200 + 5 * 700


def test_finishing_continues_behind_what_the_trace_wrote():
    f = fly_fake("deepprune", engine=EXACT, **PRUNED, **SHARP)
    assert {c.prompt_tok for c in labels(f, "finish")} == {300}
    assert [computed(c) for c in labels(f, "finish")] == [1] * 5  # the token that was last


def test_comparisons_of_one_trace_are_one_round():
    f = fly_fake("deepprune", **PRUNED, instruction_tok=50, **SHARP)
    judge = labels(f, "judge")
    assert len(judge) == 19  # one cluster, one member of it each
    assert {c.prompt_tok for c in judge} == {50 + 200 + 200}
    rounds = [c.submitted_s for c in judge]
    assert len(set(rounds)) == 19
    assert rounds == sorted(rounds)


def test_judge_on_its_own_engine():
    f = fly_fake("deepprune", roles=("judge",), **PRUNED)
    assert {c.engine for c in labels(f, "judge")} == {"judge"}
    assert {c.engine for c in (*labels(f, "trace"), *labels(f, "finish"))} == {"main"}


def test_traces_that_run_on_write_more_until_they_are_stopped():
    waits = fly_fake("deepprune", **PRUNED, **SHARP)
    f = fly_fake("deepprune", at_cut="run on", **PRUNED, **SHARP)
    traces = labels(f, "trace")
    stopped = [c for c in traces if c.stopped]
    assert len(stopped) == 15
    assert all(200 <= c.output_tok < 900 for c in stopped)
    assert [c.output_tok for c in traces if not c.stopped] == [900] * 5
    assert f.written_tok > waits.written_tok - len(labels(waits, "finish"))
    assert not labels(f, "finish")


def test_short_traces_need_no_second_call():
    f = fly_fake("deepprune", **{**PRUNED, "trace_tok": 150}, **SHARP)
    assert not labels(f, "finish")
    assert f.written_tok == 20 * 150 + 19


@pytest.mark.parametrize("finishing", [1, 5, 20, 50])
def test_at_most_the_largest_cluster_finishes(finishing):
    f = fly_fake("deepprune", **{**PRUNED, "finishing": finishing}, **SHARP)
    assert len(labels(f, "finish")) == min(finishing, 20)


def test_if_no_two_are_alike_random_ones_finish():
    unlike = {**PRUNED, "same_answer": 0.01, "auroc": 0.999, "tau": 0.99, "traces": 4, "fallback": 3}
    f = fly_fake("deepprune", seed=1, **unlike)
    assert len(labels(f, "judge")) == 1 + 2 + 3
    assert len(labels(f, "finish")) == 3


def test_limit_of_clusters_bounds_the_calls_of_a_round():
    f = fly_fake("deepprune", **{**PRUNED, "same_answer": 0.01, "auroc": 0.999}, clusters=3, compared=2)
    per_round = [
        sum(c.submitted_s == at for c in labels(f, "judge")) for at in {c.submitted_s for c in labels(f, "judge")}
    ]
    assert max(per_round) <= 3 * 2


@given(st.sampled_from([0.1, 0.5, 0.816]))
@settings(deadline=None, max_examples=3)
def test_pairs_of_traces_have_the_same_answer_as_often_as_stated(same):
    rng = np.random.default_rng(0)
    found = [answers(rng, 2, same) for _ in range(4000)]
    assert np.mean([a == b for a, b in found]) == pytest.approx(same, abs=0.03)
    last = [answers(rng, 10, same) for _ in range(4000)]  # any pair, not only the first
    assert np.mean([a[3] == a[9] for a in last]) == pytest.approx(same, abs=0.03)


@pytest.mark.parametrize("auroc", [0.6, 0.7072, 0.9])
def test_judge_is_as_sharp_as_stated(auroc):
    judge = Judge([0, 0, 1], auroc, 0.5, None)
    rng, n = np.random.default_rng(0), 20_000
    same, other = judge.scores(rng, [(0, 1)] * n), judge.scores(rng, [(0, 2)] * n)
    assert np.mean(same > other) == pytest.approx(auroc, abs=0.01)
    assert judge.threshold == 0.0
    # at tau the odds of 'the same' are tau to 1 - tau: the ratio of the two densities there
    strict = Judge([0, 0, 1], auroc, 0.8, None)
    at = strict.threshold
    odds = np.exp(-0.5 * (at - judge.apart / 2) ** 2 + 0.5 * (at + judge.apart / 2) ** 2)
    assert odds == pytest.approx(0.8 / 0.2)


def test_survivors():
    rng = np.random.default_rng(0)
    assert survivors(rng, [[0], [1, 3, 4], [2, 5]], 2, 9) == [1, 3]
    assert sorted(survivors(rng, [[0], [1], [2]], 2, 9)) == [0, 1, 2]


# -- scale -------------------------------------------------------------------------------------------------------------

FIXED = {
    "problem_tok": 100, "outlines": 8, "outline_tok": 50, "subproblems": 4.0, "thinking_tok": 300, "solution_tok": 80,
    "score_tok": 5, "instruction_tok": 20, "step_tok": 10,
}  # fmt: skip


def test_stages_and_tokens():
    f = fly_fake("scale", hard_share=1.0, **FIXED)
    assert [c.label for c in f.calls] == ["outline"] * 8 + ["choose"] + ["score"] * 4 + ["solve"] * 4
    assert f.written_tok == 8 * 50 + 5 + 4 * 5 + 4 * 380
    assert f.critical_path_tok == f.written_tok  # every call waits for the one before
    assert f.calls[8].prompt_tok == 20 + 100 + 8 * 50
    assert [c.prompt_tok for c in labels(f, "score")] == [130, 140, 150, 160]


@pytest.mark.parametrize("hard_share", [0.0, 1.0])
def test_thoughts_are_dropped_from_later_prompts(hard_share):
    f = fly_fake("scale", engine=EXACT, hard_share=hard_share, **FIXED)
    solves = labels(f, "solve")
    assert [c.prompt_tok for c in solves] == [130, 130 + 90, 130 + 180, 130 + 270]
    # without thoughts the solution is in the cache but for its last token; behind thoughts it is prefilled
    again = 80 if hard_share else 1
    assert [computed(c) for c in solves[1:]] == [again + 10] * 3


def test_the_whole_question_is_the_first_to_be_hard():
    for seed in range(5):
        solves = labels(fly_fake("scale", seed=seed, hard_share=0.25, **FIXED), "solve")
        assert [c.output_tok for c in solves] == [80, 80, 80, 380]


@given(st.integers(1, 20), st.floats(0.0, 1.0))
def test_hard_share_is_kept_in_the_mean(count, share):
    probabilities = [hard_probability(number == count - 1, count, share) for number in range(count)]
    assert all(0.0 <= p <= 1.0 for p in probabilities)
    assert sum(probabilities) == pytest.approx(share * count)


def test_mean_tokens_over_seeds():
    flights = [fly_fake("scale", seed=s, hard_share=0.6, **{**FIXED, "subproblems": 4.5}) for s in range(120)]
    solved = [sum(c.output_tok for c in labels(f, "solve")) for f in flights]
    assert np.mean(solved) == pytest.approx(4.5 * (80 + 0.6 * 300), rel=0.06)


@given(st.integers(0, 1000))
@settings(deadline=None, max_examples=10)
def test_more_hard_sub_problems_take_longer(seed):
    walls = [fly_fake("scale", seed=seed, hard_share=share, **FIXED).wall_s for share in (0.0, 0.25, 1.0)]
    assert walls[0] < walls[1] < walls[2]
