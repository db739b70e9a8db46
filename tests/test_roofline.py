"""Laws of the roofline: bounds, monotonicity, shares."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.roofline import compute_share, smooth_maximum

seconds = st.floats(0.0, 1e3, allow_subnormal=False)
exponents = st.floats(1.0, 6.0)


@given(seconds, seconds, exponents)
def test_smooth_maximum_lies_between_maximum_and_sum(compute_s, memory_s, p):
    found = float(smooth_maximum(compute_s, memory_s, p))
    assert max(compute_s, memory_s) * (1 - 1e-12) <= found <= (compute_s + memory_s) * (1 + 1e-12)


def test_smooth_maximum_closed_forms():
    assert float(smooth_maximum(3.0, 4.0, 2.0)) == pytest.approx(5.0)
    assert float(smooth_maximum(3.0, 4.0, 1.0)) == pytest.approx(7.0)
    assert smooth_maximum(np.array([0.0, 1.0]), np.array([0.0, 0.0]), 2.0).tolist() == [0.0, 1.0]


@given(seconds, seconds, exponents)
def test_compute_share_is_a_share_and_favours_the_larger(compute_s, memory_s, p):
    share = float(compute_share(compute_s, memory_s, p))
    assert 0.0 <= share <= 1.0
    if compute_s > memory_s:
        assert share >= 0.5


@given(seconds, seconds, exponents, st.floats(0.0, 1e3, allow_subnormal=False))
def test_more_of_either_never_takes_less(compute_s, memory_s, p, more):
    once = float(smooth_maximum(compute_s, memory_s, p))
    assert float(smooth_maximum(compute_s + more, memory_s, p)) >= once * (1 - 1e-12)
    assert float(smooth_maximum(compute_s, memory_s + more, p)) >= once * (1 - 1e-12)


@given(seconds, seconds, exponents, st.floats(1.0, 2.0))
def test_a_sharper_bend_is_closer_to_the_maximum(compute_s, memory_s, p, sharper):
    blunt, sharp = (float(smooth_maximum(compute_s, memory_s, q)) for q in (p, p * sharper))
    assert sharp <= blunt * (1 + 1e-12)


@given(seconds, seconds, exponents)
def test_shares_change_places_with_their_causes(compute_s, memory_s, p):
    both = float(compute_share(compute_s, memory_s, p)) + float(compute_share(memory_s, compute_s, p))
    assert both == pytest.approx(1.0 if max(compute_s, memory_s) > 0.0 else 0.0)
