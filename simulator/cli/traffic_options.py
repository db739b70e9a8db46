"""The options of `simulate traffic`, grouped for `--help`; device, engine and money as in `simulate`."""

from __future__ import annotations

from collections.abc import Callable

import click

from simulator.cli.explain import explain_options
from simulator.cli.options import (
    ABOVE_ZERO,
    ENGINE_SETTINGS,
    OUTPUT,
    AtLeast,
    Number,
    decorated,
    device_options,
    engine_options,
    option,
    seed_and_money_options,
)
from simulator.engine.routing import ROUTINGS
from simulator.engine.settings import SCHEDULING_POLICIES
from simulator.traffic.speculation import METHODS
from simulator.workload.arrivals import MAX_BURSTINESS, MAX_RATE_PER_S, MIN_BURSTINESS, MIN_RATE_PER_S
from simulator.workload.loads import MAX_REQUESTS
from simulator.workload.trace_selection import MAX_SPEED, MIN_SPEED

LOADS = ("open_loop", "closed_loop", "burst", "static_batch", "parallel_sampling")
LISTS = ("gpus", "models", "traces")
TRAFFIC_ENGINE_SETTINGS = (*ENGINE_SETTINGS, "scheduling_policy", "async_scheduling")
DEFAULT_REQUESTS = 1000  # as `vllm bench serve`
MAX_REPLICAS = 10_000  # of each kind

_SERVES, _ARRIVES, _TRACE, _ENGINE, _REPLICAS, _SPECULATIVE, _MONEY = (
    "What serves",
    "What arrives (token counts: 1024, uniform:512:1024, lognormal:MEAN:SIGMA or file:PATH)",
    "Traces",
    "Serving engine (vLLM's names)",
    "Replicas",
    "Speculative decoding",
    "Seed and money",
)
TRAFFIC_GROUPS = (_ARRIVES, _TRACE, _SERVES, _ENGINE, _REPLICAS, _SPECULATIVE, _MONEY, OUTPUT)


def add_traffic_options(command: Callable) -> Callable:
    """Put every option of `simulate traffic` on the function."""
    options = [
        *_arrives(),
        *_trace(),
        *device_options(_SERVES),
        *engine_options(_ENGINE, limits="that of vLLM's server on this GPU"),
        *_more_engine(),
        *_replicas(),
        *_speculative(),
        *seed_and_money_options(_MONEY),
        *_output(),
    ]
    return decorated(command, options)


def _between(low: float, high: float) -> Number:
    return Number(lambda value: low <= value <= high, f"a number from {low:g} to {high:g}")


def _arrives() -> list[Callable]:
    whole = AtLeast(1, MAX_REQUESTS)
    return [
        option(
            _ARRIVES,
            "--rate",
            "--request-rate",
            "rate",
            metavar="RATE",
            help="Requests per second, which arrive whatever the server does: 4 (Poisson), gamma:4:0.5 (rate, "
            "burstiness), constant:4, piecewise:60x2,60x10 (60 s at 2, 60 s at 10, and again) or inf (all at once).",
        ),
        option(
            _ARRIVES,
            "--concurrency",
            type=whole,
            metavar="N",
            help="So many clients, each sends its next request when its last one has ended; size of a static batch, "
            "number of parallel samples.",
        ),
        option(
            _ARRIVES,
            "--load",
            type=click.Choice(LOADS),
            help="Kind of load.  [default: open_loop with --rate, closed_loop with --concurrency]",
        ),
        option(
            _ARRIVES,
            "--requests",
            "--num-prompts",
            "requests",
            type=whole,
            metavar="N",
            help=f"Number of requests.  [default: {DEFAULT_REQUESTS}, or all of a trace]",
        ),
        option(_ARRIVES, "--input", "input_lengths", metavar="TOKENS", help="Length of the prompts."),
        option(_ARRIVES, "--output", "output_lengths", metavar="TOKENS", help="Length of the answers."),
        option(
            _ARRIVES,
            "--burstiness",
            type=_between(MIN_BURSTINESS, MAX_BURSTINESS),
            metavar="X",
            help="Of arrivals at --rate: 1 is Poisson, below 1 they come in clusters, above 1 more evenly.",
        ),
        option(
            _ARRIVES,
            "--shared-prefix-tok",
            type=AtLeast(0),
            metavar="N",
            help="Tokens in front of --input that prompts of a group have in common.  [default: 0]",
        ),
        option(_ARRIVES, "--prefix-groups", type=whole, metavar="N", help="Number of such groups.  [default: 1]"),
    ]


