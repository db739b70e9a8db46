"""Build a model of Hugging Face's classes from its config.json, with random weights and nothing from the network."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from calibration.collect.point import BackendError
from simulator.model import load_model
from simulator.model.registry import catalogue_entries, config_path

BYTE = {"fp32": 4, "bf16": 2, "fp16": 2}
ROOM = 1.1  # of the memory that weights take: buffers and what building them needs
# Left out of the config: they name files, types and code that are not used here.
_UNUSED = ("model_type", "architectures", "auto_map", "torch_dtype", "dtype", "transformers_version", "_name_or_path")


def read_config(name: str) -> dict[str, Any]:
    """The content of the config.json of a bundled model (id or alias) or of a path. UserError when there is none."""
    load_model(name)  # says in one sentence what is wrong with a name or file
    for entry in catalogue_entries():
        if name.lower() in (other.lower() for other in (entry["id"], *entry["aliases"])):
            return json.loads(config_path(entry).read_text(encoding="utf-8"))
    path = Path(name).expanduser()
    path = path / "config.json" if path.is_dir() else path
    return json.loads(path.read_text(encoding="utf-8"))


def check_memory(name: str, dtype: str, device: str) -> None:
    """BackendError when the weights do not fit: a process that runs out of memory is killed without a word."""
    needed = ROOM * load_model(name).parameters() * BYTE[dtype]
    free = _free_byte(device)
    if free is not None and needed > free:
        raise BackendError(
            f"the weights of '{name}' in {dtype} take {needed / 1e9:.1f} GB, {device} has {free / 1e9:.1f} GB free; "
            "expected a smaller model or a narrower --dtype"
        )


def _free_byte(device: str) -> int | None:
    """Free memory of the device in bytes; None where the system does not tell."""
    if device == "cuda":
        import torch

        return torch.cuda.mem_get_info()[0]
    try:
        text = Path("/proc/meminfo").read_text(encoding="utf-8")
    except OSError:
        return None
    found = re.search(r"MemAvailable:\s+(\d+) kB", text)
    return int(found.group(1)) * 1024 if found else None


def build_model(config: dict[str, Any], dtype: str, device: str, attention: str, seed: int) -> Any:
    """The model in evaluation mode on the device. The same seed gives the same weights.

    BackendError for a model that Hugging Face's library does not know or that is published in a quantised format.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    kind = config.get("model_type")
    if config.get("quantization_config"):
        raise BackendError(
            f"the config of '{kind}' asks for quantised weights, which plain PyTorch has no kernels for; "
            "expected a config.json without quantization_config"
        )
    torch.manual_seed(seed)
    types = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
    try:
        known = AutoConfig.for_model(kind, **{key: value for key, value in config.items() if key not in _UNUSED})
        with torch.device(device):
            model = AutoModelForCausalLM.from_config(known, attn_implementation=attention, dtype=types[dtype])
    except torch.cuda.OutOfMemoryError:
        raise BackendError(f"the weights of '{kind}' in {dtype} do not fit into the memory of {device}") from None
    except (ValueError, KeyError, TypeError, AttributeError, ImportError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise BackendError(f"this version of transformers cannot build a model of type '{kind}': {reason}") from None
    return model.eval()
