"""Numbers of a run of traffic against hand sums and against every single token; files that read back."""

from __future__ import annotations

import csv
import json
import math
import time
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from served_cases import LIMITS, LOG_SD, Naive, poisson, result_of, serve

from simulator.profile import Z90
from simulator.report.json_out import dump
from simulator.statistics import repeated_quantiles
from simulator.traffic import frames
from simulator.traffic.bench_json import bench_json, peak_concurrency, request_gaps
from simulator.traffic.metrics import (
    Goodput,
    good_requests,
    latencies,
    steady_window,
    token_gaps,
    traffic_metrics,
    waiting_when_overloaded,
)
from simulator.traffic.series import binned_mean, time_series

# -- two requests by hand: the first prefills alone, the second joins it ----------------------------------------------


@pytest.fixture
def two() -> Naive:
    """Steps of 1 s. Tokens of the first at 1, 2, 3, 4 s; of the second, which came at 0.5 s, at 2, 3 s. Idle to 5 s."""
    return serve([0.0, 0.5, 5.0], [32, 16, 7], [4, 2, 1], step_s=lambda decode, prefill: 1.0)


def test_latencies_by_hand(two):
    found = latencies(two.served.requests)
    assert found["ttft_s"].tolist() == [1.0, 1.5, 1.0]
    assert found["tpot_s"][:2].tolist() == [1.0, 1.0] and math.isnan(found["tpot_s"][2])
    assert found["e2e_s"].tolist() == [4.0, 2.5, 1.0]
    assert found["queue_s"].tolist() == [0.0, 0.5, 0.0]


def test_metrics_by_hand(two):
    found = traffic_metrics(two.served, Goodput(ttft_s=1.2, e2e_s=3.0))
    assert found["duration_s"] == 6.0 and found["completed"] == 3 and found["refused"] == 0
    assert (found["input_tok"], found["output_tok"]) == (55, 7)
    assert found["requests_per_s"] == 0.5
    assert found["output_tok_per_s"] == pytest.approx(7 / 6) and found["total_tok_per_s"] == pytest.approx(62 / 6)
    assert found["batch_mean"] == pytest.approx((1 + 2 + 2 + 1 + 1) / 6) and found["batch_max"] == 2
    assert found["busy_share"] == pytest.approx(5 / 6) and found["prefill_share_of_busy"] == pytest.approx(3 / 5)
    assert found["energy_j"] == 5 * 300 + 1 * 50 and found["mean_power_w"] == pytest.approx(1550 / 6)
    assert found["energy_j_per_output_tok"] == pytest.approx(1550 / 7)
    # Blocks of 16 tokens: 2; 3 + 1; 3 + 2; 3 (32 + 3 tokens); idle; 1
    assert found["kv_share_mean"] == pytest.approx((2 + 4 + 5 + 3 + 1) / 6 / 1000)
    assert found["kv_share_max"] == pytest.approx(5 / 1000)
    assert found["good_share"] == pytest.approx(1 / 3) and found["good_requests_per_s"] == pytest.approx(1 / 6)
    assert math.isnan(found["steady_output_tok_per_s"])


def test_queue_by_hand():
    """One place: the second waits while the first is served, the third while both are."""
    served = serve([0.0, 0.0, 0.0], [8, 8, 8], [2, 2, 2], max_num_seqs=1, step_s=lambda *_: 1.0).served
    found = traffic_metrics(served)
    assert found["queue_mean"] == pytest.approx((2 + 2 + 1 + 1 + 0 + 0) / 6) and found["queue_max"] == 2
    assert time_series(served, 3).waiting.tolist() == [2.0, 1.0, 0.0]
    assert found["queue_s_max"] == 4.0 and found["ttft_s_max"] == 5.0


def test_refused_requests_are_counted_and_in_no_latency():
    served = serve([0.0, 0.0], [10, 10_000], [3, 3], max_model_len=100).served
    alone = serve([0.0], [10], [3], max_model_len=100).served
    found, expected = traffic_metrics(served, LIMITS), traffic_metrics(alone, LIMITS)
    assert (found["requests"], found["completed"], found["refused"]) == (2, 1, 1)
    assert found["good_share"] == expected["good_share"] / 2
    different = {"requests", "refused", "good_share"}
    for name in expected.keys() - different:
        assert found[name] == pytest.approx(expected[name], nan_ok=True), name


def test_nothing_but_refused_requests_has_no_numbers_and_no_error():
    result = result_of(serve([0.0], [10_000], [3], max_model_len=100).served, goodput=LIMITS)
    found = result.summary()
    assert found["refused"] == 1 and found["completed"] == 0 and math.isnan(found["ttft_s_p50"])
    assert json.loads(dump(bench_json(result, detail=True)))["failed"] == 1
    time_series(result.served)


