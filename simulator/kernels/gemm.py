"""How long one matrix product of a linear layer takes: rows x inner activations times inner x outer weights.

The model is a smooth roofline whose compute side knows how GPU libraries cut the output into tiles:

    t = start + (compute^p + memory^p)^(1/p) [+ quantisation of the activations, for 8-bit arithmetic]

    memory  = (weights + activations + output + activations read again) / (bandwidth fraction x bandwidth)
    compute = waves x (inner + inner overhead) x (time of one tile per inner element), the best tile and split taken

Sources: the roofline (Williams et al. 2009) with tile and wave quantisation as NVIDIA's guide "Matrix Multiplication
Background" describes it; capacity misses of blocked products (Hong and Kung 1981); the structure was chosen, and the
parameters fitted, on the GEMM tables of NVIDIA AIConfigurator (`calibration/kernels/gemm.py`).
"""

from __future__ import annotations

from typing import Literal

import msgspec
import numpy as np

from simulator.device import Device
from simulator.kernels.spec import OperatorTime, ParameterSpec
from simulator.roofline import compute_share, smooth_maximum

Activation = Literal["fp32", "bf16", "fp16", "fp8", "int8", "fp4"]


class GemmParameters(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a GPU's matrix products reach; one set for 16-bit arithmetic (`gemm16`), one for 8-bit (`gemm8`).

    `SPECS` says what each figure means. The values here are rounded medians of the fitted GPUs' 16-bit products and,
    where those say nothing, of their 8-bit ones; `dequantise_fraction` has no table behind it.
    """

    start_s: float = 2.4e-6
    compute_fraction: float = 0.95
    sustained_fraction: float = 0.85
    memory_fraction: float = 0.83
    memory_ramp_s: float = 1e-6
    skinny_gain: float = 1.03
    roof_exponent: float = 4.0
    wave_share: float = 0.4
    tile_overhead: float = 15.0
    inner_overhead: float = 180.0
    inner_latency_s: float = 8e-10
    split_s: float = 2.5e-6
    bucket_rows: float = 0.0
    quantise_start_s: float = 2e-6
    quantise_fraction: float = 0.6
    quantise_row_s: float = 5e-7
    dequantise_fraction: float = 0.85
    swizzle_columns: float = 2.0
    skinny_rows: float = 0.0
    skinny_vector_fraction: float = 0.5


# Bounds stop short of 1, whose logarithm is 0: the fit steps relative to it.
SPECS: dict[str, ParameterSpec] = {
    "start_s": ParameterSpec("s", "start and drain of the kernel inside a CUDA graph", 2e-7, 1e-4, 0.5),
    "compute_fraction": ParameterSpec("1", "share of peak of the largest tile, latency apart", 0.05, 0.98, 0.3),
    "sustained_fraction": ParameterSpec(
        "1", "share of that rate left when arithmetic lasts (power cap), approached over 0.5 ms", 0.2, 0.99, 0.3
    ),
    "memory_fraction": ParameterSpec("1", "share of the data sheet's bandwidth that is reached", 0.05, 0.98, 0.2),
    "memory_ramp_s": ParameterSpec(
        "s", "time in which the memory comes up to speed, from half its rate at the start", 1e-8, 2e-5, 0.7
    ),
    "skinny_gain": ParameterSpec(
        "1", "bandwidth of a matrix-vector product relative to memory_fraction; fades as 1 / rows", 1.001, 1.5, 0.1
    ),
    "roof_exponent": ParameterSpec("1", "how sharply the roofline bends: at 1 the two roofs add up", 1.01, 12.0, 0.4),
    "wave_share": ParameterSpec("1", "share of the last wave's idle multiprocessors that costs time", 1e-3, 0.99, 1.0),
    "tile_overhead": ParameterSpec(
        "element", "operand traffic of small tiles: rate ~ 1 / (1 + this x (1/rows + 1/columns))", 0.1, 500.0, 1.0
    ),
    "inner_overhead": ParameterSpec("element", "prologue and epilogue of a tile, in inner elements", 1.0, 4000.0, 0.8),
    "inner_latency_s": ParameterSpec("s", "latency per inner element, whatever the tile", 1e-14, 1e-8, 1.0),
    "split_s": ParameterSpec("s", "extra start of a product split along the inner dimension", 1e-7, 1e-4, 0.7),
    "bucket_rows": ParameterSpec(
        "row", "0: the library searches tiles and splits; else tile by rows, the wide one above this many", 0, 1e4, 0.0
    ),
    "quantise_start_s": ParameterSpec("s", "start of the kernel that quantises activations", 1e-7, 1e-4, 0.5),
    "quantise_fraction": ParameterSpec("1", "share of the bandwidth that quantising reaches", 0.05, 0.98, 0.5),
    "quantise_row_s": ParameterSpec(
        "s", "what a row costs a multiprocessor in quantising, however short: a block with a reduction", 1e-9, 1e-4, 1.0
    ),
    "dequantise_fraction": ParameterSpec(
        "1", "rate of weight-only formats (int4 weights, 16-bit arithmetic) relative to plain ones", 0.2, 0.99, 0.2
    ),
    "swizzle_columns": ParameterSpec(
        "1", "tile columns kept side by side, so that neighbours share the left operand in the L2", 1.0, 16.0, 0.3
    ),
    "skinny_rows": ParameterSpec(
        "row", "up to this many rows the library multiplies on the vector units (0: never)", 0.0, 256.0, 0.0
    ),
    "skinny_vector_fraction": ParameterSpec(
        "1", "share of the fp32 vector peak that such products reach for rows beyond the first", 0.05, 0.98, 0.3
    ),
}

# Output tiles (rows, columns) that GEMM libraries offer, and along how many parts the inner dimension may be split.
TILES = ((256, 128), (128, 256), (128, 128), (64, 128), (128, 64), (64, 64), (32, 64), (16, 64))
SPLITS = (2, 4, 8)
_LARGEST = 1.0 / 256 + 1.0 / 128  # 1/rows + 1/columns of the tile that `compute_fraction` refers to
# Libraries that choose the tile by the number of rows (CUTLASS as vLLM uses it for fp8): small tiles up to these.
_SMALL_TILE, _SMALL_ROWS = (64, 64), 64
_MIDDLE_TILE = (128, 64)
_WIDE_TILE = (128, 128)
_SUSTAINED_AFTER_S = 5e-4  # arithmetic this long is half way to the sustained rate
_OUTPUT_BYTE = 2.0
_ACTIVATION_BYTE = {"fp32": 4.0, "bf16": 2.0, "fp16": 2.0, "fp8": 1.0, "int8": 1.0, "fp4": 0.5625}  # fp4: scales


def gemm_time(
    rows, inner, outer, *, weight_byte: float, activation: Activation, device: Device, p: GemmParameters
) -> OperatorTime:
    """Seconds of the products (rows x inner) @ (inner x outer); the three sizes broadcast, so do the results.

    `rows` are tokens (fractions are allowed, 0 takes only the start), `weight_byte` the stored bytes per weight, scales
    included, `activation` the arithmetic type. Formula: module docstring. For types of 8 bits and less (fp4: no table
    of it) the activations are quantised first, by a kernel of their own: start, bytes, and a cost per row. Weights
    narrower than the arithmetic are dequantised on the way, which costs compute rate. Never below bytes / bandwidth
    nor FLOPs / peak. Does not fall with rows where the library searches its tiles (`bucket_rows` = 0); else it may,
    by part of a wave, where the tile changes.
    """
    m, k, n = (np.asarray(size, dtype=float) for size in (rows, inner, outer))
    element = _ACTIVATION_BYTE[activation]
    fraction = p.compute_fraction * (p.dequantise_fraction if weight_byte < element else 1.0)
    compute_s = _compute_s(m, k, n, fraction * _peak(device, activation), device, p)
    compute_s = compute_s * (1.0 + (1.0 / p.sustained_fraction - 1.0) * compute_s / (compute_s + _SUSTAINED_AFTER_S))
    memory_s = _memory_s(m, k, n, weight_byte, element, device, p)
    roof_s = smooth_maximum(compute_s, memory_s, p.roof_exponent)
    compute_part_s = roof_s * compute_share(compute_s, memory_s, p.roof_exponent)
    if p.skinny_rows > 0.0:
        skinny = m <= p.skinny_rows
        vector_s = _vector_s(m, k, n, device, p)
        compute_part_s = np.where(skinny, vector_s, compute_part_s)
        roof_s = np.where(skinny, vector_s + memory_s, roof_s)
    memory_part_s, start_s = roof_s - compute_part_s, np.full(roof_s.shape, p.start_s)
    if element <= 1.0:
        start_s = start_s + p.quantise_start_s
        memory_part_s = memory_part_s + _quantise_s(m, k, element, device, p)
    return OperatorTime(start_s, compute_part_s, memory_part_s)


def _vector_s(m, k, n, device: Device, p: GemmParameters) -> np.ndarray:
    """Seconds that matrix-vector kernels add per row beyond the first.

    Each row is another multiplication of every weight that has just been loaded, and is not hidden behind the loads.
    """
    flop = 2.0 * np.maximum(m - 1.0, 0.0) * k * n
    return flop / (p.skinny_vector_fraction * device.compute.peak_flop_per_s["fp32"])


def _peak(device: Device, activation: Activation) -> float:
    """FLOP/s of the arithmetic type; a type that the device lacks runs at the fp16 rate."""
    peaks = device.compute.peak_flop_per_s
    return peaks.get(activation, peaks["fp16"])


def _compute_s(m, k, n, peak_flop_per_s: float, device: Device, p: GemmParameters) -> np.ndarray:
    """Seconds the multiprocessors are busy, waves rounded up; at least 2 m k n / peak."""
    if p.bucket_rows > 0.0:
        return _by_rows_s(m, k, n, peak_flop_per_s, device, p)
    sm_count = device.compute.sm_count
    # A split product writes its partial sums in FP32 and reads them again to add them up.
    partial_s = 8.0 * m * n / device.memory.bandwidth_byte_per_s
    deep = k + p.inner_overhead
    best = None
    for tile in TILES:
        waves = _tiles(m, n, tile) / sm_count
        rate_s = _tile_s(tile, peak_flop_per_s, sm_count, p)
        seconds = _quantised(waves, p.wave_share) * deep * rate_s
        best = seconds if best is None else np.minimum(best, seconds)
        for split in SPLITS:
            part = np.maximum(1.0, waves * split) * (k / split + p.inner_overhead) * rate_s
            best = np.minimum(best, part + (partial_s * split + p.split_s))
    return best * (m > 0.0)


def _by_rows_s(m, k, n, peak_flop_per_s: float, device: Device, p: GemmParameters) -> np.ndarray:
    """As `_compute_s`, for libraries that look up the tile by the number of rows and never split."""
    sm_count = device.compute.sm_count

    def busy_s(tile: tuple[int, int]) -> np.ndarray:
        waves = _quantised(_tiles(m, n, tile) / sm_count, p.wave_share)
        return waves * (k + p.inner_overhead) * _tile_s(tile, peak_flop_per_s, sm_count, p)

    middle = np.where(m <= p.bucket_rows, busy_s(_MIDDLE_TILE), busy_s(_WIDE_TILE))
    return np.where(m <= _SMALL_ROWS, busy_s(_SMALL_TILE), middle) * (m > 0.0)


def _tiles(m, n, tile: tuple[int, int]) -> np.ndarray:
    return np.ceil(m / tile[0]) * np.ceil(n / tile[1])


def _tile_s(tile: tuple[int, int], peak_flop_per_s: float, sm_count: int, p: GemmParameters) -> float:
    """Seconds that one multiprocessor needs per inner element of one tile."""
    tile_rows, tile_columns = tile
    slower = (1.0 + p.tile_overhead * (1.0 / tile_rows + 1.0 / tile_columns)) / (1.0 + p.tile_overhead * _LARGEST)
    return 2.0 * tile_rows * tile_columns * sm_count / peak_flop_per_s * slower + p.inner_latency_s


def _quantised(waves, share: float):
    """Waves with `share` of the last one's idle units counted; a single wave takes its whole time."""
    return np.maximum(1.0, waves + share * (np.ceil(waves) - waves))


def _memory_s(m, k, n, weight_byte: float, element_byte: float, device: Device, p: GemmParameters) -> np.ndarray:
    """Seconds that the traffic to device memory takes; weights are cold, as in a model's step."""
    left = element_byte * m * k
    byte = weight_byte * k * n + left + max(_OUTPUT_BYTE, element_byte) * m * n
    fraction = np.minimum(1.0, p.memory_fraction * (1.0 + (p.skinny_gain - 1.0) / np.maximum(m, 1.0)))
    again = _reread_byte(m, left, n, device, p)
    full_s = (byte + again) / (fraction * device.memory.bandwidth_byte_per_s)
    return (full_s + p.memory_ramp_s * -np.expm1(-full_s / p.memory_ramp_s)) * (m > 0.0)


def _reread_byte(m, left_byte, n, device: Device, p: GemmParameters) -> np.ndarray:
    """Bytes of the left operand fetched again because the L2 cannot hold them.

    Tiles are scheduled down the rows first, a strip of columns at a time; every strip needs the whole left operand
    again, except for what the L2 keeps (the capacity-miss term of blocked products, Hong and Kung 1981).
    """
    tile_rows, tile_columns = TILES[0]
    row_tiles = np.maximum(1.0, np.ceil(m / tile_rows))
    strip = tile_columns * np.maximum(p.swizzle_columns, device.compute.sm_count / row_tiles)
    return np.maximum(0.0, left_byte - device.compute.l2_byte) * np.maximum(0.0, n / strip - 1.0)


def _quantise_s(m, k, element_byte: float, device: Device, p: GemmParameters) -> np.ndarray:
    """Seconds to read 16-bit activations, find each row's largest, and write narrow ones."""
    byte_s = (2.0 + element_byte) * m * k / (p.quantise_fraction * device.memory.bandwidth_byte_per_s)
    return byte_s + m * p.quantise_row_s / device.compute.sm_count
