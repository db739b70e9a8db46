"""The options of `simulate`, grouped for `--help`; those of the strategies are made from the registry."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import click

from simulator.engine.settings import EngineSettings
from simulator.errors import UserError
from simulator.strategies import Parameter, Strategy, list_strategies

WEIGHTS = ("bf16", "fp16", "fp32", "fp8", "fp8-block", "int8", "int4", "mxfp4", "nvfp4")
ACTIVATIONS = ("bf16", "fp16", "fp32", "fp8", "int8", "mxfp4", "nvfp4")
# vLLM's names of KV cache types, and ours.
KV_CACHE_DTYPES = {
    "auto": "auto",
    "bfloat16": "bf16",
    "float16": "fp16",
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

_FLIGHT, _ENGINE, _STATISTICS, OUTPUT, _STRATEGY = (
    "What flies",
    "Serving engine (vLLM's names)",
    "Repetitions and money",
    "Output",
    "Parameters of the strategies (token counts: 1024, uniform:512:1024, lognormal:MEAN:SIGMA or file:PATH)",
)
GROUPS = (_FLIGHT, _ENGINE, _STATISTICS, OUTPUT, _STRATEGY)


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


def add_options(command: Callable) -> Callable:
    """Put every option of `simulate` on the function."""
    return decorated(
        command,
        [
            *device_options(_FLIGHT)[:1],
            option(_FLIGHT, "--strategy", metavar="NAME", help="Inference strategy by name (--list strategies)."),
            *device_options(_FLIGHT)[1:],
            *engine_options(_ENGINE),
            *_statistics(),
            *_output(),
            *_strategy_options(),
        ],
    )


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
            default="auto",
            help="Number format of the KV cache.  [default: auto, as the model computes]",
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


def _statistics() -> list[Callable]:
    return [
        option(
            _STATISTICS,
            "--repetitions",
            type=AtLeast(1),
            default=20,
            metavar="N",
            help="Flights with newly drawn lengths, over which p50 and p90 are taken.  [default: 20]",
        ),
        *seed_and_money_options(_STATISTICS),
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


def _output() -> list[Callable]:
    return [
        option(OUTPUT, "--json", "as_json", is_flag=True, help="One JSON object on stdout, with all calls."),
        option(OUTPUT, "--plot", metavar="FILE", help="Gantt chart and power trace as .png, .svg or .pdf."),
        option(OUTPUT, "--list", "what", type=click.Choice(LISTS), help="Show what is known, and simulate nothing."),
    ]


def strategy_parameters() -> dict[str, list[tuple[Strategy, Parameter]]]:
    """Parameter name -> the strategies that take it, each with its own default; in the registry's order."""
    found: dict[str, list[tuple[Strategy, Parameter]]] = {}
    for strategy in list_strategies():
        for parameter in strategy.parameters:
            found.setdefault(parameter.name, []).append((strategy, parameter))
    return found


def _strategy_options() -> list[Callable]:
    every = len(list_strategies())
    return [
        option(
            _STRATEGY,
            f"--{name.replace('_', '-')}",
            name,
            help=_parameter_help(uses, every),
            metavar="N" if uses[0][1].kind == "int" else "TOKENS",
        )
        for name, uses in strategy_parameters().items()
    ]


def _parameter_help(uses: list[tuple[Strategy, Parameter]], every: int) -> str:
    """'Drafts per round.  [pdr: 8]': the strategies that take it, each with its default."""
    text = uses[0][1].help
    by_default: dict[str, list[str]] = {}
    for strategy, parameter in uses:
        by_default.setdefault(str(parameter.default), []).append(strategy.name)
    if len(uses) == every and len(by_default) == 1:
        takers = f"all: {uses[0][1].default}"
    else:
        takers = "; ".join(f"{', '.join(names)}: {default}" for default, names in by_default.items())
    return f"{text[:1].upper()}{text[1:]}.  [{takers}]"


def check_strategy_options(strategy: Strategy, given: Mapping[str, Any]) -> None:
    """UserError when a strategy option was given that this strategy does not take."""
    taken = [parameter.name for parameter in strategy.parameters]
    extra = [name for name in given if name not in taken]
    if extra:
        words, known = ((", ".join(f"--{n.replace('_', '-')}" for n in names)) for names in (extra, taken))
        raise UserError(f"strategy '{strategy.name}' does not take {words}; it takes {known}")


def chosen(values: Mapping[str, Any], names: Any) -> dict[str, Any]:
    """The options among `names` that the user gave."""
    return {name: values[name] for name in names if values.get(name) is not None}


def device_choices(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values of `device_options`, `engine_options` and prices as fields of a scenario, engine settings left out."""
    same = (
        "gpu", "model", "weights", "activations", "power_mode", "calibration", "enforce_eager",
        "max_cudagraph_capture_size", "tensor_parallel_size", "pipeline_parallel_size", "enable_expert_parallel",
        "engine", "step_by_step", "seed", "usd_per_hour", "usd_per_kwh",
    )  # fmt: skip
    return {name: values[name] for name in same} | {"kv_cache": KV_CACHE_DTYPES[values["kv_cache_dtype"]]}


def missing_options(values: Mapping[str, Any], hints: Mapping[str, str]) -> None:
    """UserError when an option of `hints` is not given; the hint says where its values are found."""
    missing = [f"--{name} ({hint})" for name, hint in hints.items() if values[name] is None]
    if missing:
        raise UserError(f"missing {' and '.join(missing)}")