def test_a_one_token_output_has_no_tpot_and_meets_any():
    served = serve([0.0], [10], [1]).served
    found = traffic_metrics(served)
    assert math.isnan(found["tpot_s_mean"]) and math.isnan(found["itl_s_p99"])
    assert good_requests(served.requests, Goodput(tpot_s=1e-9)).all()
    assert not good_requests(served.requests, Goodput(ttft_s=1e-9)).any()


def test_torn_gaps_count_as_gaps(two):
    torn = replace(two.served, torn_gap_s=np.array([7.0]))
    found = token_gaps(torn)
    assert found["max"] == 7.0 and found["mean"] == pytest.approx((4 * 1.0 + 7.0) / 5)


# -- against every token ---------------------------------------------------------------------------------------------

runs = st.builds(
    lambda requests, replicas, seats: serve(
        np.cumsum([gap for gap, _, _ in requests]),
        [prompt for _, prompt, _ in requests],
        [output for _, _, output in requests],
        replicas,
        max_num_seqs=seats,
    ),
    st.lists(st.tuples(st.floats(0.0, 0.3), st.integers(1, 300), st.integers(1, 30)), min_size=1, max_size=40),
    st.integers(1, 4),
    st.integers(1, 6),
)


@settings(max_examples=60, deadline=None)
@given(runs)
def test_against_every_token(run):
    served, token_s = run.served, run.token_s
    found = traffic_metrics(served)
    arrival = served.requests.arrival_s
    naive = {
        "ttft_s": [times[0] - sent for times, sent in zip(token_s, arrival)],
        "tpot_s": [(times[-1] - times[0]) / (len(times) - 1) for times in token_s if len(times) > 1],
        "itl_s": [gap for times in token_s for gap in np.diff(times)],
        "e2e_s": [times[-1] - sent for times, sent in zip(token_s, arrival)],
    }
    for name, values in naive.items():
        if not values:
            assert math.isnan(found[f"{name}_mean"])
            continue
        assert found[f"{name}_mean"] == pytest.approx(np.mean(values))
        assert found[f"{name}_std"] == pytest.approx(np.std(values), abs=1e-9)
        for which, q in (("min", 0), ("p50", 50), ("p90", 90), ("p99", 99), ("max", 100)):
            assert found[f"{name}_{which}"] == pytest.approx(np.percentile(values, q)), (name, which)
    written = sum(map(len, token_s))
    assert found["output_tok_per_s"] * found["duration_s"] == pytest.approx(written)
    gaps = request_gaps(served)
    for times, own in zip(token_s, gaps):
        assert own == pytest.approx(np.diff(times).tolist(), abs=1e-9)
    moments = np.sort(np.concatenate((arrival, served.requests.scheduled_s)))
    most = max(int(((arrival <= t) & (served.requests.scheduled_s > t)).sum()) for t in moments)
    assert found["queue_max"] == most
    assert found["queue_mean"] * found["duration_s"] == pytest.approx(found["queue_s_mean"] * len(arrival))


@settings(max_examples=60, deadline=None)
@given(runs, st.integers(1, 200))
def test_a_time_series_keeps_every_integral(run, bins):
    served = run.served
    found, series = traffic_metrics(served), time_series(served, bins)
    width = served.end_s / bins
    assert len(series.power_w) == bins and series.edges_s[-1] == served.end_s
    for values, mean in (
        (series.running, found["batch_mean"]),
        (series.waiting, found["queue_mean"]),
        (series.kv_share, found["kv_share_mean"]),
        (series.power_w, found["mean_power_w"]),
    ):
        assert (values * width).sum() == pytest.approx(mean * served.end_s, abs=1e-9)
        assert values.min() >= -1e-9
    assert series.power_w.min() >= served.idle_power_w * served.replicas - 1e-6


def test_averages_of_a_step_function_by_hand():
    """2 from 1 to 3 s, nothing to 4 s, 6 from 4 to 5 s; pieces of 2 s."""
    found = binned_mean(
        np.array([1.0, 4.0]), np.array([2.0, 1.0]), np.array([2.0, 6.0]), np.array([0.0, 2.0, 4.0, 6.0])
    )
    assert found == pytest.approx([1.0, 1.0, 3.0])
    assert binned_mean(*[np.zeros(0)] * 3, np.array([0.0, 1.0])).tolist() == [0.0]


@given(st.lists(st.tuples(st.floats(-5, 5), st.integers(0, 6)), min_size=1, max_size=30))
def test_quantiles_of_repeated_values(pairs):
    values, counts = (np.array(x) for x in zip(*pairs))
    if counts.sum() == 0:
        return
    q = (0.0, 0.1, 0.5, 0.99, 1.0)
    assert repeated_quantiles(values, counts, q) == pytest.approx(np.quantile(np.repeat(values, counts), q))


