"""The `vllm serve` command line behind a deployment, and what it cannot say.

Names of options: vLLM's documentation of its engine arguments (docs.vllm.ai, `vllm serve`), for the connector that of
its NixlConnector.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass

from simulator.instance import Instance
from simulator.precision import SIXTEEN_BIT

DTYPES = {"bf16": "bfloat16", "fp16": "half", "fp32": "float32"}
CHECKPOINTS = {
    "fp8-block": "a checkpoint with block-wise fp8 weights",
    "int8": "a W8A8 checkpoint in compressed-tensors format",
    "int4": "an AWQ or GPTQ checkpoint",
    "mxfp4": "an MXFP4 checkpoint",
    "nvfp4": "an NVFP4 checkpoint",
}
CONNECTOR = '{"kv_connector":"NixlConnector","kv_role":"kv_both"}'


@dataclass(frozen=True)
class ServeCommand:
    """`line` starts one replica; `notes` say what else it takes. line is "" where the engine is not vLLM."""

    line: str
    notes: tuple[str, ...]


def serve_command(
    instance: Instance, replicas: int = 1, prefill_replicas: int = 0, engine: str | None = None, eager: bool = False
) -> ServeCommand:
    """How vLLM serves `instance`, with every setting that matters spelled out."""
    if engine is not None and not engine.startswith("vllm"):
        return ServeCommand("", (f"the engine is {engine.partition(':')[0]}, whose command line is not known here",))
    words, notes = ["vllm", "serve", instance.model.name], []
    words += _split(instance)
    extra, note = _formats(instance)
    words += extra
    notes += note
    settings = instance.settings
    words += ["--max-num-seqs", str(settings.max_num_seqs)]
    words += ["--max-num-batched-tokens", str(settings.max_num_batched_tokens)]
    if settings.max_model_len is not None and settings.max_model_len < instance.model.max_position_embeddings:
        words += ["--max-model-len", str(settings.max_model_len)]
    words += ["--gpu-memory-utilization", f"{settings.gpu_memory_utilization:g}"]
    words += ["--enforce-eager"] if eager else []
    words += [] if settings.enable_prefix_caching else ["--no-enable-prefix-caching"]
    words += [] if settings.enable_chunked_prefill else ["--no-enable-chunked-prefill"]
    if prefill_replicas:
        words += ["--kv-transfer-config", CONNECTOR]
        notes.append(
            f"{prefill_replicas} of the {replicas + prefill_replicas} servers prefill and {replicas} decode, behind a "
            "proxy that sends every prompt to one of the first and then to one of the second"
        )
    elif replicas > 1:
        notes.append(f"start it {replicas} times, each on GPUs of its own, behind a router that takes turns")
    return ServeCommand(shlex.join(words), tuple(notes))


def _split(instance: Instance) -> list[str]:
    parallel = instance.parallel
    words = ["--tensor-parallel-size", str(parallel.tp)]
    words += ["--pipeline-parallel-size", str(parallel.pp)] if parallel.pp > 1 else []
    return words + (["--enable-expert-parallel"] if parallel.ep > 1 else [])


def _formats(instance: Instance) -> tuple[list[str], list[str]]:
    """Options and notes on the number formats of weights and KV cache."""
    precision, model = instance.precision, instance.model
    own = model.quantisation or model.torch_dtype
    words: list[str] = []
    notes: list[str] = []
    if precision.weights in SIXTEEN_BIT or precision.weights == "fp32":
        if model.quantisation:
            notes.append(f"the checkpoint must have {precision.weights} weights; the published one has {own}")
        elif precision.weights != own:
            words += ["--dtype", DTYPES[precision.weights]]
    elif precision.weights == "fp8" and model.quantisation is None:
        words += ["--quantization", "fp8"]
        notes.append("--quantization fp8 converts the 16-bit checkpoint while it loads")
    elif precision.weights != own:
        notes.append(f"the model must be {CHECKPOINTS.get(precision.weights, precision.weights)}")
    if precision.kv_cache == "fp8":
        words += ["--kv-cache-dtype", "fp8"]
    return words, notes
