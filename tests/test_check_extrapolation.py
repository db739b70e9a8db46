"""What is asked of a calibration beyond what it was fitted on, and of this version beyond its range."""

from dataclasses import replace

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from suite_cases import by_hand, case, found, predicted, run

from calibration.records import read_records
from calibration.vendored import DIRECTORY
from validate.cases import Case, Evidence
from validate.checks.extrapolation import beyond_range
from validate.suite import Verdict, run_checks

CARDS = [r for r in read_records(DIRECTORY / "modelcards_vllm.csv") if r.gpu == "a6000"]


def checks(evidence):
    return {f.check.removeprefix("extrapolation."): f for f in found("extrapolation", evidence)}


def of_cards(**changes):
    """A run like those that the profile of the A6000 was fitted on."""
    return msgspec.structs.replace(CARDS[0], run_id="new", source="me", **changes)


# ---- labels


def test_a_run_within_the_fit_raises_nothing():
    assert checks(predicted([of_cards(e2e_s_mean=0.9)])) == {}


def test_each_way_outside_is_one_note_with_the_worst_run():
    notes = ("batch of 1,024 sequences; fitted up to 768", "batch of 2,048 sequences; fitted up to 768")
    cases = []
    for i, note in enumerate((*notes, "int4 weights; fitted on bf16")):
        made = case(run(run_id=f"r{i}"))
        cases.append(Case(made.record, replace(made.prediction, notes=(note,), status="extrapolated")))
    findings = found("extrapolation", by_hand(cases))
    assert [(f.runs, f.severity) for f in findings] == [(("r0", "r1"), "note"), (("r2",), "note")]
    assert findings[0].evidence["worst_run"] == "r1" and "2,048" in findings[0].says


def test_unsupported_runs_are_grouped_by_reason():
    """F13: refused, not approximated."""
    records = [run(run_id="a", concurrency=None), run(run_id="b", concurrency=None), run(run_id="c", input_tok=None)]
    findings = found("extrapolation", by_hand(records))
    assert {f.runs for f in findings} == {("a", "b"), ("c",)}
    assert all((f.fault, f.severity) == ("F13", "note") for f in findings)
    assert "concurrency not stated" in findings[0].says


# ---- against the rows of the fit


def test_a_combination_that_was_never_measured_is_found_inside_all_ranges():
    """Two tokens of output: below all that the fit has, which no range of a profile says."""
    lonely = of_cards(input_tok=min(r.input_tok for r in CARDS), output_tok=2.0, e2e_s_mean=0.05)
    assert lonely.output_tok < min(r.output_tok for r in CARDS)
    evidence = predicted([lonely])
    assert evidence.cases[0].prediction.status == "ok"
    finding = checks(evidence)["leverage"]
    assert (finding.severity, finding.fault) == ("note", "F10")
    assert finding.evidence["leverage"] > finding.evidence["leverage_limit"]
    assert finding.evidence["distance_sd"] > finding.evidence["distance_limit_sd"]


def test_rows_of_the_fit_are_no_extrapolation():
    assert checks(predicted(CARDS[:20])) == {}


def test_a_regime_that_no_fitted_run_was_in():
    """X2: the cards ran one request at a time; here the KV cache decides how many run."""
    full = of_cards(load="burst", concurrency=None, num_requests=8, kv_capacity_tok=1024.0, e2e_s_mean=3.0)
    findings = [f for f in found("extrapolation", predicted([full])) if "regime" in f.evidence]
    assert {f.evidence["regime"].partition(",")[0] for f in findings} == {
        "the KV cache", "requests wait for each other before their first token",
    }  # fmt: skip
    waits = next(f for f in findings if f.evidence["regime"].startswith("requests wait"))
    assert waits.severity == "note"  # the spread of served first tokens allows for it


