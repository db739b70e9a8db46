"""What a record must say so that its figures can be made again: always a note, never an alarm."""

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from suite_cases import by_hand, case, found, run

from calibration.records import METRICS
from validate.cases import Evidence

OPTIONAL = [name for name in type(run()).__struct_fields__ if name not in {"run_id", "source", "gpu", "model", "load"}]


def missing(**changes) -> str:
    """What the check says that a run does not state."""
    notes = [f for f in found("provenance", by_hand([run(**changes)])) if f.check == "provenance.unstated"]
    return notes[0].evidence["missing"] if notes else ""


def test_a_campaign_with_its_manifest_states_everything():
    assert missing(flags="set:20260301-a") == ""
    assert missing() == "address and commit of the source, driver and clocks"


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"engine_version": None}, "engine version"),
        ({"engine": None}, "engine"),
        ({"power_scope": None}, "scope of the power"),
        ({"length_spread": "dataset:sharegpt"}, "the requests that were drawn (file or seed)"),
        ({"length_spread": "uniform:0.8"}, "the requests that were drawn (file or seed)"),
    ],
)
def test_each_thing_that_is_not_stated_is_named(changes, what):
    assert what in missing(**changes).split(", ")
    assert what not in missing().split(", ")


def test_drawn_requests_are_known_by_seed_or_by_the_hash_of_their_file():
    for flag in ("seed:7", "trace_sha256:0a1b2c"):
        assert "drawn" not in missing(length_spread="dataset:sharegpt", flags=flag)


def test_no_scope_is_asked_for_where_no_power_was_measured():
    assert "scope" not in missing(power_scope=None, power_w=None, energy_j_per_output_tok=None)


def test_a_source_that_ships_is_known_by_its_address_and_commit_and_stands_in_for_the_version():
    assert missing(source="argonne", engine_version=None) == "driver and clocks"


def test_equal_gaps_are_one_note():
    records = [run(run_id="a", engine_version=None), run(run_id="b", engine_version=None), run(run_id="c")]
    notes = [f for f in found("provenance", by_hand(records)) if f.check == "provenance.unstated"]
    assert [f.runs for f in notes] == [("a", "b"), ("c",)]


def test_means_without_percentiles_or_repeats_are_said():
    only_means = {name: None for name in METRICS if name.endswith(("_median", "_p99"))}

    def said(**changes):
        return "provenance.means_only" in {f.check for f in found("provenance", by_hand([run(**changes)]))}

    assert said(**only_means)
    assert not said(**only_means, rel_noise=0.02)
    assert not said(**only_means | {"tpot_s_p99": 0.0105})
    assert not said(**dict.fromkeys(METRICS))  # nothing measured, nothing to scatter


def test_a_simulated_file_of_bare_figures_says_nothing_of_what_was_simulated():
    empty = dict.fromkeys(name for name in OPTIONAL if name not in METRICS)
    bare = msgspec.structs.replace(run(), **empty)
    pair = case(run(), simulated={"tpot_s_mean": 0.011})
    for theirs, expected in ((bare, True), (run(), False)):
        evidence = Evidence("runs.csv", [type(pair)(pair.record, pair.prediction, theirs)], {}, frozenset(), own=False)
        assert ("provenance.bare_figures" in {f.check for f in found("provenance", evidence)}) is expected


@settings(max_examples=60, deadline=None)
@given(st.sets(st.sampled_from(OPTIONAL)))
def test_whatever_is_missing_nothing_is_more_than_a_note(empty):
    findings = found("provenance", by_hand([run(**dict.fromkeys(empty))]))
    assert not any(f.alarm for f in findings)
    assert all(f.fault == "F11" and "unverified" in f.says for f in findings)
