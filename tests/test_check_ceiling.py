"""F4: better than the simulator can say, yet not beyond the data sheet."""

from __future__ import annotations

import math
from dataclasses import replace

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from suite_cases import by_hand, case, found, numbered, run

from validate.checks.ceiling import MIN_RUNS, NOISES, PLATEAU, two_sided
from validate.noise import ASSUMED

FLOOR_S, SIMULATED_S = 5e-3, 8e-3
LOW_S = SIMULATED_S / 1.1  # of the interval of 10 % that `case` makes
EDGE_S = LOW_S / (1.0 + NOISES * ASSUMED)


def group(times, simulated=SIMULATED_S, floor=FLOOR_S, metric="tpot_s_mean"):
    """Runs of one configuration, at several batches, with these measured times."""
    records = numbered(run(concurrency=16 + i, **{metric: t}) for i, t in enumerate(times))
    return by_hand([case(r, simulated={metric: simulated}, floor={metric: floor}) for r in records])


def test_most_of_a_group_above_the_ceiling():
    [finding] = found("ceiling", group([0.99 * EDGE_S] * 4))
    assert (finding.fault, finding.severity, finding.layer) == ("F4", "warn", "bounds")
    assert finding.runs == ("r0", "r1", "r2", "r3") and finding.metrics == ("tpot_s_mean",)
    assert finding.evidence["simulated_share_of_bound"] == pytest.approx(FLOOR_S / SIMULATED_S)


def test_just_inside_the_interval_is_silent():
    assert found("ceiling", group([1.01 * EDGE_S] * 6)) == []


def test_a_few_lucky_runs_are_noise():
    assert found("ceiling", group([0.9 * EDGE_S] * (MIN_RUNS - 1))) == []
    assert found("ceiling", group([0.9 * EDGE_S] * 5 + [SIMULATED_S] * 5)) == []  # half of ten
    [finding] = found("ceiling", group([0.9 * EDGE_S] * 6 + [SIMULATED_S] * 4))
    assert len(finding.runs) == 6


def test_beyond_the_data_sheet_is_another_class():
    assert found("ceiling", group([0.9 * FLOOR_S] * 5)) == []


def test_only_where_bytes_or_flops_set_the_time():
    slow = PLATEAU * FLOOR_S
    assert found("ceiling", group([0.8 * slow] * 5, simulated=1.01 * slow)) == []
    assert len(found("ceiling", group([0.8 * slow] * 5, simulated=0.99 * slow))) == 1


def test_rates_turn_round():
    fast = group([2.4e3] * 4, simulated=2e3, floor=3e3, metric="output_tok_per_s")
    [finding] = found("ceiling", fast)
    assert finding.metrics == ("output_tok_per_s",)
    assert found("ceiling", group([2.2e3] * 4, simulated=2e3, floor=3e3, metric="output_tok_per_s")) == []


def test_another_simulator_is_held_to_its_own_figures():
    evidence = group([SIMULATED_S] * 4)
    change = msgspec.structs.replace
    slower = [replace(c, simulated=change(c.simulated, tpot_s_mean=1.4 * SIMULATED_S)) for c in evidence.cases]
    assert found("ceiling", evidence) == []
    [finding] = found("ceiling", replace(evidence, cases=slower, own=False))
    assert finding.evidence["median_gain"] == pytest.approx(1.4)


@pytest.mark.parametrize("value", [math.nan, math.inf, 0.0, None])
def test_odd_figures_never_raise(value):
    assert found("ceiling", group([value] * 4)) == []


def test_runs_without_a_simulated_side_are_passed_over():
    assert found("ceiling", by_hand([run(), case(run(input_tok=None))])) == []


# -- the function that the case studies share ----------------------------------------------------------------------


def test_hardware_above_a_corrected_ceiling():
    """MESS-292: 292 GB/s measured, 307.2 x (1 - 793 x 0.416 / 3900) = 281.2 the ceiling, 307.2 the peak."""
    ceiling = 307.2 * (1.0 - 793 * 0.416 / 3900)
    assert ceiling == pytest.approx(281.2, abs=0.1)
    assert two_sided(292.0, ceiling, 307.2, noise=0.01) == "above_ceiling"
    assert two_sided(281.0, ceiling, 307.2) == "below"


def test_a_decode_set_above_the_measured_bandwidth():
    """ER-CEIL: decode implies 162 GB/s, read bandwidth measured on the same board 152.8, pin rate 204.8."""
    assert two_sided(162.0, 152.8, 204.8, noise=0.02) == "above_ceiling"
    assert two_sided(149.5, 152.8, 204.8) == "below"


def test_memory_ticked_at_the_processor_clock():
    """MESS-01: 186.8 GB/s on a memory of 128 GB/s. Its corrected stages reach 118.9 to 121.9."""
    assert two_sided(186.8, 121.0, 128.0) == "above_peak"
    assert two_sided(120.8, 121.0, 128.0) == "below"


@pytest.mark.parametrize("bad", [(0.0, 1.0, 1.0), (1.0, math.nan, 1.0), (1.0, 1.0, math.inf), (-1.0, 1.0, 1.0)])
def test_two_sided_asks_for_positive_numbers(bad):
    with pytest.raises(ValueError, match="expected a positive number"):
        two_sided(*bad)


_RATE = st.floats(1e-6, 1e9)


@given(_RATE, _RATE, _RATE, st.floats(0.1, 10.0))
def test_two_sided_knows_no_units(best, ceiling, peak, scale):
    ratios = sorted((best / ceiling, best / peak))
    if all(abs(r - edge) > 1e-9 for r in ratios for edge in (1.0, 1.01)):
        assert two_sided(best, ceiling, peak) == two_sided(best * scale, ceiling * scale, peak * scale)
