"""Which number formats a run uses, and where vLLM's kernels compute in them."""

import pytest
from deployments import DENSE, SPARSE, device_named, model_named

from simulator.cli.options import ACTIVATIONS, WEIGHTS
from simulator.errors import UserError
from simulator.operators import plan_forward
from simulator.precision import ACTIVATION_BYTE, WEIGHT_BYTE, Precision, choose_precision, compute_dtype


def chosen(gpu, weights=None, activations=None, kv=None, model=DENSE):
    return choose_precision(model_named(model), device_named(gpu), weights, activations, kv)


def test_the_checkpoints_own_type_is_the_default():
    assert chosen("h100") == (Precision("bf16", "bf16", "bf16"), ())
    precision, notes = chosen("v100")
    assert precision == Precision("fp16", "fp16", "fp16", "fp16") and "no bf16 units" in notes[0]
    own, _ = chosen("h100", model="openai/gpt-oss-20b")
    assert (own.weights, own.activations, own.experts_only) == ("mxfp4", "bf16", True)


@pytest.mark.parametrize(
    ("gpu", "weights", "activations"),
    [
        ("h100", "fp8", "fp8"), ("a100", "fp8", "bf16"), ("l4", "fp8-block", "fp8"), ("a100", "fp8-block", "bf16"),
        ("a100", "int8", "int8"), ("orin", "int8", "int8"), ("v100", "int8", "fp16"),
        ("h100", "int4", "bf16"), ("b200", "int4", "bf16"), ("h100", "mxfp4", "bf16"), ("b200", "mxfp4", "bf16"),
        ("h100", "nvfp4", "bf16"), ("b200", "nvfp4", "nvfp4"), ("rtx-5090", "nvfp4", "nvfp4"),
    ],
)  # fmt: skip
def test_arithmetic_is_narrow_only_where_there_are_units(gpu, weights, activations):
    precision, notes = chosen(gpu, weights)
    assert precision.activations == activations
    named_8_bit = weights.split("-")[0] in ("fp8", "int8", "nvfp4")
    assert any("weight-only" in note for note in notes) == (named_8_bit and activations in ("bf16", "fp16"))


def test_eight_bits_with_wide_arithmetic_on_request():
    w8a16, _ = chosen("h100", "fp8", "bf16")
    w8a8, _ = chosen("h100", "fp8")
    assert (w8a16.activations, w8a8.activations) == ("bf16", "fp8")
    assert w8a16.weight_byte == w8a8.weight_byte == 1.0
    assert w8a16.base_byte == w8a8.base_byte == 2.0  # the hidden state stays in 16 bit
    assert not w8a16.layer_cast


@pytest.mark.parametrize("weights", ["bf16", "fp16"])
def test_layer_cast_moves_ten_bytes_for_every_two_it_stores(weights):
    precision, _ = chosen("h100", weights, "fp32")
    assert precision.layer_cast and precision.weight_byte == 2.0
    assert precision.moved_byte(True) == precision.moved_byte(False) == 10.0
    assert precision.base_byte == 4.0 and precision.kv_byte == 2.0
    plan = plan_forward(model_named(SPARSE), precision)
    assert {g.weight_byte for g in (*plan.gemms, *plan.experts)} == {10.0}
    assert {g.activation for g in (*plan.gemms, *plan.experts)} == {"fp32"}
    assert not chosen("h100", "fp32")[0].layer_cast


@pytest.mark.parametrize(
    ("gpu", "weights", "activations", "expected"),
    [
        ("h100", "nvfp4", "nvfp4", "no fp4 units"),
        ("h100", "mxfp4", "fp8", "no fp4 units"),
        ("b200", "int4", "fp8", "int4 weights need bf16 or fp16 activations"),
        ("b200", "nvfp4", "fp8", "nvfp4 weights need bf16 or fp16 or nvfp4"),
        ("b200", "mxfp4", "int8", "mxfp4 weights need"),
        ("b200", "bf16", "nvfp4", "nvfp4 activations need nvfp4 weights"),
        ("b200", "nvfp4", "mxfp4", "nvfp4 weights need"),
        ("h100", "bf17", None, "bf16"),
        ("h100", "fp8", "fp9", "fp8"),
    ],
)
def test_combinations_that_no_kernel_has(gpu, weights, activations, expected):
    with pytest.raises(UserError, match=expected):
        chosen(gpu, weights, activations)


def test_kv_cache_follows_the_model_unless_told():
    assert chosen("h100", "fp8")[0].kv_cache == "bf16"
    assert chosen("h100", kv="auto")[0].kv_cache == "bf16"
    assert chosen("h100", kv="fp8")[0].kv_byte == 1.0
    with pytest.raises(UserError, match="KV cache type"):
        chosen("h100", kv="int3")


def test_rates_of_arithmetic():
    assert compute_dtype(device_named("b200"), "nvfp4") == compute_dtype(device_named("b200"), "mxfp4") == "fp4"
    assert compute_dtype(device_named("h100"), "fp32") == "fp32"  # vector units: TF32 is off by default
    assert compute_dtype(device_named("v100"), "bf16") == "fp16"


def test_bytes_per_weight_include_scales():
    assert WEIGHT_BYTE["mxfp4"] == 17 / 32 and WEIGHT_BYTE["nvfp4"] == 9 / 16
    assert 0.5 < WEIGHT_BYTE["int4"] < WEIGHT_BYTE["mxfp4"] < WEIGHT_BYTE["nvfp4"] < WEIGHT_BYTE["fp8"]


def test_the_command_offers_what_physics_knows():
    assert set(WEIGHTS) == set(WEIGHT_BYTE) and set(ACTIVATIONS) == set(ACTIVATION_BYTE)
