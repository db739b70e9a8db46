"""F2: constant ratios, their names, and what else is off with them."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace as change
from suite_cases import by_hand, case, found, numbered, run

from calibration.setup import resolve
from simulator.profile import Z90
from validate.checks.fingerprint import MIN_RUNS, constant_ratio, factor_name
from validate.factors import MAX_CV, known_factors

TIMES = {"ttft_s_mean": 0.3, "tpot_s_mean": 0.01, "e2e_s_mean": 5.29}
RATE = 1512.0
CLAIMED = math.log(1.1) / Z90  # what `case` gives every figure: an interval of 10 %
CLOCKS = {"processor for memory clock": 2.1 / 1.3333}


def scatter(n, sd, seed=0):
    """Factors around 1 with median 1 and about this log sd."""
    draws = np.random.default_rng(seed).normal(0.0, sd, n)
    return np.exp(draws - np.median(draws))


def group(factors, n=8, noise=0.01, start=0, source="made-up", **changes):
    """n runs whose measured figures are `factors` x what is simulated, with a scatter of `noise`."""
    cases = []
    for i, wobble in enumerate(scatter(n, noise, seed=start)):
        ours = {**TIMES, "output_tok_per_s": RATE, "power_w": 500.0}
        ours = {name: value * (1.0 + 0.1 * i) for name, value in ours.items()}
        theirs = {name: value * factors.get(name, 1.0) * wobble for name, value in ours.items()}
        record = run(run_id=f"r{start + i}", source=source, concurrency=16 + i, **changes)
        emptied = dict.fromkeys(record.measured())
        cases.append(case(change(record, **{**emptied, **theirs}), simulated=ours))
    return cases


def says(*groups):
    return found("fingerprint", by_hand([c for cases in groups for c in cases]))


def test_agreement_is_silent():
    assert says(group({}, noise=0.05)) == []


@pytest.mark.parametrize(
    "factor, name", [(1000.0, "ms for s"), (1e-3, "ms for s"), (2.0, "16 for 8 bit"), (8.0, "bits for bytes")]
)
def test_one_column_in_another_unit(factor, name):
    [finding] = says(group({"tpot_s_mean": factor}))
    assert (finding.fault, finding.severity, finding.confidence) == ("F2", "fail", "likely")
    assert finding.metrics == ("tpot_s_mean",) and len(finding.runs) == 8
    assert name in finding.evidence["factor"] and "unit or definition of that column" in finding.says
    assert finding.evidence["ratio"] == pytest.approx(1.0 / factor, rel=0.02)


def test_all_times_and_rates_together_are_a_clock_or_a_count():
    [finding] = says(group({**dict.fromkeys(TIMES, 2.0), "output_tok_per_s": 0.5}))
    assert set(finding.metrics) == {*TIMES, "output_tok_per_s"}
    assert "one clock" in finding.says and "number of devices" in finding.advice


def test_devices_of_the_configuration_are_named():
    [finding] = says(group({"tpot_s_mean": 4.0}, n_gpus=4, tp=4))
    assert "tensor-parallel devices (4)" in finding.evidence["factor"]


def test_power_of_one_device_for_all_of_them():
    [finding] = says(group({"power_w": 0.125}, n_gpus=8, tp=8))
    assert finding.metrics == ("power_w",) and "per device for all of them (8)" in finding.evidence["factor"]


def test_an_offset_inside_the_interval_is_the_models_own():
    assert says(group({"tpot_s_mean": 1.09}, noise=0.002)) == []
    assert says(group({"tpot_s_mean": math.exp(1.9 * Z90 * CLAIMED)}, noise=0.002)) == []  # unnamed: twice is asked


def test_an_unnamed_constant_is_possible_only():
    [finding] = says(group({"tpot_s_mean": 1.45}, noise=0.01))
    assert (finding.severity, finding.confidence) == ("warn", "possible")
    assert "no known factor" in finding.says and finding.evidence["factor"] == ""


def test_scatter_is_no_constant():
    assert says(group({"tpot_s_mean": 2.0}, n=40, noise=0.4)) == []


def test_few_runs_need_a_name():
    assert says(group({"tpot_s_mean": 1.45}, n=MIN_RUNS - 1, noise=0.001)) == []
    assert len(says(group({"tpot_s_mean": 2.0}, n=3, noise=0.001))) == 1
    assert says(group({"tpot_s_mean": 2.0}, n=2, noise=0.001)) == []


def test_thousands_are_seen_in_a_single_run():
    [finding] = says(group({"tpot_s_mean": 1000.0}, n=1), group({}, n=9, start=1))
    assert finding.runs == ("r0",) and "ms for s" in finding.says


def test_the_coarsest_group_that_agrees_speaks():
    [finding] = says(group({"tpot_s_mean": 2.0}), group({"tpot_s_mean": 2.0}, start=8, source="other"))
    assert len(finding.runs) == 16
    [finding] = says(group({"tpot_s_mean": 2.0}), group({}, start=8, source="other"))
    assert set(finding.runs) == {f"r{i}" for i in range(8)} and "made-up" in finding.says


def test_rows_of_another_kind_among_the_rest():
    """AIC-REPL: 24 rows of a sample that measure about half of what every model predicts."""
    halves = {"output_tok_per_s": 1.0 / 2.1}
    [finding] = says(group({}, n=60, noise=0.03), group(halves, n=24, noise=0.03, start=60))
    assert set(finding.runs) == {f"r{i}" for i in range(60, 84)}
    assert finding.evidence["ratio"] == pytest.approx(2.1, rel=0.03) and "near 2 (" in finding.says


def test_a_tail_is_a_matter_of_the_schedule():
    cases = group({})
    tails = [
        replace(c, record=change(c.record, itl_s_p99=0.01), simulated=change(c.simulated, itl_s_p99=0.005))
        for c in cases
    ]
    assert found("fingerprint", by_hand(tails)) == []


@pytest.mark.parametrize("value", [math.nan, math.inf, 0.0, -1.0, None])
def test_odd_figures_never_raise(value):
    records = numbered(run(tpot_s_mean=value, concurrency=16 + i) for i in range(6))
    assert found("fingerprint", by_hand([case(r, simulated={"tpot_s_mean": 0.01}) for r in records])) == []


def test_equal_runs_without_any_scatter():
    records = numbered([run(tpot_s_mean=0.02)] * 5)
    [finding] = found("fingerprint", by_hand([case(r, simulated={"tpot_s_mean": 0.01}) for r in records]))
    assert finding.evidence["scatter_log"] == 0.0 and len(finding.runs) == 5


def test_nothing_simulated_nothing_said():
    assert found("fingerprint", by_hand([run(), case(run(input_tok=None))])) == []


# -- names ---------------------------------------------------------------------------------------------------------


@given(st.sampled_from([value for value, _ in known_factors()]), st.booleans(), st.floats(-0.004, 0.004))
def test_every_known_factor_is_named_either_way(value, inverse, off):
    ratio = (1.0 / value if inverse else value) * math.exp(off)
    assert factor_name(ratio, tolerance=0.005) is not None


@given(st.floats(0.99, 1.01))
def test_agreement_has_no_name(ratio):
    assert factor_name(ratio) is None


@pytest.mark.parametrize("ratio", [math.nan, math.inf, 0.0, -2.0, 1.43, 0.31])
def test_no_name_for_what_is_no_known_factor(ratio):
    assert factor_name(ratio) is None


def test_names_say_which_way_round():
    assert factor_name(1000.3).startswith("1000 (") and factor_name(1 / 8).startswith("1/8 (")
    assert factor_name(1.0737).startswith("1.07374 (GiB")
    assert factor_name(3600.0).startswith("3600 (hours")


def test_a_count_of_the_configuration_stands_beside_the_unit():
    name = factor_name(0.5, resolve(run(n_gpus=2, tp=2)))
    assert name.startswith("1/2 (tensor-parallel devices (2)") and "sparse for dense" in name


def test_one_token_less_shows_in_sharp_views_only():
    setup = resolve(run(output_tok=100))
    assert "(n - 1)/n" in factor_name(99 / 100, setup, tolerance=0.001)
    assert factor_name(99 / 100, setup, tolerance=0.03) is None


def test_clocks_of_power_modes_scale_times_but_not_power():
    orin = resolve(run(gpu="orin-agx-64gb", power_mode="MAXN", model="deepseek-ai/DeepSeek-R1-Distill-Llama-8B"))
    now, other = orin.device.find_mode("MAXN"), orin.device.find_mode("30W")
    ratio = now.gpu_clock_hz / other.gpu_clock_hz
    assert "GPU clock of mode 30W" in factor_name(ratio, orin)
    assert factor_name(ratio, orin, modes=False) is None


def test_a_blunt_ratio_prefers_the_common_unit():
    assert factor_name(1020.0, tolerance=0.12).startswith("1000 (thousand")


# -- two views: the stages of a corrected memory simulator ----------------------------------------------------------


def views(ratio, spread, n=407):
    """(interface view, backend view) of n points, GB/s, whose ratio lies within `spread` of `ratio`."""
    backend = np.linspace(5.0, 118.0, n)
    return backend * (ratio + spread * np.sin(np.arange(n))), backend


@pytest.mark.parametrize(
    "stage, ratio, spread, verdict, name",
    [
        ("01", 1.575, 0.005, "constant", "processor for memory clock"),
        ("02", 0.7875, 0.01, "constant", "divider rounded up to 2"),
        ("03", 1.003, 0.01, "equal", None),
        ("04", 1.0, 0.003, "equal", None),
        ("07", 1.005, 0.015, "equal", None),
    ],
)
def test_stages_of_the_corrected_memory_simulator(stage, ratio, spread, verdict, name):
    """MESS-01 to 07: the clock of the processor, its divider rounded up, then agreement."""
    result = constant_ratio(*views(ratio, spread), clocks=CLOCKS)
    assert result.verdict == verdict, stage
    assert (result.name is None) == (name is None) and (name or "") in (result.name or "")
    assert result.ratio == pytest.approx(ratio, abs=0.01) and result.cv < MAX_CV


@pytest.mark.parametrize("a, b", [(None, [1.0, 2.0]), ([1.0, None], [1.0, 2.0]), ([0.0, 1.0], [1.0, math.nan])])
def test_a_missing_view_is_unverifiable(a, b):
    """MESS-08 and 09: the backend's view is not there."""
    result = constant_ratio(a, b)
    assert result.verdict == "unverifiable" and result.name is None


