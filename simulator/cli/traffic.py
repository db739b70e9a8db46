"""`simulate traffic`: what happens when requests arrive at a server."""

from __future__ import annotations

import re
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

from simulator.cli.command import SubCommand
from simulator.cli.explain import (
    PLOT_OPTION,
    check_explain_plot,
    explanation_of,
    show_explanation,
    with_explanation,
    written_plot,
)
from simulator.cli.options import chosen, device_choices, missing_options
from simulator.cli.progress import ProgressBar
from simulator.cli.show import given_options, show_list, show_report
from simulator.cli.traffic_options import TRAFFIC_ENGINE_SETTINGS, TRAFFIC_GROUPS, add_traffic_options
from simulator.errors import UserError

if TYPE_CHECKING:
    from simulator.planning.explain.explanation import Explanation
    from simulator.traffic.result import TrafficResult
    from simulator.traffic.scenario import TrafficScenario

EXAMPLES = """
Examples:
  Four requests per second on one H100, with limits on what users wait for:
    simulate traffic --gpu h100 --model llama-3.1-8b --rate 4 --requests 500 --input 1024 --output 256 \\
      --goodput ttft:500 tpot:30
  Thirty-two clients that wait for their answers, a shared system prompt, four replicas:
    simulate traffic --gpu a100 --model llama-3.1-8b --concurrency 32 --requests 2000 --input 512 --output 128 \\
      --shared-prefix-tok 1000 --data-parallel-size 4 --routing prefix_aware
  Ten minutes of a production trace, a picture and every request as CSV:
    simulate traffic --gpu h100 --model llama-3.1-8b --trace azure-2023-conv --window 0:600 --plot traffic.png \\
      --requests-csv requests.csv
  One batch to the end; the numbers as vllm bench serve would have saved them:
    simulate traffic --gpu l4 --model llama-3.1-8b --weights fp8 --load static_batch --concurrency 16 \\
      --input 512 --output 512 --bench-json bench.json
  What is known:
    simulate traffic --list traces
"""

OUTPUT_FILES = {
    "bench_json": "--bench-json",
    "requests_csv": "--requests-csv",
    "steps_csv": "--steps-csv",
    "plot": "--plot",
    "explain_plot": PLOT_OPTION,
}
INPUT_FILES = {
    "trace": "--trace",
    "gpu": "--gpu",
    "model": "--model",
    "calibration": "--calibration",
    "speculative_model": "--speculative-model",
}


@click.command(
    "traffic",
    cls=SubCommand,
    groups=TRAFFIC_GROUPS,
    examples=EXAMPLES,
    short_help="What happens when requests arrive at a server.",
    context_settings={"max_content_width": 110, "help_option_names": ["-h", "--help"]},
    options_metavar="--gpu NAME --rate RATE --input TOKENS --output TOKENS [OPTIONS]",
)
@add_traffic_options
@click.argument("more_goodput", nargs=-1, metavar="")
@click.pass_context
def traffic(ctx: click.Context, more_goodput: tuple[str, ...], **values: Any) -> None:
    """Simulate requests that arrive at a server like vLLM's on a GPU that you may not own.

    Prints TTFT, TPOT, ITL and end-to-end times with p50, p90 and p99, throughput and goodput, batch, queue and KV
    cache, power, energy and cost, 90 % intervals, every assumption, and says so when the server is overloaded.
    """
    values["goodput"] = _all_goodput(ctx, values["goodput"], more_goodput)
    given = given_options(ctx)
    if not given:
        click.echo(ctx.get_usage() + "\n\nTry: simulate traffic --help")
        return
    if values["what"] is not None:
        show_list(values["what"], values["as_json"], given)
        return
    _serve(values)


def _all_goodput(ctx: click.Context, given: tuple[str, ...], more: tuple[str, ...]) -> tuple[str, ...]:
    """--goodput takes several values in a row, as in vLLM's benchmark; any other stray word is a mistake."""
    stray = [word for word in more if not given or not re.match(r"[a-z0-9]+:", word)]
    if stray:
        ctx.fail(f"unexpected argument '{stray[0]}'; a GPU goes behind --gpu, a trace behind --trace")
    return (*given, *more)


def _serve(values: dict[str, Any]) -> None:
    """Simulate, write the files that were asked for, and report."""
    from simulator.cli.traffic_loads import goodput
    from simulator.traffic import scenario as engine  # by its module, so that it is looked up when it is needed

    asked = _scenario(values)
    limits = goodput(values["goodput"])
    _check_outputs(values)
    with ProgressBar("requests") as bar:
        result = replace(engine.simulate_traffic(asked, progress=bar), goodput=limits)
    explanation = explanation_of(values, "traffic", asked, result)
    _write_files(result, explanation, values)
    if values["as_json"]:
        from simulator.report.json_out import object_json

        print(object_json(with_explanation(result.to_dict(values["detail"]), explanation), rows="requests"))
        return
    from simulator.report.traffic_table import build_traffic_report

    show_report(build_traffic_report(result))
    show_explanation(explanation)


