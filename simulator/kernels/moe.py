"""Fused mixture-of-experts layer of one rank: top-k, permutation, both grouped matrix products, weighted sum.

Not included, as in the measured tables: the router's matrix product, shared experts, all-to-all. What decides the time
is how many experts the tokens touch (their weights are read) and how many rows each gets (rows are padded to tiles).
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import msgspec
import numpy as np

from simulator.device import Device
from simulator.kernels.spec import OperatorTime, ParameterSpec
from simulator.precision import compute_dtype
from simulator.roofline import compute_share, smooth_maximum

# Rows of an output tile that grouped matrix products offer; the whole call uses one, the fastest. Columns: always 128.
_TILE_ROWS = (16.0, 32.0, 64.0, 128.0)
_TILE_COLUMNS = 128.0
# Share of the L2 cache that holds weights while the row tiles of one expert pass by.
_L2_SHARE = 0.25
# Popularity classes that the experts of a skewed router are gathered into.
_CLASSES = 12


class MoeParameters(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One arithmetic class (16 bit, 8 bit, 4-bit weights ...) of one device; units and meanings in `SPECS`."""

    start_s: float = 2e-5
    bandwidth_fraction: float = 0.85
    matrix_fraction: float = 0.6
    half_rate_rows: float = 30.0
    reread_fraction: float = 0.3
    traffic_fraction: float = 0.7
    routing_byte: float = 20.0
    exponent: float = 2.0


SPECS: dict[str, ParameterSpec] = {
    "start_s": ParameterSpec("s", "the kernels of the smallest call", 1e-6, 1e-3, 0.7),
    "bandwidth_fraction": ParameterSpec("1", "share of the memory bandwidth that weights get", 0.05, 0.98, 0.4),
    "matrix_fraction": ParameterSpec("1", "share of the matrix peak that tall tiles would reach", 0.02, 0.98, 0.6),
    "half_rate_rows": ParameterSpec("rows", "tile height at which half of that is reached", 0.05, 900.0, 1.0),
    "reread_fraction": ParameterSpec("1", "share of L2-missed weights that a further row tile reads", 1e-3, 3.0, 1.0),
    "traffic_fraction": ParameterSpec("1", "rate of moving activations over bandwidth", 0.03, 9.0, 1.0),
    "routing_byte": ParameterSpec("byte", "traffic of top-k and sorting, per token and expert", 0.05, 4000.0, 1.5),
    "exponent": ParameterSpec("1", "how sharply the slower of compute and memory wins", 1.05, 12.0, 0.5),
}


class Loads(NamedTuple):
    """Rows that the experts of one rank get: `experts` (S, C) of class C are touched, each with `rows` (S, C) tokens.

    `scattered`: rows are expectations, an expert's real number varies around them (Poisson-like).
    """

    experts: np.ndarray
    rows: np.ndarray
    scattered: bool = True


def touched_experts(experts: int, experts_per_token: int, tokens, skew: float = 0.0) -> np.ndarray:
    """Expected number of experts that at least one of `tokens` (S,) chooses.

    skew 0: E (1 - (1 - k/E)^tokens), every token choosing k of E experts at random. Otherwise expert i is chosen with
    weight (i + 1)^-skew (Zipf), k distinct ones per token; see `choice_probabilities`.
    """
    probability, count = _classes(experts, experts_per_token, float(skew))
    tokens = np.asarray(tokens, float)[..., None]
    return (count * _touched(probability, tokens)).sum(axis=-1)


def choice_probabilities(experts: int, experts_per_token: int, skew: float) -> np.ndarray:
    """Probability (E,) that a token's k distinct choices contain each expert, most popular first; they sum to k.

    p_i = 1 - exp(-c w_i) with w_i = (i + 1)^-skew and c such that the sum is k: the choices of a Poisson race that is
    stopped after k distinct winners in the mean (successive sampling; Rosen 1972). Equal weights give k/E exactly.
    """
    if skew == 0.0 or experts_per_token >= experts:
        return np.full(experts, min(1.0, experts_per_token / experts))
    weight = np.arange(1.0, experts + 1.0) ** -skew
    low, high = 0.0, 1.0
    while (1.0 - np.exp(-high * weight)).sum() < experts_per_token:
        low, high = high, 4.0 * high
    for _ in range(80):
        middle = 0.5 * (low + high)
        enough = (1.0 - np.exp(-middle * weight)).sum() >= experts_per_token
        low, high = (low, middle) if enough else (middle, high)
    return 1.0 - np.exp(-high * weight)


