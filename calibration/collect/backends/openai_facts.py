"""What a server tells about itself: /v1/models, /version, /get_server_info, /props, /metrics.

Only fields that are named here are kept: SGLang's answer holds its API key.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from calibration.collect.backends import BackendOptions
from calibration.collect.backends.openai_http import Http
from calibration.collect.backends.openai_settings import ClientSettings
from calibration.collect.backends.openai_stream import shown
from calibration.collect.point import BackendError, EngineFacts
from simulator.errors import UserError
from simulator.model.registry import catalogue_entries, config_path

_OWNERS = {"vllm": "vllm", "sglang": "sglang", "llamacpp": "llama.cpp", "tensorrt_llm": "tensorrt-llm"}
_DTYPES = {
    **{"bfloat16": "bf16", "float16": "fp16", "half": "fp16", "float32": "fp32", "float": "fp32", "int8": "int8"},
    **{"fp8": "fp8", "fp8_e4m3": "fp8", "fp8_e5m2": "fp8", "bf16": "bf16", "fp16": "fp16", "fp32": "fp32"},
}
# SGLang's names -> ours; those without one of ours keep their own, as they mean something else.
_SGLANG = {
    **{"max_running_requests": "max_num_seqs", "context_length": "max_model_len", "page_size": "block_size"},
    **{"max_total_num_tokens": "kv_capacity_tok", "attention_backend": "attention_backend"},
    **{"quantization": "quantization", "speculative_algorithm": "speculative_decoding"},
    **{"mem_fraction_static": "mem_fraction_static", "chunked_prefill_size": "chunked_prefill_size"},
}
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')


async def served_model(http: Http, options: BackendOptions, settings: ClientSettings) -> tuple[str, dict[str, Any]]:
    """(name that requests must carry, the server's entry for it). BackendError when it does not serve the model."""
    status, payload = await http.get("/v1/models")
    if status is None:
        raise BackendError(f"the server does not answer: {payload}")
    if status in (401, 403):
        raise BackendError(f"the server wants another API key (HTTP {status}), expected one in {settings.api_key_env}")
    cards = payload.get("data") if isinstance(payload, dict) else None
    cards = {str(card["id"]): card for card in cards or () if isinstance(card, dict) and "id" in card}
    wanted = settings.served_model or options.model
    if wanted in cards:
        return wanted, cards[wanted]
    if settings.served_model is None and len(cards) == 1:
        return next(iter(cards.items()))
    if not cards:
        if wanted:
            return wanted, {}
        raise BackendError(f"the server lists no model (HTTP {status}), expected served_model=NAME")
    known = ", ".join(shown(name, 60) for name in list(cards)[:8])
    raise BackendError(f"the server does not serve '{wanted}', it serves: {known}; expected served_model=NAME")


async def read_facts(
    http: Http, options: BackendOptions, settings: ClientSettings, stated: dict[str, Any]
) -> EngineFacts:
    """The configuration, as the server tells it and, where it does not, as the user stated it."""
    name, card = await served_model(http, options, settings)
    told: dict[str, Any] = {"engine": _OWNERS.get(str(card.get("owned_by")))}
    told["max_model_len"] = card.get("max_model_len")
    for take in (_sglang, _llama_cpp, _version, _vllm_metrics):
        found = await take(http, told["engine"])
        told = {**told, **{key: value for key, value in found.items() if value is not None}}
    facts = _merged({key: value for key, value in told.items() if value is not None}, stated, options)
    if name != options.model:
        facts["served_model"] = name
    dtype = facts.pop("activation_dtype", None) or options.dtype
    kv_dtype = facts.pop("kv_dtype", None)
    return EngineFacts(
        engine=facts.pop("engine", "openai-compatible"),
        engine_version=facts.pop("engine_version", None),
        model=options.model or name,
        model_config=model_config(options.model),
        weight_dtype=facts.pop("weight_dtype", None) or options.dtype,
        activation_dtype=dtype,
        kv_dtype=dtype if kv_dtype == "auto" else kv_dtype,
        tp=int(facts.pop("tp", options.tensor_parallel_size)),
        pp=int(facts.pop("pp", 1)),
        n_gpus=int(facts.pop("n_gpus", facts.pop("_gpus", options.tensor_parallel_size))),
        settings=facts,
    )


def model_config(model: str) -> dict[str, Any]:
    """config.json of a bundled model or of a path; empty when there is none."""
    names = {name.lower(): entry for entry in catalogue_entries() for name in (entry["id"], *entry["aliases"])}
    entry = names.get(model.lower())
    path = config_path(entry) if entry else Path(model or ".").expanduser()
    path = path / "config.json" if path.is_dir() else path
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"model config '{model}': {error}, expected a config.json") from None
    return content if isinstance(content, dict) else {}


