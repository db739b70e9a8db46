"""Options that the commands share: types of values, what runs where, the engine, statistics, output."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import click

from simulator.engine.settings import EngineSettings
from simulator.errors import UserError
from simulator.precision import SCHEMES

WEIGHTS = ("bf16", "fp16", "fp32", "fp8", "fp8-block", "int8", "int4", "mxfp4", "nvfp4")
ACTIVATIONS = ("bf16", "fp16", "fp32", "fp8", "int8", "mxfp4", "nvfp4")
# vLLM's names of KV cache types, and ours.
KV_CACHE_DTYPES = {
    "auto": "auto",
    "bfloat16": "bf16",
    "float16": "fp16",
    "float32": "fp32",
    "fp8": "fp8",
    "fp8_e4m3": "fp8",
    "fp8_e5m2": "fp8",
}
LISTS = ("gpus", "models", "strategies", "traces")
ENGINE_SETTINGS = (
    "max_num_seqs",
    "max_num_batched_tokens",
    "max_model_len",
    "gpu_memory_utilization",
    "block_size",
    "enable_prefix_caching",
    "enable_chunked_prefill",
)

OUTPUT = "Output"


class AtLeast(click.ParamType):
    """A whole number from `least` to `most`; 1e3 is one, too."""

    name = "integer"

    def __init__(self, least: int, most: int | None = None) -> None:
        self.least = least
        self.most = most

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        number = _whole(value)
        if number is None or number < self.least or (self.most is not None and number > self.most):
            expected = f">= {self.least}" if self.most is None else f"from {self.least:,} to {self.most:,}"
            self.fail(f"found '{value}', expected a whole number {expected}", param, ctx)
        return number


def _whole(value: Any) -> int | None:
    """`value` as a whole number; None when it is not one."""
    try:
        return int(value)
    except ValueError:
        pass
    try:
        number = float(value)
    except ValueError:
        return None
    return int(number) if number.is_integer() else None


class Number(click.ParamType):
    """A finite number that passes `check`; `expected` says in words what passes."""

    name = "number"

    def __init__(self, check: Callable[[float], bool], expected: str) -> None:
        self.check = check
        self.expected = expected

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        try:
            number = float(value)
        except ValueError:
            number = math.nan
        if not (math.isfinite(number) and self.check(number)):
            self.fail(f"found '{value}', expected {self.expected}", param, ctx)
        return number


PRICE = Number(lambda usd: usd >= 0.0, "a finite number >= 0")
FRACTION = Number(lambda share: 0.0 < share <= 1.0, "a number above 0 and at most 1")
ABOVE_ZERO = Number(lambda value: value > 0.0, "a finite number above 0")


class GroupedOption(click.Option):
    """An option that knows under which heading `--help` shows it."""

    def __init__(self, *args: Any, group: str = OUTPUT, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.group = group


def option(group: str, *names: str, **kwargs: Any) -> Callable:
    """A click option decorator with a heading."""
    return click.option(*names, cls=GroupedOption, group=group, **kwargs)


def decorated(command: Callable, options: Sequence[Callable]) -> Callable:
    """`command` with `options`, in their order; click wants the last one first."""
    for decorate in reversed(options):
        command = decorate(command)
    return command


def device_options(group: str) -> list[Callable]:
    """What runs where, and on which calibration the answer rests: the same for every command that simulates."""
    return [
        option(group, "--gpu", metavar="NAME|FILE", help="GPU by name (--list gpus), or a TOML data sheet of yours."),
        option(
            group,
            "--model",
            metavar="NAME|FILE",
            help="Model by name (--list models), or a Hugging Face config.json of yours.  [default: the largest "
            "of a ladder of reasoning models that leaves room for the KV cache]",
        ),
        option(
            group,
            "--weights",
            type=click.Choice(WEIGHTS),
            help="Number format of the weights.  [default: the model's own]",
        ),
        option(
            group,
            "--activations",
            type=click.Choice(ACTIVATIONS),
            help="Number format of the arithmetic: bf16 with fp8 or int8 weights is weight-only, fp32 with bf16 "
            "weights is LayerCast.  [default: as vLLM computes these weights on this GPU]",
        ),
        option(
            group,
            "--kv-cache-dtype",
            type=click.Choice(list(KV_CACHE_DTYPES)),
            help="Number format of the KV cache.  [default: auto, as the model computes]",
        ),
        option(
            group,
            "--scheme",
            type=click.Choice(list(SCHEMES)),
            help="These three in one word: layercast stores bf16 weights and computes in fp32, w4a16 has int4 weights, "
            "w8a8 has weights and arithmetic in 8 bit.",
        ),
        option(group, "--power-mode", metavar="NAME", help="Power mode of a Jetson, as nvpmodel has it: MAXN, 30W."),
        option(
            group,
            "--calibration",
            metavar="FILE",
            help="Calibration profile.  [default: the one fitted on this GPU, or defaults of its architecture]",
        ),
    ]


def engine_options(group: str, limits: str | None = None) -> list[Callable]:
    """How one replica of the engine runs, under vLLM's names; `limits`: where its limits of a step come from."""
    defaults = asdict(EngineSettings())
    if limits is not None:
        defaults |= {"max_num_seqs": limits, "max_num_batched_tokens": limits}
    whole = AtLeast(1)

    def setting(name: str, help_text: str, **kwargs: Any) -> Callable:
        shown = f"{help_text}  [default: {defaults[name]}]" if defaults[name] is not None else help_text
        return option(group, f"--{name.replace('_', '-')}", help=shown, metavar="N", **kwargs)

    return [
        setting("max_num_seqs", "Most sequences in one step.", type=whole),
        setting("max_num_batched_tokens", "Most tokens in one step, prefill and decode together.", type=whole),
        setting("max_model_len", "Longest sequence, prompt and output.  [default: the model's own]", type=whole),
        setting("gpu_memory_utilization", "Fraction of the memory that the engine may fill.", type=FRACTION),
        setting("block_size", "Tokens per KV block.", type=whole),
        option(
            group,
            "--enable-prefix-caching/--no-enable-prefix-caching",
            default=None,
            help="Keep the KV of shared prefixes.  [default: enabled]",
        ),
        option(
            group,
            "--enable-chunked-prefill/--no-enable-chunked-prefill",
            default=None,
            help="Compute long prompts in pieces, beside decoding.  [default: enabled]",
        ),
        option(group, "--enforce-eager", is_flag=True, help="Run without CUDA graphs."),
        option(
            group,
            "--max-cudagraph-capture-size",
            type=whole,
            metavar="N",
            help="Most tokens of a step that replays a CUDA graph; steps are padded to the next recorded size.  "
            "[default: as the engine's version does]",
        ),
        option(
            group,
            "--tensor-parallel-size",
            type=whole,
            default=1,
            metavar="N",
            help="Devices over which every layer is split.  [default: 1]",
        ),
        option(
            group,
            "--pipeline-parallel-size",
            type=whole,
            default=1,
            metavar="N",
            help="Stages into which the layers are divided.  [default: 1]",
        ),
        option(
            group,
            "--enable-expert-parallel",
            is_flag=True,
            help="Whole experts on each device of the tensor-parallel group instead of a slice of every expert.",
        ),
        option(
            group,
            "--engine",
            metavar="NAME[:VERSION]",
            help="Whose overheads: vllm, vllm:0.7, sglang, trtllm, llama.cpp, megatron.  [default: the newest vllm]",
        ),
        option(
            group,
            "--step-by-step",
            is_flag=True,
            help="Simulate every engine step by itself: slower, the same result to 1e-9.",
        ),
    ]