def test_a_stretch_of_steps_is_as_good_as_its_steps():
    """Many equal steps in one row or each in its own: the same numbers."""
    one = serve([0.0], [16], [101], step_s=lambda *_: 0.5).served
    steps = one.steps
    head, tail = slice(0, 1), slice(1, None)
    merged = {}
    for name in steps.__dataclass_fields__:
        column = getattr(steps, name)
        summed = name in ("duration_s", "joules", "steps", "gaps")
        last = column[tail].sum() if summed else column[tail][0]
        merged[name] = np.array([*column[head], last])
    stretched = replace(one, steps=type(steps)(**merged))
    fine, coarse = traffic_metrics(one), traffic_metrics(stretched)
    for name in fine.keys() - {"kv_share_mean", "kv_share_max"}:
        assert coarse[name] == pytest.approx(fine[name], nan_ok=True), name
    for name in ("kv_share_mean", "kv_share_max"):  # 2 to 8 blocks, that grow steadily in between
        assert coarse[name] == pytest.approx(fine[name], abs=0.5 / 1000), name
    assert request_gaps(stretched)[0] == pytest.approx(request_gaps(one)[0])


# -- the steady window and overload -----------------------------------------------------------------------------------


def test_the_steady_window_leaves_out_filling_and_emptying():
    run = poisson(n=500, rate=8.0)
    served = run.served
    start, end = steady_window(served)
    finished = served.requests.finished_s
    assert (finished <= start).sum() == 50 and (finished <= end).sum() == 450
    found = traffic_metrics(served)
    assert found["steady_requests_per_s"] == pytest.approx(400 / (end - start))
    inside = sum(start < time <= end for times in run.token_s for time in times)
    assert found["steady_output_tok_per_s"] * (end - start) == pytest.approx(inside, abs=4)  # a token of each at an end


@pytest.mark.parametrize("served", [poisson(n=19).served, serve(np.zeros(40), [9] * 40, [99] * 40, 1, 64).served])
def test_few_requests_or_all_at_once_have_no_steady_window(served):
    assert steady_window(served) is None
    assert math.isnan(traffic_metrics(served)["steady_output_tok_per_s"])


def test_only_a_queue_that_grows_to_the_end_is_overload():
    calm, busy = (poisson(n=400, rate=rate).served.requests for rate in (2.0, 200.0))
    assert waiting_when_overloaded(calm) == 0
    left = waiting_when_overloaded(busy)
    assert 20 < left < 400
    burst = serve(np.zeros(100), [50] * 100, [20] * 100).served.requests
    assert waiting_when_overloaded(burst) == 0


def test_a_run_that_keeps_up_is_paced_by_its_clients():
    calm, busy = (result_of(poisson(n=400, rate=rate).served) for rate in (2.0, 200.0))
    for result, wide in ((calm, False), (busy, True)):
        found = result.summary()
        low, value, high = (found[f"output_tok_per_s{end}"] for end in ("_lo", "", "_hi"))
        assert low <= value <= high
        assert (high / low > 1.2) == wide
    assert busy.summary()["overloaded_waiting"] > 0 == calm.summary()["overloaded_waiting"]


# -- the result ------------------------------------------------------------------------------------------------------


def test_summary_has_intervals_and_costs():
    result = result_of(poisson().served, goodput=LIMITS, clients=3)
    found = result.summary()
    for name, kind in (
        ("ttft_s_p99", "ttft"),
        ("tpot_s_p50", "tpot"),
        ("e2e_s_p90", "time"),
        ("mean_power_w", "power"),
    ):
        factor = math.exp(Z90 * LOG_SD[kind])
        assert found[f"{name}_hi"] == pytest.approx(found[name] * factor)
        assert found[f"{name}_lo"] == pytest.approx(found[name] / factor)
    assert found["output_tok_per_s_hi"] == pytest.approx(found["output_tok_per_s"] * math.exp(Z90 * LOG_SD["time"]))
    assert found["cost_usd"] == pytest.approx(found["duration_s"] / 1000)
    assert found["usd_per_million_output_tok"] == pytest.approx(found["cost_usd"] / found["output_tok"] * 1e6)


def test_to_dict_is_json_and_holds_requests_only_on_demand():
    result = result_of(poisson().served, goodput=LIMITS)
    short, long = (json.loads(dump(result.to_dict(detail=detail))) for detail in (False, True))
    assert "requests" not in short and len(long["requests"]) == 60
    assert {key: value for key, value in long.items() if key != "requests"} == short
    assert short["goodput"] == LIMITS.limits() and short["calibration"]["id"] == "box.vllm"
    first = long["requests"][0]
    assert first["ttft_s"] == pytest.approx(first["first_token_s"] - first["arrival_s"])


