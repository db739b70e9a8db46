"""Runs off their neighbours: the labelled cases by hand, and what must stay silent."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from suite_cases import by_hand, case, found, run

from validate.checks.neighbours import MIN_A_SIDE, off_line, others_median
from validate.curves import curves_of

# ER-OUTLIER: prefill of an 8B on an Orin, seconds by prompt length (edge-inference/edgereasoning, validation files).
PREFILL = {
    3: 0.108, 129: 0.188, 256: 0.225, 385: 0.375, 513: 0.543, 641: 0.590, 769: 0.754, 897: 0.804, 1027: 0.988,
    1153: 1.016, 1283: 1.210, 1409: 1.218, 1537: 1.439, 1665: 1.449, 1793: 1.655, 1921: 1.720, 2049: 1.966,
    2177: 1.964, 2305: 2.280, 2433: 3.180, 2561: 22.495, 2689: 2.529, 2817: 2.866, 2945: 2.745, 3073: 3.088,
    3201: 3.018, 3329: 3.428, 3457: 3.304, 3585: 3.632, 3713: 3.525, 3841: 3.890, 3969: 3.920, 4097: 3.512,
}  # fmt: skip
STEP = 1e-3  # seconds per prompt token of the prediction


def prompts(seconds, predicted=lambda tok: STEP * (tok + 60), **changes):
    """Cases along input_tok; predicted: None for runs without a prediction."""
    blank = dict.fromkeys(("ttft_s_median", "tpot_s_mean", "tpot_s_median", "itl_s_mean", "e2e_s_mean"))
    blank |= {"itl_s_median": None, "e2e_s_median": None, "output_tok_per_s": None, "duration_s": None}
    out = []
    for tok, second in seconds.items():
        record = run(**blank, power_w=None, run_id=f"p{tok}", input_tok=float(tok), ttft_s_mean=second, **changes)
        record = record if changes else run(
            **blank, power_w=None, run_id=f"p{tok}", input_tok=float(tok), ttft_s_mean=second,
            load="static_batch", concurrency=1.0, num_requests=1,
        )  # fmt: skip
        out.append(case(record, simulated={"ttft_s_mean": predicted(tok)} if predicted else None))
    return by_hand(out)


def test_the_labelled_outlier_and_the_run_above_the_trend_beside_it():
    findings = found("neighbours", prompts(PREFILL))
    assert {(f.severity, f.runs) for f in findings} == {("fail", ("p2561",)), ("warn", ("p2433",))}
    worst = next(f for f in findings if f.severity == "fail")
    assert worst.fault == "F9" and worst.evidence["factor"] == pytest.approx(9.0, rel=0.1)
    assert "22.5" in worst.says or "22.49" in worst.says


def test_without_them_the_sawtooth_of_the_same_sweep_is_silent():
    clean = {tok: s for tok, s in PREFILL.items() if tok not in (2433, 2561)}
    assert found("neighbours", prompts(clean)) == []


@pytest.mark.parametrize(("factor", "fires"), [(1.15, False), (1.3, True), (0.85, False), (0.75, True)])
def test_it_fires_above_its_threshold_only(factor, fires):
    line = {100 * i: STEP * 100 * i for i in range(1, 12)}
    line[600] *= factor
    findings = found("neighbours", prompts(line))
    assert [f.runs for f in findings] == ([("p600",)] if fires else [])


def test_without_a_prediction_more_is_asked_for():
    line = {100 * i: STEP * 100 * i for i in range(1, 12)}
    assert found("neighbours", prompts({**line, 600: 1.4 * line[600]}, predicted=None)) == []
    assert [f.runs for f in found("neighbours", prompts({**line, 600: 1.6 * line[600]}, predicted=None))] == [("p600",)]


def test_a_step_that_the_prediction_knows_is_no_outlier():
    def stepped(tok):
        return STEP * tok * (1.5 if tok == 600 else 1.0)

    assert found("neighbours", prompts({100 * i: stepped(100 * i) for i in range(1, 12)}, predicted=stepped)) == []


@pytest.mark.parametrize(("factor", "fires"), [(1.9, False), (2.2, True), (0.4, True)])
def test_ends_are_held_against_the_prediction_of_the_whole_sweep(factor, fires):
    line = {100 * i: STEP * (100 * i + 60) for i in range(1, 12)}
    runs = [f.runs for f in found("neighbours", prompts({**line, 1100: factor * line[1100]}))]
    assert runs == ([("p1100",)] if fires else [])


def test_ends_are_not_extrapolated_without_a_prediction():
    line = {100 * i: STEP * 100 * i for i in range(1, 12)}
    assert found("neighbours", prompts({**line, 1100: 5.0 * line[1100]}, predicted=None)) == []


@given(st.lists(st.floats(-10, 10), min_size=2, max_size=15))
def test_the_median_of_the_others(values):
    values = np.array(values)
    assert np.allclose(others_median(values), [np.median(np.delete(values, i)) for i in range(len(values))])


def batches(times, scale=1.0):
    """Cases along batch with time per token; predicted: 5 ms and a little more with every client."""
    out = []
    for clients, seconds in times.items():
        record = run(run_id=f"{scale:g}c{clients}", concurrency=float(clients), num_requests=10 * clients)
        record = type(record)(
            **{n: getattr(record, n) for n in ("source", "gpu", "model", "engine", "load", "concurrency", "input_tok",
                                              "output_tok", "num_requests", "run_id")},
            tpot_s_mean=scale * seconds, max_model_len=int(4096 * scale),
        )  # fmt: skip
        out.append(case(record, simulated={"tpot_s_mean": scale * (0.005 + 1e-5 * clients)}))
    return out


def test_a_slow_run_of_a_short_sweep_is_off_its_campaign():
    clean = {c: (0.005 + 1e-5 * c) * (1.0 + 0.01 * (-1) ** i) for i, c in enumerate((4, 8, 16, 32, 64))}
    others = [c for scale in (2.0, 3.0) for c in batches(clean, scale)]
    assert found("neighbours", by_hand([*batches(clean), *others])) == []
    slow = found("neighbours", by_hand([*batches({**clean, 32: 2.1 * clean[32]}), *others]))
    assert [f.runs for f in slow] == [("1c32",)] and slow[0].metrics == ("tpot_s_mean",)


@pytest.mark.parametrize("seconds", [{}, {512: 1.0}, {512: 1.0, 513: 1.0, 514: 1.0}, dict.fromkeys(range(1, 12), 1.0)])
def test_few_or_equal_runs_say_nothing(seconds):
    assert found("neighbours", prompts(seconds)) == []


@settings(max_examples=60)
@given(st.floats(-3, 3), st.floats(-5, 5), st.integers(5, 20))
def test_a_power_law_has_nothing_off_it(slope, level, n):
    x = np.log(np.arange(1.0, n + 1))
    off = off_line(x, level + slope * x)
    assert np.isnan(off[[0, -1]]).all()
    known = off[np.isfinite(off)]
    assert len(known) == n - 2 * MIN_A_SIDE and np.abs(known).max() < 1e-9


@given(st.floats(0.01, 100.0))
@settings(max_examples=10, deadline=None)
def test_a_unit_does_not_change_who_is_off(unit):
    scaled = {tok: unit * s for tok, s in PREFILL.items()}
    runs = [f.runs for f in found("neighbours", prompts(scaled))]
    assert runs == [f.runs for f in found("neighbours", prompts(PREFILL))]


def test_curves_leave_out_what_is_not_known():
    evidence = prompts({100: 1.0, 200: 2.0, 300: 3.0}, predicted=None)
    (curve,) = curves_of(evidence, ("ttft_s_mean",))
    assert np.isnan(curve.simulated).all() and np.isnan(curve.floor).all() and math.isfinite(curve.measured.sum())
