"""Errors in the mass: labelled cases by hand, groups and their verdicts, regimes by arithmetic."""

import json
import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from suite_cases import by_hand, case, found, predicted, run, whats

from validate.checks.error import error_groups
from validate.error_groups import hidden_by_mean
from validate.regimes import REGIMES, Regimes

EMPTY = dict.fromkeys(
    ("ttft_s_mean", "ttft_s_median", "ttft_s_p99", "tpot_s_mean", "tpot_s_median", "tpot_s_p99", "itl_s_mean",
     "itl_s_median", "itl_s_p99", "e2e_s_mean", "e2e_s_median", "e2e_s_p99", "output_tok_per_s", "total_tok_per_s",
     "duration_s", "batch_mean", "power_w", "energy_j_per_output_tok")
)  # fmt: skip


def off(errors, metric="ttft_s_mean", model="Qwen/Qwen3-8B", **changes):
    """Cases with these errors (simulated / measured - 1), every one of another length."""
    return [
        case(
            run(
                **EMPTY | {"run_id": f"{model[-2:]}{i}", "model": model, "input_tok": 500.0 + i, metric: 1.0} | changes
            ),
            simulated={metric: 1.0 + error},
        )
        for i, error in enumerate(errors)
    ]


def every(case, metric):
    return True


def groups(cases, judged=every):
    return error_groups(by_hand(cases), judged)


@pytest.mark.parametrize(
    ("bias", "mape", "p90", "hidden"),
    [
        (-0.040, 0.108, 0.266, True),  # LSS-AGG
        (-0.136, 0.218, 0.391, True),  # its other case
        (0.014, 0.016, 0.03, False),  # its TPOT: 0.8 to 1.9 %
        (-0.20, 0.21, 0.30, False),  # an honest bias
        (0.0, 0.09, 0.3, False),
    ],
)
def test_what_a_mean_hides(bias, mape, p90, hidden):
    assert hidden_by_mean(bias, mape, p90) is hidden


def test_errors_whose_signs_cancel_are_said_of_the_group_and_of_no_run():
    errors = [-0.30, 0.25] * 10
    theirs = replace(by_hand(off(errors)), own=False)
    (finding,) = [f for f in found("error", theirs) if f.check == "error.signs_cancel"]
    assert (finding.fault, finding.severity, finding.runs) == ("F14", "warn", ())
    (ours,) = [f for f in found("error", by_hand(off(errors))) if f.check == "error.signs_cancel"]
    assert ours.severity == "note"  # our report gives the size beside the mean
    assert finding.evidence["bias"] == pytest.approx(-0.025) and finding.evidence["mape"] == pytest.approx(0.275)


@pytest.mark.parametrize("errors", [[0.2] * 20, [0.02, -0.03] * 10, [-0.30, 0.25] * 4, []])
def test_bias_noise_and_few_runs_hide_nothing(errors):
    assert "error.signs_cancel" not in whats(found("error", by_hand(off(errors))))


def test_repeats_as_far_apart_as_the_errors_explain_them():
    cases = off([-0.30, 0.25] * 10, rel_noise=0.15)
    assert "error.signs_cancel" not in whats(found("error", by_hand(cases)))


def test_a_p99_of_few_requests_is_noted():
    (note,) = found("error", by_hand(off([0.0], "ttft_s_p99", num_requests=458)))
    assert (note.check, note.severity, note.evidence["needed"]) == ("error.p99_support", "note", 459.0)
    assert found("error", by_hand(off([0.0], "ttft_s_p99", num_requests=459))) == []
    assert found("error", by_hand(off([0.0], "itl_s_p99", num_requests=10))) == []  # of gaps there are many
    assert found("error", by_hand(off([0.0], "ttft_s_p99", num_requests=None))) == []


AIC_TTFT = {4: 0.45, 8: 0.20, 16: 0.04, 32: -0.12, 64: -0.34, 128: -0.63}  # bias of TTFT by concurrency