def test_frames_hold_the_records():
    pytest.importorskip("pandas")
    result = result_of(poisson().served)
    frame, steps = result.to_frame(), result.steps_frame()
    assert frame["ttft_s"].median() == pytest.approx(result.summary()["ttft_s_p50"])
    assert steps["joules"].sum() == pytest.approx(result.served.steps.joules.sum())


def test_csv_reads_back_as_it_was(tmp_path):
    served = serve([0.0, 0.1, 0.2], [10, 20, 10_000], [1, 5, 5], max_model_len=100).served
    for columns in (frames.request_columns(served.requests), frames.step_columns(served.steps)):
        path = frames.write_csv(columns, tmp_path / "table.csv")
        with path.open(newline="") as file:
            rows = list(csv.DictReader(file))
        assert list(rows[0]) == list(columns)
        for name, values in columns.items():
            for row, value in zip(rows, values.tolist()):
                if isinstance(value, bool):
                    assert row[name] == str(value).lower()
                elif isinstance(value, float) and math.isnan(value):
                    assert row[name] == ""
                else:
                    assert type(value)(row[name]) == value


def test_a_hundred_thousand_requests_take_no_time():
    one = poisson(n=1000, rate=5.0).served
    copies = 100
    many = replace(
        one,
        requests=_repeated(
            one.requests, copies, one.end_s, ("arrival_s", "scheduled_s", "first_token_s", "finished_s")
        ),
        steps=_repeated(one.steps, copies, one.end_s, ("start_s",)),
        end_s=one.end_s * copies,
    )
    began = time.process_time()
    found = traffic_metrics(many, LIMITS)
    time_series(many)
    assert time.process_time() - began < 5.0  # it takes half a second: 1.6 million rows of steps
    assert found["ttft_s_p99"] == pytest.approx(traffic_metrics(one)["ttft_s_p99"], rel=1e-3)


def _repeated(records, copies: int, period_s: float, shifted: tuple[str, ...]):
    columns = {}
    for name in records.__dataclass_fields__:
        column = np.tile(getattr(records, name), copies)
        later = np.repeat(np.arange(copies) * period_s, len(records)) if name in shifted else 0
        columns[name] = column + later if name in shifted else column
    return type(records)(**columns)


# -- vLLM's benchmark ------------------------------------------------------------------------------------------------


def test_bench_json_has_vllms_names_and_numbers():
    run = poisson()
    result = result_of(run.served, goodput=LIMITS)
    found = json.loads(dump(bench_json(result, request_rate=5.0, detail=True)))
    for name in (
        "backend", "model_id", "tokenizer_id", "num_prompts", "request_rate", "burstiness", "max_concurrency",
        "duration", "completed", "failed", "total_input_tokens", "total_output_tokens", "request_throughput",
        "request_goodput", "output_throughput", "total_token_throughput", "max_concurrent_requests", "input_lens",
        "output_lens", "ttfts", "itls", "latencies", "start_times", "errors",
        *(f"{q}_{name}_ms" for q in ("mean", "median", "std", "p99") for name in ("ttft", "tpot", "itl", "e2el")),
    ):  # fmt: skip
        assert name in found, name
    assert "date" not in found and bench_json(result, date="20260101-000000")["date"] == "20260101-000000"
    # As the benchmark computes them, from its own lists.
    assert found["mean_ttft_ms"] == pytest.approx(1e3 * np.mean(found["ttfts"]))
    assert found["p99_itl_ms"] == pytest.approx(1e3 * np.percentile(np.concatenate(found["itls"]), 99))
    assert found["total_output_tokens"] == sum(found["output_lens"])
    for ttft, gaps, whole in zip(found["ttfts"], found["itls"], found["latencies"]):
        assert ttft + sum(gaps) == pytest.approx(whole)


def test_request_rate_as_vllm_writes_it():
    result = result_of(poisson().served)
    last = result.served.requests.arrival_s.max()
    assert bench_json(result)["request_rate"] == pytest.approx(60 / last)
    assert bench_json(result, request_rate=math.inf)["request_rate"] == "inf"
    closed = bench_json(replace(result, clients=8))
    assert (closed["request_rate"], closed["max_concurrency"]) == ("inf", 8)


@settings(max_examples=40, deadline=None)
@given(runs)
def test_peak_concurrency(run):
    requests = run.served.requests
    most = max(int(((requests.arrival_s <= t) & (requests.finished_s > t)).sum()) for t in requests.arrival_s.tolist())
    assert peak_concurrency(run.served) == most


def test_a_preempted_request_gets_equal_gaps_of_the_right_sum(two):
    requests = replace(two.served.requests, finished_s=two.served.requests.finished_s + np.array([1.0, 0.0, 0.0]))
    gaps = request_gaps(replace(two.served, requests=requests))
    assert gaps[0] == pytest.approx([4 / 3] * 3) and gaps[1] == [1.0] and gaps[2] == []
