"""Laws of the roofline: bounds, monotonicity, tiles and waves."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.roofline import TILES, compute_share, padded_work, reread_byte, smooth_maximum

seconds = st.floats(0.0, 1e3, allow_subnormal=False)
exponents = st.floats(1.0, 6.0)
rows = st.integers(1, 8192)
columns = st.integers(1, 40_000)
sms = st.integers(4, 160)


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


@given(rows, columns, sms)
def test_padded_work_is_at_least_the_work(m, n, sm_count):
    assert float(padded_work(m, n, sm_count)) >= m * n


@given(rows, columns, sms)
def test_more_rows_never_take_less_and_twice_the_rows_at_most_twice(m, n, sm_count):
    once, more, twice = (float(padded_work(r, n, sm_count)) for r in (m, m + 1, 2 * m))
    assert once <= more
    assert twice <= 2.0 * once * (1 + 1e-12)


def test_a_full_wave_of_full_tiles_wastes_nothing():
    tile_rows, tile_columns, _ = TILES[0]
    assert float(padded_work(tile_rows * 4, tile_columns * 4, 16)) == tile_rows * tile_columns * 16


def test_one_token_more_than_a_tile_costs_another_tile():
    """The step that prompts of 128 k + 1 tokens show on AGX Orin."""
    assert float(padded_work(257, 28_672, 16)) > 1.3 * float(padded_work(256, 28_672, 16))


@given(rows, columns)
def test_nothing_is_read_again_when_the_operand_fits_into_the_cache(m, n):
    assert reread_byte(m, 1024, n, 16, l2_byte=m * 1024 * 2.0, element_byte=2.0) == 0.0


@given(rows, st.integers(64, 20_000), columns, st.floats(1e6, 1e8))
def test_a_larger_cache_never_reads_more(m, k, n, l2):
    assert reread_byte(m, k, n, 16, 2 * l2, 2.0) <= reread_byte(m, k, n, 16, l2, 2.0)
