"""Sampling and allocation: schedules by hand, closed forms of the stopping rules, conservation of samples."""

from __future__ import annotations

import math
import time
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import betainc
from scipy.stats import binom
from strategy_rig import PHYSICS, fly_fake

from simulator.errors import UserError
from simulator.flops import call_flop
from simulator.model import load_model
from simulator.strategies import get_strategy
from simulator.strategies.resample import acceptance
from simulator.strategies.voting import (
    Votes,
    agreement,
    beta_doubt,
    cluster_budgets,
    clusters,
    draw_shares,
    gain,
    least_settled,
    martingale_doubt,
    mode_certainty,
    separation,
)

SHORT = {"problem_tok": 32, "thinking_tok": 9, "answer_tok": 1}  # calls of ten tokens


def by_question(run) -> Counter:
    """Number of samples by the part of the prompt that names the question."""
    return Counter(call.prompt.parts[0][0] for call in run.calls)


# -- self-consistency and its relatives --------------------------------------------------------------------------


def test_budget_forcing_has_no_stragglers():
    f = fly_fake("budget_forcing", samples=4, budget_tok=100, problem_tok=160)
    assert [c.output_tok for c in f.calls] == [100] * 4
    assert (f.critical_path_tok, f.written_tok, f.peak_running) == (100, 400, 4)
    decode = sum(PHYSICS.decode_s([160 + j] * 4) for j in range(99))
    assert f.wall_s == pytest.approx(PHYSICS.prefill_s(208) + decode)
    assert len({c.finished_s for c in f.calls}) == 1


def test_budget_forcing_is_self_consistency_of_one_length():
    forced = fly_fake("budget_forcing", samples=5, budget_tok=64, problem_tok=100)
    voted = fly_fake("self_consistency", samples=5, thinking_tok=60, answer_tok=4, problem_tok=100)
    assert (forced.wall_s, forced.energy_j) == (voted.wall_s, voted.energy_j)


def test_forced_waits_continue_each_sample_on_its_own():
    f = fly_fake("budget_forcing", samples=3, budget_tok=64, waits=2, continuation_tok="uniform:10:40", problem_tok=32)
    assert Counter(c.label for c in f.calls) == {"sample": 3, "continuation": 6}
    firsts, later = f.calls[:3], f.calls[3:]
    assert [c.prompt_tok for c in firsts] == [32] * 3
    assert sorted(c.prompt_tok for c in later)[:3] == [32 + 64 + 1] * 3
    chains = {c.call_id: c.output_tok for c in firsts}
    for call in later:  # nobody waits for another sample
        assert len(call.parents) == 1
        chains[call.call_id] = call.output_tok + chains[call.parents[0]]
    assert f.critical_path_tok == max(chains.values())
    assert all(c.cached_tok > 0 for c in later)  # what stands before 'Wait' is in the prefix cache


def test_rpc_is_self_consistency_and_a_wait():
    fewer = fly_fake("rpc", samples=8, prune_s="0.5", seed=3)
    voted = fly_fake("self_consistency", samples=8, seed=3)
    assert fewer.wall_s == pytest.approx(voted.wall_s + 0.5)
    assert (fewer.written_tok, fewer.b_seq_tok) == (voted.written_tok, voted.b_seq_tok)
    assert fewer.wait_s == pytest.approx(0.5)


# -- Blend-ASC ---------------------------------------------------------------------------------------------------


@given(
    st.integers(0, 10**6), st.integers(1, 12), st.integers(1, 9), st.integers(1, 7),
    st.sampled_from([0.6, 0.95, 1.0]), st.sampled_from([0.05, 1.0, 20.0]),
)  # fmt: skip
@settings(deadline=None, max_examples=60)
def test_blend_asc_keeps_to_its_budget(seed, samples, questions, at_once, confidence, concentration):
    limit = samples + 2
    run = fly_fake(
        "blend_asc", seed=seed, questions=questions, run=True, samples=samples, at_once=at_once, limit=limit,
        confidence=confidence, concentration=concentration, **SHORT,
    )  # fmt: skip
    taken = by_question(run)
    assert questions <= len(run.calls) <= samples * questions
    assert len(taken) == len(run.answer) == questions
    assert max(taken.values()) <= limit
    if confidence == 1.0:
        assert len(run.calls) == samples * questions


