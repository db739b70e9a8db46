"""What can be measured: one module per engine interface, loaded only when asked for.

Every module has `open_backend(options: BackendOptions) -> Backend` (`calibration.collect.point.Backend`). It raises
BackendError in one sentence when its package is not installed, the model cannot be loaded or the server not reached.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

from calibration.collect.loads import Trace
from calibration.collect.point import Backend, BackendError
from simulator.errors import unknown_name

# Name on the command line -> (module with `open_backend`, what to install for it; "": nothing).
BACKENDS: dict[str, tuple[str, str]] = {
    "vllm": ("calibration.collect.backends.vllm_engine", "vllm"),
    "vllm-bench": ("calibration.collect.backends.vllm_bench", "vllm"),
    "openai": ("calibration.collect.backends.openai_client", ""),
    "transformers": ("calibration.collect.backends.torch_model", "torch"),
}


@dataclass(frozen=True)
class BackendOptions:
    """What a user asks of a back-end. None: the back-end's own default, which its facts then state.

    `model`: a Hugging Face id, or the path of a config.json. `gpu`: id of the data sheet. `settings`: engine settings
    under vLLM's names (max_num_seqs, max_num_batched_tokens, max_model_len, gpu_memory_utilization, ...) and what else
    the user sets by `--set NAME=VALUE`. `trace`: whose requests are to be sent. `dummy_weights`: weights need not be
    the real ones, only times are measured. `salt`: another at every start of every measurement, so that a server that
    stays up with its prefix cache gets prompts that it has not seen; the same salt gives the same prompts.
    """

    model: str
    gpu: str
    device: str | None = None  # "cpu" | "cuda"
    dtype: str | None = None  # of weights and activations, as records name it: bf16, fp16, fp32
    seed: int = 0
    base_url: str | None = None
    allow_remote: bool = False
    dummy_weights: bool = False
    cuda_graphs: bool | None = None
    tensor_parallel_size: int = 1
    settings: Mapping[str, Any] = field(default_factory=dict)
    trace: Trace | None = None
    salt: str = ""


def open_backend(name: str, options: BackendOptions) -> Backend:
    """The back-end called `name`, ready to run.

    UserError for an unknown name; BackendError when its module or its package is not there.
    """
    if name not in BACKENDS:
        raise unknown_name("back-end", name, BACKENDS, f"expected one of {', '.join(BACKENDS)}")
    module, package = BACKENDS[name]
    try:
        return import_module(module).open_backend(options)
    except ModuleNotFoundError as error:
        raise BackendError(_missing(name, module, package, error)) from None


def _missing(name: str, module: str, package: str, error: ModuleNotFoundError) -> str:
    if error.name == module:
        return f"back-end '{name}' is not part of this installation"
    wanted = package or error.name
    return f"back-end '{name}' needs the package '{error.name}', which is not installed; try: pip install {wanted}"
