"""Shapes of curves: direction, drift, knee, plateau and order, each fired and each silent just below its threshold."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from suite_cases import by_hand, case, found, run, whats

from validate.cases import Case, Evidence
from validate.checks.load_curves import knee

METRICS = (
    "ttft_s_mean", "ttft_s_median", "ttft_s_p99", "tpot_s_mean", "tpot_s_median", "tpot_s_p99", "itl_s_mean",
    "itl_s_median", "itl_s_p99", "e2e_s_mean", "e2e_s_median", "e2e_s_p99", "output_tok_per_s", "total_tok_per_s",
    "duration_s", "batch_mean", "power_w", "energy_j_per_output_tok",
)  # fmt: skip
EMPTY = dict.fromkeys(METRICS)
LOADS = (4, 8, 16, 32, 64, 128)


def sweep(metric, measured, simulated, loads=LOADS, name="c", **changes):
    """Cases over load: lists of the measured and the simulated figure."""
    out = []
    for load, value, said in zip(loads, measured, simulated):
        named = {"run_id": f"{name}{load}", "concurrency": float(load), "num_requests": 10 * load, "max_num_seqs": 1024}
        out.append(case(run(**EMPTY | named | {metric: value} | changes), simulated={metric: said}))
    return out


def shape(cases):
    return found("shape", by_hand(cases))


def rising(exponent=0.5, start=0.01):
    return [start * (load / LOADS[0]) ** exponent for load in LOADS]


def test_two_equal_curves_and_a_constant_factor_are_no_mismatch_of_shape():
    curve = rising()
    assert shape(sweep("tpot_s_mean", curve, curve)) == []
    assert shape(sweep("tpot_s_mean", [3.0 * y for y in curve], curve)) == []


def test_speed_that_falls_and_rises_again():
    """MLE-HOST: a B200 step of 44.1 ms with 8 clients, 36.0 with 16, where the model says 15.7 and 17.4."""
    measured, said = [0.0441, 0.0360, 0.0366, 0.0413], [0.0157, 0.0174, 0.0207, 0.0260]
    findings = shape(sweep("itl_s_median", measured, said, loads=(8, 16, 32, 64)))
    direction = next(f for f in findings if f.check == "shape.direction")
    assert (direction.fault, direction.also, direction.runs) == ("F9", ("F7",), ("c8",))
    assert direction.evidence["measured_change"] == pytest.approx(0.0360 / 0.0441 - 1)


@pytest.mark.parametrize(("fall", "fires"), [(0.04, False), (0.08, False), (0.12, True)])
def test_a_fall_within_noise_is_none(fall, fires):
    """The assumed noise of 3 % asks for 9 %."""
    measured = rising(0.2)
    measured[3] = measured[2] * math.exp(-fall)
    assert ("shape.direction" in whats(shape(sweep("tpot_s_mean", measured, rising(0.2))))) is fires


def test_where_the_model_turns_too_nothing_is_said():
    measured = rising(0.2)
    measured[3] = 0.7 * measured[2]
    assert shape(sweep("tpot_s_mean", measured, measured)) == []


def test_a_simulated_curve_that_turns_is_found_on_its_own_side():
    made = sweep("tpot_s_mean", rising(0.2), rising(0.2))
    theirs = rising(0.2)
    theirs[2] *= 1.4
    cases = [
        Case(c.record, c.prediction, run(**EMPTY | {"run_id": c.id, "tpot_s_mean": y})) for c, y in zip(made, theirs)
    ]
    findings = found("shape", Evidence("runs.csv", cases, {}, frozenset(), own=False))
    assert whats(findings) == {"shape.simulated_direction"} and set(findings[0].runs) == {"c16", "c32"}


def test_queueing_by_a_correction_factor():
    """AIC-TTFT: +45 % with 4 clients, then +20, +4, -12, -34, -63 with 128."""
    said = rising(1.0, 0.1)
    errors = (0.45, 0.20, 0.04, -0.12, -0.34, -0.63)
    findings = shape(sweep("ttft_s_mean", [y / (1 + e) for y, e in zip(said, errors)], said))
    drift = next(f for f in findings if f.check == "shape.drift")
    assert drift.fault == "F7" and drift.runs == ("c4", "c128")
    assert "+45 %" in drift.says and "-63 %" in drift.says


@pytest.mark.parametrize(("total", "fires"), [(1.4, False), (1.55, False), (1.7, True), (1 / 1.7, True)])
def test_a_drift_fires_above_its_threshold(total, fires):
    said = rising()
    measured = [y * total ** (i / (len(LOADS) - 1)) for i, y in enumerate(said)]
    assert ("shape.drift" in whats(shape(sweep("tpot_s_mean", measured, said)))) is fires


def test_scatter_is_no_drift():
    said = rising()
    off = np.exp(np.array([0.3, -0.3, 0.2, 0.25, -0.3, 0.1]))
    assert "shape.drift" not in whats(shape(sweep("tpot_s_mean", list(np.array(said) * off), said)))


@given(st.floats(0.1, 1.0), st.floats(1.0, 50.0), st.floats(1e-3, 1e3))
@settings(max_examples=50)
def test_the_knee_of_a_power_law_is_where_it_doubles(exponent, first, level):
    x = first * 2.0 ** np.arange(14)
    expected = first * 2.0 ** (1.0 / exponent)
    found_at = knee(x, level * (x / first) ** exponent)
    assert found_at == (pytest.approx(expected) if expected < x[-1] * (1 - 1e-9) else pytest.approx(expected, rel=1e-6))


def test_a_curve_that_never_doubles_has_no_knee():
    assert knee(np.array([1.0, 2.0, 4.0]), np.array([1.0, 1.5, 1.9])) == math.inf


def test_no_knee_where_the_measurement_has_one():
    measured = [0.010, 0.010, 0.011, 0.020, 0.080, 0.400]
    findings = shape(sweep("ttft_s_mean", measured, [0.010, 0.010, 0.0101, 0.0102, 0.0103, 0.0104]))
    found_knee = next(f for f in findings if f.check == "shape.knee")
    assert found_knee.evidence["simulated_knee"] == math.inf and "beyond the sweep" in found_knee.says
    assert found_knee.evidence["measured_knee"] == pytest.approx(32.0)


def test_a_plateau_on_one_side_only():
    """MESS stages: the measured memory saturates, the simulated one does not."""
    measured, said = [100, 200, 380, 600, 640, 645], [100, 200, 390, 700, 1200, 2200]
    findings = shape(sweep("output_tok_per_s", measured, said))
    plateau = next(f for f in findings if f.check == "shape.plateau")
    assert plateau.fault == "F7" and "measured" in plateau.says.split("plateau")[0]
    assert "shape.plateau" not in whats(shape(sweep("output_tok_per_s", measured, [0.8 * y for y in measured])))


def test_curves_in_another_order():
    long = {"input_tok": 4096.0, "max_model_len": 8192}
    short, slow = rising(0.3, 0.010), rising(0.3, 0.014)

    def both(said_short, said_long):
        return [
            *sweep("tpot_s_mean", short, said_short, name="s"),
            *sweep("tpot_s_mean", slow, said_long, name="l", **long),
        ]

    (order,) = shape(both(slow, short))
    assert order.check == "shape.order" and set(order.runs) == {"s4", "s128", "l4", "l128"}
    assert shape(both(short, slow)) == []
    assert shape(both([0.0101 / 0.010 * y for y in short], short)) == []  # hardly apart: no order


def test_one_finding_for_all_sweeps_of_a_campaign():
    said = rising()
    measured = [y * 2.0 ** (i / 5) for i, y in enumerate(said)]
    cases = [
        c for i in range(4) for c in sweep("tpot_s_mean", measured, said, name=f"m{i}-", input_tok=100.0 * (i + 1))
    ]
    drifts = [f for f in shape(cases) if f.check == "shape.drift"]
    assert len(drifts) == 1 and drifts[0].evidence["sweeps"] == 4 and len(drifts[0].runs) == 8


@pytest.mark.parametrize("n", [0, 1, 2])
def test_too_few_points_have_no_shape(n):
    assert shape(sweep("tpot_s_mean", rising(2.0)[::-1], rising(), loads=LOADS[:n])) == []


def test_runs_without_a_simulated_side_have_none_either():
    records = [
        run(run_id=f"r{i}", model="nobody/knows", concurrency=float(2**i), tpot_s_mean=1.0 / (i + 1)) for i in range(6)
    ]
    assert found("shape", by_hand(records)) == []


def test_power_over_whole_runs_and_first_tokens_over_outputs_have_no_shape():
    said, fallen = rising(0.8), rising(-0.8)
    assert shape(sweep("energy_j_per_output_tok", fallen, said, flags="whole_run_power")) == []
    out = [
        case(
            run(**EMPTY | {"run_id": f"o{tok}", "output_tok": float(tok), "ttft_s_mean": y}),
            simulated={"ttft_s_mean": z},
        )
        for tok, y, z in zip(LOADS, fallen, said)
    ]
    assert shape(out) == []