def test_blend_asc_freezes_unanimous_questions_after_four_votes():
    """Four votes to none leave a doubt of 1/32, below 0.05; three leave 1/16."""
    run = fly_fake("blend_asc", questions=12, run=True, concentration=0.01, seed=2, **SHORT)
    taken = sorted(by_question(run).values())
    assert taken[:11] == [4] * 11  # the twelfth has an answer that disagrees
    assert len(run.calls) < 12 * 16


def test_blend_asc_one_at_a_time_is_a_chain():
    chain = fly_fake("blend_asc", questions=6, samples=8, confidence=1.0, **SHORT)
    waves = fly_fake("blend_asc", questions=6, samples=8, confidence=1.0, at_once=6, **SHORT)
    assert chain.critical_path_tok == 10 * (1 + 48 - 6)
    assert waves.critical_path_tok == 10 * 8
    assert waves.wall_s < chain.wall_s
    assert waves.written_tok == chain.written_tok == 480


def test_blend_asc_needs_more_samples_where_answers_differ():
    counts = [
        len(fly_fake("blend_asc", questions=20, samples=12, concentration=c, seed=5, **SHORT).calls)
        for c in (0.02, 0.2, 20.0)
    ]
    assert counts == sorted(counts) and counts[0] < counts[-1]


def test_least_settled_takes_the_most_doubtful_open_question():
    counts = np.array([[6, 0, 0], [3, 3, 0], [5, 2, 0], [9, 9, 0]])
    rule = {"budget": 1000, "confidence": 0.95}
    assert least_settled(counts, at_once=1, limit=30, **rule) == [1]
    assert least_settled(counts, at_once=2, limit=18, **rule) == [1, 2]  # the last has its 18 samples
    assert least_settled(counts, at_once=5, limit=8, **rule) == [1, 2, 1]  # room for two and for one
    assert least_settled(counts, at_once=5, limit=30, budget=counts.sum() + 2, confidence=0.95) == [1, 3]
    assert least_settled(counts, at_once=5, limit=30, budget=counts.sum(), confidence=0.95) == []
    assert least_settled(counts[:1], at_once=5, limit=30, **rule) == []


# -- PETS --------------------------------------------------------------------------------------------------------


@given(st.integers(0, 10**6), st.integers(1, 10), st.integers(1, 8), st.integers(1, 6), st.integers(0, 9))
@settings(deadline=None, max_examples=40)
def test_pets_offline_spends_exactly_its_budget(seed, samples, questions, at_once, room):
    run = fly_fake(
        "pets_offline", seed=seed, questions=questions, run=True, samples=samples, at_once=at_once,
        limit=samples + room, **SHORT,
    )  # fmt: skip
    taken = by_question(run)
    assert len(run.calls) == samples * questions
    assert len(taken) == questions and max(taken.values()) <= samples + room
    assert len(run.answer) == questions


def test_pets_offline_is_as_long_as_its_budget():
    f = fly_fake("pets_offline", questions=5, samples=6, **SHORT)
    assert f.critical_path_tok == 10 * (1 + 30 - 5)


def test_pets_offline_gives_more_to_questions_that_are_close():
    shares = np.array([[0.97, 0.01, 0.01, 0.01], [0.40, 0.35, 0.15, 0.10]])
    votes = Votes(np.random.default_rng(0), shares)
    votes.cast([0, 1], ["a", "b"])
    for _ in range(30):
        question = int(np.argmax([gain(row) for row in votes.counts]))
        votes.cast([question], ["c"])
    assert votes.counts[1].sum() > 3 * votes.counts[0].sum()


def test_thousands_of_decisions_take_less_than_a_second():
    rng, questions = np.random.default_rng(0), 30
    votes = Votes(rng, draw_shares(rng, questions, 4, 1.0))
    started = time.process_time()
    votes.cast(range(questions), range(questions))
    gains = np.array([gain(row) for row in votes.counts])
    for _ in range(1920 - questions):
        question = int(np.argmax(gains))
        votes.cast([question], [0])
        gains[question] = gain(votes.counts[question])
    assert time.process_time() - started < 1.0


