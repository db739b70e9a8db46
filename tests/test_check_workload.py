"""Whether the requests that were simulated are those that were served, and what had to be assumed of them."""

import msgspec
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from suite_cases import by_hand, case, found, run

from validate.cases import Case, Evidence


def pair(measured=None, *, own=False, **simulated):
    """Findings on a measured run and a simulated side with some fields changed."""
    ours = case(measured or run(), simulated={"tpot_s_mean": 0.011})
    theirs = msgspec.structs.replace(ours.simulated, **simulated)
    return found("workload", Evidence("runs.csv", [Case(ours.record, ours.prediction, theirs)], {}, frozenset(), own))


def alone(**changes):
    return {f.check: f for f in found("workload", by_hand([run(**changes)]))}


def only(findings):
    (finding,) = findings
    assert finding.fault == "F8" and finding.layer == "workload"
    return finding


def test_the_same_requests_raise_nothing():
    assert pair() == [] and pair(own=True) == []


@pytest.mark.parametrize(
    ("field", "other", "severity"),
    [
        ("input_tok", 1024, "fail"), ("output_tok", 250, "fail"), ("load", "open_loop", "fail"),
        ("concurrency", 32, "fail"), ("num_requests", 320, "warn"), ("length_spread", "uniform:0.8", "warn"),
        ("length_spread", "dataset:sharegpt", "warn"),
    ],
)  # fmt: skip
def test_other_requests_are_named(field, other, severity):
    finding = only(pair(**{field: other}))
    assert finding.severity == severity and finding.metrics == ()


def test_a_prefix_that_the_load_generator_dropped():
    """BENCH-IGN: 512 tokens were sent where 3,072 tokens of a shared prefix should have come first."""
    finding = only(pair(run(), input_tok=512 + 3072))
    assert finding.severity == "fail" and finding.evidence["field"] == "input_tok"


@settings(max_examples=60, deadline=None)
@given(st.floats(1.0, 20.0), st.booleans())
def test_lengths_differ_beyond_a_percent_and_not_below(percent, longer):
    assume(abs(percent - 1.0) > 0.02)
    factor = (1.0 + percent / 100.0) ** (1 if longer else -1)
    assert [f.severity for f in pair(input_tok=512 * factor)] == ["fail"] * (percent > 1.0)


@settings(max_examples=30, deadline=None)
@given(st.floats(0.0, 0.9), st.booleans())
def test_rounding_is_no_difference(percent, longer):
    factor = (1.0 + percent / 100.0) ** (1 if longer else -1)
    assert pair(output_tok=500 * factor) == []


def test_means_of_two_draws_may_differ_by_their_standard_error():
    """A spread of 1.07 over 400 requests: the means of two draws lie within 3 x 1.07 sqrt(2 / 400) = 23 %."""
    drawn = run(length_spread="dataset:sharegpt", num_requests=400)
    assert only(pair(drawn, input_tok=512 * 1.2)).severity == "warn"
    assert only(pair(drawn, input_tok=512 * 1.3)).severity == "fail"
    assert only(pair(run(length_spread="fixed", num_requests=400), input_tok=512 * 1.2)).severity == "fail"


def test_a_uniform_draw_has_the_spread_of_its_range():
    """uniform:r has a standard deviation of (1 - r) / ((1 + r) sqrt(3)) of its mean: the rule against a sample."""
    r, n, rng = 0.5, 200, np.random.default_rng(7)
    means = rng.uniform(r, 1.0, (4000, n)).mean(axis=1)
    off = np.abs(np.log(means[::2] / means[1::2]))
    drawn = run(length_spread=f"uniform:{r}", num_requests=n)
    limit = 3.0 * (1 - r) / (1 + r) / 3**0.5 * (2.0 / n) ** 0.5
    assert np.mean(off > limit) < 0.006  # 3 standard errors
    assert only(pair(drawn, input_tok=512 * np.exp(0.98 * limit))).severity == "warn"
    assert only(pair(drawn, input_tok=512 * np.exp(1.02 * limit))).severity == "fail"


