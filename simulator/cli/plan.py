"""`simulate plan`: the cheapest deployments that meet limits, and what an edge device can do within its limits."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

from simulator.cli.command import SubCommand
from simulator.cli.options import KV_CACHE_DTYPES, chosen
from simulator.cli.plan_options import DEFAULT_GPUS, PLAN_GROUPS, SHARED_SETTINGS, add_plan_options
from simulator.cli.progress import ProgressBar
from simulator.cli.show import given_options
from simulator.errors import UserError

if TYPE_CHECKING:
    from simulator.planning.capacity.candidates import Space
    from simulator.planning.capacity.limits import Limit
    from simulator.planning.capacity.workload import Workload

EXIT_INFEASIBLE = 1
EXAMPLES = """
Examples:
  The cheapest way to serve 40 requests per second within two limits, eight GPUs to choose from:
    simulate plan --model llama-3.1-8b --rate 40 --input lognormal:800:0.8 --output lognormal:250:0.7 \\
      --slo ttft_p99=2s --slo tpot_p99=50ms --weights bf16,fp8
  A production trace, a fifth in hand, a price of your own, a picture:
    simulate plan --model llama-3.1-8b --trace azure-2023-conv --slo ttft_p99=1s --reserve 1.2 --price h100=2.2 \\
      --plot plan.png
  This robot has 30 W and 12 s:
    simulate plan --edge --gpu orin --strategy pdr --power-cap 30W --slo wall_p90=12s \\
      --model qwen3-0.6b,qwen3-1.7b --weights bf16,int4 --vary rounds=1,2 --vary thinking_tok=128,256
  A strategy for 1,200 questions per hour:
    simulate plan --model qwen3-8b --strategy self_consistency --vary samples=8 --questions-per-hour 1200 \\
      --slo wall_p90=60s --gpu h100,l40s