def test_all_reduce_tables_in_elements():
    """AIC-ELEM: bandwidths of 2-byte elements read as bytes are half of what they are."""
    assert "2-byte elements for bytes" in constant_ratio([100.0, 210.0, 305.0], [200.0, 420.0, 610.0]).name


def test_sparse_peaks_for_dense_ones():
    """SPARSE: L40S FP8 1466 TFLOPS where the dense peak is 733; SMOL-204: 204.8 GB/s where it is 102."""
    assert "sparse for dense" in factor_name(1466 / 733) and factor_name(204.8 / 102.4).startswith("2 (")


def test_views_that_scatter_have_no_constant():
    result = constant_ratio([1.0, 2.2, 2.6], [1.0, 1.0, 1.0])
    assert result.verdict == "scattered" and result.name is None


def test_unequal_lengths_are_a_mistake_of_the_caller():
    with pytest.raises(ValueError):
        constant_ratio([1.0, 2.0], [1.0])


@given(st.floats(1e-3, 1e3), st.floats(1e-2, 1e2), st.integers(2, 30))
def test_the_ratio_does_not_depend_on_the_unit_of_both(k, unit, n):
    base = np.linspace(1.0, 3.0, n)
    plain, scaled = constant_ratio(base * k, base), constant_ratio(base * k * unit, base * unit)
    assert plain.verdict == scaled.verdict or abs(abs(math.log(k)) - 0.01) < 1e-9
    assert plain.ratio == pytest.approx(scaled.ratio)