@lru_cache(maxsize=64)
def busiest_share(experts: int, experts_per_token: int, ep: int, skew: float) -> float:
    """Load of the busiest of `ep` ranks over the mean load, experts being placed without regard to popularity.

    A rank holds m = E/ep of the E experts drawn at random: its load has the variance of a sample without
    replacement, and the largest of `ep` such loads lies z standard deviations above the mean (z: Blom 1958). It is at
    least that of the rank with the most popular expert, and at most that of a rank with the m most popular ones.
    """
    if ep <= 1 or skew == 0.0:
        return 1.0
    share = choice_probabilities(experts, experts_per_token, skew) / experts_per_token
    held = max(1.0, experts / ep)
    variance = held * float(np.var(share)) * (experts - held) / max(1.0, experts - 1.0)
    largest = 1.0 / ep + _largest_of(ep) * variance**0.5
    with_first = float(share[0]) + (held - 1.0) / max(1.0, experts - 1.0) * (1.0 - float(share[0]))
    most = float(share[: max(1, round(held))].sum())
    return ep * min(max(largest, with_first), most)


def routed_loads(experts: int, experts_per_token: int, tokens, ep: int = 1, skew: float = 0.0) -> Loads:
    """Expected loads of the busiest rank for `tokens` (S,) before the split; arrays (S, classes)."""
    probability, count = _classes(experts, experts_per_token, float(skew))
    if ep > 1:
        probability = np.minimum(1.0, probability * busiest_share(experts, experts_per_token, ep, float(skew)))
    tokens = np.asarray(tokens, float)[..., None]
    touched = _touched(probability, tokens)
    rows = np.where(touched > 0.0, tokens * probability / np.where(touched > 0.0, touched, 1.0), 0.0)
    held = touched * count / ep
    if ep > 1:
        more_experts, more_rows = _chance_of_busiest(touched, count, tokens[..., 0] * experts_per_token, ep)
        return Loads(held * more_experts[..., None], rows * (more_rows / more_experts)[..., None])
    return Loads(held, rows)


def _chance_of_busiest(touched, count, routed, ep: int) -> tuple[np.ndarray, np.ndarray]:
    """How many more experts (S,) and rows (S,) than the mean the busiest of `ep` ranks has, by chance alone.

    Experts are touched like independent coins and rows fall on ranks like balls in bins; the largest of `ep` draws lies
    z standard deviations above the mean (z: Blom 1958). With few tokens the slowest rank reads nearly all it holds.
    """
    z = _largest_of(ep)
    mean = (touched * count).sum(axis=-1) / ep
    sd = np.sqrt((touched * (1.0 - touched) * count).sum(axis=-1) / ep)
    most = np.minimum(count.sum() / ep, np.maximum(routed, mean))
    safe = np.maximum(mean, 1e-12)
    rows = np.maximum(routed / ep, 1e-12)
    more_rows = np.minimum(ep, 1.0 + z * np.sqrt(rows * (1.0 - 1.0 / ep)) / rows)
    return np.clip((mean + z * sd) / safe, 1.0, np.maximum(1.0, most / safe)), more_rows


def _largest_of(ranks: int) -> float:
    """Expected largest of `ranks` standard normal draws (Blom 1958)."""
    from statistics import NormalDist  # not at the top: it takes longer to import than most runs need it

    return NormalDist().inv_cdf((ranks - 0.375) / (ranks + 0.25))


def moe_time(
    tokens, *, hidden: int, intermediate: int, experts: int, experts_per_token: int, weight_byte: float,
    activation: str, gated: bool, device: Device, p: MoeParameters, tp: int = 1, ep: int = 1, skew: float = 0.0,
) -> OperatorTime:  # fmt: skip
    """Seconds of one rank's fused experts for `tokens` (S,) tokens in the batch, before any split.

    `intermediate` and `experts` are the model's; `tp` splits the former, `ep` the latter. `weight_byte` includes
    scales.
    `activation` is the type of the arithmetic (key of the data sheet's peaks; weight-only formats: a 16-bit one).
    `skew` is the router's Zipf exponent, 0 for a router that is balanced in the mean; the busiest rank sets the pace.
    """
    loads = routed_loads(experts, experts_per_token, tokens, ep, skew)
    peak = device.compute.peak_flop_per_s[compute_dtype(device, activation)]
    return grouped_time(
        loads, np.asarray(tokens, float), hidden=hidden, intermediate=intermediate / tp, experts=experts,
        weight_byte=weight_byte, matrices=3 if gated else 2, peak=peak, device=device, p=p,
    )  # fmt: skip


