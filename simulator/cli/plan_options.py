"""The options of `simulate plan`, grouped for `--help`. Candidates are lists: 1,2,4,8 or 1..8 or 1..64*2."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import click

from simulator.cli.options import (
    ABOVE_ZERO,
    FRACTION,
    KV_CACHE_DTYPES,
    OUTPUT,
    PRICE,
    WEIGHTS,
    AtLeast,
    Number,
    decorated,
    option,
)
from simulator.errors import UserError
from simulator.planning.capacity.flights import OBJECTIVES
from simulator.planning.capacity.search import FINALISTS
from simulator.planning.vary import parse_vary

_LOAD, _TRACE, _LIMITS, _CANDIDATES, _SHARED, _STRATEGY, _MONEY = (
    "What has to be served (token counts: 1024, uniform:512:1024, lognormal:MEAN:SIGMA or file:PATH)",
    "Traces",
    "Limits",
    "Candidates (lists: 1,2,4 or 1..8 or 1..64*2; all combinations are searched)",
    "What all candidates share",
    "Strategies: questions on servers, or on one device (--edge)",
    "Seed, money, work",
)
PLAN_GROUPS = (_LOAD, _TRACE, _LIMITS, _CANDIDATES, _SHARED, _STRATEGY, _MONEY, OUTPUT)
# Eight GPUs that can be rented, from the cheapest to the fastest.
DEFAULT_GPUS = ("l4", "a10g", "rtx-4090", "l40s", "a100-sxm-80gb", "h100-sxm", "h200-sxm", "b200-sxm")
SHARED_SETTINGS = (
    "max_model_len",
    "gpu_memory_utilization",
    "block_size",
    "enable_prefix_caching",
    "enable_chunked_prefill",
)
RESERVE = Number(lambda factor: 1.0 <= factor <= 100.0, "a number from 1 to 100")


class Values(click.ParamType):
    """A list of values, as `--vary` of a sweep reads it, each converted by `each`."""

    name = "list"

    def __init__(self, each: click.ParamType | None = None) -> None:
        self.each = each

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple:
        if isinstance(value, tuple):
            return value
        name = param.opts[0] if param is not None else "a list"
        try:
            _, texts = parse_vary(f"{name}={value}")
        except UserError as error:
            message = str(error).removeprefix("--vary ")
            self.fail(f"found '{value}': {message.partition(': ')[2]}", param, ctx)
        return texts if self.each is None else tuple(self.each.convert(text, param, ctx) for text in texts)


WHOLE = Values(AtLeast(1))


def add_plan_options(command: Callable) -> Callable:
    """Put every option of `simulate plan` on the function."""
    groups = (_load, _trace, _limits, _candidates, _shared, _strategy, _money, _output)
    return decorated(command, [each for group in groups for each in group()])


def _load() -> Sequence[Callable]:
    return [
        option(_LOAD, "--rate", metavar="RATE", help="Requests per second in all: 40 (Poisson), gamma:40:0.5, "
               "constant:40 or piecewise:60x20,60x60."),
        option(_LOAD, "--concurrency", type=AtLeast(1), metavar="N",
               help="So many clients in all instead, each of whom waits for the answer."),
        option(_LOAD, "--burstiness", type=ABOVE_ZERO, metavar="X",
               help="Of arrivals at --rate: below 1 they come in clusters."),
        option(_LOAD, "--input", "input_lengths", metavar="TOKENS", help="Length of the prompts."),
        option(_LOAD, "--output", "output_lengths", metavar="TOKENS", help="Length of the answers."),
        option(_LOAD, "--shared-prefix-tok", type=AtLeast(0), metavar="N",
               help="Tokens in front of --input that prompts of a group have in common."),
        option(_LOAD, "--prefix-groups", type=AtLeast(1), metavar="N", help="Number of such groups.  [default: 1]"),
        option(_LOAD, "--requests", type=AtLeast(100), metavar="N", help="Requests that a simulated replica serves, or "
               "requests of a trace.  [default: 2000, or all of a trace]"),
        option(_LOAD, "--reserve", type=RESERVE, default=1.0, metavar="X",
               help="Plan for so many times the load: 1.2 keeps a fifth in hand.  [default: 1]"),
    ]  # fmt: skip


def _trace() -> Sequence[Callable]:
    return [
        option(_TRACE, "--trace", metavar="NAME|FILE", help="Requests of a trace (simulate traffic --list traces) at "
               "their times; with --rate or --concurrency only its lengths."),
        option(_TRACE, "--trace-format", metavar="NAME", help="Format of the file.  [default: recognised]"),
        option(_TRACE, "--window", metavar="FROM:TO", help="Only requests of these seconds."),
        option(_TRACE, "--time-scale", type=ABOVE_ZERO, metavar="X", help="Multiply its times: 0.5 is twice as fast."),
        option(_TRACE, "--trace-rate", type=ABOVE_ZERO, metavar="RATE", help="Scale its times to this mean rate."),
    ]  # fmt: skip


def _limits() -> Sequence[Callable]:
    return [
        option(_LIMITS, "--slo", "limits", multiple=True, metavar="NAME=VALUE", help="A limit with its unit, may be "
               "repeated: ttft, tpot, itl, e2e or queue with _p50, _p90, _p99 or _mean (ttft_p99=2s, tpot_p90=50ms), "
               "energy_per_answer=500J, energy_per_token=1J, power=5kW; for strategies wall_p90=8s."),
        option(_LIMITS, "--power-cap", metavar="WATTS", help="The same as --slo power=..., like 30W."),
    ]  # fmt: skip


def _candidates() -> Sequence[Callable]:
    formats, caches = Values(click.Choice(WEIGHTS)), Values(click.Choice(list(KV_CACHE_DTYPES)))
    return [
        option(_CANDIDATES, "--gpu", type=Values(), metavar="LIST", help="GPUs by name, or data sheets of yours.  "
               f"[default: {','.join(DEFAULT_GPUS)}]"),
        option(_CANDIDATES, "--model", type=Values(), metavar="LIST", help="The model; on the edge several."),
        option(_CANDIDATES, "--weights", type=formats, metavar="LIST", help="Number formats of the weights: bf16,fp8.  "
               "[default: the model's own]"),
        option(_CANDIDATES, "--kv-cache-dtype", type=caches, metavar="LIST", help="Those of the KV cache: auto,fp8.  "
               "[default: auto]"),
        option(_CANDIDATES, "--power-mode", type=Values(), metavar="LIST", help="Power modes, or caps as 300W.  "
               "[default: the device's own; on the edge all]"),
        option(_CANDIDATES, "--tensor-parallel-size", type=WHOLE, metavar="LIST", help="GPUs over which layers are "
               "split.  [default: 1,2,4,8]"),
        option(_CANDIDATES, "--pipeline-parallel-size", type=WHOLE, metavar="LIST", help="Stages.  [default: 1]"),
        option(_CANDIDATES, "--expert-parallel", type=click.Choice(("off", "on", "both")), default="off",
               help="Whole experts on each GPU instead of slices.  [default: off]"),
        option(_CANDIDATES, "--replicas", type=WHOLE, metavar="LIST", help="Numbers of replicas.  [default: 1..32]"),
        option(_CANDIDATES, "--prefill-replicas", type=Values(AtLeast(0)), metavar="LIST",
               help="Replicas besides that only prefill (disaggregated): 0,1,2.  [default: 0]"),
        option(_CANDIDATES, "--max-gpus", type=AtLeast(1), metavar="N", help="GPUs in all.  [default: no limit]"),
        option(_CANDIDATES, "--max-num-seqs", type=WHOLE, metavar="LIST",
               help="Most sequences in one step.  [default: 64,256,1024]"),
        option(_CANDIDATES, "--max-num-batched-tokens", type=WHOLE, metavar="LIST",
               help="Most tokens in one step.  [default: 2048,8192]"),
    ]  # fmt: skip


def _shared() -> Sequence[Callable]:
    return [
        option(_SHARED, "--max-model-len", type=AtLeast(1), metavar="N", help="Longest sequence."),
        option(_SHARED, "--gpu-memory-utilization", type=FRACTION, metavar="X", help="[default: 0.9]"),
        option(_SHARED, "--block-size", type=AtLeast(1), metavar="N", help="Tokens per KV block.  [default: 16]"),
        option(_SHARED, "--enable-prefix-caching/--no-enable-prefix-caching", default=None,
               help="[default: enabled]"),
        option(_SHARED, "--enable-chunked-prefill/--no-enable-chunked-prefill", default=None,
               help="[default: enabled]"),
        option(_SHARED, "--enforce-eager", is_flag=True, help="Run without CUDA graphs."),
        option(_SHARED, "--kv-transfer-gb-per-s", type=ABOVE_ZERO, metavar="GB/S",
               help="Link from --prefill-replicas.  [default: from the data sheet]"),
        option(_SHARED, "--engine", metavar="NAME[:VERSION]", help="Whose overheads.  [default: the newest vllm]"),
        option(_SHARED, "--calibration", metavar="FILE", help="Calibration profile.  [default: that of each GPU]"),
    ]  # fmt: skip


def _strategy() -> Sequence[Callable]:
    return [
        option(_STRATEGY, "--strategy", metavar="NAME|FILE", help="Inference strategy (simulate --list strategies)."),
        option(_STRATEGY, "--questions-per-hour", type=ABOVE_ZERO, metavar="N",
               help="Questions that servers have to answer with it."),
        option(_STRATEGY, "--edge", is_flag=True, help="One question at a time on one device instead: which model, "
               "format, power mode and parameters stay within the limits."),
        option(_STRATEGY, "--vary", multiple=True, metavar="NAME=LIST",
               help="Parameters of the strategy: width=2,4,8; on servers one value each. May be repeated."),
        option(_STRATEGY, "--objective", type=click.Choice(OBJECTIVES), help="What is best on the edge.  [default: "
               "accuracy where it is given, else compute behind an answer]"),
        option(_STRATEGY, "--accuracy", metavar="NAME|FILE", help="CSV with accuracies by setting, or a table that "
               "ships."),
        option(_STRATEGY, "--benchmark", metavar="NAME", help="Which benchmark of --accuracy."),
        option(_STRATEGY, "--repetitions", type=AtLeast(1, 1000), default=8, metavar="N",
               help="Flights of each candidate on the edge.  [default: 8]"),
    ]  # fmt: skip


def _money() -> Sequence[Callable]:
    return [
        option(_MONEY, "--price", "prices", multiple=True, metavar="GPU=USD",
               help="Price of one GPU per hour, may be repeated.  [default: from the data sheet, from memory]"),
        option(_MONEY, "--usd-per-kwh", type=PRICE, metavar="USD", help="Electricity on top.  [default: 0.15 for "
               "bought devices; rent includes it]"),
        option(_MONEY, "--seed", type=AtLeast(0), default=0, metavar="N", help="[default: 0]"),
        option(_MONEY, "--jobs", type=AtLeast(1, 1024), default=1, metavar="N", help="Processes.  [default: 1]"),
        option(_MONEY, "--top", type=AtLeast(1, 50), default=FINALISTS, metavar="N",
               help=f"Finalists that are looked for.  [default: {FINALISTS}]"),
    ]  # fmt: skip


def _output() -> Sequence[Callable]:
    return [
        option(OUTPUT, "--json", "as_json", is_flag=True, help="One JSON object on stdout."),
        option(
            OUTPUT, "--plot", metavar="FILE", help="Cost against head-room, limits against load (.png, .svg, .pdf)."
        ),
    ]
