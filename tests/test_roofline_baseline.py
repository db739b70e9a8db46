"""The plain roofline: closed forms, and never slower than the simulator, which adds what it leaves out."""

import numpy as np
import pytest

from calibration.open_loop import simulate_open_loop
from calibration.records import RunRecord
from calibration.roofline_baseline import PlainRoofline, roofline_metrics
from calibration.setup import resolve, step_model
from calibration.trajectory import trajectory_of
from simulator.keys import key_rules
from simulator.profile_parts import compose
from simulator.steps import Steps

DENSE, MOE = "meta-llama/Llama-3.1-8B-Instruct", "Qwen/Qwen3-30B-A3B-Instruct-2507"
H100_BANDWIDTH, H100_FLOP = 3.35e12, 989.4e12
# Llama 3.1 8B: q and o, k and v of 8 heads, three matrices of the feed-forward part; output head.
LAYER = 2 * 4096 * 4096 + 2 * 4096 * 1024 + 3 * 4096 * 14336
WEIGHTS = 32 * LAYER + 4096 * 128256


def record(model=DENSE, **changes):
    values = {
        "run_id": "r", "source": "test", "gpu": "h100-sxm", "model": model, "weight_dtype": "bf16", "engine": "vllm",
        "engine_version": "0.11.1", "load": "static_batch", "concurrency": 1.0, "input_tok": 16.0, "output_tok": 64.0,
    }  # fmt: skip
    return RunRecord(**(values | changes))


def seconds(setup, steps):
    return PlainRoofline.of(setup).price(steps).seconds


def decode(setup, sequences, context=16, steps=1):
    return Steps.from_decode_run(np.full(sequences, context), steps, key_rules(setup.model))


def prefill(setup, tokens):
    rules, one = key_rules(setup.model), np.ones(1)
    pairs = np.full((1, len(rules)), tokens * (tokens + 1) / 2.0)
    none = np.zeros((1, len(rules)))
    return Steps(0 * one, none, one, tokens * one, 0 * one, pairs, none + tokens, one)


def run_metrics(setup):
    found = trajectory_of(setup.record, setup.model, setup.settings, setup.kv_blocks, setup.parallel.dp)
    return roofline_metrics(setup, found)


def test_a_dense_decode_step_at_batch_one_reads_the_weights():
    setup = resolve(record())
    assert seconds(setup, decode(setup, 1)) == pytest.approx(2.0 * WEIGHTS / H100_BANDWIDTH, rel=3e-3)


def test_the_data_sheet_is_the_one_of_the_closed_forms():
    device = resolve(record()).device
    assert device.memory.bandwidth_byte_per_s == pytest.approx(H100_BANDWIDTH, rel=2e-3)
    assert device.compute.peak_flop_per_s["bf16"] == pytest.approx(H100_FLOP, rel=2e-3)


def test_eight_bit_weights_take_half_the_time():
    wide, narrow = (resolve(record(weight_dtype=name)) for name in ("bf16", "fp8"))
    head = 2.0 * 4096 * 128256
    expected = (32 * LAYER + head) / (2.0 * 32 * LAYER + head)
    assert seconds(narrow, decode(narrow, 1)) / seconds(wide, decode(wide, 1)) == pytest.approx(expected, rel=3e-3)


def test_each_key_costs_its_cache_bytes():
    setup = resolve(record())
    short, long = (seconds(setup, decode(setup, 4, context)) for context in (1000, 3000))
    per_key = 32 * 2 * 8 * 128 * 2.0
    assert long - short == pytest.approx(4 * 2000 * per_key / H100_BANDWIDTH, rel=1e-6)


def test_a_long_prefill_does_its_flops_at_the_peak():
    setup, tokens = resolve(record()), 8192
    attention = 32 * 4.0 * 32 * 128 * tokens * (tokens + 1) / 2.0
    expected = (2.0 * 32 * LAYER * tokens + attention + 2.0 * 4096 * 128256) / H100_FLOP
    assert seconds(setup, prefill(setup, tokens)) == pytest.approx(expected, rel=2e-3)


@pytest.mark.parametrize("tp", [2, 8])
def test_tensor_parallel_devices_share_the_weights_and_talk_for_free(tp):
    one, many = resolve(record()), resolve(record(tp=tp, n_gpus=tp))
    ratio = seconds(one, decode(one, 1)) / seconds(many, decode(many, 1))
    assert ratio == pytest.approx(tp, rel=0.01)


def test_pipeline_stages_pass_the_weights_once_per_micro_batch():
    one, staged = resolve(record()), resolve(record(pp=2, n_gpus=2))
    assert seconds(staged, decode(staged, 2)) == pytest.approx(seconds(one, decode(one, 1)), rel=1e-9)


def test_a_mixture_reads_the_experts_it_is_expected_to_touch():
    setup = resolve(record(MOE))
    expert = 3 * 2048 * 768 * 2.0 * 48 / setup.device.memory.bandwidth_byte_per_s  # one of 128 in each of 48 layers
    times = {n: float(seconds(setup, decode(setup, n))[0]) for n in (1, 2, 512)}
    touched = {n: 128 * (1 - (1 - 8 / 128) ** n) for n in times}
    assert touched[1] == pytest.approx(8.0)
    assert times[2] - times[1] == pytest.approx((touched[2] - 8.0) * expert, rel=0.02)
    assert times[512] > touched[512] * expert


def test_nothing_takes_no_time_and_more_never_takes_less():
    setup = resolve(record(MOE))
    assert seconds(setup, decode(setup, 1).take(np.zeros(0, dtype=int))).shape == (0,)
    times = [float(seconds(setup, decode(setup, n, 500))[0]) for n in (1, 2, 8, 64, 256)]
    assert times == sorted(times)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"model": MOE, "concurrency": 32.0},
        {"model": "openai/gpt-oss-120b", "weight_dtype": "mxfp4", "tp": 4, "n_gpus": 4, "concurrency": 16.0},
        {"model": "nvidia/NVIDIA-Nemotron-Nano-9B-v2", "concurrency": 64.0},
        {"gpu": "a100-sxm-80gb", "weight_dtype": "int4", "input_tok": 2000.0},
        {"gpu": "orin-agx-64gb", "engine_version": "0.8.6", "input_tok": 1000.0},
    ],
)
def test_it_is_a_bound_for_the_simulator(changes):
    setup = resolve(record(**changes))
    found = trajectory_of(setup.record, setup.model, setup.settings, setup.kv_blocks, setup.parallel.dp)
    simulated = step_model(setup, compose(setup.device, "vllm", setup.version)).price(found.steps).seconds
    assert (seconds(setup, found.steps) <= simulated).all()


def test_metrics_have_the_schemas_names_and_say_nothing_of_power():
    values = run_metrics(resolve(record(concurrency=4.0)))
    assert {"ttft_s_mean", "tpot_s_mean", "itl_s_median", "e2e_s_mean", "output_tok_per_s"} <= set(values)
    assert not [name for name in values if name.startswith(("power", "energy"))]
    assert values["tpot_s_mean"] == pytest.approx(2.0 * WEIGHTS / H100_BANDWIDTH, rel=0.01)


def test_it_replays_arrivals_in_real_time():
    setup = resolve(record(load="open_loop", concurrency=None, request_rate_rps=2.0, num_requests=8))
    physics = PlainRoofline.of(setup)
    found = simulate_open_loop(setup.record, setup.model, setup.settings, setup.kv_blocks, physics)
    assert len(found.served.requests) == 8
    assert found.metrics()["tpot_s_mean"] > 0 and found.metrics()["power_w"] == 0