def grouped_time(
    loads: Loads, tokens, *, hidden, intermediate, experts, weight_byte, matrices, peak, device: Device,
    p: MoeParameters,
) -> OperatorTime:  # fmt: skip
    """`moe_time` for known loads; `intermediate` is the rank's own, `matrices` 3 if gated, else 2.

    Shape arguments may be arrays (S,) too. Memory: the touched experts' weights, once. Compute: the fastest tile
    height, with rows padded to it and rates that grow with it (operand traffic per FLOP falls). Row tiles beyond the
    first read an expert's weights again, as far as the L2 has not kept them (capacity misses: Hong and Kung 1981).
    Before and after: top-k and sorting, gathering rows, the activation function, the weighted sum.
    """
    touched = loads.experts.sum(axis=-1)
    rows = (loads.experts * loads.rows).sum(axis=-1)
    weights = matrices * intermediate * hidden  # of one expert
    bandwidth = device.memory.bandwidth_byte_per_s
    memory = touched * weights * weight_byte / (p.bandwidth_fraction * bandwidth)
    up_byte = np.maximum((matrices - 1.0) * intermediate * hidden * weight_byte, 1e-9)
    missed = np.maximum(0.0, 1.0 - _L2_SHARE * device.compute.l2_byte / up_byte)
    reread_s = p.reread_fraction * weights * weight_byte * missed / bandwidth
    compute = None
    for height in _TILE_ROWS:
        tiles = (loads.experts * _tiles(loads, height)).sum(axis=-1)
        work = _padded_flop(tiles, height, hidden, intermediate, matrices, device.compute.sm_count)
        rate = p.matrix_fraction * peak * height / (height + p.half_rate_rows)
        seconds = work / rate + (tiles - touched) * reread_s
        compute = seconds if compute is None else np.minimum(compute, seconds)
    compute = np.maximum(compute, 2.0 * rows * weights / peak)
    moved_byte = 2.0 * rows * (2.0 * hidden + 2.0 * matrices * intermediate) + 4.0 * tokens * hidden
    moved_s = (moved_byte / p.traffic_fraction + p.routing_byte * tokens * experts) / bandwidth
    both = smooth_maximum(compute, memory, p.exponent)
    share = compute_share(compute, memory, p.exponent)
    return OperatorTime(np.full(np.shape(both), p.start_s), both * share, both * (1.0 - share) + moved_s)


def _touched(probability, tokens):
    """Probability that an expert is chosen at least once."""
    with np.errstate(divide="ignore"):  # an expert that every token chooses
        return -np.expm1(tokens * np.log1p(-np.minimum(probability, 1.0 - 1e-12)))


def _tiles(loads: Loads, height: float):
    """Row tiles per touched expert; for scattered loads the mean of the rounded-up number, half a tile more."""
    if loads.scattered:
        return np.where(loads.rows > 0.0, np.maximum(1.0, loads.rows / height + 0.5), 0.0)
    return np.ceil(loads.rows / height)


def _padded_flop(tiles, height, hidden, intermediate, matrices, sm_count):
    """FLOPs that the device is busy for in both products: whole tiles, and never less than one per multiprocessor."""
    flop = 0.0
    for columns, inner in (((matrices - 1) * intermediate, hidden), (hidden, intermediate)):
        blocks = np.maximum(tiles * np.ceil(columns / _TILE_COLUMNS), np.where(tiles > 0.0, sm_count, 0.0))
        flop = flop + 2.0 * blocks * height * _TILE_COLUMNS * inner
    return flop


@lru_cache(maxsize=64)
def _classes(experts: int, experts_per_token: int, skew: float) -> tuple[np.ndarray, np.ndarray]:
    """Mean choice probability and number of experts of each popularity class; classes widen down the ranking.

    A few dozen numbers instead of one per expert: the error of a touched count is below 1 %.
    """
    probability = choice_probabilities(experts, experts_per_token, skew)
    if skew == 0.0 or experts <= _CLASSES:
        if skew == 0.0:
            return probability[:1], np.array([float(experts)])
        return probability, np.ones(experts)
    edges = np.unique(np.round(np.geomspace(1.0, experts + 1.0, _CLASSES + 1)).astype(int)) - 1
    count = np.diff(edges)
    return np.add.reduceat(probability, edges[:-1]) / count, count.astype(float)
