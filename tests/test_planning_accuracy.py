"""Accuracy from the success of single samples: closed forms, laws, chance against exactness, files, tables."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.errors import UserError
from simulator.planning.accuracy.by_strategy import RULES, Selection, derived, parse_verifier
from simulator.planning.accuracy.counts import beta_binomial, binomial, hypergeometric
from simulator.planning.accuracy.given import read_accuracy, shipped
from simulator.planning.accuracy.selection import (
    ceiling,
    coverage,
    drawn_verifier,
    drawn_vote,
    mean_success,
    resampled,
    verifier,
    vote,
)
from simulator.planning.accuracy.success import Counted, parse_success
from simulator.strategies import get_strategy, list_strategies

SHARE = st.floats(0.0, 1.0)
INSIDE = st.floats(0.02, 0.98)
FREE = settings(deadline=None)  # the first example loads scipy's distributions


def accuracy(success, rule):
    return parse_success(success).accuracy(rule).value


def file(tmp_path, text):
    path = tmp_path / "given.csv"
    path.write_text(text)
    return str(path)


# -- coverage --------------------------------------------------------------------------------------------------


@given(SHARE, st.integers(1, 60))
@FREE
def test_coverage_is_one_minus_all_failing(p, k):
    assert accuracy(p, coverage(k)) == pytest.approx(1.0 - (1.0 - p) ** k, abs=1e-12)


@given(INSIDE, st.integers(1, 40))
@FREE
def test_coverage_rises_with_samples(p, k):
    assert accuracy(p, coverage(k + 1)) >= accuracy(p, coverage(k)) - 1e-12


@given(st.integers(1, 30), st.data())
@FREE
def test_estimator_of_chen_et_al(n, data):
    c, k = data.draw(st.integers(0, n)), data.draw(st.integers(1, n))
    found = Counted("counts", np.array([n]), np.array([c]), ("q",)).accuracy(coverage(k)).value
    assert found == pytest.approx(1.0 - math.comb(n - c, k) / math.comb(n, k), abs=1e-12)


def test_estimator_is_unbiased():
    # Over all outcomes of n = 6 samples, weighted by their chances, it is pass@3 itself.
    n, k, p = 6, 3, 0.3
    chances = [math.comb(n, c) * p**c * (1 - p) ** (n - c) for c in range(n + 1)]
    values = [Counted("", np.array([n]), np.array([c]), ("q",)).accuracy(coverage(k)).value for c in range(n + 1)]
    assert np.dot(chances, values) == pytest.approx(1 - (1 - p) ** k, abs=1e-12)


@given(st.floats(0.1, 20.0), st.floats(0.1, 20.0), st.integers(1, 30))
@settings(FREE, max_examples=30)
def test_coverage_of_a_beta_in_closed_form(a, b, k):
    log = math.lgamma(b + k) - math.lgamma(b) + math.lgamma(a + b) - math.lgamma(a + b + k)
    assert accuracy(f"beta:{a}:{b}", coverage(k)) == pytest.approx(1.0 - math.exp(log), abs=1e-9)


@given(st.integers(1, 60), SHARE, st.floats(0.05, 50.0), st.floats(0.05, 50.0), st.data())
@FREE
def test_distributions_of_counts_are_those_of_scipy(trials, p, a, b, data):
    from scipy import stats

    hits, good = np.arange(trials + 2), data.draw(st.integers(0, 90))
    assert binomial(hits, trials, p) == pytest.approx(stats.binom.pmf(hits, trials, max(p, 1e-200)), abs=1e-12)
    assert beta_binomial(hits[:-1], trials, a, b) == pytest.approx(
        stats.betabinom.pmf(hits[:-1], trials, a, b), abs=1e-10
    )
    assert hypergeometric(hits, np.array(good), np.array(90), trials) == pytest.approx(
        stats.hypergeom.pmf(hits, 90, good, trials), abs=1e-12
    )


# -- votes -----------------------------------------------------------------------------------------------------


def test_votes_by_hand():
    p = 0.6
    three = p**3 + 3 * p**2 * (1 - p)
    assert accuracy(p, vote(3)) == pytest.approx(three, abs=1e-12)
    assert accuracy(p, vote(2)) == pytest.approx(p, abs=1e-12)  # a tie is thrown: nothing gained by a second sample
    # Two wrong answers, three samples: the majority, or one vote each and a third of the luck.
    assert accuracy(p, vote(3, (0.5, 0.5))) == pytest.approx(three + 3 * p * 2 * ((1 - p) / 2) ** 2 / 3, abs=1e-12)


@given(INSIDE, st.integers(1, 6), st.lists(st.floats(0.05, 1.0), min_size=1, max_size=3))
@settings(FREE, max_examples=40)
def test_votes_against_every_possible_outcome(p, k, weights):
    wrong = np.array(weights) / sum(weights)
    chances = np.append(p, (1 - p) * wrong)
    total = 0.0
    for answers in itertools.product(range(len(chances)), repeat=k):
        counts = np.bincount(answers, minlength=len(chances))
        if counts[0] == counts.max():
            total += math.prod(chances[a] for a in answers) / (counts == counts.max()).sum()
    assert accuracy(p, vote(k, wrong)) == pytest.approx(total, abs=1e-10)


@given(st.floats(0.51, 0.99), st.integers(0, 20))
@FREE
def test_condorcet(p, half):
    """Odd votes get better with each pair of samples when p > 1/2, worse when p < 1/2; an even one adds nothing."""
    k = 2 * half + 1
    assert accuracy(p, vote(k + 2)) > accuracy(p, vote(k)) - 1e-12
    assert accuracy(1 - p, vote(k + 2)) < accuracy(1 - p, vote(k)) + 1e-12
    assert accuracy(p, vote(k + 1)) == pytest.approx(accuracy(p, vote(k)), abs=1e-12)


@given(INSIDE, st.integers(1, 24), st.integers(1, 5))
@settings(FREE, max_examples=30)
def test_agreeing_wrong_samples_are_the_worst_case(p, k, answers):
    spread = accuracy(p, vote(k, np.full(answers, 1 / answers)))
    assert accuracy(p, vote(k)) - 1e-12 <= spread <= accuracy(p, coverage(k)) + 1e-12


@pytest.mark.parametrize(("p", "k", "wrong"), [(0.45, 9, (1.0,)), (0.3, 16, (0.4, 0.3, 0.3)), (0.2, 33, (0.25,) * 4)])
def test_drawn_votes_lie_within_their_error(p, k, wrong):
    found, error = drawn_vote(p, k, wrong, np.random.default_rng(0), draws=40_000)
    assert abs(found - accuracy(p, vote(k, wrong))) < 4 * error


def test_too_large_an_exact_vote_is_refused():
    assert vote(2000).shape == (2001,)
    with pytest.raises(UserError, match="at most 512 samples"):
        vote(513, (0.5, 0.5))


# -- verifiers -------------------------------------------------------------------------------------------------


@given(SHARE, st.integers(1, 40), SHARE, SHARE)
@FREE
def test_side_by_side_is_one_by_one(p, k, fn, fp):
    """A random accepted sample of k is as good as the first accepted one: the closed form of resampling."""
    assert accuracy(p, verifier(k, fn, fp)) == pytest.approx(float(resampled(p, k, fn, fp)), abs=1e-9)


@given(SHARE, st.integers(1, 40))
@FREE
def test_a_verifier_that_does_not_err_is_coverage(p, k):
    assert accuracy(p, verifier(k)) == pytest.approx(accuracy(p, coverage(k)), abs=1e-12)


@given(SHARE, st.integers(1, 40), SHARE)
@FREE
def test_a_verifier_that_knows_nothing_gains_nothing(p, k, rate):
    assert accuracy(p, verifier(k, 1.0 - rate, rate)) == pytest.approx(p, abs=1e-9)


@given(INSIDE, st.floats(0.0, 0.9), st.floats(0.05, 1.0))
@FREE
def test_ceiling_is_the_true_share_of_what_is_accepted(p, fn, fp):
    true, false = p * (1 - fn), (1 - p) * fp
    assert float(ceiling(p, fn, fp)) == pytest.approx(true / (true + false))
    assert float(resampled(p, 5000, fn, fp)) == pytest.approx(true / (true + false), abs=1e-6)


@given(INSIDE, st.integers(1, 30), st.floats(0.05, 0.9))
@FREE
def test_no_number_of_samples_passes_the_ceiling(p, k, fp):
    assert accuracy(p, verifier(k, 0.0, fp)) <= float(ceiling(p, 0.0, fp)) + 1e-9


def test_ceiling_of_the_published_model():
    """Inference Scaling fLaws: easy problems (p 0.87) and hard ones (0.13), FP 0.25, FN 0."""
    assert float(ceiling(0.87, 0.0, 0.25)) == pytest.approx(0.87 / (0.87 + 0.13 * 0.25))
    assert float(ceiling(0.13, 0.0, 0.25)) == pytest.approx(0.13 / (0.13 + 0.87 * 0.25))


def test_ceiling_over_a_beta_is_where_samples_lead():
    success = parse_success("beta:2:3")
    assert success.accuracy(verifier(200, 0.0, 0.25)).value == pytest.approx(success.ceiling(0.0, 0.25), abs=1e-6)


def test_where_nothing_is_accepted_the_answer_is_any_sample():
    assert accuracy(0.4, verifier(9, 1.0, 0.0)) == pytest.approx(0.4)
    assert float(resampled(0.4, 9, 1.0, 0.0)) == float(ceiling(0.4, 1.0, 0.0)) == pytest.approx(0.4)


def test_drawn_attempts_lie_within_their_error():
    found, error = drawn_verifier(0.35, 8, 0.1, 0.2, np.random.default_rng(3))
    assert abs(found - float(resampled(0.35, 8, 0.1, 0.2))) < 4 * error


# -- what users say of single samples ----------------------------------------------------------------------------


def test_questions_by_chance(tmp_path):
    success = parse_success(file(tmp_path, "question,p\na,0.1\nb,0.9\n"))
    found = success.accuracy(coverage(2))
    assert found.value == pytest.approx((1 - 0.81 + 1 - 0.01) / 2)
    assert found.low < found.value < found.high
    assert found.per_question == pytest.approx([0.19, 0.99])


def test_more_questions_narrow_the_interval(tmp_path):
    def width(questions):
        rows = "".join(f"{i},{0.2 + 0.6 * (i % 2)}\n" for i in range(questions))
        found = parse_success(file(tmp_path, f"question,p\n{rows}")).accuracy(mean_success(1))
        return found.high - found.low

    assert width(400) == pytest.approx(width(100) / 2, rel=0.02)


def test_questions_by_count(tmp_path):
    success = parse_success(file(tmp_path, "question,n,c\na,10,3\nb,20,20\n"))
    expected = (1 - math.comb(7, 4) / math.comb(10, 4) + 1) / 2
    assert success.accuracy(coverage(4)).value == pytest.approx(expected)
    with pytest.raises(UserError, match="question 'a' has n = 10 samples, which say nothing without bias of 11"):
        success.accuracy(coverage(11))


def test_questions_by_answer(tmp_path):
    path = file(tmp_path, "question,answer,correct,count\na,42,1,4\na,41,0,3\na,40,0,3\nb,7,0,5\nb,8,0,5\n")
    success = parse_success(path)
    assert success.accuracy(mean_success(1)).per_question == pytest.approx([0.4, 0.0])
    assert success.vote(5).per_question == pytest.approx([0.4 * 0 + accuracy(0.4, vote(5, (0.5, 0.5))), 0.0])


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("question,p\na,1.5\n", "row 2: p is '1.5', expected a number from 0 to 1"),
        ("question,p\na,x\n", "row 2: p is 'x'"),
        ("question,p\na,0.5\na,0.6\n", "question 'a' is there twice"),
        ("question,n,c\na,5,6\n", "c is '6', expected a whole number from 0 to 5"),
        ("question,n,c\na,5.5,1\n", "n is '5.5', expected a whole number"),
        ("question,q\na,1\n", "has the columns question, q; expected question,p, or question,n,c"),
        ("question,p\n", "has no rows"),
        ("question,p\na,0.5,1\n", "row 2: found 3 cells, expected 2"),
        ("question,p,p\na,0.5,1\n", "two columns of the same name"),
        ("question,answer,correct,count\na,1,1,2\na,2,1,2\n", "question 'a' has 2 correct answers"),
        ("question,answer,correct,count\na,1,1,0\n", "question 'a' has no samples"),
    ],
)
def test_bad_files(tmp_path, text, complaint):
    with pytest.raises(UserError, match=complaint.replace("(", r"\(")):
        parse_success(file(tmp_path, text))


@pytest.mark.parametrize("text", ["1.2", "-0.1", "nan", "often", "beta:1", "beta:0:1", "beta:a:b", "beta:1:2:3"])
def test_bad_words(text):
    with pytest.raises(UserError, match=r"expected (a number|beta:A:B)"):
        parse_success(text)


def test_missing_file():
    with pytest.raises(UserError, match=r"success file 'gone\.csv' does not exist"):
        parse_success("gone.csv")


# -- strategies --------------------------------------------------------------------------------------------------


def values(strategy, **given):
    return get_strategy(strategy).plain(given)


def test_rules_are_for_strategies_that_exist():
    assert set(RULES) <= {strategy.name for strategy in list_strategies()}


def test_what_follows_for_strategies():
    success = parse_success("0.6")
    plain, checked = Selection(), Selection(verifier=(0.1, 0.2))
    assert derived("single", values("single"), success, plain)[0].value == pytest.approx(0.6)
    votes, basis = derived("self_consistency", values("self_consistency", samples=5), success, plain)
    assert votes.value == pytest.approx(accuracy(0.6, vote(5))) and "lower bound" in basis
    best, basis = derived("best_of_n", values("best_of_n", samples=4), success, checked)
    assert best.value == pytest.approx(float(resampled(0.6, 4, 0.1, 0.2))) and "tend to 87.1 %" in basis
    perfect, basis = derived("best_of_n", values("best_of_n", samples=4), success, Selection(verifier=(0.0, 0.0)))
    assert perfect.value == pytest.approx(1 - 0.4**4) and "pass@4" in basis
    tried, _ = derived("resample", values("resample", attempts=3, false_positive=0.5), success, plain)
    assert tried.value == pytest.approx(float(resampled(0.6, 3, 0.0, 0.5)))


@pytest.mark.parametrize("strategy", ["pdr", "threadweaver", "best_of_n"])
def test_nothing_is_invented(strategy):
    found = derived(strategy, values(strategy), parse_success("0.6"), Selection())
    assert isinstance(found, str) and "give" in found


def test_verifiers():
    assert parse_verifier("0.1:0.2") == (0.1, 0.2) and parse_verifier("perfect") == (0.0, 0.0)
    for bad in ("0.1", "0.1:1.2", "a:b", "0:0:0"):
        with pytest.raises(UserError, match="expected FN:FP"):
            parse_verifier(bad)


# -- tables ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", shipped())
def test_tables_that_ship_state_their_source(name):
    from simulator.planning.accuracy.tables import read_table

    columns, rows = read_table(shipped()[name], "table")
    assert {"source", "url", "status"} <= set(columns)
    assert all(row.cells["url"].startswith("https://") and row.cells["source"] for row in rows)
    for benchmark in {row.cells["benchmark"] for row in rows}:
        assert read_accuracy(name, benchmark).rows
    for row in rows:
        setting = {k: row.cells[k] for k in ("samples", "steps", "cache", "tokens_per_pass") if row.cells.get(k)}
        get_strategy(row.cells["strategy"]).resolve(setting)


def test_published_values():
    table = read_accuracy("scale", "aime25")
    facts = {"strategy": "self_consistency", "model": "Qwen/Qwen3-32B", "samples": 8}
    assert table.of(facts, "it")[0].value == pytest.approx(0.5333)
    assert table.of({**facts, "strategy": "scale"}, "it")[0].value == pytest.approx(0.7125)
    assert table.of({**facts, "samples": 16}, "it") is None
    facts = {"strategy": "threadweaver", "model": "Qwen/Qwen3-8B"}
    assert read_accuracy("threadweaver", "AIME24").of(facts, "it")[0].value == pytest.approx(0.799)


def test_the_row_that_states_most_counts(tmp_path):
    rows = ["sc,,,0.5,,", "sc,,8,0.6,0.55,0.66", "sc,qwen3-4b,8,0.7,,"]
    text = "\n".join(["strategy,model,samples,accuracy,accuracy_lo,accuracy_hi", *rows])
    table = read_accuracy(file(tmp_path, text))
    facts = {"strategy": "self_consistency", "model": "Qwen/Qwen3-8B", "samples": 4}
    assert table.of(facts, "it")[0].value == 0.5
    found, _ = table.of({**facts, "samples": 8}, "it")
    assert (found.value, found.low, found.high) == (0.6, 0.55, 0.66)
    assert table.of({**facts, "samples": 8, "model": "Qwen/Qwen3-4B"}, "it")[0].value == 0.7


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("strategy,samples\nsc,8\n", "has no column 'accuracy'"),
        ("strategy,sampels,accuracy\nsc,8,0.5\n", "unknown setting 'sampels'; nearest: samples"),
        ("strategy,accuracy\nsc,51\n", "accuracy is '51', expected a number from 0 to 1"),
        ("strategy,accuracy,accuracy_lo\nsc,0.5,0.6\n", "lies outside its interval"),
        ("strategy,benchmark,accuracy\nsc,A,0.5\nsc,B,0.6\n", "has the benchmarks A, B: name one"),
    ],
)
def test_bad_tables(tmp_path, text, complaint):
    with pytest.raises(UserError, match=complaint):
        read_accuracy(file(tmp_path, text))


def test_rows_that_contradict_each_other(tmp_path):
    table = read_accuracy(file(tmp_path, "strategy,accuracy\nsc,0.5\nself_consistency,0.6\n"))
    with pytest.raises(UserError, match="row 2 and row 3 are both about candidate 'it', and differ"):
        table.of({"strategy": "self_consistency"}, "it")


def test_unknown_tables_and_benchmarks():
    with pytest.raises(UserError, match="unknown accuracy table 'scal'; nearest: scale"):
        read_accuracy("scal")
    with pytest.raises(UserError, match="unknown benchmark 'AIME26' of scale; nearest: AIME2"):
        read_accuracy("scale", "AIME26")