def test_a_burst_that_runs_at_once_is_a_static_batch():
    burst = run(load="burst", concurrency=None, num_requests=64)
    assert pair(burst, load="static_batch", concurrency=64) == []
    assert only(pair(burst, load="static_batch", concurrency=32)).evidence["field"] == "requests at a time"
    crowded = run(load="burst", concurrency=None, num_requests=65)  # max_num_seqs is 64
    assert only(pair(crowded, load="static_batch", concurrency=65)).evidence["field"] == "load"


def test_rates_of_open_loops():
    open_loop = run(load="open_loop", concurrency=None, request_rate_rps=4.0)
    assert only(pair(open_loop, request_rate_rps=4.2)).severity == "fail"
    assert pair(open_loop, request_rate_rps=4.02) == []


def test_the_file_of_requests_by_its_hash():
    traced = run(flags="trace:chat;trace_sha256:0a1b2c3d")
    assert only(pair(traced, flags="trace_sha256:ffff")).severity == "fail"
    assert pair(traced, flags="trace:renamed;trace_sha256:0a1b2c3d") == []
    assert only(pair(traced, flags=None)).severity == "note"


def test_arrivals_and_the_speed_of_a_trace():
    """Poisson against a trace's bursts, at the same mean rate."""
    assert only(pair(run(flags="arrivals:trace"), flags="arrivals:poisson")).evidence["field"] == "arrivals"
    assert only(pair(run(flags="trace_speed:2"), flags="trace_speed:1")).evidence["field"] == "trace_speed"


def test_we_replay_times_of_a_trace_as_poisson_and_say_so():
    changes = {"load": "open_loop", "concurrency": None, "request_rate_rps": 4.0}
    finding = alone(**changes, flags="arrivals:trace")["workload.arrivals"]
    assert finding.severity == "warn" and "ttft_s_mean" in finding.metrics and "tpot_s_mean" not in finding.metrics
    assert "workload.arrivals" not in alone(**changes, flags="arrivals:poisson")


def test_what_one_side_does_not_state_is_one_note():
    finding = only(pair(input_tok=None, output_tok=None, length_spread=None, concurrency=None, num_requests=None))
    assert finding.severity == "note" and "input_tok, output_tok, length_spread" in finding.evidence["missing"]


def test_our_assumptions_are_grouped_by_what_was_assumed():
    records = [run(run_id=f"r{i}", num_requests=None, concurrency=2**i, length_spread=None) for i in range(3)]
    cases = [case(record, simulated={"tpot_s_mean": 0.011}) for record in records]
    findings = found("workload", by_hand(cases))
    assert [f.runs for f in findings] == [("r0", "r1", "r2")] * 2 and not any(f.alarm for f in findings)
    assert {f.evidence["assumption"].partition(":")[0] for f in findings} == {
        "number of requests not stated", "length spread not stated",
    }  # fmt: skip


def test_clients_that_never_send():
    assert alone(num_requests=15)["workload.idle_clients"].severity == "warn"
    assert alone(num_requests=16) == {}
    assert alone(load="parallel_sampling", num_requests=1) == {}  # one prompt, many samples


def test_power_of_dummy_weights_is_refused_and_times_are_not():
    """DUMMY: the power of matrix products moves by about 40 % with their operands."""
    finding = alone(flags="warm_up;dummy_weights")["workload.dummy_weights"]
    assert finding.severity == "fail" and finding.metrics == ("power_w", "energy_j_per_output_tok")
    assert alone(flags="dummy_weights", power_w=None, energy_j_per_output_tok=None) == {}


@pytest.mark.parametrize("changes", [{"input_tok": None}, {"output_tok": None}, {"concurrency": None}, {"gpu": "nix"}])
def test_a_run_that_cannot_be_simulated_is_passed_over(changes):
    assert alone(**changes) == {}


def test_a_spread_that_is_none_is_passed_over():
    odd = run(length_spread="uniform:wide")
    assert only(pair(odd, input_tok=2000)).severity == "fail"