def statistics_options(group: str) -> list[Callable]:
    """Repetitions, their seed, and money."""
    return [
        option(
            group,
            "--repetitions",
            type=AtLeast(1),
            default=20,
            metavar="N",
            help="Flights with newly drawn lengths, over which p50 and p90 are taken.  [default: 20]",
        ),
        *seed_and_money_options(group),
    ]


def seed_and_money_options(group: str) -> list[Callable]:
    """The seed of whatever is drawn, and prices per device."""
    return [
        option(
            group,
            "--seed",
            type=AtLeast(0),
            default=0,
            metavar="N",
            help="The same seed gives the same bytes.  [default: 0]",
        ),
        option(
            group,
            "--usd-per-hour",
            type=PRICE,
            metavar="USD",
            help="Rent of the GPU.  [default: from the data sheet; bought devices are written off over 3 years]",
        ),
        option(
            group,
            "--usd-per-kwh",
            type=PRICE,
            metavar="USD",
            help="Price of electricity.  [default: 0.15 for bought devices; rent includes it]",
        ),
    ]


def chosen(values: Mapping[str, Any], names: Any) -> dict[str, Any]:
    """The options among `names` that the user gave."""
    return {name: values[name] for name in names if values.get(name) is not None}


def device_choices(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values of `device_options`, `engine_options` and prices as fields of a scenario, engine settings left out."""
    same = (
        "gpu", "model", "power_mode", "calibration", "enforce_eager",
        "max_cudagraph_capture_size", "tensor_parallel_size", "pipeline_parallel_size", "enable_expert_parallel",
        "engine", "step_by_step", "seed", "usd_per_hour", "usd_per_kwh",
    )  # fmt: skip
    return {name: values[name] for name in same} | _precision(values)


def _precision(values: Mapping[str, Any]) -> dict[str, str | None]:
    """Number formats from their three options and --scheme. UserError when these contradict each other."""
    names = {"weights": "--weights", "activations": "--activations", "kv_cache": "--kv-cache-dtype"}
    given = {name: values[option.removeprefix("--").replace("-", "_")] for name, option in names.items()}
    found = {**given, "kv_cache": KV_CACHE_DTYPES[given["kv_cache"] or "auto"]}
    for name, wanted in SCHEMES.get(values["scheme"], {}).items():
        if given[name] is not None and found[name] != wanted:
            asked, what = f"--scheme {values['scheme']}", "its KV cache" if name == "kv_cache" else name
            raise UserError(f"{asked} has {what} in {wanted}, found {names[name]} {given[name]}: leave one of both out")
        found[name] = wanted
    return found


def missing_options(values: Mapping[str, Any], hints: Mapping[str, str]) -> None:
    """UserError when an option of `hints` is not given; the hint says where its values are found."""
    missing = [f"--{name} ({hint})" for name, hint in hints.items() if values[name] is None]
    if missing:
        raise UserError(f"missing {' and '.join(missing)}")
