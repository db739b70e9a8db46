"""Attention of one layer on one device: decoding against a KV cache, and prefill of prompts or chunks.

Both functions model the kernels that vLLM calls, as they run inside a CUDA graph, including the write of the new keys
and values; projections and rotary embedding are not included. What they share: the work is cut into blocks (query tile
x KV head or query head x part of the keys) that the multiprocessors execute in parallel; a block costs a fixed time
plus a time per key; memory is read meanwhile; the slower of the two sets the pace (smooth maximum).

Everything that depends on a shape follows from tiles, blocks and bytes; the parameters are shared by all shapes of a
device. Times per key are in clock cycles of one multiprocessor, rates in shares of the data sheet's, so that they carry
over to devices that were never measured.
"""

from __future__ import annotations

from typing import NamedTuple

import msgspec
import numpy as np

from simulator.device import Device
from simulator.kernels.spec import OperatorTime, ParameterSpec
from simulator.roofline import compute_share, smooth_maximum

# Query rows that the per-key costs below are stated for: one M = 64 matrix instruction (Hopper), 4 x 16 elsewhere.
_TILE_ROWS = 64
# Keys are processed in steps of this many; a shorter remainder costs a whole step (FlashAttention's kBlockN).
_KEY_STEP = 128
# Thread blocks that reside on one multiprocessor at a time; one loads while the other computes.
_RESIDENT = 2
# Decode kernels split the keys of a sequence until the device is full (FlashAttention's num_splits_heuristic), into
# parts of four steps or more, and no more than so many (vLLM's limit inside CUDA graphs).
_PART_KEYS = 4 * _KEY_STEP
_MAX_SPLITS = 32
# Share of an unfilled last wave of blocks that is lost; the rest overlaps, since blocks do not start in step.
_WAVE_TAIL = 0.5


class Kernel(NamedTuple):
    """What distinguishes the attention libraries that vLLM calls; facts of their source code, not fitted."""

    name: str
    prefill_tiles: tuple[int, ...]  # query rows of a tile, ascending; longer inputs use several of the last
    packs_group: bool  # prefill: the query heads of one KV head share a tile
    decode_tiles: tuple[int, ...]
    regroups: bool  # decode: copies queries and outputs to bring the heads of a group together


FLASH_2 = Kernel("FlashAttention-2", (64,), False, (64,), True)
FLASH_3 = Kernel("FlashAttention-3", (128,), True, (64,), False)
TRTLLM = Kernel("TensorRT-LLM generation kernels", (128,), False, (16,), False)
FLASHINFER = Kernel("FlashInfer", (16, 64, 128), True, (16, 64), False)


def attention_kernel(device: Device, kv_byte: float) -> Kernel:
    """The library that vLLM (0.14 to 0.24) picks.

    FlashAttention-3 on Hopper, TensorRT-LLM on data-centre Blackwell, elsewhere FlashAttention-2, which cannot read an
    8-bit cache, so FlashInfer there.
    """
    major = (device.compute_capability or "").split(".")[0]
    if major == "9":
        return FLASH_3
    if major == "10":
        return TRTLLM
    return FLASHINFER if kv_byte < 2.0 else FLASH_2


