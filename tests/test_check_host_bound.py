"""Runs that wait for the host: the labelled campaign by hand, and campaigns that only look slow."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from suite_cases import by_hand, case, found, run, whats

# MLE-HOST: B200, ms per token and W, beside what the same model shows where nothing else ran on the machine.
# (model, clients, measured ms, predicted ms, floor ms, measured W, predicted W)
WAITING = [
    ("Qwen/Qwen3-8B", 8, 32.5, 6.2, 2.9, 294, 576), ("Qwen/Qwen3-8B", 16, 37.7, 7.4, 3.8, 304, 608),
    ("Qwen/Qwen3-8B", 32, 38.2, 9.5, 5.5, 327, 641), ("Qwen/Qwen3-14B", 8, 33.6, 8.3, 4.5, 320, 615),
    ("Qwen/Qwen3-32B", 8, 44.1, 15.7, 9.8, 423, 661), ("Qwen/Qwen3-32B", 16, 36.0, 17.4, 11.2, 535, 677),
]  # fmt: skip
NORMAL = [
    ("Qwen/Qwen3-14B", 16, 7.8, 8.0, 4.1, 762, 610), ("Qwen/Qwen3-14B", 32, 9.4, 8.9, 4.5, 700, 631),
    ("Qwen/Qwen3-32B", 32, 16.8, 16.2, 9.9, 849, 690), ("Qwen/Qwen3-32B", 64, 19.6, 18.5, 10.9, 945, 738),
    ("google/gemma-3-12b-it", 8, 7.7, 7.5, 3.5, 668, 571), ("google/gemma-3-12b-it", 16, 8.3, 8.1, 3.8, 681, 587),
    ("openai/gpt-oss-120b", 8, 5.5, 6.5, 2.3, 660, 584), ("openai/gpt-oss-120b", 16, 6.9, 8.4, 3.6, 700, 636),
]  # fmt: skip


def campaign(rows, time=1.0, power=1.0):
    out = []
    for i, (model, clients, ms, said_ms, floor_ms, watt, said_watt) in enumerate(rows):
        record = run(
            run_id=f"r{i}", model=model, gpu="b200-sxm", weight_dtype=None, activation_dtype=None, kv_dtype=None,
            concurrency=float(clients), num_requests=10 * clients, itl_s_median=ms / 1e3, itl_s_p99=2 * ms / 1e3,
            power_w=float(watt),
        )  # fmt: skip
        simulated = {"itl_s_median": time * said_ms / 1e3, "power_w": power * said_watt}
        out.append(case(record, simulated=simulated, floor={"itl_s_median": floor_ms / 1e3}))
    return by_hand(out)


def test_the_waiting_runs_are_named_and_all_runs_of_the_machine_are_labelled():
    findings = {f.check: f for f in found("host_bound", campaign([*WAITING, *NORMAL]))}
    assert set(findings) == {"host_bound.waiting", "host_bound.campaign"}
    waiting, whole = findings["host_bound.waiting"], findings["host_bound.campaign"]
    assert waiting.runs == tuple(f"r{i}" for i in range(len(WAITING))) and waiting.confidence == "likely"
    assert len(whole.runs) == len(WAITING) + len(NORMAL) and whole.confidence == "possible"
    assert (waiting.fault, waiting.also, waiting.severity) == ("F9", ("F7", "F1"), "fail")
    assert (whole.fault, whole.also, whole.severity) == ("F9", ("F7",), "warn")
    # The steps are equal although the models are not.
    assert waiting.evidence["fold_range_of_measured_times"] < 1.5 < waiting.evidence["fold_range_of_their_floors"]


def test_the_rest_alone_is_silent():
    assert found("host_bound", campaign(NORMAL)) == []


@settings(max_examples=15, deadline=None)
@given(st.floats(0.3, 3.0), st.floats(0.5, 2.0))
def test_a_prediction_that_is_off_by_a_constant_changes_nothing(time, power):
    said = [(f.check, f.runs) for f in found("host_bound", campaign([*WAITING, *NORMAL], time, power))]
    assert [row for row in said if row[0] != "host_bound.far_too_slow"] == [
        (f.check, f.runs) for f in found("host_bound", campaign([*WAITING, *NORMAL]))
    ]


@pytest.mark.parametrize(
    ("slower", "less", "checks"),
    [
        (1.0, 1.0, set()),
        (3.0, 1.0, set()),  # slow at full power: the GPU works, whatever at
        (1.0, 0.5, set()),
        (1.5, 0.8, set()),  # one run alone must be clear
        (2.0, 0.6, {"host_bound.waiting"}),
    ],
)
def test_one_run_needs_both_time_and_power_and_much_of_it(slower, less, checks):
    rows = [("Qwen/Qwen3-8B", 8, 6.0, 6.0, 3.0, 600.0, 600.0)] * 11
    odd = ("Qwen/Qwen3-8B", 8, 6.0 * slower, 6.0, 3.0, 600.0 * less, 600.0)
    findings = found("host_bound", campaign([*rows, odd]))
    assert whats(findings) == checks
    assert all(f.runs == ("r11",) and f.confidence == "possible" for f in findings)


def test_noise_in_both_is_no_contention():
    rng = np.random.default_rng(5)
    rows = [
        ("Qwen/Qwen3-8B", 8, 6.0 * t, 6.0, 3.0, 600.0 * p, 600.0)
        for t, p in np.exp(rng.normal(0.0, 0.08, (60, 2)))
    ]  # fmt: skip
    assert found("host_bound", campaign(rows)) == []


def test_a_run_that_is_a_hundred_times_too_slow():
    rows = [("Qwen/Qwen3-8B", 8, 6.0, 6.0, 3.0, 600.0, 600.0), ("Qwen/Qwen3-8B", 8, 59.0, 6.0, 3.0, 600.0, 600.0)]
    assert found("host_bound", campaign(rows)) == []
    (far,) = found("host_bound", campaign([*rows, ("Qwen/Qwen3-8B", 8, 640.0, 6.0, 3.0, 600.0, 600.0)]))
    assert (far.check, far.runs) == ("host_bound.far_too_slow", ("r2",))


@pytest.mark.parametrize(
    "empty", [{"power_w": None}, {"itl_s_median": None, "tpot_s_median": None, "tpot_s_mean": None}]
)
def test_a_view_that_is_missing_is_no_alarm(empty):
    cases = [case(run(run_id=f"r{i}", **empty), simulated={"itl_s_median": 0.01, "power_w": 500.0}) for i in range(12)]
    assert found("host_bound", by_hand(cases)) == []


def test_runs_that_cannot_be_simulated_are_left_out():
    assert found("host_bound", by_hand([run(run_id=f"r{i}", model="nobody/knows") for i in range(12)])) == []
