"""How long an operator takes on a device: a smooth roofline with measured ceilings and tile quantisation."""

from __future__ import annotations

import numpy as np

# Output tiles that GEMM libraries offer, (rows, columns, rate relative to the largest tile). The rates follow
# from operand traffic to shared memory per FLOP, which grows as the tile shrinks, with the values that NVIDIA's
# guide "Matrix Multiplication Background" and the m-sweeps of the kernel tables show; they are no fitted numbers.
TILES = ((256, 128, 1.0), (128, 128, 0.9), (64, 128, 0.7), (32, 128, 0.45), (16, 64, 0.3))
# Splitting the inner dimension fills the multiprocessors when there are few tiles, at the price of a reduction.
SPLIT_RATE = 0.85


def smooth_maximum(compute_s, memory_s, exponent: float):
    """(compute^p + memory^p)^(1/p), elementwise; never below the larger of the two, never above their sum."""
    largest = np.maximum(compute_s, memory_s)
    safe = np.where(largest > 0.0, largest, 1.0)
    return safe * ((compute_s / safe) ** exponent + (memory_s / safe) ** exponent) ** (1.0 / exponent) * (largest > 0.0)


def compute_share(compute_s, memory_s, exponent: float):
    """Share of an operator's time that is laid to compute: c^p / (c^p + m^p); 0 where both are 0."""
    largest = np.maximum(compute_s, memory_s)
    safe = np.where(largest > 0.0, largest, 1.0)
    c, m = (compute_s / safe) ** exponent, (memory_s / safe) ** exponent
    return np.where(largest > 0.0, c / np.where(c + m > 0.0, c + m, 1.0), 0.0)


def padded_work(rows, columns, sm_count: int):
    """Rows x columns that the multiprocessors are busy for: tiles and waves rounded up, the best tile chosen.

    `rows` and `columns` broadcast. For one tile shape: tiles = ceil(rows/tr) * ceil(columns/tc); they run in
    ceil(tiles / SMs) waves, or split along the inner dimension without the last wave's idle units. The result is
    at least rows * columns, does not fall with rows, and at most doubles when the rows double.
    """
    best = None
    for tile_rows, tile_columns, rate in TILES:
        tiles = np.ceil(rows / tile_rows) * np.ceil(columns / tile_columns)
        waves = tiles / sm_count
        busy = np.minimum(np.ceil(waves), waves / SPLIT_RATE) * sm_count * tile_rows * tile_columns / rate
        best = busy if best is None else np.minimum(best, busy)
    return best


# Tile columns that a scheduler keeps side by side at least, so that neighbours share the left operand in the L2.
SWIZZLE_COLUMNS = 2


def reread_byte(rows: float, inner: int, outer: float, sm_count: int, l2_byte: float, element_byte: float) -> float:
    """Bytes of the left operand (rows x inner) that are fetched again because the L2 cache cannot hold them.

    Tiles are scheduled down the rows first: the multiprocessors work on a strip of columns at a time, and every
    strip needs the whole left operand again, except for what the L2 keeps. This is the capacity-miss term of
    blocked matrix products (Hong and Kung 1981 give the lower bound). It matters on devices with few
    multiprocessors and a small L2 (Jetson), and vanishes where the operand fits.
    """
    tile_rows, tile_columns, _ = TILES[0]
    row_tiles = max(1.0, np.ceil(rows / tile_rows))
    strip = tile_columns * max(float(SWIZZLE_COLUMNS), sm_count / row_tiles)
    operand = rows * inner * element_byte
    missed = max(0.0, 1.0 - l2_byte / operand)
    return operand * max(0.0, outer / strip - 1.0) * missed