def _trace() -> list[Callable]:
    return [
        option(
            _TRACE,
            "--trace",
            metavar="NAME|FILE",
            help="Requests of a trace by name (--list traces) or of your file: CSV with t_s,input_tok,output_tok, "
            "Azure, Mooncake, ShareGPT, prompts. With --rate or --concurrency only its lengths.",
        ),
        option(_TRACE, "--trace-format", metavar="NAME", help="Format of the file.  [default: recognised]"),
        option(
            _TRACE,
            "--window",
            metavar="FROM:TO",
            help="Only requests from FROM up to TO seconds after the first, or from FROM: to the end; FROM becomes the "
            "start.",
        ),
        option(
            _TRACE,
            "--time-scale",
            type=_between(1.0 / MAX_SPEED, 1.0 / MIN_SPEED),
            metavar="X",
            help="Multiply the times of the trace: 0.5 lets it come twice as fast.",
        ),
        option(
            _TRACE,
            "--trace-rate",
            type=_between(MIN_RATE_PER_S, MAX_RATE_PER_S),
            metavar="RATE",
            help="Scale the times to this mean rate per second.",
        ),
        option(
            _TRACE, "--repeat", is_flag=True, help="Begin the trace again when --requests asks for more than it has."
        ),
        option(
            _TRACE,
            "--trace-block-tok",
            type=AtLeast(1),
            metavar="N",
            help="Tokens per block in a file that names shared blocks (Mooncake).  [default: 512]",
        ),
    ]


def _more_engine() -> list[Callable]:
    return [
        option(
            _ENGINE,
            "--scheduling-policy",
            type=click.Choice(SCHEDULING_POLICIES),
            help="Order of the queue: first come first served, or by the priorities of a trace.  [default: fcfs]",
        ),
        option(
            _ENGINE,
            "--async-scheduling/--no-async-scheduling",
            default=None,
            help="Schedule the next step while the GPU computes this one.  [default: as the engine's version does]",
        ),
        option(
            _ENGINE,
            "--offline",
            is_flag=True,
            help="vLLM's LLM class instead of its server: larger default limits, no HTTP.",
        ),
    ]


def _replicas() -> list[Callable]:
    return [
        option(
            _REPLICAS,
            "--data-parallel-size",
            type=AtLeast(1, MAX_REPLICAS),
            default=1,
            metavar="N",
            help="Replicas of the engine, each on its own devices.  [default: 1]",
        ),
        option(
            _REPLICAS,
            "--routing",
            type=click.Choice(list(ROUTINGS)),
            default="round_robin",
            help="Which replica gets a request.  [default: round_robin]",
        ),
        option(
            _REPLICAS,
            "--prefill-replicas",
            type=AtLeast(0, MAX_REPLICAS),
            default=0,
            metavar="N",
            help="So many replicas more that only prefill; those of --data-parallel-size then only decode.  "
            "[default: 0, all do both]",
        ),
        option(
            _REPLICAS,
            "--kv-transfer-gb-per-s",
            type=ABOVE_ZERO,
            metavar="GB/S",
            help="Link over which KV caches go from prefill to decode.  [default: from the data sheet]",
        ),
    ]


def _speculative() -> list[Callable]:
    return [
        option(
            _SPECULATIVE,
            "--speculative-tokens",
            type=AtLeast(1),
            metavar="N",
            help="Tokens proposed per step, which turns speculative decoding on.",
        ),
        option(
            _SPECULATIVE,
            "--acceptance-rate",
            type=_between(0.0, 1.0),
            metavar="P",
            help="Probability that a proposed token is accepted when those before it are.",
        ),
        option(
            _SPECULATIVE,
            "--speculative-method",
            type=click.Choice(METHODS),
            help="Who proposes: the prompt's own n-grams, an EAGLE head or a draft model.  [default: ngram, or draft "
            "with --speculative-model]",
        ),
        option(_SPECULATIVE, "--speculative-model", metavar="NAME|FILE", help="Draft model."),
    ]


def _output() -> list[Callable]:
    return [
        option(
            OUTPUT,
            "--goodput",
            multiple=True,
            metavar="NAME:MS",
            help="Limit in milliseconds that a good request meets: ttft:500, tpot:50 or e2el:20000; several in a row "
            "as in vllm bench serve, or the option again.",
        ),
        option(OUTPUT, "--json", "as_json", is_flag=True, help="One JSON object on stdout."),
        option(OUTPUT, "--detail", is_flag=True, help="With every request, in --json and --bench-json."),
        option(OUTPUT, "--bench-json", metavar="FILE", help="Result in the form of vllm bench serve --save-result."),
        option(OUTPUT, "--requests-csv", metavar="FILE", help="One row per request."),
        option(OUTPUT, "--steps-csv", metavar="FILE", help="One row per stretch of equal engine steps."),
        option(OUTPUT, "--plot", metavar="FILE", help="Server over time and latencies as .png, .svg or .pdf."),
        *explain_options(),
        option(OUTPUT, "--list", "what", type=click.Choice(LISTS), help="Show what is known, and simulate nothing."),
    ]
