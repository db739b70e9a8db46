"""Metrics that are not what their names say: TPOT with the first token, chunks, order, copies, scope."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from suite_cases import by_hand, case, found, numbered, predicted, run, whats

from calibration.records import METRICS
from validate.checks.first_token import CAMPAIGN_RUNS

BARE = dict.fromkeys(METRICS)


def said(*records):
    return found("definitions", by_hand(numbered(records)))


def test_the_clean_run_is_by_the_book():
    assert said(run()) == []


# --- TPOT with the first token ----------------------------------------------------------------------------------------


def guidellm(**more):
    """TTFT 1 s, 100 tokens 20 ms apart: GuideLLM's time_per_output_token is 29.8 ms, vLLM's tpot 20 ms."""
    times = {"ttft_s_mean": 1.0, "tpot_s_mean": 0.0298, "output_tok": 100}
    return run(**BARE | times | more)


@pytest.mark.parametrize("third", [{"e2e_s_mean": 2.98}, {"itl_s_mean": 0.020}])
def test_a_third_figure_tells_which_tpot_it_is(third):
    """TPOT-DEF of the labelled cases."""
    (finding,) = said(guidellm(**third))
    assert (finding.check, finding.fault, finding.severity) == ("definitions.tpot_first_token", "F5", "fail")
    assert finding.evidence["tpot_s_of_definition"] == pytest.approx(0.020)
    assert "29.8 ms" in finding.says and "20 ms" in finding.says and "GuideLLM" in finding.advice
    assert said(guidellm(tpot_s_mean=0.020, **third)) == []


@given(ttft=st.floats(0.01, 50), between=st.floats(1e-3, 1), n=st.integers(2, 3000))
@settings(max_examples=60, deadline=None)
def test_the_other_definition_is_found_wherever_it_differs_and_nowhere_else(ttft, between, n):
    e2e = ttft + between * (n - 1)
    figures = BARE | {"ttft_s_mean": ttft, "e2e_s_mean": e2e, "output_tok": n, "duration_s": None}
    assert "definitions.tpot_first_token" not in whats(said(run(**figures | {"tpot_s_mean": between})))
    apart = abs(e2e / n / between - 1)
    if apart < 0.029 or e2e / n > 1.031 * between:  # a first token that comes sooner than the others is no fault
        speaks = "definitions.tpot_first_token" in whats(said(run(**figures | {"tpot_s_mean": e2e / n})))
        assert speaks is (apart > 0.03)


def test_without_ttft_the_floor_of_the_prompt_tells():
    """A prompt that takes 0.5 s at least: then 1.5 s for 50 tokens are 30 ms each only with the first one."""
    copied = run(load="static_batch", concurrency=1, output_tok=50, **BARE | {"e2e_s_mean": 1.5, "tpot_s_mean": 0.03})
    bounded = case(copied, simulated={}, floor={"ttft_s_mean": 0.5})
    assert whats(found("definitions", by_hand([bounded]))) == {"definitions.tpot_first_token"}
    assert found("definitions", by_hand([case(copied, simulated={}, floor={"ttft_s_mean": 0.02})])) == []
    assert found("definitions", by_hand([case(copied, simulated={})])) == []


def campaign(first: float, noise: float = 0.02, runs: int = 12):
    """A loop with TTFT of 0.2 to 4 s and 10 ms between tokens; `first`: the share of TTFT / n that TPOT holds."""
    rng, cases = np.random.default_rng(3), []
    for i in range(runs):
        ttft, tpot = 0.2 + 3.8 * i / runs, 0.010 * (1 + noise * rng.standard_normal())
        figures = {"ttft_s_mean": ttft, "tpot_s_mean": tpot + first * ttft / 100}
        record = run(run_id=f"r{i}", output_tok=100, concurrency=i + 1, **BARE | figures)
        cases.append(case(record, simulated={"tpot_s_mean": 0.010, "ttft_s_mean": ttft}))
    return by_hand(cases)


def test_a_campaign_without_a_third_figure_is_held_against_the_simulated_tpot():
    (finding,) = found("definitions", campaign(1.0))
    assert (finding.check, finding.severity) == ("definitions.tpot_first_token", "warn") and len(finding.runs) == 12
    assert finding.evidence["spread_without_first"] < finding.evidence["spread_as_stated"] / 2
    assert found("definitions", campaign(0.0)) == []
    assert found("definitions", campaign(1.0, noise=1.0)) == []  # scatter hides it
    assert found("definitions", campaign(1.0, runs=CAMPAIGN_RUNS - 1)) == []


# --- gaps -------------------------------------------------------------------------------------------------------------


def test_the_median_gap_of_a_stream_in_chunks():
    """A median of 0.07 ms with a mean of 51.5 ms, a hundredth of the floor of 6.6 ms."""
    chunked = run(itl_s_median=7e-5, itl_s_mean=0.01)
    findings = found("definitions", by_hand([case(chunked, simulated={}, floor={"itl_s_median": 0.0066})]))
    assert [(f.check, f.severity, f.metrics) for f in findings] == [("definitions.chunked", "fail", ("itl_s_median",))]
    assert whats(said(chunked)) == {"definitions.chunked"}  # also without a floor: below 2 % of the mean


@pytest.mark.parametrize(
    ("median", "floor", "speaks"), [(0.0015, 0.005, True), (0.0015, 0.001, False), (0.003, 0.1, False)]
)
def test_prefills_between_steps_lower_the_median_too_but_not_below_the_floor(median, floor, speaks):
    record = run(itl_s_median=median)
    findings = found("definitions", by_hand([case(record, simulated={}, floor={"itl_s_median": floor})]))
    assert ("definitions.chunked" in whats(findings)) is speaks


def test_several_tokens_to_a_chunk_make_gaps_longer_than_tokens():
    """ITL-CHUNK: 11.18 against 2.08 ms with speculative decoding."""
    figures = {"itl_s_mean": 0.01118, "tpot_s_mean": 0.00208, "ttft_s_mean": 0.05}
    (finding,) = said(run(**BARE | figures))
    assert finding.check == "definitions.gap_of_token" and "5.38 tokens to a chunk" in finding.says
    assert whats(said(run(length_spread="dataset:sharegpt", **BARE | figures))) == {"definitions.gap_of_token"}


def test_one_gap_too_many_is_named():
    """Four tokens have three gaps; a last empty chunk makes four of them, and their mean three quarters of TPOT."""
    figures = BARE | {"ttft_s_mean": 31.2, "tpot_s_mean": 0.5286, "itl_s_mean": 0.5286 * 3 / 4}
    (finding,) = said(run(output_tok=4, **figures))
    assert "(n - 1) / n for n = 4" in finding.says and finding.severity == "warn"
    hundred = figures | {"itl_s_mean": 0.5286 * 99 / 100}
    assert said(run(output_tok=100, **hundred)) == []


@pytest.mark.parametrize("ratio", [0.45, 0.8, 1.4])
def test_gaps_of_drawn_lengths_weigh_long_requests_more(ratio):
    assert said(run(length_spread="dataset:sharegpt", **BARE | {"tpot_s_mean": 0.01, "itl_s_mean": 0.01 * ratio})) == []


# --- order and nesting ------------------------------------------------------------------------------------------------


def test_percentiles_are_not_below_the_median():
    swapped = said(run(ttft_s_median=0.4, ttft_s_p99=0.29, ttft_s_mean=None, e2e_s_mean=None))
    assert [(f.check, f.severity, f.confidence) for f in swapped] == [
        ("definitions.p99_below_median", "fail", "certain")
    ]
    below_mean = said(run(e2e_s_median=1.0, e2e_s_p99=5.0, ttft_s_median=None, ttft_s_p99=None))
    assert [(f.check, f.severity) for f in below_mean] == [("definitions.p99_below_mean", "warn")]
    assert said(run(itl_s_mean=0.01, itl_s_median=0.01, itl_s_p99=0.01 * 0.995)) == []
    rare = run(itl_s_mean=0.01, itl_s_median=0.008, itl_s_p99=0.009)  # fewer than one gap in a hundred is a long one
    assert said(rare) == []


@pytest.mark.parametrize(
    "changes",
    [{"ttft_s_mean": 6.0}, {"ttft_s_median": 6.0, "ttft_s_p99": None}, {"tpot_s_mean": 0.011, "itl_s_mean": None}],
)
def test_a_part_is_not_longer_than_the_whole(changes):
    findings = {f.check: f for f in said(run(**changes))}
    finding = findings["definitions.part_above_whole"]
    assert finding.severity == "fail" and finding.confidence == "certain" and finding.evidence["ratio"] > 1.01


def test_a_request_of_one_token_is_all_part():
    figures = {"ttft_s_mean": 3.2, "e2e_s_mean": 3.2}
    assert said(*(run(output_tok=1, input_tok=2**i, **BARE | figures) for i in range(8))) == []


# --- copies -----------------------------------------------------------------------------------------------------------


def parallel(first, n=6):
    """Parallel samples: 14 s and more for 1, 2, 4, … of them."""
    return [
        run(load="parallel_sampling", concurrency=2**i, input_tok=128, output_tok=128, num_requests=1,
            **BARE | {"e2e_s_mean": e2e, "ttft_s_mean": first(e2e, i)})
        for i, e2e in enumerate(14.267 * 1.3 ** np.arange(n))
    ]  # fmt: skip


def test_a_ttft_that_is_five_per_cent_of_everything_was_not_measured():
    """ER-TTFT5."""
    (finding,) = said(*parallel(lambda e2e, i: round(0.05 * e2e, 6)))
    assert (finding.check, finding.fault, finding.severity) == ("definitions.copied_column", "F5", "fail")
    assert finding.metrics == ("ttft_s_mean",) and finding.evidence["ratio"] == pytest.approx(0.05)
    assert len(finding.runs) == 6


def test_ratios_that_scatter_or_few_runs_or_runs_of_one_size_say_nothing():
    assert said(*parallel(lambda e2e, i: 0.05 * e2e * (1 + 0.01 * (-1) ** i))) == []
    assert said(*parallel(lambda e2e, i: 0.05 * e2e, n=4)) == []
    same = [run(**BARE | {"e2e_s_mean": 5.0, "ttft_s_mean": 0.25}) for _ in range(8)]
    assert said(*same) == []


# --- scope ------------------------------------------------------------------------------------------------------------


def test_power_of_another_scope_than_the_simulated_is_said():
    record = run(power_scope="wall")
    assert whats(found("definitions", by_hand([case(record, simulated={})]))) == {"definitions.other_scope"}


def test_another_simulator_may_say_no_such_latency_either():
    """MESS-03, for requests: a first token after 24.8 ms where the request ends after 18.1 ms; all its bounds pass."""
    theirs = numbered([run(**BARE | {"ttft_s_mean": 0.0248, "e2e_s_mean": 0.0181})])[0]
    pair = replace(case(run(), simulated={}), simulated=theirs)
    other = replace(by_hand([pair]), own=False)
    (finding,) = found("definitions", other)
    assert finding.check == "definitions.part_above_whole" and finding.says.startswith("simulated figures: ")
    assert finding.evidence["side"] == "simulated" and finding.runs == ("r0",)
    assert found("definitions", by_hand([pair])) == []  # ours, which other tests answer for


def test_runs_that_cannot_be_simulated_are_judged_by_their_own_figures():
    lost = case(guidellm(e2e_s_mean=2.98, model="no/such-model"))
    assert lost.setup is None
    assert whats(found("definitions", by_hand([lost]))) == {"definitions.tpot_first_token"}


def test_what_is_simulated_is_by_the_book():
    shown = predicted([run(), run(run_id="b", load="burst", num_requests=64)])
    own = [replace(c, record=c.simulated) for c in shown.cases]
    assert [f for f in found("definitions", by_hand(own)) if f.alarm] == []
