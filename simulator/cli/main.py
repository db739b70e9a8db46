"""`simulate`: what a strategy costs on a GPU."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from simulator.cli.command import Program
from simulator.cli.options import (
    ENGINE_SETTINGS,
    KV_CACHE_DTYPES,
    add_options,
    check_strategy_options,
    chosen,
    strategy_parameters,
)
from simulator.cli.progress import ProgressBar
from simulator.errors import UserError
from simulator.result import SimulationResult
from simulator.scenario import Scenario, installed_version, simulate_scenario
from simulator.strategies import get_strategy

if TYPE_CHECKING:
    from simulator.report.listing import Listing

SHORT_HELP = """Usage: simulate --gpu NAME --strategy NAME [OPTIONS]

What a test-time-compute strategy costs on a GPU that you may not own: time, tokens, memory, energy, money.

  simulate --gpu orin --strategy pdr       try it
  simulate --list gpus                     also: --list models, --list strategies
  simulate --help                          all options, with examples
"""


def _show_version(ctx: click.Context, _: click.Parameter, asked: bool) -> None:
    if asked and not ctx.resilient_parsing:
        click.echo(f"simulate (tokenflight) {installed_version()}")
        ctx.exit()


@click.group(
    cls=Program,
    invoke_without_command=True,
    context_settings={"max_content_width": 110, "help_option_names": ["-h", "--help"]},
    subcommand_metavar="",
)
@add_options
@click.option(
    "--version", is_flag=True, is_eager=True, expose_value=False, callback=_show_version, help="Show the version, exit."
)
@click.pass_context
def simulate(ctx: click.Context, **values: Any) -> None:
    """Simulate an LLM inference strategy on a GPU that you may not own.

    Prints wall time with its 90 % interval, tokens, TTFT and TPOT, memory, power, energy, cost, where the time goes,
    and every assumption made. Names that are not known get the nearest known ones. Exit codes: 0 done, 2 a mistake in
    what you gave (one sentence on stderr), 130 interrupted.
    """
    if ctx.invoked_subcommand is not None:
        return
    sources = {parameter: ctx.get_parameter_source(parameter.name) for parameter in ctx.command.params}
    given = [parameter for parameter, source in sources.items() if source == ParameterSource.COMMANDLINE]
    if not given:
        click.echo(SHORT_HELP, nl=False)
        return
    if values["what"] is not None:
        extra = [parameter.opts[0] for parameter in given if parameter.name not in ("what", "as_json")]
        if extra:
            raise UserError(f"--list simulates nothing, so it cannot be combined with {', '.join(extra)}")
        _show_list(values["what"], values["as_json"])
        return
    _simulate(values)


def _simulate(values: dict[str, Any]) -> None:
    """Fly and report."""
    scenario = _scenario(values)
    if values["plot"] is not None:
        from simulator.report.gantt import check_plot_path

        check_plot_path(values["plot"])  # before minutes are spent on simulating
    with ProgressBar("repetitions") as bar:
        result = simulate_scenario(scenario, progress=bar)
    if values["plot"] is not None:
        from simulator.report.gantt import save_gantt

        path = save_gantt(result, values["plot"])
        print(f"simulate: wrote {path}", file=sys.stderr)
    _show_result(result, values["as_json"])


def _scenario(values: dict[str, Any]) -> Scenario:
    """The options as a scenario. UserError when the two that are needed are not there."""
    lists = {"gpu": "gpus", "strategy": "strategies"}
    missing = [f"--{name} (see: simulate --list {lists[name]})" for name in lists if values[name] is None]
    if missing:
        raise UserError(f"missing {' and '.join(missing)}")
    parameters = chosen(values, strategy_parameters())
    check_strategy_options(get_strategy(values["strategy"]), parameters)
    return Scenario(
        gpu=values["gpu"],
        strategy=values["strategy"],
        model=values["model"],
        weights=values["weights"],
        activations=values["activations"],
        kv_cache=KV_CACHE_DTYPES[values["kv_cache_dtype"]],
        power_mode=values["power_mode"],
        calibration=values["calibration"],
        engine_settings=chosen(values, ENGINE_SETTINGS),
        enforce_eager=values["enforce_eager"],
        tensor_parallel_size=values["tensor_parallel_size"],
        pipeline_parallel_size=values["pipeline_parallel_size"],
        enable_expert_parallel=values["enable_expert_parallel"],
        engine=values["engine"],
        step_by_step=values["step_by_step"],
        repetitions=values["repetitions"],
        seed=values["seed"],
        usd_per_hour=values["usd_per_hour"],
        usd_per_kwh=values["usd_per_kwh"],
        strategy_parameters=parameters,
    )


def _show_result(result: SimulationResult, as_json: bool) -> None:
    if as_json:
        from simulator.report.json_out import result_json

        print(result_json(result))
        return
    from simulator.report.table import build_report

    report = build_report(result)
    if sys.stdout.isatty():
        from simulator.report.terminal import print_report

        print_report(report)
    else:
        from simulator.report.plain import render_plain

        print(render_plain(report), end="")


def _show_list(what: str, as_json: bool) -> None:
    from simulator.report.json_out import rows_json
    from simulator.report.listing import render_listing

    listing = _listing(what)
    if as_json:
        print(rows_json(listing.objects))
    elif sys.stdout.isatty():
        from simulator.report.terminal import print_listing

        print_listing(listing)
    else:
        print(render_listing(listing), end="")


def _listing(what: str) -> Listing:
    """The `--list` table of `what`: one of options.LISTS."""
    from simulator.report import listing

    if what == "gpus":
        from simulator.device import list_devices
        from simulator.profile_choice import load_calibration

        return listing.list_gpus([(device, load_calibration(device)) for device in list_devices()])
    if what == "models":
        from simulator.model import list_models, load_model

        return listing.list_models([(summary, load_model(summary.name)) for summary in list_models()])
    from simulator.strategies import list_strategies

    return listing.list_strategies(list_strategies())


def main() -> None:
    """Entry point of the `simulate` command."""
    simulate(prog_name="simulate")


if __name__ == "__main__":
    main()
