"""Figures of one run that contradict each other are found, with the factor named; figures that agree are not."""

from __future__ import annotations

import math
from dataclasses import replace

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from suite_cases import by_hand, case, found, numbered, predicted, run, whats

from calibration.records import METRICS, RunRecord
from validate.checks.identities import IDENTITIES


def said(*records, name="identities"):
    return found(name, by_hand(numbered(records)))


def test_the_clean_run_contradicts_itself_nowhere():
    assert said(run()) == []


@pytest.mark.parametrize("load", ["static_batch", "burst", "closed_loop", "open_loop", "parallel_sampling"])
def test_a_run_that_states_hardly_anything_is_asked_nothing(load):
    bare = dict.fromkeys(METRICS)
    assert said(run(load=load, num_requests=None, output_tok=None, request_rate_rps=None, **bare)) == []


@given(
    ttft=st.floats(0.01, 10), tpot=st.floats(1e-3, 0.5), n=st.integers(2, 4000), clients=st.integers(1, 256),
    rounds=st.integers(4, 50), watts=st.floats(20, 5000),
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_figures_computed_from_one_another_agree(ttft, tpot, n, clients, rounds, watts):
    """A closed loop of equal requests, every figure from the same times."""
    e2e = ttft + tpot * (n - 1)
    duration, requests = rounds * e2e, rounds * clients
    rate = requests * n / duration
    record = run(
        concurrency=clients, num_requests=requests, output_tok=n, input_tok=100, ttft_s_mean=ttft, tpot_s_mean=tpot,
        e2e_s_mean=e2e, duration_s=duration, output_tok_per_s=rate, total_tok_per_s=rate * (1 + 100 / n),
        batch_mean=clients, power_w=watts, energy_j_per_output_tok=watts / rate,
    )  # fmt: skip
    broken = [f for f in said(record) if f.check != "identities.decoding_of_batch"]  # prompts may take all the time
    assert broken == []


def test_generation_that_stopped_early_makes_requests_shorter_than_their_parts():
    """SW-E2E: 1.0 s + 20 ms * 999 is 20.98 s, the measured end is at 12 s."""
    record = run(output_tok=1000, ttft_s_mean=1.0, tpot_s_mean=0.02, e2e_s_mean=12.0, output_tok_per_s=None)
    finding = next(f for f in said(record) if f.check == "identities.e2e_of_parts")
    assert (finding.fault, finding.severity, finding.layer) == ("F6", "fail", "views")
    assert finding.evidence["ratio"] == pytest.approx(12 / 20.98)
    assert set(finding.metrics) == {"e2e_s_mean", "ttft_s_mean", "tpot_s_mean"}


def test_the_sum_of_parts_may_differ_by_a_millisecond_or_two_per_cent():
    parts = {"ttft_s_mean": 0.0010, "tpot_s_mean": 0.0010, "output_tok": 3}
    assert "identities.e2e_of_parts" not in whats(said(run(e2e_s_mean=0.0039, **parts)))
    assert "identities.e2e_of_parts" in whats(said(run(e2e_s_mean=0.0042, **parts)))
    assert "identities.e2e_of_parts" not in whats(said(run(e2e_s_mean=5.29 * 1.019)))
    assert "identities.e2e_of_parts" in whats(said(run(e2e_s_mean=5.29 * 1.03)))


def test_means_of_drawn_lengths_may_lie_further_apart():
    for spread, allowed in (("fixed", 1.019), ("uniform:0.8", 1.09), ("dataset:sharegpt", 1.29), (None, 1.29)):
        for factor, speaks in ((allowed, False), (allowed + 0.03, True)):
            record = run(length_spread=spread, e2e_s_mean=5.29 * factor, duration_s=None, output_tok_per_s=None)
            assert ("identities.e2e_of_parts" in whats(said(record))) is speaks


@pytest.mark.parametrize(
    ("changes", "check", "word"),
    [
        ({"ttft_s_mean": 300.0, "tpot_s_mean": 10.0}, "e2e_of_parts", "1000"),
        ({"power_w": 500e3}, "energy_of_power", "1000"),
        ({"duration_s": 52.9e3}, "tokens_of_run", "1000"),
        ({"output_tok_per_s": 2 * 160 * 500 / 52.9, "total_tok_per_s": None}, "tokens_of_run", "2"),
    ],
)
def test_a_factor_that_is_known_is_named(changes, check, word):
    finding = next(f for f in said(run(**changes)) if f.check == f"identities.{check}")
    assert finding.also[0] == "F2" and word in finding.evidence["factor"] and "factor of" in finding.says
    assert finding.severity == "fail"


@pytest.mark.parametrize(
    ("changes", "check"),
    [
        ({"total_tok_per_s": 160 * 512 / 52.9}, "total_of_output"),  # prompts only
        ({"energy_j_per_output_tok": 0.33 * 0.954}, "energy_of_power"),  # a counter polled at 0.5 ms lost 95.4 %
        ({"energy_j_per_output_tok": None, "e2e_s_mean": 4.0}, "little_loop"),
        ({"e2e_s_mean": None, "ttft_s_mean": 0.02, "tpot_s_mean": 0.004}, "little_parts"),
        ({"batch_mean": 160.0, "tpot_s_mean": None}, "batch_of_system"),
        ({"tpot_s_mean": 0.013, "e2e_s_mean": None}, "decoding_of_batch"),
        ({"tpot_s_mean": 0.2, "e2e_s_mean": None}, "decoding_of_requests"),
        ({"tpot_s_mean": 0.2, "e2e_s_mean": None}, "request_in_run"),
        ({"e2e_s_mean": 60.0, "load": "burst"}, "e2e_in_run"),
        ({"load": "open_loop", "request_rate_rps": 2.0}, "served_of_arrived"),
    ],
)
def test_each_pair_of_views_can_disagree(changes, check):
    if check == "energy_of_power":
        changes = {"energy_j_per_output_tok": run().energy_j_per_output_tok * (1 - 0.954)}
    assert f"identities.{check}" in whats(said(run(**changes)))


def test_a_static_batch_is_one_batch():
    whole = {"load": "static_batch", "num_requests": 16, "duration_s": 5.29, "output_tok_per_s": 16 * 500 / 5.29}
    whole |= {"total_tok_per_s": None, "energy_j_per_output_tok": 500 * 5.29 / 8000}
    assert said(run(**whole)) == []
    per_request = run(**whole | {"output_tok_per_s": 500 / 5.29, "duration_s": None, "energy_j_per_output_tok": None})
    finding = next(f for f in said(per_request) if f.check == "identities.rate_of_batch")
    assert finding.evidence["ratio"] == pytest.approx(1 / 16)
    no_rate = run(**whole | {"output_tok_per_s": None, "energy_j_per_output_tok": 500 * 5.29 / 500})
    assert "identities.energy_of_time" in whats(said(no_rate))


def test_littles_law_of_a_short_loop_allows_for_its_end():
    """Two rounds of requests: on average as few as half of the clients are busy. Recordings hold it to 1.8 %."""
    rate = 1.018 * 160 * 500 / 52.9
    clean = run(output_tok_per_s=rate, total_tok_per_s=None, energy_j_per_output_tok=None)
    assert said(clean) == []
    short = run(num_requests=32, duration_s=10.58, e2e_s_mean=5.29 * 0.7, ttft_s_mean=None, tpot_s_mean=None)
    assert "identities.little_loop" not in whats(said(short))
    long = run(num_requests=1600, duration_s=529.0, e2e_s_mean=5.29 * 0.7, ttft_s_mean=None, tpot_s_mean=None)
    assert "identities.little_loop" in whats(said(long))


def test_a_steady_window_is_not_the_whole_run():
    window = run(flags="steady_window", output_tok_per_s=2000.0, total_tok_per_s=None, energy_j_per_output_tok=None)
    assert "identities.tokens_of_run" not in whats(said(window))


def test_one_finding_for_all_runs_of_a_kind_apart_by_severity():
    off = [run(duration_s=52.9 * factor) for factor in (1.0, 1.05, 1.06, 3.0, 7.0)]
    findings = [f for f in said(*off) if f.check == "identities.tokens_of_run"]
    assert [(f.severity, f.runs) for f in findings] == [("fail", ("r3", "r4")), ("warn", ("r1", "r2"))]
    assert findings[0].evidence["worst_run"] == "r4" and findings[0].evidence["ratio"] == pytest.approx(7.0)


def test_every_identity_names_columns_that_exist():
    assert {name for i in IDENTITIES for name in i.metrics} <= set(METRICS)
    assert len({i.name for i in IDENTITIES}) == len(IDENTITIES)


LENGTHS = [(256, 128), (768, 128), (1024, 128), (512, 256), (4096, 512), (1024, 1024)]


def card(wrong: float, rounding: bool = False):
    """Rows of one model card: 12 ms per token, 0.1 ms per prompt token; the RAG row (4096, 512) is off by `wrong`."""
    rows = []
    for i, (prompt, out) in enumerate(LENGTHS):
        simulated = 0.012 * out + 1e-4 * prompt
        measured = 1.2 * simulated * (wrong if prompt == 4096 else 1.0)
        record = run(
            run_id=f"r{i}", load="static_batch", concurrency=1, num_requests=None, input_tok=prompt, output_tok=out,
            flags=None, **dict.fromkeys(METRICS) | {"e2e_s_mean": round(measured, 1) if rounding else measured},
        )  # fmt: skip
        rows.append(case(record, simulated={"e2e_s_mean": simulated, "ttft_s_mean": 1e-4 * prompt}))
    return by_hand(rows)


@pytest.mark.parametrize("wrong", [3.48, 1.4, 1.3, 1 / 1.5])
def test_a_row_that_is_not_of_the_same_cost_per_token_as_its_card(wrong):
    """CARD-RAG: 1.3 to 3.5 times what its own row implies."""
    (finding,) = found("identities", card(wrong))
    assert (finding.check, finding.runs, finding.fault) == ("identities.cost_per_token", ("r4",), "F6")
    assert finding.evidence["ratio"] == pytest.approx(wrong, rel=1e-6)


@pytest.mark.parametrize("wrong", [1.0, 1.15, 1 / 1.17])
def test_a_card_within_what_engines_do(wrong):
    assert found("identities", card(wrong)) == [] and found("identities", card(wrong, rounding=True)) == []


def test_lengths_that_do_not_agree_among_themselves_are_no_view():
    scattered = card(3.48).cases
    twice = [case(c.record, simulated={"e2e_s_mean": 0.1 * 4**i, "ttft_s_mean": 0.01}) for i, c in enumerate(scattered)]
    assert found("identities", by_hand(twice)) == []
    assert found("identities", by_hand(card(3.48).cases[2:5])) == []  # three lengths: one cannot be outvoted


def test_what_is_simulated_agrees_with_itself():
    """The predictor's own figures, taken for a measurement: means of one run by one set of definitions."""
    batch = run(run_id="s", load="static_batch", num_requests=16)
    shown = predicted([run(), run(run_id="b", load="burst", num_requests=64), batch])
    own = [case(c.simulated) for c in shown.cases]
    assert [f for f in found("identities", by_hand(own)) if f.alarm] == []


def test_figures_of_another_simulator_are_held_against_each_other():
    """MESS-DENOM, for requests: half of the tokens are lost on the way to the rate; settings are the measured run's."""
    theirs = RunRecord(
        run_id="r0", source="sim", gpu="h100-sxm", model="Qwen/Qwen3-8B", load="closed_loop", duration_s=50.0,
        output_tok_per_s=0.5 * 160 * 500 / 50.0,
    )  # fmt: skip
    pair = replace(case(run(), simulated={}), simulated=theirs)
    (finding,) = found("identities", replace(by_hand([pair]), own=False))
    assert finding.check == "identities.tokens_of_run" and finding.evidence["side"] == "simulated"
    assert finding.evidence["ratio"] == pytest.approx(0.5)


@given(st.data())
@settings(max_examples=40, deadline=None)
def test_odd_figures_never_raise(data):
    odd = st.one_of(st.none(), st.sampled_from([1e-9, 1.0, 1e12]), st.floats(1e-9, 1e12))
    values = {name: data.draw(odd) for name in METRICS}
    record = run(
        load=data.draw(st.sampled_from(["static_batch", "closed_loop", "burst", "open_loop", "parallel_sampling"])),
        concurrency=data.draw(st.sampled_from([None, 1.0, 1e9])), output_tok=data.draw(st.sampled_from([None, 1.0, 2])),
        num_requests=data.draw(st.sampled_from([None, 1, 10**9])), request_rate_rps=data.draw(odd), **values,
    )  # fmt: skip
    for name in ("identities", "definitions", "validity", "energy_window"):
        for finding in found(name, by_hand([record])):
            numbers = [value for value in finding.evidence.values() if not isinstance(value, str)]
            assert all(math.isfinite(value) for value in numbers) and finding.says


def test_a_static_batch_whose_prompts_take_several_steps_is_no_contradiction():
    """Those that read first also end first: their mean time is short of the batch's."""
    row = run(
        load="static_batch", concurrency=64, num_requests=64, input_tok=256.0, output_tok=32.0, length_spread="fixed"
    )
    row = msgspec.structs.replace(row, ttft_s_mean=0.05, e2e_s_mean=0.97, output_tok_per_s=64 * 32 / 1.0)
    assert "identities.rate_of_batch" not in whats(found("identities", by_hand([case(row)])))
    wrong = msgspec.structs.replace(row, output_tok_per_s=64 * 32 / 2.0)
    assert any("rate_of_batch" in f.check for f in found("identities", by_hand([case(wrong)])))


def test_sequences_that_wait_between_their_tokens_are_not_in_the_running_batch():
    """Preempted ones: their time per token goes on, so that rate times time is more than the mean batch."""
    slow = {"tpot_s_mean": 0.013, "e2e_s_mean": None}
    assert "identities.decoding_of_batch" in whats(said(run(**slow)))
    assert "identities.decoding_of_batch" not in whats(said(run(**slow, flags="warm_up;preempted")))


def test_a_sentence_names_the_worst_run_and_how_many_there_are():
    two = [run(e2e_s_mean=6.0), run(e2e_s_mean=7.0)]
    [finding] = [f for f in said(*two) if f.check == "identities.e2e_of_parts"]
    assert "'r1' (worst of 2 runs)" in finding.says and finding.evidence["worst_run"] == "r1"