def test_a_regime_that_was_never_calibrated_makes_the_status_of_a_run():
    full = of_cards(load="burst", concurrency=None, num_requests=8, kv_capacity_tok=1024.0, e2e_s_mean=3.0)
    evidence = predicted([full])
    (made,) = evidence.cases
    evidence = replace(evidence, cases=[replace(made, prediction=replace(made.prediction, status="ok", notes=()))])
    verdict = run_checks(evidence, ["extrapolation"])
    assert {f.check: f.severity for f in verdict.findings if "regime" in f.evidence} == {
        "extrapolation.regime": "note", "extrapolation.allowed_for": "note",
    }  # fmt: skip
    assert verdict.status(evidence.cases[0]) == "extrapolated"
    queued = [f for f in verdict.findings if f.check == "extrapolation.allowed_for"]
    assert Verdict(evidence, tuple(queued)).status(evidence.cases[0]) == "ok"  # the interval knows of queues


def test_another_simulators_stated_range():
    rows = [
        msgspec.structs.replace(of_cards(), run_id=f"r{tok}", input_tok=float(tok), ttft_s_mean=1.0)
        for tok in (200, 1000, 4096)
    ]
    evidence = predicted(rows)
    said = [replace(c, simulated=msgspec.structs.replace(c.record, ttft_s_mean=3.0, flags="fitted:input_tok:1:1152"))
            for c in evidence.cases]  # fmt: skip
    (finding,) = found("extrapolation", replace(evidence, cases=said, own=False))
    assert (finding.check, finding.severity, finding.runs) == ("extrapolation.beyond_range", "fail", ("r4096",))
    assert "used at 4096 tokens" in finding.says and "it says 3 s, 1 were measured" in finding.says
    inside = replace(evidence, cases=said[:2], own=False)
    assert found("extrapolation", inside) == []


def test_a_fit_whose_rows_are_not_at_hand_is_unverified():
    evidence = predicted([of_cards(e2e_s_mean=0.9)])
    ((name, profile),) = evidence.profiles.items()
    other = msgspec.structs.replace(
        profile, fitted_on=msgspec.structs.replace(profile.fitted_on, row_hashes=("0" * 12,) * 63)
    )
    finding = checks(replace(evidence, profiles={name: other}))["fit_not_at_hand"]
    assert finding.severity == "note" and "unverified" in finding.says


def test_nothing_to_look_at_raises_nothing():
    assert found("extrapolation", Evidence("runs.csv", [], {}, frozenset())) == []


# ---- formulas of others


def test_a_published_fit_used_at_four_times_its_longest_prompt():
    """ER-EXTRA: fitted on prompts up to about 1.1k, 12.4 s predicted at 4,096 tokens, 3.51 s measured."""
    finding = beyond_range(
        {"p512": 512, "p4096": 4096}, 1, 1100, name="prompt", unit="tokens", claimed=True, metrics=("ttft_s_mean",),
        predicted={"p4096": 12.4, "p512": 0.5}, measured={"p4096": 3.51, "p512": 0.5}, figure_unit="s",
    )  # fmt: skip
    assert (finding.severity, finding.fault, finding.runs) == ("fail", "F10", ("p4096",))
    assert finding.evidence["ratio"] == pytest.approx(3.53, abs=0.01)
    assert "12.4 s" in finding.says and "3.51" in finding.says and "3.7 times" in finding.says


@settings(max_examples=100, deadline=None)
@given(st.floats(1.0, 1e3), st.floats(1.0, 100.0), st.floats(0.01, 100.0))
def test_only_what_is_outside_by_a_tenth_counts(low, width, at):
    high = low * width
    x = low * at
    outside = max(low / x, x / high) > 1.1
    finding = beyond_range({"a": x}, low, high, name="x", unit="tokens", claimed=False)
    assert (finding is not None) is outside
    if finding:
        assert finding.severity == "warn" and np.isfinite(finding.evidence["factor_outside"])


def test_the_farthest_run_is_shown_where_nothing_was_measured():
    finding = beyond_range({"a": 20.0, "b": 0.1, "c": 5.0}, 1.0, 10.0, name="x", unit="tokens", claimed=False)
    assert finding.runs == ("a", "b") and finding.evidence["worst_run"] == "b"


@pytest.mark.parametrize("bounds", [(0.0, 1.0), (-1.0, 1.0), (2.0, 1.0)])
def test_a_range_that_is_none_is_refused(bounds):
    with pytest.raises(ValueError, match="range of a fit"):
        beyond_range({"a": 1.0}, *bounds, name="x", unit="tokens", claimed=True)
