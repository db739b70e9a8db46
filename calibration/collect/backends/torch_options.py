"""What a user can set for the back-end of plain PyTorch, checked before anything large is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from calibration.collect.backends import BackendOptions
from calibration.collect.backends.torch_quiet import TRIES
from calibration.collect.point import BackendError
from simulator.errors import UserError, unknown_name

DEVICES = ("cpu", "cuda")
DTYPES = ("fp32", "bf16", "fp16")
ATTENTION = ("sdpa", "eager")


@dataclass(frozen=True)
class TorchSettings:
    """Settings by `--set NAME=VALUE`; the first three under vLLM's names.

    The two limits say what the simulator may take for granted: a batch that is computed in one step. `max_model_len`
    None: as long as the model can read. `threads` None: PyTorch's own choice, one per physical core. `tries`: of a run
    at most, where other work holds it up.
    """

    max_num_seqs: int = 256
    max_num_batched_tokens: int = 16_384
    max_model_len: int | None = None
    threads: int | None = None
    attention: str = "sdpa"
    tries: int = TRIES


def read_settings(given: Mapping[str, Any]) -> TorchSettings:
    """The settings. BackendError for a value that is out of range, UserError for a name that is not known."""
    known = [field.name for field in fields(TorchSettings)]
    for name, value in given.items():
        if name not in known:
            raise unknown_name("setting of the transformers back-end", name, known, f"expected {', '.join(known)}")
        if name == "attention":
            if value not in ATTENTION:
                raise BackendError(f"attention: found '{value}', expected one of {', '.join(ATTENTION)}")
        elif isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise BackendError(f"{name}: found {value!r}, expected a whole number from 1 on")
    return TorchSettings(**given)


def check(options: BackendOptions) -> None:
    """BackendError for what plain PyTorch in one process cannot do."""
    if options.device not in (None, *DEVICES):
        raise BackendError(f"device: found '{options.device}', expected one of {', '.join(DEVICES)}")
    if options.dtype not in (None, *DTYPES):
        raise BackendError(f"dtype: found '{options.dtype}', expected one of {', '.join(DTYPES)}")
    if options.tensor_parallel_size != 1:
        raise BackendError(
            f"the transformers back-end runs on one device, found tensor_parallel_size = {options.tensor_parallel_size}"
        )
    if options.cuda_graphs:
        raise BackendError("the transformers back-end launches every kernel itself, it has no CUDA graphs to turn on")
    if options.base_url:
        raise BackendError("the transformers back-end runs in this process, expected no base_url")


def where(options: BackendOptions, cuda_available: bool) -> str:
    """The device to run on: as asked, else CUDA where there is one. BackendError when it is not there."""
    if options.device == "cuda" and not cuda_available:
        raise BackendError("device cuda was asked for, but PyTorch sees no GPU here; expected cpu")
    return options.device or ("cuda" if cuda_available else "cpu")


def dtype_of(options: BackendOptions, config: Mapping[str, Any], device: str) -> str:
    """The type of weights and activations as records name it: as asked, else the checkpoint's.

    On a processor fp32, in which every one of them has fast products.
    """
    if options.dtype:
        return options.dtype
    if device == "cpu":
        return "fp32"
    own = str(config.get("dtype") or config.get("torch_dtype") or "bfloat16")
    found = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}.get(own.removeprefix("torch."))
    if found is None:
        raise UserError(f"the model's config.json has the type '{own}', give one of {', '.join(DTYPES)}")
    return found