def _merged(told: dict[str, Any], stated: dict[str, Any], options: BackendOptions) -> dict[str, Any]:
    """What the server told, filled up by what the user stated. BackendError where they disagree."""
    if options.cuda_graphs is not None:
        stated = {**stated, "cuda_graphs": options.cuda_graphs}
    if options.tensor_parallel_size != 1:
        stated = {"tp": options.tensor_parallel_size, **stated}
    for name, value in stated.items():
        if name in told and not _agree(name, str(told[name]).lower(), str(value).lower()):
            raise BackendError(f"{name}: the server says {told[name]}, but {value} was stated")
    return {**stated, **told}


def _agree(name: str, told: str, stated: str) -> bool:
    """Whether two values are the same; a version may be stated by its beginning: 0.5 of 0.5.3."""
    return told == stated or (name == "engine_version" and told.removeprefix("v").startswith(f"{stated}."))


async def _sglang(http: Http, engine: str | None) -> dict[str, Any]:
    if engine not in (None, "sglang"):
        return {}
    status, info = await http.get("/get_server_info")
    if status != 200 or not isinstance(info, dict) or "mem_fraction_static" not in info:
        return {}
    told = {ours: info.get(name) for name, ours in _SGLANG.items()}
    chunk = info.get("chunked_prefill_size")
    return {
        **told,
        "engine": "sglang",
        "engine_version": info.get("version"),
        "chunked_prefill": chunk > 0 if isinstance(chunk, int) else None,
        "prefix_caching": _not(info.get("disable_radix_cache")),
        "cuda_graphs": _not(info.get("disable_cuda_graph")),
        "activation_dtype": _DTYPES.get(str(info.get("dtype"))),
        "kv_dtype": _kv_dtype(info.get("kv_cache_dtype")),
        "tp": info.get("tp_size"),
        "pp": info.get("pp_size"),
        "_gpus": _product(info.get("tp_size"), info.get("pp_size")),
    }


async def _llama_cpp(http: Http, engine: str | None) -> dict[str, Any]:
    if engine not in (None, "llama.cpp"):
        return {}
    status, props = await http.get("/props")
    if status != 200 or not isinstance(props, dict) or "total_slots" not in props:
        return {}
    defaults = props.get("default_generation_settings")
    return {
        "engine": "llama.cpp",
        "engine_version": props.get("build_info"),
        "max_num_seqs": props.get("total_slots"),
        "max_model_len": defaults.get("n_ctx") if isinstance(defaults, dict) else None,
    }


async def _version(http: Http, engine: str | None) -> dict[str, Any]:
    """vLLM and TensorRT-LLM."""
    if engine not in (None, "vllm", "tensorrt-llm"):
        return {}
    status, payload = await http.get("/version")
    version = payload.get("version") if status == 200 and isinstance(payload, dict) else None
    return {"engine_version": version} if isinstance(version, str) else {}


async def _vllm_metrics(http: Http, engine: str | None) -> dict[str, Any]:
    if engine not in (None, "vllm"):
        return {}
    status, page = await http.get("/metrics")
    return cache_config(page) if status == 200 and isinstance(page, str) else {}


def cache_config(page: str) -> dict[str, Any]:
    """What the labels of vllm:cache_config_info say on a page of metrics."""
    line = next((line for line in page.splitlines() if line.startswith("vllm:cache_config_info{")), None)
    if line is None:
        return {}
    labels = dict(_LABEL.findall(line))
    blocks, size = _whole(labels.get("num_gpu_blocks")), _whole(labels.get("block_size"))
    return {
        "engine": "vllm",
        "block_size": size,
        "num_gpu_blocks": blocks,
        "kv_capacity_tok": _product(blocks, size),
        "prefix_caching": {"True": True, "False": False}.get(labels.get("enable_prefix_caching", "")),
        "gpu_memory_utilization": _fraction(labels.get("gpu_memory_utilization")),
        "kv_dtype": _kv_dtype(labels.get("cache_dtype")),
    }


def _kv_dtype(name: object) -> str | None:
    """As records name it; "auto": that of the activations."""
    return "auto" if name == "auto" else _DTYPES.get(str(name))


def _whole(text: str | None) -> int | None:
    return int(text) if text and text.isdigit() else None


def _fraction(text: str | None) -> float | None:
    try:
        return float(text or "")
    except ValueError:
        return None


def _not(flag: object) -> bool | None:
    return not flag if isinstance(flag, bool) else None


def _product(first: object, second: object) -> int | None:
    return first * second if isinstance(first, int) and isinstance(second, int) else None