def loads(errors, models=("Qwen/Qwen3-8B", "Qwen/Qwen3-14B", "Qwen/Qwen3-32B")):
    return [
        case(
            run(**EMPTY | {"run_id": f"{model}{c}", "model": model, "concurrency": float(c), "num_requests": 10 * c,
                           "ttft_s_mean": 0.01 * c}),
            simulated={"ttft_s_mean": 0.01 * c * (1.0 + error)},
        )
        for model in models
        for c, error in errors.items()
    ]  # fmt: skip


def test_queueing_by_a_correction_factor_drifts_with_load():
    (drift,) = [f for f in found("error", by_hand(loads(AIC_TTFT))) if f.check == "error.slope_in_load"]
    assert (drift.fault, drift.severity, drift.runs) == ("F7", "warn", ())
    assert drift.evidence["kendall_tau"] == -1.0 and drift.evidence["factor_over_a_sweep"] < 0.5


def test_a_small_drift_is_a_note_and_a_constant_error_none():
    small = {c: 0.05 * i for i, c in enumerate(AIC_TTFT)}
    (note,) = [f for f in found("error", by_hand(loads(small))) if f.check == "error.slope_in_load"]
    assert note.severity == "note"
    assert found("error", by_hand(loads(dict.fromkeys(AIC_TTFT, 0.3)))) == []


def test_a_group_counts_one_figure_of_a_family_and_says_how_it_compares():
    cases = off([0.01, -0.02, 0.03, 0.0, 0.01, -0.01])
    (group,) = groups(cases)
    assert (group.gpu, group.load, group.metric) == ("h100-sxm", "closed_loop", "TTFT")
    assert (group.errors.n, group.margin, group.equivalence, group.verdict) == (6, 0.15, "pass", "consistent")
    assert group.regime in REGIMES and group.noise_origin == "assumed" and group.budget.total == pytest.approx(0.03)


@pytest.mark.parametrize(
    ("errors", "verdict"),
    [
        ([0.5, 0.55, 0.6, 0.45, 0.5], "mismatch"),
        ([0.1, 0.2, 0.3, 0.0, 0.2], "inconclusive"),
        ([0.5, 0.5], "inconclusive"),  # too few runs for a mean
        ([-0.4] * 8, "mismatch"),
    ],
)
def test_verdicts(errors, verdict):
    assert groups(off(errors))[0].verdict == verdict


def test_no_error_within_the_noise_of_repeats_is_a_mismatch():
    assert groups(off([0.3] * 8, rel_noise=0.01))[0].verdict == "mismatch"
    assert groups(off([0.3] * 8, rel_noise=0.4))[0].verdict == "inconclusive"


def test_only_what_may_be_judged_is_in_a_group():
    cases = off([0.0] * 5 + [9.0])
    refused = cases[-1].id
    (group,) = groups(cases, lambda case, metric: case.id != refused)
    assert group.errors.n == 5 and group.errors.p90.value == 0.0
    assert groups(cases, lambda case, metric: False) == []


def test_models_of_one_machine_share_their_error():
    shared = [c for name, e in (("Qwen/Qwen3-8B", 0.1), ("Qwen/Qwen3-14B", -0.1)) for c in off([e] * 10, model=name)]
    (group,) = groups(shared)
    assert (group.errors.n, group.errors.groups) == (20, 2)
    assert group.errors.bias.low == pytest.approx(-0.1) and group.errors.bias.high == pytest.approx(0.1)


def test_figures_of_another_scope_or_under_two_names_are_left_out():
    rail = off([0.0] * 3, "power_w", power_scope="module")
    assert groups(rail) == []
    assert [g.metric for g in groups(off([0.0] * 3, "power_w", flags="whole_run_power"))] == ["power, whole run"]
    one = [
        case(run(**EMPTY | {"output_tok": 1.0, "ttft_s_mean": 1.0, "e2e_s_mean": 1.0}),
             simulated={"ttft_s_mean": 1.0, "e2e_s_mean": 1.0})
    ]  # fmt: skip
    assert [g.metric for g in groups(one)] == ["TTFT"]


def test_the_pick_of_the_simulator_and_whether_there_is_one():
    def on(gpus, measured, said):
        record = run(**EMPTY | {"run_id": f"g{gpus}", "n_gpus": gpus, "tp": gpus, "tpot_s_mean": measured})
        return case(record, simulated={"tpot_s_mean": said})

    (group,) = groups([on(1, 0.010, 0.008), on(2, 0.008, 0.010)])
    assert group.regret == pytest.approx(0.25) and group.snr == pytest.approx(0.002 / 0.009 / 0.03)