def _scenario(values: dict[str, Any]) -> TrafficScenario:
    """The options as a scenario. UserError when something is missing or contradicts itself."""
    from simulator.cli.traffic_loads import build_traffic
    from simulator.traffic.scenario import TrafficScenario

    missing_options(values, {"gpu": "see: simulate --list gpus"})
    if values["kv_transfer_gb_per_s"] is not None and not values["prefill_replicas"]:
        raise UserError("--kv-transfer-gb-per-s is the link from --prefill-replicas, and there are none")
    speculative = _speculative(values)
    if speculative is not None and values["prefill_replicas"]:
        raise UserError("--speculative-tokens together with --prefill-replicas cannot be simulated")
    return TrafficScenario(
        **device_choices(values),
        traffic=build_traffic(values),
        engine_settings=chosen(values, TRAFFIC_ENGINE_SETTINGS),
        data_parallel_size=values["data_parallel_size"],
        routing=values["routing"],
        prefill_replicas=values["prefill_replicas"],
        kv_transfer_gb_per_s=values["kv_transfer_gb_per_s"],
        speculative=speculative,
        offline=values["offline"],
    )


def _speculative(values: dict[str, Any]) -> Any:
    """Settings of speculative decoding; None without --speculative-tokens."""
    names = ("acceptance_rate", "speculative_method", "speculative_model")
    tokens, model = values["speculative_tokens"], values["speculative_model"]
    if tokens is None:
        extra = [f"--{name.replace('_', '-')}" for name in names if values[name] is not None]
        if extra:
            raise UserError(f"{extra[0]} needs --speculative-tokens: how many tokens are proposed per step")
        return None
    rate = values["acceptance_rate"]
    if rate is None:
        raise UserError("missing --acceptance-rate: the probability that a proposed token is accepted, from 0 to 1")
    from simulator.traffic.speculation import SpeculativeSettings

    method = values["speculative_method"] or ("ngram" if model is None else "draft")
    if (method == "draft") != (model is not None):
        found = f"--speculative-method {method} {'with' if model is not None else 'without'} --speculative-model"
        raise UserError(f"{found}: a draft needs a model, and no other method takes one")
    return SpeculativeSettings(num_speculative_tokens=tokens, acceptance_rate=rate, method=method, model=model)


def _check_outputs(values: dict[str, Any]) -> None:
    """What can be told about output files before minutes are spent on simulating."""
    from simulator.report.paths import check_apart, check_writable

    if values["detail"] and not (values["as_json"] or values["bench_json"]):
        raise UserError("--detail says what --json and --bench-json hold, and neither is asked for")
    outputs = {option: values[name] for name, option in OUTPUT_FILES.items() if values[name] is not None}
    for option, path in outputs.items():
        check_writable(option, path)
    if values["plot"] is not None:
        from simulator.report.gantt import check_plot_path

        check_plot_path(values["plot"])
    check_explain_plot(values["explain_plot"])
    check_apart(outputs, {option: values[name] for name, option in INPUT_FILES.items()})


def _write_files(result: TrafficResult, explanation: Explanation | None, values: dict[str, Any]) -> None:
    """Every file that was asked for; which ones is told on stderr."""
    written = []
    if values["bench_json"] is not None:
        from simulator.cli.traffic_loads import asked_rate
        from simulator.report.traffic_json import write_json
        from simulator.traffic.bench_json import bench_json

        rate, burstiness = asked_rate(values)
        saved = bench_json(result, request_rate=rate, burstiness=burstiness, detail=values["detail"])
        written.append(write_json(saved, values["bench_json"]))
    if values["requests_csv"] is not None or values["steps_csv"] is not None:
        from simulator.traffic.frames import request_columns, step_columns, write_csv

        if values["requests_csv"] is not None:
            written.append(write_csv(request_columns(result.served.requests), values["requests_csv"]))
        if values["steps_csv"] is not None:
            written.append(write_csv(step_columns(result.served.steps), values["steps_csv"]))
    if values["plot"] is not None:
        from simulator.report.traffic_figure import save_traffic_figure

        written.append(save_traffic_figure(result, values["plot"]))
    written += written_plot(explanation, values["explain_plot"])
    for path in written:
        print(f"simulate: wrote {path}", file=sys.stderr)
