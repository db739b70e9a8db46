"""The documented cases: which class is named, on which numbers; and views that lie inside each other."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from validate.views import ROUNDING, nested

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "examples"
sys.path.append(str(EXAMPLES))  # scripts: what they share lies beside them
SHARED = importlib.import_module("case_studies")
NAMES = sorted(path.stem for path in EXAMPLES.glob("case_*.py") if path.stem != "case_studies")


@cache
def story(name):
    """What a script makes, without printing it."""
    return importlib.import_module(name).study()


def alarms(told):
    """Findings that are more than notes, by check, as JSON has them."""
    return {f["check"]: f for f in json.loads(json.dumps(told["findings"])) if f["severity"] != "note"}


# ---- the cases


def test_a_fit_beyond_its_range_is_an_extrapolation():
    told = story("case_edgereasoning_prefill")
    assert told.figures["fit_s_4097"] == pytest.approx(12.4, abs=0.05)
    found = alarms(told.verdicts[0])
    beyond = found.pop("extrapolation.beyond_range")
    assert (beyond["fault"], beyond["severity"], beyond["confidence"]) == ("F10", "fail", "certain")
    assert beyond["evidence"]["measured"] == 3.51214 and beyond["evidence"]["ratio"] == pytest.approx(3.54, abs=0.01)
    assert beyond["evidence"]["factor_outside"] == pytest.approx(4097 / 1152)
    assert len(beyond["runs"]) == 21 and all(int(run.split("-")[-1]) > 1152 for run in beyond["runs"])
    assert "12.4 s, 3.51 were measured" in beyond["says"]
    # A fit without its range is seen by its shape alone.
    assert {f["fault"] for f in found.values()} <= {"F7"}
    inside, outside, again = (value for name, value in told.figures.items() if "prompts" in name)
    assert inside < 0.15 and outside > 0.9 and again < 0.06  # documented: a fit over all points 1.6 to 5.8 %


def test_power_between_the_samples_is_an_invalid_run():
    told = story("case_edgereasoning_prefill")
    assert told.figures["power_w_short"] == pytest.approx(5.7, abs=0.05)  # that of an idle board
    short = alarms(told.verdicts[1])["energy_window.short"]
    assert (short["fault"], short["severity"], short["metrics"]) == ("F9", "fail", ["power_w"])
    assert short["evidence"]["window_s"] == 0.10822 and short["evidence"]["window_s_least"] == 5.0
    assert len(short["runs"]) == 32  # all but the outlier, which took 22 s and is seen by its neighbours
    assert alarms(told.verdicts[1]).keys() == {"energy_window.short", "neighbours.off_the_curve"}
    assert told.verdicts[1]["status"] == {"refused: F9": 33}


def test_rows_limited_by_the_host_are_invalid_runs():
    told = story("case_host_bound_b200")
    found = alarms(told.verdicts[0])
    waiting, campaign, turned = (
        found[name] for name in ("host_bound.waiting", "host_bound.campaign", "shape.direction")
    )
    assert waiting["fault"] == campaign["fault"] == turned["fault"] == "F9" and "F7" in waiting["also"]
    assert waiting["evidence"]["time_against_fast_quarter"] > 3.0 and waiting["evidence"]["measured_time_s"] > 0.03
    assert "falls and rises again" in turned["says"]
    assert told.figures["labelled"] == 87 and told.figures["named"] == 87
    assert len(waiting["runs"]) == told.figures["named_one_by_one"] >= 30
    # One batch, two tasks: what the story tells.
    assert told.figures["itl_s_science_16"] > 3.5 * told.figures["itl_s_chat_16"]


def test_the_suite_does_not_see_what_the_collector_thought():
    records = SHARED.read_records(SHARED.RUNS / "mlenergy_suspect.csv")
    assert all(record.flagged("suspect:") for record in records)
    kept = [SHARED.unmarked(record)["flags"] for record in records]
    assert not any(doubt in flags for flags in kept for doubt in ("suspect:", "ambiguous:"))
    assert all("steady_window" in flags for flags in kept)


def test_another_number_of_kv_blocks_is_another_system():
    told = story("case_kv_blocks")
    for name, published in (("ttft_s_mean", -20.7), ("tpot_s_mean", 12.9), ("e2e_s_mean", -12.5)):
        assert told.figures[name] == pytest.approx(published, abs=2.0)
        assert abs(told.figures[f"{name}_matched"]) < 1.0
    other, matched = told.verdicts
    [finding] = alarms(other).values()
    assert (finding["check"], finding["fault"]) == ("configuration.kv_capacity", "F1")
    assert (finding["layer"], finding["severity"], finding["confidence"]) == ("configuration", "fail", "certain")
    assert finding["evidence"]["measured_tok"] == 41408.0
    assert finding["evidence"]["simulated_tok"] == pytest.approx(54400.0)
    # It stops at the configuration, before any error is stated.
    assert other["status"] == {"refused: F1": 1} and told.figures["judged_3400"] == []
    assert alarms(matched) == {} and told.figures["judged_2588"] == ["ttft_s_mean", "tpot_s_mean", "e2e_s_mean"]


def test_two_definitions_of_one_word():
    told = story("case_two_tpots")
    assert told.figures["raw_s"] == pytest.approx(0.0298)
    assert told.figures["imported_s"] == pytest.approx([0.020] * 3)
    imported, by_hand = told.verdicts
    assert alarms(imported) == {}
    finding = alarms(by_hand)["definitions.tpot_first_token"]
    assert (finding["fault"], finding["severity"], finding["confidence"]) == ("F5", "fail", "certain")
    assert finding["runs"] == ["guidellm"]
    assert finding["evidence"]["tpot_s_mean"] == pytest.approx(0.0298)
    assert finding["evidence"]["tpot_s_of_definition"] == pytest.approx(0.020)
    assert by_hand["status"]["refused: F5"] == 1
    assert all(f["runs"] == ["guidellm"] for f in alarms(by_hand).values())  # vLLM's row is left alone


STAGES = (
    ("mismatch", {"F2", "F3", "F6"}, "1.575 (processor for memory clock)"),
    ("mismatch", {"F2", "F6"}, "0.7875 (processor for memory clock, its divider rounded up to 2)"),
    ("mismatch", {"F5", "F6"}, None),  # bounds and ratio are fine: seen by the order of two latencies only
    *(("consistent", set(), None),) * 4,
    *(("unverifiable", set(), None),) * 2,  # a view is missing: neither passed nor refused
)


def test_nine_stages_of_a_memory_simulator():
    stages = story("case_memory_clock").figures
    assert len(stages) == len(STAGES)
    for (name, stage), (verdict, classes, factor) in zip(stages.items(), STAGES):
        assert (stage["verdict"], set(stage["classes"])) == (verdict, classes), name
        assert stage["factor"] == factor and stage["agrees"], name


# ---- what they share


def test_every_case_is_in_the_list_and_on_the_page():
    assert sorted(Path(name).stem for name in SHARED.CASES) == NAMES
    written = (ROOT / "docs" / "case-studies.md").read_text(encoding="utf-8")
    for name in NAMES:
        assert SHARED.title_of(story(name).doc) in written and f"$ python examples/{name}.py" in written
        for told in story(name).verdicts:
            assert all(check in written for check in alarms(told)), "make docs writes the page again"


def test_json_is_one_object():
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / "case_memory_clock.py"), "--json"], capture_output=True, text=True, check=True
    )
    told = json.loads(done.stdout)
    assert told.keys() == {"title", "figures", "verdicts"} and told["figures"] == story("case_memory_clock").figures


# ---- nesting

TIMES = st.lists(st.floats(1e-9, 1e9), min_size=1, max_size=20)


@given(TIMES, st.floats(0.0, 100.0), st.floats(1e-3, 1e3))
def test_a_whole_is_at_least_its_part_in_any_unit(inner, rest, unit):
    outer = [time * (1.0 + rest) for time in inner]
    assert nested(outer, inner).verdict == "holds"
    found = nested([time * unit for time in outer], [time * unit for time in inner])
    assert (found.verdict, found.n, found.violations) == ("holds", len(inner), 0)


@given(TIMES, st.integers(0, 19))
def test_one_part_above_its_whole_is_found(inner, at):
    at %= len(inner)
    outer = [time * (0.9 if i == at else 1.1) for i, time in enumerate(inner)]
    found = nested(outer, inner)
    assert (found.verdict, found.violations, found.worst) == ("violated", 1, pytest.approx(0.9))


def test_rounding_is_no_violation():
    assert nested([100.0], [100.0 * (1.0 + 0.9 * ROUNDING)]).verdict == "holds"
    assert nested([100.0], [100.0 * (1.0 + 1.1 * ROUNDING)]).verdict == "violated"
    assert nested([100.0], [101.0], margin=0.0).verdict == "violated"


@pytest.mark.parametrize(
    "outer, inner", [(None, [1.0]), ([1.0], None), ([], []), ([None], [1.0]), ([0.0], [1.0]), ([float("nan")], [1.0])]
)
def test_a_missing_view_is_never_fine(outer, inner):
    assert nested(outer, inner).verdict == "unverifiable"


def test_points_without_a_partner_are_left_out():
    found = nested([2.0, None, float("inf"), 3.0], [1.0, 1.0, 1.0, None])
    assert (found.verdict, found.n, found.worst) == ("holds", 1, 2.0)
    with pytest.raises(ValueError):
        nested([1.0, 2.0], [1.0])