def test_a_group_is_plain_json_and_the_same_every_time():
    cases = off([0.1, -0.1, 0.2])
    text = json.dumps([g.to_dict() for g in groups(cases)], allow_nan=False)
    assert text == json.dumps([g.to_dict() for g in groups(cases)], allow_nan=False)
    assert json.loads(text)[0]["regret"] is None


def regime(metric, **changes):
    (made,) = predicted([run(**changes)]).cases
    return Regimes().of(made, metric)


@pytest.mark.parametrize(
    ("metric", "changes", "expected"),
    [
        ("tpot_s_mean", {}, "memory"),  # 16 sequences of an 8B: weights are read for few operations
        ("ttft_s_mean", {"concurrency": 1.0, "num_requests": 4, "input_tok": 6000.0}, "compute"),
        ("ttft_s_mean", {"concurrency": 128.0, "num_requests": 200}, "overload"),  # 64 may run
        ("tpot_s_mean", {"concurrency": 128.0, "num_requests": 200}, "memory"),  # which gaps do not see
        ("tpot_s_mean", {"kv_capacity_tok": 8000.0}, "KV-saturated"),
        ("tpot_s_mean", {"model": "HuggingFaceTB/SmolLM2-135M-Instruct", "concurrency": 1.0, "num_requests": 4,
                         "input_tok": 64.0, "output_tok": 32.0}, "launch"),
        ("tpot_s_mean", {"model": "nobody/knows"}, "unknown"),
    ],
)  # fmt: skip
def test_regimes_by_arithmetic(metric, changes, expected):
    assert regime(metric, **changes) == expected


def test_messages_set_the_pace_of_long_prompts_over_pcie():
    prompt = {"concurrency": 1.0, "num_requests": 4, "input_tok": 6000.0, "n_gpus": 4, "tp": 4}
    assert regime("ttft_s_mean", gpu="l40s", **prompt) == "communication"
    assert regime("ttft_s_mean", gpu="h100-sxm", **prompt) != "communication"


def test_an_open_loop_beyond_what_can_be_served_is_overload():
    loop = {"load": "open_loop", "concurrency": None, "num_requests": 300}
    assert regime("tpot_s_mean", **loop, request_rate_rps=200.0) == "overload"
    assert regime("tpot_s_mean", **loop, request_rate_rps=1.0) == "memory"


def test_odd_data_say_nothing():
    assert found("error", by_hand([])) == []
    unknown = by_hand([run(model="nobody/knows", num_requests=500)])
    assert found("error", unknown) == [] and error_groups(unknown, every) == []
    (single,) = groups(off([0.1]))
    assert single.errors.bias.value == pytest.approx(0.1) and math.isnan(single.errors.bias.low)


figures = st.one_of(st.none(), st.floats(1e-9, 1e12), st.sampled_from([0.01, 0.02, 1e-9]))


@given(st.lists(st.tuples(*[figures] * 8), min_size=8, max_size=16))
@settings(max_examples=60, deadline=None)
def test_no_figure_makes_a_check_raise(rows):
    names = ("ttft_s_mean", "tpot_s_mean", "itl_s_median", "itl_s_p99", "e2e_s_mean", "output_tok_per_s", "power_w",
             "energy_j_per_output_tok")  # fmt: skip
    cases = []
    for i, row in enumerate(rows):
        values = dict(zip(names, row))
        record = run(**EMPTY | {"run_id": f"r{i}", "concurrency": float(1 + i // 2), "num_requests": 100} | values)
        said = {name: value for name, value in zip(names, reversed(row)) if value is not None}
        cases.append(case(record, simulated=said, floor=said))
    evidence = by_hand(cases)
    for name in ("dead", "shape", "neighbours", "host_bound", "error"):
        for finding in found(name, evidence):
            assert set(finding.runs) <= {case.id for case in cases} and json.dumps(finding.to_dict())
    assert all(json.dumps(group.to_dict(), allow_nan=False) for group in error_groups(evidence, every))