def test_pets_online_is_one_wave_per_question():
    run = fly_fake("pets_online", questions=15, run=True, seed=1, least=3, limit=40, **SHORT)
    taken = by_question(run)
    assert len(taken) == 15 and min(taken.values()) >= 3 and max(taken.values()) <= 40
    assert 1 < len(set(taken.values())) <= 5  # one budget per class
    starts = [call.record.submitted_s for call in run.calls]
    assert len(set(starts)) == 15
    assert fly_fake("pets_online", questions=15, seed=1, least=3, limit=40, **SHORT).critical_path_tok == 150


@given(st.integers(0, 10**6), st.integers(1, 60), st.integers(1, 8), st.integers(1, 64), st.integers(0, 40))
@settings(deadline=None, max_examples=60)
def test_budgets_by_class_keep_to_the_mean(seed, training, classes, mean, room):
    values = separation(draw_shares(np.random.default_rng(seed), training, 4, 1.0))
    centres, shares = clusters(values, classes)
    assert shares.sum() == pytest.approx(1.0) and (shares > 0).all() and (np.diff(centres) > 0).all()
    least, most = max(1, mean - 3), mean + room
    budgets = cluster_budgets(centres, shares, mean, least, most)
    assert (budgets >= least).all() and (budgets <= most).all()
    spent = float(shares @ budgets)
    assert spent <= mean + 1e-6
    assert spent > mean - shares.max() or (budgets == most).all()


def test_pets_online_spends_its_mean_over_many_questions():
    taken = [len(fly_fake("pets_online", questions=40, seed=s, samples=12, **SHORT).calls) / 40 for s in range(12)]
    assert np.mean(taken) == pytest.approx(12, rel=0.1)


# -- resampling --------------------------------------------------------------------------------------------------

EVEN = {"hard": 0.0, "verify_s": "0.25", **SHORT}


def test_acceptance_errs_both_ways():
    assert acceptance(0.87, 0.0, 0.25) == pytest.approx(1 - 0.0975)
    assert acceptance(0.0, 0.3, 0.1) == 0.1 and acceptance(1.0, 0.3, 0.1) == 0.7


@given(st.floats(0, 1), st.floats(0, 1), st.floats(0, 1), st.floats(0, 1))
def test_acceptance_rises_with_correctness_if_the_verifier_beats_chance(p, q, false_negative, false_positive):
    low, high = sorted((p, q))
    rising = acceptance(high, false_negative, false_positive) - acceptance(low, false_negative, false_positive)
    assert rising * (1.0 - false_negative - false_positive) >= -1e-12


@pytest.mark.parametrize(("p", "most"), [(0.2, 8), (0.5, 4), (0.05, 10)])
def test_mean_attempts_are_those_of_a_cut_geometric_distribution(p, most):
    given_p = {"correct_easy": p, "false_positive": 0.0, "attempts": most}
    flown = [len(fly_fake("resample", seed=s, **EVEN, **given_p).calls) for s in range(600)]
    assert max(flown) <= most
    assert np.mean(flown) == pytest.approx((1 - (1 - p) ** most) / p, rel=0.1)


def test_fewer_attempts_where_more_are_accepted():
    means = [
        np.mean([len(fly_fake("resample", seed=s, **EVEN, correct_easy=p).calls) for s in range(80)])
        for p in (0.0, 0.3, 0.8, 1.0)
    ]
    assert means == sorted(means, reverse=True)


@pytest.mark.parametrize(("at_once", "rounds"), [(1, 7), (3, 3), (7, 1), (50, 1)])
def test_attempts_that_never_pass(at_once, rounds):
    never = {"correct_easy": 0.0, "false_positive": 0.0, "attempts": 7, "at_once": at_once}
    f = fly_fake("resample", **EVEN, **never)
    assert len(f.calls) == 7 and f.critical_path_tok == 10 * rounds
    assert sum(w.finished_s - w.started_s for w in f.waits) == pytest.approx(7 * 0.25)
    if at_once == 1:
        assert f.b_seq_tok == 7 * (32 + 10)  # every attempt is on the way to the answer


