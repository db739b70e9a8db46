"""Whether what counts as a test was seen by the fit, is counted twice, or was copied from the other side."""

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from suite_cases import by_hand, case, found, numbered, predicted, run

from calibration.records import METRICS, read_records
from calibration.vendored import DIRECTORY
from validate.cases import Case, Evidence

SHIPPED = read_records(DIRECTORY / "modelcards_vllm.csv")
ORIN = next(
    r
    for r in read_records(DIRECTORY / "edgereasoning.csv")
    if r.power_w and r.tpot_s_mean and not r.flagged("suspect:")
)  # a row of the fit, with figures in many digits


def checks(evidence):
    return {f.check.removeprefix("independence."): f for f in found("independence", evidence)}


def only_metrics(**figures):
    return dict.fromkeys(METRICS) | figures


# ---- seen by the fit


def test_calibration_data_under_their_own_name_are_labelled_and_raise_no_alarm():
    said = checks(predicted([*SHIPPED[:3], run()]))
    assert set(said) == {"in_sample"}
    assert said["in_sample"].severity == "note" and said["in_sample"].runs == tuple(r.run_id for r in SHIPPED[:3])
    assert said["in_sample"].evidence == {"in_sample": 3, "runs": 4}


@pytest.mark.parametrize("changes", [{"run_id": "mine"}, {"source": "me"}, {"run_id": "mine", "flags": "checked"}])
def test_calibration_data_under_another_name_are_found_by_content(changes):
    original = ORIN
    said = checks(predicted([msgspec.structs.replace(original, **changes)]))
    assert said["seen_by_fit"].severity == "warn" and said["seen_by_fit"].evidence["original"] == original.run_id
    assert "in_sample" not in said


def test_a_coarse_row_is_recognised_by_its_source():
    """A single figure of two digits says little, but under the same source it is the same row."""
    renamed, moved = ([msgspec.structs.replace(SHIPPED[0], **c)] for c in ({"run_id": "mine"}, {"source": "me"}))
    assert "seen_by_fit" in checks(predicted(renamed))
    assert checks(predicted(moved)) == {}


def test_a_whole_table_of_coarse_rows_is_recognised_under_any_name():
    rows = [msgspec.structs.replace(r, run_id=f"r{i}", source="me") for i, r in enumerate(SHIPPED[:30])]
    assert len(checks(predicted(rows))["seen_by_fit"].runs) == 30
    # The same grid measured anew, printed as coarsely: four of ten figures agree.
    anew = [msgspec.structs.replace(r, e2e_s_mean=r.e2e_s_mean + 0.1 * (i % 5 > 1)) for i, r in enumerate(rows)]
    assert "seen_by_fit" not in checks(predicted(anew))


def test_rounding_hides_no_row_of_the_fit():
    original = ORIN
    rounded = {name: float(f"{x:.4g}") for name, x in original.measured().items()}
    assert "seen_by_fit" in checks(predicted([msgspec.structs.replace(original, run_id="mine", **rounded)]))


def test_an_own_measurement_of_the_same_configuration_is_independent():
    original = ORIN
    measured = {name: x * 1.004 for name, x in original.measured().items()}
    assert checks(predicted([msgspec.structs.replace(original, run_id="mine", source="me", **measured)])) == {}


# ---- counted twice


def test_one_measurement_under_two_ids():
    finding = checks(by_hand([run(run_id="a"), run(run_id="b", flags=None, source="other"), run(run_id="c", tp=2)]))[
        "twins"
    ]
    assert finding.severity == "warn" and finding.runs == ("a", "b") and finding.fault == "F12"


@settings(max_examples=50, deadline=None)
@given(st.floats(1e-6, 0.05), st.booleans())
def test_a_repeat_is_no_twin(off, longer):
    """A/A repeats differ, if only in the sixth digit."""
    factor = 1.0 + off if longer else 1.0 - off
    figures = {name: x * factor for name, x in run().measured().items()}
    assert checks(by_hand(numbered([run(), run(**figures)]))) == {}


@pytest.mark.parametrize(
    ("figures", "alike"),
    [
        ({"e2e_s_mean": 0.81234567}, False),  # one figure may be printed from few digits
        ({"e2e_s_mean": 0.8, "ttft_s_mean": 0.05}, False),  # two digits are alike by noise alone
        ({"e2e_s_mean": 0.812, "ttft_s_mean": 0.0512}, False),  # one in a hundred pairs
        ({"e2e_s_mean": 0.8123, "ttft_s_mean": 0.05123}, True),
    ],
)
def test_equality_must_be_beyond_chance(figures, alike):
    records = numbered([run(**only_metrics(**figures))] * 2)
    assert ("twins" in checks(by_hand(records))) is alike


def test_figures_that_follow_from_others_do_not_count():
    figures = {"e2e_s_mean": 0.8123, "ttft_s_mean": 0.05123}
    derived = run(**only_metrics(**figures), flags="derived:ttft_s_mean")
    assert checks(by_hand(numbered([derived] * 2))) == {}


def test_the_same_figures_under_two_configurations():
    finding = checks(by_hand([run(run_id="a"), run(run_id="b", concurrency=32)]))["copies"]
    assert finding.runs == ("a", "b") and finding.also == ("F6",) and "2 configurations" in finding.says
    few = only_metrics(tpot_s_mean=0.0247, power_w=25.431)
    assert checks(by_hand([run(run_id="a", **few), run(run_id="b", concurrency=32, **few)])) == {}


# ---- copied from the measurement


def pair(simulated, *, own=False, measured=None):
    ours = case(measured or run(), simulated=simulated)
    return Evidence("runs.csv", [Case(ours.record, ours.prediction, ours.simulated)], {}, frozenset(), own)


def test_a_simulation_that_equals_the_measurement_in_every_digit_is_a_copy():
    figures = run().measured()
    finding = checks(pair(figures))["copied"]
    assert finding.severity == "fail" and set(finding.metrics) == set(figures)
    assert checks(pair(figures, own=True)) == {}  # ours never reads a measurement


def test_one_figure_that_differs_and_it_is_a_simulation():
    figures = run().measured() | {"tpot_s_mean": 0.0101}
    assert checks(pair(figures)) == {}


def test_few_round_figures_may_agree_by_chance():
    measured = run(**only_metrics(tpot_s_mean=0.01, ttft_s_mean=0.3))
    assert checks(pair(measured.measured(), measured=measured)) == {}


def test_runs_without_figures_are_no_twins():
    assert checks(by_hand(numbered([run(**only_metrics())] * 3))) == {}
    assert checks(by_hand([])) == {}
