"""`simulate`: what a strategy costs on a GPU."""

from __future__ import annotations

import sys
from typing import Any

import click

from simulator.cli.command import EXAMPLES, Program
from simulator.cli.options import (
    ENGINE_SETTINGS,
    GROUPS,
    add_options,
    check_strategy_options,
    chosen,
    device_choices,
    missing_options,
    strategy_parameters,
)
from simulator.cli.progress import ProgressBar
from simulator.cli.show import given_options, show_list, show_report
from simulator.errors import UserError
from simulator.result import SimulationResult
from simulator.scenario import Scenario, installed_version, simulate_scenario
from simulator.strategies import get_strategy

SHORT_HELP = """Usage: simulate --gpu NAME --strategy NAME [OPTIONS]

What a test-time-compute strategy costs on a GPU that you may not own: time, tokens, memory, energy, money.

  simulate --gpu orin --strategy pdr       try it
  simulate traffic --help                  what happens when requests arrive at a server
  simulate --list gpus                     also: --list models, --list strategies, --list traces
  simulate --help                          all options, with examples
"""


def _show_version(ctx: click.Context, _: click.Parameter, asked: bool) -> None:
    if asked and not ctx.resilient_parsing:
        click.echo(f"simulate (tokenflight) {installed_version()}")
        ctx.exit()


@click.group(
    cls=Program,
    groups=GROUPS,
    examples=EXAMPLES,
    invoke_without_command=True,
    context_settings={"max_content_width": 110, "help_option_names": ["-h", "--help"]},
    subcommand_metavar="[COMMAND]",
)
@add_options
@click.option(
    "--version", is_flag=True, is_eager=True, expose_value=False, callback=_show_version, help="Show the version, exit."
)
@click.pass_context
def simulate(ctx: click.Context, **values: Any) -> None:
    """Simulate an LLM inference strategy on a GPU that you may not own.

    Or, with a command behind it, something else: `simulate traffic` answers what happens when requests arrive.

    Prints wall time with its 90 % interval, tokens, TTFT and TPOT, memory, power, energy, cost, where the time goes,
    and every assumption made. Names that are not known get the nearest known ones. Exit codes: 0 done, 2 a mistake in
    what you gave (one sentence on stderr), 130 interrupted.
    """
    given = given_options(ctx)
    if ctx.invoked_subcommand is not None:
        if given:
            name = ctx.invoked_subcommand
            raise UserError(f"{given[0]} stands before '{name}'; expected it behind: simulate {name} {given[0]} ...")
        return
    if not given:
        click.echo(SHORT_HELP, nl=False)
        return
    if values["what"] is not None:
        show_list(values["what"], values["as_json"], given)
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
    missing_options(values, {name: f"see: simulate --list {what}" for name, what in lists.items()})
    parameters = chosen(values, strategy_parameters())
    check_strategy_options(get_strategy(values["strategy"]), parameters)
    return Scenario(
        **device_choices(values),
        strategy=values["strategy"],
        engine_settings=chosen(values, ENGINE_SETTINGS),
        repetitions=values["repetitions"],
        strategy_parameters=parameters,
    )


def _show_result(result: SimulationResult, as_json: bool) -> None:
    if as_json:
        from simulator.report.json_out import result_json

        print(result_json(result))
        return
    from simulator.report.table import build_report

    show_report(build_report(result))


def main() -> None:
    """Entry point of the `simulate` command."""
    simulate(prog_name="simulate")


if __name__ == "__main__":
    main()
