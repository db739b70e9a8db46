"""What a user can set for the openai back-end: how the client behaves, and what the engine does not tell itself."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from calibration.collect.point import BackendError
from simulator.errors import unknown_name

DEFAULT_KEY_VARIABLE = "TOKENFLIGHT_API_KEY"  # not one that another service's key may already be in

# Facts of the engine under vLLM's names: as stated where the server does not say, refused where it says otherwise.
ENGINE = (
    *("max_num_seqs", "max_num_batched_tokens", "max_model_len", "gpu_memory_utilization", "prefix_caching"),
    *("chunked_prefill", "cuda_graphs", "num_gpu_blocks", "block_size", "kv_capacity_tok", "attention_backend"),
    *("async_scheduling", "quantization", "speculative_decoding", "engine", "engine_version", "kv_dtype"),
    *("weight_dtype", "activation_dtype", "tp", "pp", "ep", "dp", "n_gpus"),
)
TEXTS = ("engine", "engine_version")  # a version 0.10 is no number
CLIENT = (
    *("served_model", "api_key_env", "endpoint", "prompt", "vocab_size", "temperature", "connect_timeout_s"),
    *("first_token_timeout_s", "stall_timeout_s", "run_timeout_s", "share_prefixes", "shared_prefix_tok"),
)
ENDPOINTS = ("auto", "completions", "chat")
PROMPTS = ("auto", "text", "ids")


@dataclass(frozen=True)
class ClientSettings:
    """How the client behaves. Times are seconds.

    `endpoint`: auto takes /v1/completions, and /v1/chat/completions where the server has no other. `prompt`: auto
    sends exact token ids where the vocabulary is known and the server takes them, else words. `share_prefixes`:
    prompts of a trace begin alike where the trace says so. `run_timeout_s` None: a run may last as long as it does.
    """

    served_model: str | None = None
    api_key_env: str = DEFAULT_KEY_VARIABLE
    endpoint: str = "auto"
    prompt: str = "auto"
    vocab_size: int | None = None
    temperature: float = 0.0
    connect_timeout_s: float = 10.0
    first_token_timeout_s: float = 600.0
    stall_timeout_s: float = 60.0
    run_timeout_s: float | None = None
    share_prefixes: bool = False
    shared_prefix_tok: int = 0


def read_settings(given: Mapping[str, Any]) -> tuple[ClientSettings, dict[str, Any]]:
    """(what the client does, what the user states about the engine). UserError for a name or value that is neither."""
    for name in given:
        if "key" in name.lower() and name != "api_key_env":
            raise BackendError(
                f"'{name}': keys come from the environment only; expected api_key_env=NAME of a variable"
            )
        if name in ("trace", "trace_format", "trace_speed"):
            raise BackendError(f"'{name}' is no setting, expected the option --{name.replace('_', '-')}")
        if name not in CLIENT and name not in ENGINE:
            raise unknown_name("setting", name, (*CLIENT, *ENGINE), "known: " + ", ".join((*CLIENT, *ENGINE)))
    take = _Taker({name: value for name, value in given.items() if value is not None})
    settings = ClientSettings(
        served_model=take.text("served_model", None),
        api_key_env=take.text("api_key_env", DEFAULT_KEY_VARIABLE),
        endpoint=take.one_of("endpoint", ENDPOINTS),
        prompt=take.one_of("prompt", PROMPTS),
        vocab_size=take.count("vocab_size", None),
        temperature=take.number("temperature", 0.0, zero=True),
        connect_timeout_s=take.number("connect_timeout_s", 10.0),
        first_token_timeout_s=take.number("first_token_timeout_s", 600.0),
        stall_timeout_s=take.number("stall_timeout_s", 60.0),
        run_timeout_s=take.number("run_timeout_s", None),
        share_prefixes=take.flag("share_prefixes"),
        shared_prefix_tok=take.count("shared_prefix_tok", 0),
    )
    stated = {name: value for name, value in given.items() if name in ENGINE and value is not None}
    return settings, {name: str(value) if name in TEXTS else _parsed(value) for name, value in stated.items()}


def _parsed(value: Any) -> Any:
    """A number or a truth value that was written as text."""
    if not isinstance(value, str):
        return value
    if value.lower() in ("true", "false"):
        return value.lower() == "true"
    try:
        return int(value)
    except ValueError:
        pass
    try:
        return float(value)
    except ValueError:
        return value


@dataclass(frozen=True)
class _Taker:
    """Values of the settings, as text from a command line or as they are."""

    given: Mapping[str, Any]

    def text(self, name: str, default: str | None) -> Any:
        return str(self.given[name]) if name in self.given else default

    def one_of(self, name: str, allowed: tuple[str, ...]) -> str:
        value = self.text(name, allowed[0])
        return value if value in allowed else self._refuse(name, f"one of {', '.join(allowed)}")

    def number(self, name: str, default: float | None, zero: bool = False) -> Any:
        if name not in self.given:
            return default
        try:
            value = float(self.given[name])
        except (TypeError, ValueError):
            value = math.nan
        if not (math.isfinite(value) and (value > 0.0 or (zero and value == 0.0))):
            self._refuse(name, "a number >= 0" if zero else "a number above 0")
        return value

    def count(self, name: str, default: int | None) -> Any:
        value = self.number(name, default)
        if value is not None and value != int(value):
            self._refuse(name, "a whole number")
        return value if value is None else int(value)

    def flag(self, name: str) -> bool:
        value = str(self.given.get(name, "false")).lower()
        if value not in ("true", "false", "1", "0"):
            self._refuse(name, "true or false")
        return value in ("true", "1")

    def _refuse(self, name: str, expected: str) -> Any:
        raise BackendError(f"setting {name}: found '{self.given[name]}', expected {expected}")
