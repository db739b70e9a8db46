"""Flags of the collector's meter become findings about power, and about nothing else."""

import msgspec
import pytest
from suite_cases import by_hand, case, found, run

from calibration.points import points_of, usable


@pytest.mark.parametrize(
    ("flag", "fault", "severity"),
    [("views_differ", "F6", "warn"), ("not_steady", "F9", "warn"), ("gaps", "F9", "note")],
)
def test_what_the_meter_said_is_found(flag, fault, severity):
    flagged = msgspec.structs.replace(run(), run_id="b", flags=f"warm_up;power:{flag}")
    (finding,) = found("meter", by_hand([case(run()), case(flagged)]))
    assert (finding.check, finding.fault, finding.severity) == (f"meter.{flag}", fault, severity)
    assert finding.runs == ("b",) and set(finding.metrics) == {"power_w", "energy_j_per_output_tok"}


def test_a_quiet_meter_says_nothing():
    assert found("meter", by_hand([case(run())])) == []


def test_power_that_the_meter_doubts_is_not_fitted():
    doubted = msgspec.structs.replace(run(), flags="power:views_differ", power_w=300.0)
    fitted = msgspec.structs.replace(doubted, flags=None)
    assert len(points_of(usable([fitted]), power=True)) == 1 and points_of(usable([doubted]), power=True) == []
    assert points_of(usable([doubted])) != []  # its times are
