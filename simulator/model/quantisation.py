"""The storage type of a checkpoint from its `quantization_config` and `torch_dtype`."""

from __future__ import annotations

from simulator.model.fields import Fields

_DTYPES = {"bfloat16": "bf16", "float16": "fp16", "half": "fp16", "float32": "fp32", "float": "fp32"}


def read_dtype(fields: Fields) -> str:
    """`torch_dtype` (newer: `dtype`) as "bf16", "fp16" or "fp32"; bf16 when it is not written."""
    name = fields.text("torch_dtype", "dtype", default="bfloat16").removeprefix("torch.")
    if name not in _DTYPES:
        raise fields.error("torch_dtype", f"found '{name}', expected bfloat16, float16 or float32")
    return _DTYPES[name]


def read_quantisation(fields: Fields, sparse: bool) -> tuple[str | None, bool]:
    """(storage type of the quantised layers or None, whether only the experts are quantised).

    `sparse`: the model has experts. 8-bit integers are "int8" whether activations have 8 bits too or not.
    """
    if "quantization_config" not in fields:
        return None, False
    config = fields.child("quantization_config")
    method = config.text("quant_method").lower()
    if method == "mxfp4":
        return "mxfp4", True
    if method in ("fp8", "fbgemm_fp8"):
        return ("fp8-block" if "weight_block_size" in config else "fp8"), False
    if method in ("gptq", "awq"):
        return _integer(config, "bits", config.count("bits", "w_bit")), False
    if method == "bitsandbytes":
        return ("int4" if config.flag("load_in_4bit") else "int8"), False
    if method == "modelopt":
        return _modelopt(config), False
    if method == "compressed-tensors":
        return _compressed_tensors(config), sparse and _spares_attention(config)
    known = "mxfp4, fp8, fbgemm_fp8, gptq, awq, bitsandbytes, modelopt or compressed-tensors"
    raise config.error("quant_method", f"found '{method}', expected {known}")


def _integer(fields: Fields, name: str, bits: int) -> str:
    if bits not in (4, 8):
        raise fields.error(name, f"found {bits}, expected 4 or 8")
    return f"int{bits}"


def _modelopt(config: Fields) -> str:
    algorithm = config.text("quant_algo").lower()
    if algorithm not in ("fp8", "nvfp4"):
        raise config.error("quant_algo", f"found '{algorithm}', expected FP8 or NVFP4")
    return algorithm


def _compressed_tensors(config: Fields) -> str:
    groups = config.child("config_groups")
    if not groups.values:
        raise config.error("config_groups", "found no group, expected at least one")
    weights = groups.child(next(iter(groups.values))).child("weights")
    bits = weights.count("num_bits")
    if weights.text("type", default="int") == "float":
        if bits not in (4, 8):
            raise weights.error("num_bits", f"found {bits}, expected 4 or 8")
        block = weights.text("strategy", default="") == "block"
        return "nvfp4" if bits == 4 else "fp8-block" if block else "fp8"
    return _integer(weights, "num_bits", bits)


def _spares_attention(config: Fields) -> bool:
    ignored = config.optional_list("ignore", str) or []
    return any(entry.startswith("re:") and "self_attn" in entry for entry in ignored)