"""
TRAFFIC_ONLY = {
    "rate": "--rate", "concurrency": "--concurrency", "burstiness": "--burstiness", "input_lengths": "--input",
    "output_lengths": "--output", "shared_prefix_tok": "--shared-prefix-tok", "prefix_groups": "--prefix-groups",
    "requests": "--requests", "trace": "--trace", "trace_format": "--trace-format", "window": "--window",
    "time_scale": "--time-scale", "trace_rate": "--trace-rate",
}  # fmt: skip
STRATEGY_ONLY = {
    "questions_per_hour": "--questions-per-hour", "vary": "--vary", "objective": "--objective",
    "accuracy": "--accuracy", "benchmark": "--benchmark",
}  # fmt: skip
EDGE_ONLY = {"objective": "--objective", "accuracy": "--accuracy", "benchmark": "--benchmark"}
SERVERS_ONLY = {
    "tensor_parallel_size": "--tensor-parallel-size", "pipeline_parallel_size": "--pipeline-parallel-size",
    "replicas": "--replicas", "prefill_replicas": "--prefill-replicas", "max_gpus": "--max-gpus",
    "max_num_seqs": "--max-num-seqs", "max_num_batched_tokens": "--max-num-batched-tokens",
    "questions_per_hour": "--questions-per-hour",
}  # fmt: skip


@click.command(
    "plan",
    cls=SubCommand,
    groups=PLAN_GROUPS,
    examples=EXAMPLES,
    short_help="The cheapest deployments that meet limits; what an edge device can do.",
    context_settings={"max_content_width": 110, "help_option_names": ["-h", "--help"]},
    options_metavar="--model NAME --rate RATE --input TOKENS --output TOKENS --slo NAME=VALUE [OPTIONS]",
)
@add_plan_options
@click.pass_context
def plan(ctx: click.Context, **values: Any) -> None:
    """Find the cheapest deployments that serve a load within limits.

    Candidates that do not fit, or that bounds rule out, are discarded without simulating them; the others are tried in
    the order of their price. Prints the winner with its cost, head-room, binding limit and vLLM command line, the
    probability that the limits hold under the calibration's error, and why the others lost. With --edge: which model,
    number format, power mode and strategy parameters stay within a time and a power.

    Exit codes: 0 found, 1 no candidate meets the limits (and what would do is told), 2 a mistake in what you gave.
    """
    if not given_options(ctx):
        click.echo(ctx.get_usage() + "\n\nTry: simulate plan --help")
        return
    _check_output(values)
    found = _traffic_plan(values) if values["strategy"] is None else _strategy_plan(values)
    ctx.exit(0 if found else EXIT_INFEASIBLE)


def _check_output(values: Mapping[str, Any]) -> None:
    if values["plot"] is not None:
        from simulator.report.gantt import check_plot_path
        from simulator.report.paths import check_apart

        check_plot_path(values["plot"])
        inputs = {f"--{name}": values[name] for name in ("trace", "calibration", "accuracy", "strategy")}
        check_apart({"--plot": values["plot"]}, inputs)


def _refuse(values: Mapping[str, Any], options: Mapping[str, str], why: str) -> None:
    given = [flag for name, flag in options.items() if values[name] not in (None, (), False)]
    if given:
        raise UserError(f"{given[0]} {why}")


# -- traffic -------------------------------------------------------------------------------------------------------


def _traffic_plan(values: dict[str, Any]) -> bool:
    """Plan for requests; whether any deployment was found."""
    from simulator.planning.capacity.limits import parse_limits
    from simulator.planning.capacity.plan import make_plan

    _refuse(values, STRATEGY_ONLY, "needs --strategy")
    if values["edge"]:
        raise UserError("--edge needs --strategy: what the device is to do")
    limits = parse_limits(values["limits"], values["power_cap"])
    space, workload = _space(values), replace(_workload(values), reserve=values["reserve"])
    with ProgressBar("simulations") as bar:
        found = make_plan(space, workload, limits, values["jobs"], values["top"], bar)
    if values["plot"] is not None and found.options:
        _plot(space, workload, limits, found, values)
    if values["as_json"]:
        from simulator.report.json_out import object_json

        print(object_json(found.to_dict(), rows="options"))
    else:
        from simulator.report.plan_text import render_plan

        print(render_plan(found), end="")
    return found.best is not None


def _plot(space: Space, workload: Workload, limits: tuple[Limit, ...], found: Any, values: Mapping[str, Any]) -> None:
    from simulator.planning.capacity.curves import load_curves
    from simulator.planning.capacity.lab import Lab
    from simulator.report.plan_plot import save_plan_plot

    curves = load_curves(Lab(space, workload, limits), found.options, limits, values["jobs"])
    print(f"simulate: wrote {save_plan_plot(found, curves, values['plot'])}", file=sys.stderr)


def _space(values: Mapping[str, Any]) -> Space:
    """The candidates. UserError for unknown names and more than one model."""
    from simulator.device import load_device
    from simulator.model import load_model
    from simulator.planning.capacity.candidates import Space

    if values["model"] is None:
        raise UserError("missing --model: what is served (see: simulate --list models)")
    if len(values["model"]) > 1:
        raise UserError(f"--model: found {len(values['model'])} models, expected one; several go with --edge")
    load_model(values["model"][0])  # an unknown name is told before anything is searched
    gpus = tuple(dict.fromkeys(_sheet(name) for name in values["gpu"] or DEFAULT_GPUS))
    modes = values["power_mode"] or (None,)
    for gpu in gpus:
        for mode in modes:
            load_device(gpu, mode)
    settings = chosen(values, SHARED_SETTINGS)
    fixed = chosen(values, ("engine", "calibration"))
    return Space(
        model=values["model"][0],
        gpus=gpus,
        tp=values["tensor_parallel_size"] or (1, 2, 4, 8),
        pp=values["pipeline_parallel_size"] or (1,),
        expert_parallel={"off": (False,), "on": (True,), "both": (False, True)}[values["expert_parallel"]],
        weights=values["weights"] or (None,),
        kv_cache=_caches(values),
        power_modes=modes,
        max_num_seqs=values["max_num_seqs"] or (64, 256, 1024),
        max_num_batched_tokens=values["max_num_batched_tokens"] or (2048, 8192),
        prefill_replicas=values["prefill_replicas"] or (0,),
        replicas=tuple(sorted(set(values["replicas"] or range(1, 33)))),
        max_devices=values["max_gpus"],
        fixed={**fixed, "engine_settings": settings, "enforce_eager": values["enforce_eager"]},
        kv_transfer_gb_per_s=values["kv_transfer_gb_per_s"],
        usd_per_hour=_prices(values["prices"]),
        usd_per_kwh=values["usd_per_kwh"],
    )


def _sheet(name: str) -> str:
    """The id of a GPU, or the path of a data sheet as it was given."""
    from simulator.device import list_devices, load_device

    found = load_device(name)
    return found.id if any(found.id == known.id for known in list_devices()) and "." not in name else name


def _caches(values: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(KV_CACHE_DTYPES[name] for name in values["kv_cache_dtype"] or ("auto",))


def _prices(texts: tuple[str, ...]) -> dict[str, float]:
    """USD per hour by GPU, out of ("h100=2.5",)."""
    found = {}
    for text in texts:
        name, equals, value = text.partition("=")
        try:
            usd = float(value)
        except ValueError:
            usd = -1.0
        if not equals or not 0.0 <= usd < float("inf"):
            raise UserError(f"--price: found '{text}', expected GPU=USD per hour with USD >= 0, like h100=2.5")
        found[_sheet(name.strip())] = usd
    return found


def _workload(values: dict[str, Any]) -> Workload:
    """What has to be served. UserError when options are missing or contradict each other."""
    from simulator.cli import traffic_loads as loads
    from simulator.planning.capacity import workload as kinds

    given = {**values, "load": None, "repeat": False, "trace_block_tok": None}
    if values["rate"] is not None and values["concurrency"] is not None:
        raise UserError(
            "--rate and --concurrency contradict each other: requests arrive by themselves or wait for answers"
        )
    if values["trace"] is not None:
        return _traced(given)
    _refuse(values, {n: f for n, f in TRAFFIC_ONLY.items() if n in loads.TRACE_ONLY}, "is for a --trace")
    if values["rate"] is None and values["concurrency"] is None:
        raise UserError("missing what has to be served: --rate, --concurrency, --trace or --strategy")
    if values["input_lengths"] is None or values["output_lengths"] is None:
        raise UserError("missing --input or --output: the lengths of prompts and answers, as 1024 or uniform:512:1024")
    texts = loads._prompts(given), loads._lengths(given, "output_lengths")
    requests = values["requests"] or kinds.DEFAULT_REQUESTS
    if values["concurrency"] is not None:
        return kinds.closed_workload(values["concurrency"], *texts, requests, values["seed"])
    return kinds.open_workload(loads.arrivals(given), *texts, requests, values["seed"])


def _traced(given: dict[str, Any]) -> Workload:
    """Requests of a trace at its times, or its lengths at a rate or from clients."""
    from simulator.cli import traffic_loads as loads
    from simulator.planning.capacity import workload as kinds

    rate, clients = given["rate"], given["concurrency"]
    if rate is None and clients is None:
        return kinds.trace_workload(loads.build_traffic(given), given["seed"])
    found = loads.build_traffic({**given, "requests": None})
    requests = given["requests"] or kinds.DEFAULT_REQUESTS
    if clients is not None:
        return kinds.closed_lengths(clients, found, requests, given["seed"])
    return kinds.open_lengths(loads.arrivals(given), found, requests, given["seed"])


# -- strategies ----------------------------------------------------------------------------------------------------


def _strategy_plan(values: dict[str, Any]) -> bool:
    """Plan for a strategy; whether anything was found."""
    from simulator.planning.capacity.limits import parse_limits

    _refuse(values, TRAFFIC_ONLY, "is for requests; a --strategy has --questions-per-hour, or --edge")
    if values["reserve"] != 1.0:
        raise UserError("--reserve is for requests; with a --strategy ask for more --questions-per-hour")
    limits = parse_limits(values["limits"], values["power_cap"], strategy=True)
    with ProgressBar("candidates") as bar:
        found = _edge(values, limits, bar) if values["edge"] else _served(values, limits, bar)
    if values["plot"] is not None:
        from simulator.report.plan_plot import save_flight_plot

        print(f"simulate: wrote {save_flight_plot(found, values['plot'])}", file=sys.stderr)
    if values["as_json"]:
        from simulator.report.json_out import object_json

        print(object_json(found.to_dict(), rows="options"))
    else:
        from simulator.report.plan_text import render_flight_plan

        print(render_flight_plan(found), end="")
    return found.best is not None


def _parameters(texts: tuple[str, ...]) -> dict[str, tuple[str, ...]]:
    from simulator.planning.vary import parse_vary

    found: dict[str, tuple[str, ...]] = {}
    for text in texts:
        name, parts = parse_vary(text)
        name = name.replace("-", "_").lstrip("_")
        if name in found:
            raise UserError(f"--vary {text}: {name} is given twice")
        found[name] = parts
    return found


def _edge(values: dict[str, Any], limits: tuple[Limit, ...], bar: ProgressBar) -> Any:
    from simulator.planning.capacity.edge import EdgeSpace, plan_edge

    _refuse(values, SERVERS_ONLY, "is for servers, and --edge is one device")
    if values["gpu"] is None:
        raise UserError("missing --gpu: the device (see: simulate --list gpus)")
    table = None
    if values["accuracy"] is not None:
        from simulator.planning.accuracy.given import read_accuracy

        table = read_accuracy(values["accuracy"], values["benchmark"])
    elif values["benchmark"] is not None:
        raise UserError("--benchmark names one of the benchmarks of --accuracy, and there is none")
    space = EdgeSpace(
        gpus=tuple(dict.fromkeys(_sheet(name) for name in values["gpu"])),
        strategy=values["strategy"],
        models=values["model"] or (None,),
        weights=values["weights"] or (None,),
        kv_cache=_caches(values),
        power_modes=values["power_mode"],
        parameters=_parameters(values["vary"]),
        fixed=_fixed(values),
        repetitions=values["repetitions"],
        seed=values["seed"],
        usd_per_hour=_prices(values["prices"]),
    )
    return plan_edge(space, limits, values["objective"], table, values["jobs"], bar)


def _fixed(values: Mapping[str, Any]) -> dict[str, Any]:
    """What all scenarios of a strategy share."""
    settings = {"engine_settings": chosen(values, SHARED_SETTINGS), "enforce_eager": values["enforce_eager"]}
    return {**chosen(values, ("engine", "calibration", "usd_per_kwh")), **settings}


def _served(values: dict[str, Any], limits: tuple[Limit, ...], bar: ProgressBar) -> Any:
    from simulator.planning.capacity.served import Questions, plan_served

    _refuse(values, EDGE_ONLY, "goes with --edge")
    if values["questions_per_hour"] is None:
        raise UserError("missing --questions-per-hour, or --edge for one question at a time on one device")
    if values["prefill_replicas"] not in (None, (0,)):
        raise UserError("--prefill-replicas is for requests, and a --strategy flies on whole replicas")
    parameters = _parameters(values["vary"])
    several = [name for name, parts in parameters.items() if len(parts) > 1]
    if several:
        raise UserError(f"--vary {several[0]}: on servers a parameter has one value; several go with --edge")
    space = _space({**values, "max_num_seqs": values["max_num_seqs"] or (256,),
                    "max_num_batched_tokens": values["max_num_batched_tokens"] or (8192,)})  # fmt: skip
    asked = Questions(
        values["strategy"],
        values["questions_per_hour"] / 3600.0,
        {name: parts[0] for name, parts in parameters.items()},
        values["seed"],
    )
    return plan_served(space, asked, limits, values["top"], bar)
