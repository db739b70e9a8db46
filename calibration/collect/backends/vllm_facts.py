"""What a vLLM engine in this process tells of its configuration: read from its resolved config objects.

Names of attributes are those of vLLM 0.9 to 0.33; what a version does not have is None, and records leave it empty.
"""

from __future__ import annotations

import json
import os
import sys
from importlib import metadata
from typing import Any

from calibration.collect.point import EngineFacts
from calibration.collect.provenance import gpu_and_driver

_DTYPES = {"bfloat16": "bf16", "float16": "fp16", "half": "fp16", "float32": "fp32"}
# Weight formats by vLLM's name of the method; those that may have several widths are left open.
_WEIGHTS = {
    "fp8": "fp8", "fbgemm_fp8": "fp8", "modelopt": "fp8", "awq": "int4", "awq_marlin": "int4", "mxfp4": "mxfp4",
    "modelopt_fp4": "nvfp4",
}  # fmt: skip
PATH = "_name_or_path"  # where Hugging Face's library keeps the folder of a config
_GRAPH_MODES = {"PIECEWISE": "piecewise", "FULL": "full"}


def read_facts(llm: Any, model: str, dummy_weights: bool) -> EngineFacts:
    """The facts of `llm`, a vllm.LLM, for records that call the model `model`."""
    config = llm.llm_engine.vllm_config
    base = dtype_name(_of(config, "model_config.dtype"))
    quantised = _of(config, "model_config.quantization")
    kv = str(_of(config, "cache_config.cache_dtype") or "auto")
    return EngineFacts(
        engine="vllm",
        engine_version=_version("vllm"),
        model=model,
        model_config=_plain(_of(config, "model_config.hf_config")),
        weight_dtype=_WEIGHTS.get(str(quantised)) if quantised else base,
        activation_dtype=None if quantised else base,
        kv_dtype=base if kv == "auto" else "fp8" if kv.startswith("fp8") else dtype_name(kv),
        settings=_settings(config, dummy_weights),
        tp=_of(config, "parallel_config.tensor_parallel_size") or 1,
        pp=_of(config, "parallel_config.pipeline_parallel_size") or 1,
        n_gpus=_of(config, "parallel_config.world_size") or 1,
        versions=_versions(),
    )


def _settings(config: Any, dummy_weights: bool) -> dict[str, Any]:
    eager = bool(_of(config, "model_config.enforce_eager"))
    mode = getattr(_of(config, "compilation_config.cudagraph_mode"), "name", None)
    graphs = not eager and mode != "NONE"
    found = {
        "max_num_seqs": _of(config, "scheduler_config.max_num_seqs"),
        "max_num_batched_tokens": _of(config, "scheduler_config.max_num_batched_tokens"),
        "max_model_len": _of(config, "model_config.max_model_len"),
        "gpu_memory_utilization": _of(config, "cache_config.gpu_memory_utilization"),
        "prefix_caching": _of(config, "cache_config.enable_prefix_caching"),
        "chunked_prefill": _of(config, "scheduler_config.enable_chunked_prefill"),
        "async_scheduling": _of(config, "scheduler_config.async_scheduling"),
        "cuda_graphs": graphs,
        "cudagraph_mode": _GRAPH_MODES.get(str(mode)) if graphs else None,
        "max_cudagraph_capture_size": _of(config, "compilation_config.max_cudagraph_capture_size") if graphs else None,
        "num_gpu_blocks": _of(config, "cache_config.num_gpu_blocks"),
        "block_size": _of(config, "cache_config.block_size"),
        "kv_capacity_tok": _of(config, "cache_config.kv_cache_size_tokens"),
        "quantization": _text(_of(config, "model_config.quantization")),
        "attention_backend": _text(_of(config, "attention_config.backend")),
        "enable_expert_parallel": _of(config, "parallel_config.enable_expert_parallel"),
        "data_parallel_size": _of(config, "parallel_config.data_parallel_size"),
        "speculative_method": _of(config, "speculative_config.method"),
        "num_speculative_tokens": _of(config, "speculative_config.num_speculative_tokens"),
        "gpu_name": gpu_and_driver()[0],
        "seed": _of(config, "model_config.seed"),
        "core_in_process": os.environ.get("VLLM_ENABLE_V1_MULTIPROCESSING") == "0",
        "detokenize": False,
        "dummy_weights": dummy_weights,
    }
    return {name: value for name, value in found.items() if value is not None}


def dtype_name(dtype: Any) -> str | None:
    """A torch.dtype, or its name, as records name it."""
    return _DTYPES.get(str(dtype).removeprefix("torch.")) if dtype is not None else None


def _of(config: Any, path: str) -> Any:
    """An attribute by its dotted path; None where this version does not have it."""
    for name in path.split("."):
        config = getattr(config, name, None)
        if config is None:
            return None
    return config


def _text(value: Any) -> str | None:
    return None if value is None else str(getattr(value, "name", value))


def _plain(config: Any) -> dict[str, Any]:
    """A Hugging Face config as what JSON can hold, without the folder that it was read from."""
    content = config.to_dict() if hasattr(config, "to_dict") else {}
    return json.loads(json.dumps({name: value for name, value in content.items() if name != PATH}, default=str))


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return getattr(sys.modules.get(package), "__version__", None)


def _versions() -> dict[str, str]:
    """Versions of what the engine stands on: packages, the CUDA that PyTorch was built for, the GPU's driver."""
    found = {name: _version(name) for name in ("torch", "transformers", "triton")}
    cuda = getattr(getattr(sys.modules.get("torch"), "version", None), "cuda", None)
    found |= {"cuda": cuda and str(cuda), "driver": gpu_and_driver()[1]}
    return {name: version for name, version in found.items() if version}
