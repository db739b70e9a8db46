"""What our own simulation may be off by: nothing beside a fit of the GPU, both ends of its intervals without one."""

from __future__ import annotations

import math
from dataclasses import replace

import msgspec
import pytest
from suite_cases import by_hand, case, run

from calibration.records import read_records
from calibration.vendored import DIRECTORY
from validate.checks import host_bound, neighbours, shape
from validate.checks.trust import fitted_on_gpu, slack
from validate.suite import evidence_of

FILE = "mlenergy.csv"


def campaign(gpu):
    """Eleven runs of one model that the H100's calibration has seen, said to be of `gpu`."""
    rows = [r for r in read_records(DIRECTORY / FILE) if "llama-3.1-8b" in r.run_id][:11]
    return evidence_of([msgspec.structs.replace(r, gpu=gpu) for r in rows], FILE)


@pytest.fixture(scope="module")
def known():
    return campaign("h100-sxm")


@pytest.fixture(scope="module")
def unknown():
    return campaign("mi300x")


def test_a_fit_of_the_gpu_leaves_no_slack(known):
    assert fitted_on_gpu(known, known.cases)
    assert slack(known, known.cases, "tpot_s_mean") == 0.0


def test_without_one_it_is_the_interval_from_end_to_end(unknown):
    assert not fitted_on_gpu(unknown, unknown.cases)
    _, low, high = unknown.cases[0].prediction.values["tpot_s_mean"]
    assert slack(unknown, unknown.cases[:1], "tpot_s_mean") == pytest.approx(math.log(high / low))
    assert slack(unknown, unknown.cases, "kv_capacity_tok") == 0.0  # nothing predicted


def test_another_simulator_is_taken_at_its_word(unknown):
    theirs = replace(unknown, own=False)
    assert fitted_on_gpu(theirs, theirs.cases) and slack(theirs, theirs.cases, "tpot_s_mean") == 0.0


def test_a_borrowed_calibration_is_none_of_this_gpu(known):
    borrowed = {name: msgspec.structs.replace(p, transferred="another board") for name, p in known.profiles.items()}
    assert not fitted_on_gpu(replace(known, profiles=borrowed), known.cases)


def test_cases_without_a_profile_are_left_to_the_checks():
    evidence = by_hand([case(run())])
    assert fitted_on_gpu(evidence, evidence.cases)


def sloped(evidence, exponent):
    """Times that grow faster with the load than simulated, by load ** exponent."""

    def slower(c):
        factor = c.record.max_num_seqs**exponent
        times = {name: getattr(c.simulated, name) * factor for name in ("tpot_s_mean", "itl_s_median")}
        return replace(c, record=msgspec.structs.replace(c.record, **times))

    return replace(evidence, cases=tuple(slower(c) for c in evidence.cases))


@pytest.mark.parametrize("exponent", [0.15, 0.5])
def test_shapes_count_beyond_the_slack_only(known, unknown, exponent):
    """A drift of 2 times is within the intervals of a GPU that nobody measured; one of 10 times is not."""

    def drifts(evidence):
        return any(f.check == "shape.drift" for f in shape.check(sloped(evidence, exponent)))

    assert drifts(known)
    assert drifts(unknown) is (exponent == 0.5)


def test_neighbours_need_more_where_the_prediction_may_bend(known):
    [curve] = [c for c in neighbours.curves_of(known, ("tpot_s_mean",)) if c.axis == "batch"]
    smooth = curve.expected
    i = len(smooth) // 2
    for factor, known_gpu, fires in ((1.35, True, True), (1.35, False, False), (1.9, False, True)):
        y = smooth.copy()
        y[i] *= factor
        found = neighbours.off_neighbours(replace(curve, measured=y), 0.01, known_gpu)
        assert bool(found) is fires, (factor, known_gpu)


def test_waiting_runs_of_an_unknown_gpu_need_a_campaign_in_doubt(unknown):
    assert not list(host_bound.check(unknown))
