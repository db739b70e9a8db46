"""Attention kernels: physical floors, monotonicity, limits, and errors on shapes that a fit has not seen."""

from __future__ import annotations

import time
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calibration.kernels import attention as calibration
from calibration.kernels import tables
from simulator.device import list_devices, load_device
from simulator.kernels.attention import (
    SPECS,
    AttentionParameters,
    DecodeParameters,
    PrefillParameters,
    attention_kernel,
    decode_attention_time,
    prefill_attention_time,
)

DEVICES = [load_device(name) for name in (*tables.GPUS, "orin-agx-64gb")]
HEADS = st.sampled_from([(1, 1), (4, 1), (8, 8), (32, 8), (24, 2), (64, 8), (40, 40), (64, 1)])
COMMON = {
    "device": st.sampled_from(DEVICES),
    "heads": HEADS,
    "head_dim": st.sampled_from([64, 128, 256]),
    "kv_byte": st.sampled_from([1.0, 2.0]),
}


def shape(heads: tuple[int, int], head_dim: int, kv_byte: float) -> dict[str, Any]:
    """Keyword arguments that both phases share, for plain attention."""
    q_heads, kv_heads = heads
    return {
        "q_heads": q_heads, "kv_heads": kv_heads, "head_dim": head_dim, "kv_byte": kv_byte,
        "kv_elements_per_tok": 2 * kv_heads * head_dim, "flop_per_pair": 4 * q_heads * head_dim,
    }  # fmt: skip


def decode(sequences, keys, device, heads=(32, 8), head_dim=128, kv_byte=2.0, p=None):
    """Decode seconds by cause, default parameters."""
    return decode_attention_time(
        sequences, keys, **shape(heads, head_dim, kv_byte), device=device, p=p or DecodeParameters()
    )


def prefill(chunks, new_tok, cached, device, heads=(32, 8), head_dim=128, kv_byte=2.0, p=None):
    """Prefill seconds by cause for equal chunks of `new_tok` behind `cached` tokens each."""
    new, old = np.asarray(new_tok, float), np.asarray(cached, float)
    pairs = new * old + new * (new + 1) / 2
    return prefill_attention_time(
        chunks, chunks * new, chunks * pairs, chunks * (new + old), **shape(heads, head_dim, kv_byte),
        query_elements_per_tok=heads[0] * head_dim, device=device, p=p or PrefillParameters(),
    )  # fmt: skip


def peak(device, kv_byte: float) -> float:
    """The fastest arithmetic that a kernel could use."""
    peaks = device.compute.peak_flop_per_s
    wide = peaks.get("bf16", peaks["fp16"])
    return max(wide, peaks.get("fp8", 0.0)) if kv_byte < 2.0 else wide


@settings(max_examples=60, deadline=None)
@given(sequences=st.integers(1, 2048), context=st.integers(1, 200_000), **COMMON)
def test_decode_is_never_faster_than_bytes_or_flops_allow(sequences, context, device, heads, head_dim, kv_byte):
    keys = float(sequences * context)
    found = decode(sequences, keys, device, heads, head_dim, kv_byte)
    cache_byte = keys * 2 * heads[1] * head_dim * kv_byte
    assert found.seconds > cache_byte / device.memory.bandwidth_byte_per_s
    assert found.seconds > keys * 4 * heads[0] * head_dim / peak(device, kv_byte)


@settings(max_examples=60, deadline=None)
@given(chunks=st.integers(1, 64), new=st.integers(1, 8192), cached=st.integers(0, 30_000), **COMMON)
def test_prefill_is_never_faster_than_bytes_or_flops_allow(chunks, new, cached, device, heads, head_dim, kv_byte):
    found = prefill(chunks, new, cached, device, heads, head_dim, kv_byte)
    pairs = chunks * (new * cached + new * (new + 1) / 2)
    assert found.seconds > pairs * 4 * heads[0] * head_dim / peak(device, kv_byte)
    cached_byte = chunks * cached * 2 * heads[1] * head_dim * kv_byte
    assert found.seconds > cached_byte / device.memory.bandwidth_byte_per_s


@settings(max_examples=40, deadline=None)
@given(sequences=st.integers(1, 512), **COMMON)
def test_decode_grows_with_keys(sequences, device, heads, head_dim, kv_byte):
    keys = sequences * np.arange(1.0, 20_000.0, 37.0)
    seconds = decode(sequences, keys, device, heads, head_dim, kv_byte).seconds
    assert np.all(np.diff(seconds) >= -1e-12)


@settings(max_examples=40, deadline=None)
@given(chunks=st.integers(1, 64), new=st.integers(1, 4096), **COMMON)
def test_prefill_grows_with_what_is_cached(chunks, new, device, heads, head_dim, kv_byte):
    seconds = prefill(chunks, new, np.arange(0.0, 30_000.0, 501.0), device, heads, head_dim, kv_byte).seconds
    assert np.all(np.diff(seconds) > 0.0)


