"""Figures that stand still: labelled cases by hand, and curves that are flat by right."""

import pytest
from suite_cases import by_hand, case, found, run

from validate.cases import Evidence

EMPTY = dict.fromkeys(
    ("ttft_s_mean", "ttft_s_median", "ttft_s_p99", "tpot_s_mean", "tpot_s_median", "tpot_s_p99", "itl_s_mean",
     "itl_s_median", "itl_s_p99", "e2e_s_mean", "e2e_s_median", "e2e_s_p99", "output_tok_per_s", "total_tok_per_s",
     "duration_s", "batch_mean", "power_w", "energy_j_per_output_tok")
)  # fmt: skip
LOADS = (1, 2, 4, 8, 16, 32)


def sweep(metric, measured, simulated, floor=None, loads=LOADS, own=True, **changes):
    """Runs over load; each argument a function of it."""
    cases = []
    for load in loads:
        record = run(**EMPTY | {"run_id": f"c{load}", "concurrency": float(load), "num_requests": 10 * load,
                                metric: measured(load)} | changes)  # fmt: skip
        cases.append(
            case(record, simulated={metric: simulated(load)}, floor={metric: floor(load)} if floor else None)
        )  # fmt: skip
    made = by_hand(cases)
    return Evidence(made.source, made.cases, {}, frozenset(), own=own)


def busy(load):
    return 0.010 + 0.001 * load


def test_a_latency_that_does_not_react_to_load():
    """MESS-CONST, restated: 25 ns at every level of traffic."""
    (finding,) = found("dead", sweep("itl_s_median", lambda _: 25e-9, busy, lambda load: 5e-9 * load))
    assert (finding.fault, finding.severity, finding.metrics) == ("F5", "fail", ("itl_s_median",))
    assert finding.runs == tuple(f"c{load}" for load in LOADS)
    assert finding.evidence["must_move_fold"] == pytest.approx(1 + 5 * 31 / 25)


@pytest.mark.parametrize(("rise", "fires"), [(0.04, False), (0.12, True)])
def test_a_flat_curve_must_be_one_that_the_floor_forbids(rise, fires):
    """A step of 30 ms whose bytes grow by 1.2 or 3.6 ms: the rest may hide the first, not the second."""

    def said(load):
        return 0.030 + 0.030 * rise * load / 32

    evidence = sweep("itl_s_median", lambda _: 0.030, said, lambda load: said(load) - 0.029)
    assert bool(found("dead", evidence)) is fires


def test_a_curve_within_noise_needs_more_than_one_that_is_equal_to_all_digits():
    def wobble(load):
        return 0.030 * (1.0 + 0.02 * (load % 3 - 1))

    def floor(load):
        return 0.001 + 0.0024 * load / 32

    equal = sweep("itl_s_median", lambda _: 0.030, busy, floor)
    assert len(found("dead", equal)) == 1
    assert found("dead", sweep("itl_s_median", wobble, busy, floor)) == []


def test_power_that_is_the_same_at_every_load():
    def rising(load):
        return 300.0 + 10.0 * load

    (finding,) = [f for f in found("dead", sweep("power_w", lambda _: 91.3, rising)) if "stands" in f.check]
    assert finding.metrics == ("power_w",) and "prediction" in finding.says
    assert found("dead", sweep("power_w", rising, rising)) == []
    assert found("dead", sweep("power_w", lambda _: 691.3, lambda load: 690.0 + 0.1 * load)) == []  # at its cap


@pytest.mark.parametrize("own", [True, False])
def test_a_dead_metric_of_another_simulator_is_found_on_its_side(own):
    evidence = sweep("itl_s_median", busy, busy, lambda load: 0.8 * busy(load), own=own)
    dead = [
        type(c)(c.record, c.prediction, run(**EMPTY | {"run_id": c.id, "itl_s_median": 0.02})) for c in evidence.cases
    ]  # fmt: skip
    findings = found("dead", Evidence("runs.csv", dead, {}, frozenset(), own=own))
    assert {f.check for f in findings} == (set() if own else {"dead.stands_still"})
    assert all("simulated" in f.says for f in findings)


def columns(ratio, n=8):
    """ER-TTFT5: a first token that is a share of the total, in runs of several lengths."""
    cases = []
    for i in range(n):
        total = 1.0 + 0.7 * i
        named = {"run_id": f"r{i}", "output_tok": 100.0 * (i + 1), "max_model_len": 4096 + i}
        record = run(**EMPTY | named | {"e2e_s_mean": total, "ttft_s_mean": ratio(i) * total})
        cases.append(case(record, simulated={"e2e_s_mean": total, "ttft_s_mean": 0.05}))
    return by_hand(cases)


def test_a_column_that_is_five_percent_of_another_was_never_measured():
    (finding,) = found("dead", columns(lambda _: 0.05))
    assert finding.check == "dead.constant_ratio" and finding.metrics == ("ttft_s_mean", "e2e_s_mean")
    assert finding.evidence["value"] == pytest.approx(0.05) and len(finding.runs) == 8


def test_a_ratio_that_moves_or_has_few_runs_or_is_one_figure_by_definition_is_silent():
    assert found("dead", columns(lambda i: 0.05 + 0.001 * i)) == []
    assert found("dead", columns(lambda _: 0.05, n=4)) == []
    same = []
    for i in range(8):
        figures = {"e2e_s_mean": 1.0 + i, "duration_s": 1.0 + i}
        record = run(**EMPTY | {"run_id": f"r{i}", "max_model_len": 4096 + i} | figures)
        same.append(case(record, simulated={"e2e_s_mean": 1.0 + i, "duration_s": 2.0 + 3 * i}))
    assert found("dead", by_hand(same)) == []


@pytest.mark.parametrize("loads", [(), (4,), (4, 8)])
def test_too_few_runs_say_nothing(loads):
    assert found("dead", sweep("itl_s_median", lambda _: 25e-9, busy, lambda load: 5e-9 * load, loads)) == []


def test_what_cannot_be_simulated_says_nothing():
    records = [run(run_id=f"r{i}", model="nobody/knows", concurrency=float(2**i), power_w=91.0) for i in range(8)]
    assert found("dead", by_hand(records)) == []