class DecodeParameters(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Decode attention; units and meanings in `SPECS`, under 'decode.<name>'. `*_8bit`: with an 8-bit KV cache."""

    start_s: float = 7.5e-6
    start_width_s: float = 5e-7
    start_8bit_s: float = 5e-7
    regroup_s: float = 4e-6
    combine_s: float = 4e-7
    block_s: float = 1.5e-6
    block_width_s: float = 3e-7
    key_cycles: float = 8.0
    key_width_cycles: float = 8.0
    key_cycles_8bit: float = 6.0
    key_width_cycles_8bit: float = 10.0
    bandwidth_fraction: float = 0.9
    bandwidth_fraction_8bit: float = 0.88
    l2_speedup: float = 2.0
    token_fraction: float = 0.7
    exponent: float = 2.0


class PrefillParameters(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Prefill attention; units and meanings in `SPECS`, under 'prefill.<name>'. `*_8bit`: with an 8-bit KV cache."""

    start_s: float = 7e-6
    start_width_s: float = 5e-7
    start_8bit_s: float = 1e-6
    matrix_fraction: float = 0.75
    matrix_fraction_8bit: float = 0.75
    softmax_per_cycle: float = 16.0
    softmax_per_cycle_8bit: float = 16.0
    diagonal_keys: float = 40.0
    block_s: float = 2e-6
    block_8bit_s: float = 2e-6
    tail: float = 0.5
    bandwidth_fraction: float = 0.8
    write_fraction: float = 0.4
    write_fraction_8bit: float = 0.3
    l2_speedup: float = 2.0
    exponent: float = 2.0


class AttentionParameters(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Attention of one device: both phases."""

    prefill: PrefillParameters = PrefillParameters()
    decode: DecodeParameters = DecodeParameters()


SPECS: dict[str, ParameterSpec] = {
    "decode.start_s": ParameterSpec("s", "launch, prologue and epilogue of the smallest call", 1e-6, 1e-4, 0.7),
    "decode.start_width_s": ParameterSpec("s", "the same, per 64 elements of a head", 1e-8, 1e-4, 1.0),
    "decode.start_8bit_s": ParameterSpec("s", "more with an 8-bit cache: scales, conversion", 1e-8, 1e-4, 1.0),
    "decode.regroup_s": ParameterSpec("s", "copies that bring the heads of a group together", 1e-8, 1e-4, 1.0),
    "decode.combine_s": ParameterSpec("s", "joining split keys, per doubling of the parts", 1e-8, 1e-4, 1.0),
    "decode.block_s": ParameterSpec("s", "one block, whatever its keys", 1e-8, 1e-4, 1.0),
    "decode.block_width_s": ParameterSpec("s", "the same, per 64 elements of a head", 1e-9, 1e-4, 1.0),
    "decode.key_cycles": ParameterSpec("cycles", "one key for 64 query rows on one multiprocessor", 0.1, 900.0, 1.0),
    "decode.key_width_cycles": ParameterSpec("cycles", "the same, per 64 elements of a head", 0.1, 900.0, 1.0),
    "decode.key_cycles_8bit": ParameterSpec("cycles", "key_cycles with an 8-bit cache", 0.1, 900.0, 1.0),
    "decode.key_width_cycles_8bit": ParameterSpec("cycles", "key_width_cycles, 8-bit cache", 0.1, 900.0, 1.0),
    "decode.bandwidth_fraction": ParameterSpec("1", "share of the memory bandwidth of long reads", 0.2, 0.98, 0.3),
    "decode.bandwidth_fraction_8bit": ParameterSpec("1", "the same, 8-bit cache", 0.2, 0.98, 0.3),
    "decode.l2_speedup": ParameterSpec("1", "L2 rate over memory bandwidth", 0.3, 20.0, 1.0),
    "decode.token_fraction": ParameterSpec("1", "rate of queries, outputs, new K/V over bandwidth", 0.05, 9.0, 1.0),
    "decode.exponent": ParameterSpec("1", "how sharply the slower of compute and memory wins", 1.05, 12.0, 0.7),
    "prefill.start_s": ParameterSpec("s", "launch, prologue and epilogue of the smallest call", 1e-6, 1e-4, 0.7),
    "prefill.start_width_s": ParameterSpec("s", "the same, per 64 elements of a head", 1e-8, 1e-4, 1.0),
    "prefill.start_8bit_s": ParameterSpec("s", "more with an 8-bit cache", 1e-8, 1e-4, 1.0),
    "prefill.matrix_fraction": ParameterSpec("1", "share of the 16-bit matrix peak inside a tile", 0.05, 0.98, 0.5),
    "prefill.matrix_fraction_8bit": ParameterSpec("1", "the same, 8-bit cache (8-bit units: up to 2)", 0.05, 1.9, 0.5),
    "prefill.softmax_per_cycle": ParameterSpec("1", "exponentials per cycle and multiprocessor", 1.5, 900.0, 1.0),
    "prefill.softmax_per_cycle_8bit": ParameterSpec("1", "the same, 8-bit cache", 1.5, 900.0, 1.0),
    "prefill.diagonal_keys": ParameterSpec("keys", "masked keys that a query row computes in vain", 1.5, 512.0, 1.0),
    "prefill.block_s": ParameterSpec("s", "one query tile, whatever its keys", 1e-8, 1e-4, 1.0),
    "prefill.block_8bit_s": ParameterSpec("s", "the same, 8-bit cache", 1e-8, 1e-4, 1.0),
    "prefill.tail": ParameterSpec("1", "share of the longest tile that runs alone at the end", 1e-3, 2.1, 1.0),
    "prefill.bandwidth_fraction": ParameterSpec("1", "share of the memory bandwidth", 0.1, 0.98, 0.5),
    "prefill.write_fraction": ParameterSpec("1", "the same, of the write of new K/V", 0.02, 4.0, 1.0),
    "prefill.write_fraction_8bit": ParameterSpec("1", "the same, 8-bit cache", 0.02, 4.0, 1.0),
    "prefill.l2_speedup": ParameterSpec("1", "L2 rate over memory bandwidth", 1.05, 20.0, 1.0),
    "prefill.exponent": ParameterSpec("1", "how sharply the slower of compute and memory wins", 1.05, 12.0, 0.7),
}  # fmt: skip


def decode_attention_time(
    sequences, keys, *, q_heads: int, kv_heads: int, head_dim: int, kv_byte: float, kv_elements_per_tok: float,
    flop_per_pair: float, device: Device, p: DecodeParameters, l2_resident=0.0,
) -> OperatorTime:  # fmt: skip
    """Seconds of one layer's attention for `sequences` (S,) decoding sequences with `keys` (S,) keys in total.

    `keys` sums over the sequences; they are taken to be equally long. `kv_elements_per_tok` is what one token occupies
    in this layer's cache (2 kv_heads head_dim; MLA: its latent), `flop_per_pair` the FLOPs of one (query token, key)
    pair over all heads (4 q_heads head_dim). `l2_resident` (S,) is the share of the cache that the L2 still holds: 0 in
    a real step, where weights have displaced it; the measured tables replay one cache (README of the tables, trap 1).
    All array arguments broadcast. Sources: flash decoding (Dao et al. 2023) for split keys; vLLM 0.24's kernels.
    """
    kernel = attention_kernel(device, kv_byte)
    narrow = _narrow(kv_byte)
    shape = _Shape(q_heads, kv_heads, kv_elements_per_tok, flop_per_pair, narrow)
    sequences, keys = np.maximum(np.asarray(sequences, float), 1e-9), np.asarray(keys, float)
    splits, blocks = _split(sequences, keys, shape, device)
    compute = _decode_compute(sequences, keys, splits, blocks, shape, kernel, device, p)
    compute = np.maximum(compute, keys * flop_per_pair / _peak(device, narrow))
    bandwidth = device.memory.bandwidth_byte_per_s
    fraction = np.where(narrow, p.bandwidth_fraction_8bit, p.bandwidth_fraction)
    cache_byte = keys * kv_elements_per_tok * kv_byte
    partial_byte = np.where(splits > 1.0, 2.0 * splits, 0.0) * 4.0  # written and read back in 32 bit
    token_byte = q_heads * head_dim * (4.0 + partial_byte) + kv_elements_per_tok * (2.0 + kv_byte)
    cache_s = cache_byte * ((1.0 - l2_resident) / fraction + l2_resident / p.l2_speedup)
    memory = (cache_s + sequences * token_byte / p.token_fraction) / bandwidth
    return _operator(_decode_start(sequences, splits, shape, kernel, p), compute, memory, p.exponent)


def prefill_attention_time(
    chunks, new_tok, pairs, keys, *, q_heads: int, kv_heads: int, head_dim: int, kv_byte: float,
    kv_elements_per_tok: float, query_elements_per_tok: float, flop_per_pair: float, device: Device,
    p: PrefillParameters,
) -> OperatorTime:  # fmt: skip
    """Seconds of one layer's attention over `chunks` (S,) prompts or chunks, per step.

    `new_tok` (S,) are their new tokens, `pairs` (S,) the (query, key) pairs after masking (causal: n (n + 1) / 2 per
    prompt, plus n times what is cached), `keys` (S,) the keys read, cached ones included; all summed over the chunks,
    which are taken to be equally long. `query_elements_per_tok` is the size of a token's queries over all heads, and
    of its output. All array arguments broadcast.

    A tile of query rows meets all keys below its diagonal; rows are padded to the tile, keys by `diagonal_keys`. Tiles
    are handed out longest first, so what remains of the schedule is a part of the longest tile (Graham 1969: list
    scheduling ends at most one job after the even share). Softmax costs one exponential per pair, whatever the width:
    heads of 64 are less efficient than heads of 128 (FlashAttention-3, Shah et al. 2024, section 3.1).
    """
    kernel = attention_kernel(device, kv_byte)
    narrow = _narrow(kv_byte)
    chunks, new_tok, pairs, keys = (np.asarray(x, float) for x in (chunks, new_tok, pairs, keys))
    some = np.maximum(new_tok, 1e-9)
    each = some / np.maximum(chunks, 1e-9)
    blocks, tile = _prefill_blocks(chunks, each, q_heads, kv_heads, kernel)
    diagonal = blocks * tile * p.diagonal_keys
    padded = pairs * np.maximum(q_heads, blocks * tile / some) + diagonal
    pair_s = _pair_time(flop_per_pair / q_heads, narrow, device, p)  # of the whole device, one head
    block_s = np.where(narrow, p.block_8bit_s, p.block_s)
    sm_count = device.compute.sm_count
    longest = tile * (keys / np.maximum(chunks, 1e-9) + p.diagonal_keys) * pair_s * sm_count + block_s
    even = padded * pair_s + blocks * block_s / sm_count
    compute = np.maximum(even + p.tail * longest, pairs * flop_per_pair / _peak(device, narrow)) * (new_tok > 0.0)
    memory, write = _prefill_memory(
        new_tok, keys, query_elements_per_tok, kv_elements_per_tok, kv_byte, narrow, device, p
    )
    width = flop_per_pair / (4.0 * q_heads)
    start = p.start_s + p.start_width_s * width / 64.0 + np.where(narrow, p.start_8bit_s, 0.0)
    time = _operator(start, compute, memory, p.exponent)
    return OperatorTime(time.start_s, time.compute_s, time.memory_s + write)


class _Shape(NamedTuple):
    """One layer's heads: `width` = elements per head that a (query, key) pair multiplies, averaged over both products.

    The fields may be arrays (one shape per point), which fits use.
    """

    q_heads: float
    kv_heads: float
    kv_elements: float
    flop_per_pair: float
    narrow: bool

    @property
    def group(self):
        """Query heads per KV head."""
        return self.q_heads / self.kv_heads

    @property
    def width(self):
        """head_dim for plain attention; for latent attention the mean of key and value width."""
        return self.flop_per_pair / (4.0 * self.q_heads)


def _narrow(kv_byte):
    """Whether the cache is stored in 8 bit; kernels then differ."""
    return np.asarray(kv_byte) < 2.0


def _peak(device: Device, narrow):
    """FLOP/s that no kernel exceeds: the 16-bit peak; with an 8-bit cache the 8-bit one, where there are such units."""
    peaks = device.compute.peak_flop_per_s
    wide = peaks.get("bf16", peaks["fp16"])
    return np.where(narrow, max(wide, peaks.get("fp8", 0.0)), wide)


def _tile_of(rows, tiles: tuple[int, ...]):
    """The smallest tile that holds `rows`, or the largest there is."""
    tile = np.full(np.shape(rows), float(tiles[-1]))
    for size in reversed(tiles[:-1]):
        tile = np.where(rows <= size, float(size), tile)
    return tile


def _split(sequences, keys, shape: _Shape, device: Device):
    """Parts per sequence, and blocks in all: blocks of one KV head are split until the multiprocessors are full."""
    blocks = sequences * shape.kv_heads * np.ceil(shape.group / _TILE_ROWS)
    slots = _RESIDENT * device.compute.sm_count
    most = np.clip(keys / sequences / _PART_KEYS, 1.0, _MAX_SPLITS)
    splits = np.clip(slots / blocks, 1.0, most)
    return splits, blocks * splits


def _decode_compute(
    sequences, keys, splits, blocks, shape: _Shape, kernel: Kernel, device: Device, p: DecodeParameters
):
    """Seconds that the multiprocessors are busy: blocks in waves, each a fixed time plus a time per step of keys."""
    tile = _tile_of(shape.group, kernel.decode_tiles)
    rows = np.ceil(shape.group / tile) * tile / np.ceil(shape.group / _TILE_ROWS)  # of one block
    cycles = np.where(
        shape.narrow,
        p.key_cycles_8bit + p.key_width_cycles_8bit * shape.width / 64.0,
        p.key_cycles + p.key_width_cycles * shape.width / 64.0,
    )
    key_s = rows / _TILE_ROWS * cycles / device.compute.clock_hz
    steps = np.ceil(keys / sequences / splits / _KEY_STEP) * _KEY_STEP
    block_s = p.block_s + p.block_width_s * shape.width / 64.0 + steps * key_s
    waves = blocks / device.compute.sm_count
    whole = np.where(waves <= _RESIDENT, waves, np.ceil(waves / _RESIDENT) * _RESIDENT)
    return np.maximum(1.0, _WAVE_TAIL * whole + (1.0 - _WAVE_TAIL) * waves) * block_s


def _decode_start(sequences, splits, shape: _Shape, kernel: Kernel, p: DecodeParameters):
    """Seconds whatever the length: launch, copies of the group's heads, joining of split keys."""
    start = p.start_s + p.start_width_s * shape.width / 64.0 + np.where(shape.narrow, p.start_8bit_s, 0.0)
    split = p.combine_s * np.log2(splits)
    if not kernel.regroups:
        return start + split
    moves = (sequences > 1.0) & (shape.kv_heads > 1) & (shape.group > 1)
    return start + split + np.where(moves, p.regroup_s, 0.0)


def _prefill_blocks(chunks, each, q_heads, kv_heads, kernel: Kernel):
    """Query tiles over all chunks and heads, and the rows of a tile. `each` = new tokens of one chunk."""
    packs = kernel.packs_group | (each <= 1.0)  # one new token is decode: there every library packs the group
    rows = np.where(packs, each * q_heads / kv_heads, each)
    tile = _tile_of(rows, kernel.prefill_tiles)
    return chunks * np.where(packs, kv_heads, q_heads) * np.ceil(rows / tile), tile


def _pair_time(flop_per_pair, narrow, device: Device, p: PrefillParameters):
    """Seconds per (query, key) pair of one head with the whole device busy: two products, then one exponential."""
    peaks = device.compute.peak_flop_per_s
    matrix = np.where(narrow, p.matrix_fraction_8bit, p.matrix_fraction) * peaks.get("bf16", peaks["fp16"])
    softmax = np.where(narrow, p.softmax_per_cycle_8bit, p.softmax_per_cycle)
    return flop_per_pair / matrix + 1.0 / (softmax * device.compute.sm_count * device.compute.clock_hz)


def _prefill_memory(new_tok, keys, query_elements, kv_elements, kv_byte, narrow, device: Device, p: PrefillParameters):
    """Seconds of reading queries, keys and values and writing outputs; and of writing new keys and values before that.

    Queries, new keys and outputs are activations: the L2 holds them if they fit, cached keys come from memory.
    """
    query_byte = 4.0 * new_tok * query_elements
    write_byte = new_tok * kv_elements * (2.0 + kv_byte)
    fits = query_byte + write_byte <= device.compute.l2_byte
    speedup = np.where(fits, p.l2_speedup, 1.0)
    fresh_byte = query_byte + np.minimum(keys, new_tok) * kv_elements * kv_byte
    cached_byte = np.maximum(keys - new_tok, 0.0) * kv_elements * kv_byte
    bandwidth = device.memory.bandwidth_byte_per_s
    memory = (fresh_byte / speedup + cached_byte) / (p.bandwidth_fraction * bandwidth)
    return memory, write_byte / (np.where(narrow, p.write_fraction_8bit, p.write_fraction) * bandwidth * speedup)


def _operator(start, compute, memory, exponent: float) -> OperatorTime:
    """Start plus the smooth maximum, laid to compute and memory by their shares."""
    both = smooth_maximum(compute, memory, exponent)
    share = compute_share(compute, memory, exponent)
    return OperatorTime(np.broadcast_to(start, np.shape(both)), both * share, both * (1.0 - share))