def test_attempts_that_always_pass():
    f = fly_fake("resample", **EVEN, correct_easy=1.0, attempts=9)
    assert len(f.calls) == 1
    single = fly_fake("single", **SHORT)
    assert f.wall_s == pytest.approx(single.wall_s + 0.25)
    wasteful = fly_fake("resample", **EVEN, correct_easy=1.0, attempts=9, at_once=4)
    assert len(wasteful.calls) == 4 and wasteful.critical_path_tok == 10


def test_hard_problems_take_more_attempts():
    easy, hard = (
        np.mean([len(fly_fake("resample", seed=s, **SHORT, hard=h).calls) for s in range(150)]) for h in (0.0, 1.0)
    )
    mixed = np.mean([len(fly_fake("resample", seed=s, **SHORT, hard=0.5).calls) for s in range(150)])
    assert easy < mixed < hard


# -- search against sampling -------------------------------------------------------------------------------------


def test_backtrack_sequential_is_one_call():
    f = fly_fake("backtrack", trace_tok=700, problem_tok=64)
    assert [c.label for c in f.calls] == ["trace"] and f.critical_path_tok == 700


@given(st.integers(1, 3000), st.integers(1, 400), st.integers(1, 300))
@settings(deadline=None, max_examples=40)
def test_backtrack_parallel_buys_what_the_trace_costs(trace, direct, problem):
    """On physics with two FLOPs per computed token: the problem once, then so many solutions."""
    f = fly_fake("backtrack", mode="parallel", trace_tok=trace, direct_tok=direct, problem_tok=problem)
    assert len(f.calls) == max(1, trace // direct)
    assert f.critical_path_tok == direct


def test_backtrack_parallel_uses_up_the_flops_of_the_trace():
    """With attention: a long trace pays for more than its tokens."""
    flop = call_flop(load_model("Qwen/Qwen3-8B"))
    run = fly_fake(
        "backtrack", mode="parallel", trace_tok=30_000, direct_tok="uniform:200:400", run=True, problem_tok=64
    )
    on_fake_physics = len(run.calls)
    run._flop = flop
    from simulator.strategies.backtrack import direct_lengths
    from simulator.workload.lengths import parse_lengths

    lengths = direct_lengths(run, 30_000, parse_lengths("uniform:200:400"))
    spent = sum(flop(64, tokens, 64 if i else 0) for i, tokens in enumerate(lengths))
    budget = flop(64, 30_000)
    assert budget - flop(64, 400, 64) < spent <= budget
    assert len(lengths) > on_fake_physics


# -- votes -------------------------------------------------------------------------------------------------------


@given(st.integers(1, 40), st.integers(1, 40))
def test_certainty_of_two_answers_is_a_beta_tail(a, b):
    low, high = sorted((a, b))
    assert mode_certainty((high, low)) == pytest.approx(1.0 - betainc(high, low, 0.5), abs=1e-4)


@given(st.lists(st.integers(0, 30), min_size=2, max_size=5))
@settings(deadline=None)
def test_gain_is_a_probability_and_never_a_loss(counts):
    certainty = mode_certainty(tuple(sorted((count + 1 for count in counts), reverse=True)))
    assert 1.0 / len(counts) - 1e-3 <= certainty <= 1.0 + 1e-3
    assert -1e-3 <= gain(np.array(counts)) <= 1.0 - certainty + 1e-3


def test_certainty_against_draws():
    rng = np.random.default_rng(0)
    for alpha in ((1, 1, 1, 1), (5, 3, 1, 1), (30, 25, 5, 1)):
        drawn = rng.dirichlet(alpha, 40_000).argmax(axis=1)
        assert mode_certainty(alpha) == pytest.approx(np.mean(drawn == 0), abs=0.01)


def test_doubts():
    for votes in range(1, 12):  # unanimous: the tail of Beta(votes + 1, 1)
        assert beta_doubt(np.array([votes, 0, 0])) == pytest.approx(2.0 ** -(votes + 1))
    assert beta_doubt(np.array([4, 4])) == pytest.approx(0.5)
    assert martingale_doubt(np.array([1, 1])) == 1.0
    # Beta(5, 1) has density 5 x^4
    assert martingale_doubt(np.array([4, 0])) == pytest.approx(5 / 16)


@given(st.integers(0, 60), st.integers(0, 60))
def test_doubts_fall_as_the_leader_pulls_away(lead, second):
    votes = np.array([[lead + second, second], [lead + second + 1, second]])
    for doubt in (beta_doubt(votes), martingale_doubt(votes)):
        assert (doubt >= 0).all() and (doubt <= 1).all()
        assert doubt[1] <= doubt[0]


def test_majority_of_two_answers_by_the_normal_approximation():
    for p in (0.55, 0.6, 0.7):
        apart = separation(np.array([[p, 1 - p]]))[0]
        for k in (9, 25, 49):
            exact = binom.sf(k // 2, k, p)
            assert 0.5 * math.erfc(-apart * math.sqrt(k) / math.sqrt(2)) == pytest.approx(exact, abs=0.02)


def test_votes_follow_the_shares():
    shares = np.array([[0.5, 0.3, 0.2], [0.0, 0.1, 0.9]])
    votes = Votes(np.random.default_rng(0), shares)
    for i in range(3000):
        votes.cast([0, 1], [("first", i), ("second", i)])
    assert votes.counts / 3000 == pytest.approx(shares, abs=0.03)
    assert votes.winners()[1][0] == "second"
    assert agreement(votes.counts, np.array([0, 2])) == 1.0
    assert agreement(np.array([[2, 2, 1]]), np.array([0])) == 0.5


# -- bad parameters ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "parameters", "told"),
    [
        ("blend_asc", {"samples": 70}, "'samples': found 70, expected at most limit = 64"),
        ("pets_offline", {"samples": 9, "limit": 8}, "'samples': found 9, expected at most limit = 8"),
        ("pets_offline", {"limit": 401}, "'limit': found '401', expected a whole number >= 1, at most 400"),
        ("pets_online", {"samples": 100}, "'samples': found 100, expected at most limit = 64"),
        ("pets_online", {"samples": 4, "least": 5}, "'least': found 5, expected at most samples = 4"),
        ("backtrack", {"mode": "parallel", "trace_tok": 9000, "direct_tok": 1}, "'direct_tok': found '1'"),
        ("backtrack", {"mode": "both"}, "one of sequential, parallel"),
        ("blend_asc", {"answers": 1}, "'answers'"),
        ("blend_asc", {"concentration": 0}, "'concentration'"),
        ("blend_asc", {"confidence": 1.5}, "'confidence'"),
        ("resample", {"false_positive": -0.1}, "'false_positive'"),
        ("resample", {"attempts": 0}, "'attempts'"),
        ("budget_forcing", {"waits": -1}, "'waits'"),
        ("rpc", {"prune_s": "soon"}, "'prune_s'"),
    ],
)
def test_bad_parameters(name, parameters, told):
    with pytest.raises(UserError) as error:
        fly_fake(name, questions=3 if get_strategy(name).questions else None, **parameters)
    assert told in str(error.value) and f"'{name}'" in str(error.value)


@pytest.mark.parametrize("name", ["budget_forcing", "blend_asc", "pets_offline", "pets_online", "rpc", "resample"])
def test_flights_repeat_themselves(name):
    questions = 6 if get_strategy(name).questions else None
    flights = [fly_fake(name, seed=s, questions=questions, problem_tok="uniform:50:90") for s in (4, 4, 5)]
    first, again, other = ((f.calls, f.waits, f.wall_s, f.energy_j) for f in flights)
    assert first == again and first != other


@pytest.mark.parametrize("name", ["blend_asc", "pets_offline", "pets_online", "resample"])
def test_step_by_step_is_the_same_flight(name):
    questions = 4 if get_strategy(name).questions else None
    short = {"problem_tok": 40, "thinking_tok": "uniform:10:60", "answer_tok": 5}
    fast, slow = (fly_fake(name, seed=2, questions=questions, step_by_step=s, **short) for s in (False, True))
    assert fast.wall_s == pytest.approx(slow.wall_s, rel=1e-9)
    assert [c.output_tok for c in fast.calls] == [c.output_tok for c in slow.calls]