@settings(max_examples=40, deadline=None)
@given(new=st.integers(2, 4096), **COMMON)
def test_prefill_grows_with_prompts(new, device, heads, head_dim, kv_byte):
    chunks = np.arange(1.0, 65.0)
    seconds = prefill(chunks, float(new), 0.0, device, heads, head_dim, kv_byte).seconds
    assert np.all(np.diff(seconds) >= -1e-12)


def test_parts_are_not_negative_and_sum():
    for time_ in (decode(8, 80_000, DEVICES[1]), prefill(4, 1000, 0, DEVICES[1])):
        assert min(np.min(part) for part in time_) >= 0.0
        assert time_.seconds == pytest.approx(sum(time_))


def test_long_decode_gets_most_of_the_bandwidth_and_few_short_sequences_do_not():
    h100 = load_device("h100-sxm")
    rate = 4096 / h100.memory.bandwidth_byte_per_s  # seconds per key at full bandwidth
    assert 0.6 < 64 * 32_768 * rate / decode(64, 64 * 32_768, h100).seconds < 0.98
    assert 512 * rate / decode(1, 512, h100).seconds < 0.1


def test_split_keys_let_one_sequence_use_the_device():
    h100 = load_device("h100-sxm")
    one = decode(1, 100_000, h100).seconds
    assert one < 2.5 * decode(64, 100_000, h100).seconds


def test_heads_of_64_are_less_efficient_than_heads_of_128():
    b200 = load_device("b200-sxm")
    wide, slim = prefill(4, 8192, 0, b200, (32, 8), 128), prefill(4, 8192, 0, b200, (32, 8), 64)
    assert slim.seconds > 0.55 * wide.seconds


def test_a_sliding_window_costs_less_than_full_attention():
    device = load_device("l40s")
    arguments = {**shape((32, 8), 128, 2.0), "query_elements_per_tok": 4096, "device": device, "p": PrefillParameters()}
    full = prefill_attention_time(1, 16_384, 16_384 * 8192.5, 16_384, **arguments)
    window = prefill_attention_time(1, 16_384, 16_384 * 1024, 16_384, **arguments)
    assert window.seconds < 0.3 * full.seconds


def test_latent_attention_decodes():
    """DeepSeek-V3, absorbed: one latent of 576 per token, 128 heads, values of 512."""
    h200 = load_device("h200-sxm")
    found = decode_attention_time(
        32, 32 * 8192, q_heads=128, kv_heads=1, head_dim=576, kv_byte=2.0, kv_elements_per_tok=576,
        flop_per_pair=2 * 128 * (576 + 512), device=h200, p=DecodeParameters(),
    )  # fmt: skip
    floor = 32 * 8192 * 2 * 128 * (576 + 512) / h200.compute.peak_flop_per_s["bf16"]
    assert floor < found.seconds < 20 * floor


def test_l2_resident_keys_are_read_faster():
    l40s = load_device("l40s")
    arguments = {**shape((32, 8), 128, 2.0), "device": l40s, "p": DecodeParameters(l2_speedup=4.0)}
    hot = decode_attention_time(16, 16 * 512, **arguments, l2_resident=1.0)
    assert hot.seconds < decode_attention_time(16, 16 * 512, **arguments).seconds


def test_every_bundled_device_gets_finite_times():
    for device in list_devices():
        for kv_byte in (1.0, 2.0):
            assert np.isfinite(decode(4, 10_000, device, kv_byte=kv_byte).seconds)
            assert np.isfinite(prefill(4, 500, 100, device, kv_byte=kv_byte).seconds)


def test_libraries_follow_the_device():
    names = {device.id: attention_kernel(device, 2.0).name for device in DEVICES}
    assert names["h100-sxm"] == "FlashAttention-3"
    assert names["a100-sxm-80gb"] == names["rtx-pro-6000"] == "FlashAttention-2"
    assert attention_kernel(load_device("l40s"), 1.0).name == "FlashInfer"


def test_specs_describe_every_parameter_and_hold_the_defaults():
    defaults = {
        f"{phase}.{name}": value
        for phase, values in msgspec.to_builtins(AttentionParameters()).items()
        for name, value in values.items()
    }
    assert defaults.keys() == SPECS.keys()
    for name, value in defaults.items():
        assert SPECS[name].lower < value < SPECS[name].upper, name


def test_arrays_cost_less_than_a_microsecond_per_element():
    keys, h100 = np.linspace(1e3, 1e6, 20_000), load_device("h100-sxm")
    start = time.perf_counter()
    decode(8.0, keys, h100)
    prefill(2.0, keys / 100, 0.0, h100)
    assert time.perf_counter() - start < 2 * 20_000 * 1e-6 * 3  # three times slack: shared machines


@pytest.mark.parametrize("gpu", tables.GPUS)
@pytest.mark.parametrize("phase", ["prefill", "decode"])
def test_held_out_shapes_are_predicted(phase, gpu):
    found = calibration.held_out(phase, gpu).summary()
    assert found["median"] < 0.08
    assert found["p90"] < 0.25
    assert abs(found["bias"]) < 0.03
